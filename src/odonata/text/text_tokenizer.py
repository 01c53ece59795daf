"""Text to ids and back for models that write: the tokenizer of a published directory, or a small one of our own.

Notable:
- The files of a directory are kept byte for byte and written out again as they were.
- Which ids end a text is asked of all that say it: tokenizer_config.json, generation_config.json, config.json. Older
  directories name their special tokens in special_tokens_map.json alone, or only the end's number in config.json.
- A model may have no token of its own for padding. Masks say what is real, so the end token can stand in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from odonata.errors import DataError, WeightsError
from odonata.text.chat import TEMPLATES, Message, render

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


class TextTokenizer:
    """A tokenizer with what a model needs around it.

    Args:
        files: name → content, as in a published directory; `tokenizer.json`, or `vocab.json` and `merges.txt`.
        eos_ids: tokens that end a text; more than the configuration names.
        where: what to call it in messages.

    Raises:
        WeightsError: the files are missing or wrong.
    """

    def __init__(self, files: Mapping[str, bytes], eos_ids: Sequence[int] = (), where: str = "tokenizer") -> None:
        self.files, self.where = dict(files), where
        self.backend = _backend(self.files, where)
        self.config = _json(self.files, "tokenizer_config.json", where)
        named = {**_json(self.files, "special_tokens_map.json", where), **self.config}
        found = {name: _token(named.get(name)) for name in ("bos_token", "eos_token", "pad_token")}
        self.tokens = {name: text for name, text in found.items() if text is not None}
        own = self._id_of("eos_token")
        ends = [*([own] if own is not None else []), *eos_ids]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        if "eos_token" not in self.tokens and self.eos_ids:
            self.tokens["eos_token"] = self.backend.id_to_token(self.eos_ids[0]) or ""
        pad = self._id_of("pad_token")
        self.bos_id: int | None = self._id_of("bos_token")
        self.pad_id: int = pad if pad is not None else (self.eos_ids[0] if self.eos_ids else 0)
        # Where padding stands for what a vocabulary of characters lacks, nobody means to say it.
        model: Any = self.backend.model
        stands_in = isinstance(model, models.WordLevel) and model.unk_token == self.tokens.get("pad_token")
        self._lacking: int | None = self.pad_id if stands_in else None
        self.template = _template(self.files, self.config, where)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def _id_of(self, name: str) -> int | None:
        return self.backend.token_to_id(self.tokens[name]) if name in self.tokens else None

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: special tokens in it, such as `<|im_end|>`, become their ids.
            special: whether to add what the tokenizer adds of its own, such as a start token.

        Raises:
            DataError: the vocabulary is of characters, and lacks one.
        """
        ids = self.backend.encode(text, add_special_tokens=special).ids
        if self._lacking in ids:
            lacking = [character for character in dict.fromkeys(text) if self.backend.token_to_id(character) is None]
            if lacking:
                known = "".join(sorted(self.backend.get_vocab()))
                raise DataError(f"{self.where} has no token for {''.join(lacking)!r}; it knows the characters {known}")
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def end(self) -> int:
        """Return the token that ends what this model writes.

        Raises:
            DataError: there is none.
        """
        if not self.eos_ids:
            raise DataError(f"{self.where} names no end token (eos_token), so a model cannot learn to end")
        return self.eos_ids[0]

    def chat(self, messages: Sequence[Message], template: str = "auto", add_generation_prompt: bool = True) -> str:
        """Return a conversation as text.

        Args:
            messages: role and content of each turn.
            template: `auto`: the model's own, or `plain` where it has none; or a name of `odonata.text.chat.TEMPLATES`.
            add_generation_prompt: end with what begins the assistant's turn.

        Raises:
            DataError: no such template, or it refuses the conversation.
        """
        if template != "auto" and template not in TEMPLATES:
            raise DataError(
                f"no chat template {template!r}; there are auto (the model's own) and {', '.join(TEMPLATES)}"
            )
        chosen = (self.template or "plain") if template == "auto" else template
        return render(messages, chosen, add_generation_prompt=add_generation_prompt, tokens=self.tokens)

    def save(self, folder: Path) -> None:
        """Write its files as they were."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path, eos_ids: Sequence[int] = ()) -> TextTokenizer:
        """Read the tokenizer's files of a directory.

        Raises:
            WeightsError: names the file that is missing or wrong.
        """
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
            raise WeightsError(f"{folder} lacks tokenizer.json (or vocab.json and merges.txt), so text cannot be read")
        return cls(files, eos_ids, str(folder))


def characters(alphabet: str, *, pad: str = "_", eos: str = "$") -> TextTokenizer:
    """Return a tokenizer whose tokens are single characters: padding, then the end, then the alphabet.

    Args:
        alphabet: the characters, each once.
        pad: stands for padding.
        eos: ends a text.
    """
    vocab = {character: index for index, character in enumerate(pad + eos + alphabet)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=pad))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens([pad, eos])
    return from_backend(backend, eos=eos, pad=pad)


def from_backend(
    backend: tokenizers.Tokenizer, *, eos: str, pad: str, bos: str | None = None, template: str | None = None
) -> TextTokenizer:
    """Return a tokenizer made here, with the files that transformers would want of it."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": pad}
    config |= {"bos_token": bos} if bos else {}
    config |= {"chat_template": template} if template else {}
    files = {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode(),
    }
    return TextTokenizer(files)


def _backend(files: Mapping[str, bytes], where: str) -> tokenizers.Tokenizer:
    if "tokenizer.json" in files:
        try:
            return tokenizers.Tokenizer.from_str(_text(files, "tokenizer.json", where))
        except Exception as error:  # the Rust side raises plain Exception
            raise WeightsError(f"{where}: tokenizer.json is not a tokenizer: {error}") from error
    vocab = _json(files, "vocab.json", where)
    lines = _text(files, "merges.txt", where).split("\n")
    merges = [
        (left, right)
        for left, _, right in (line.partition(" ") for line in lines if not line.startswith("#version"))
        if right
    ]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the Rust side raises plain Exception
        raise WeightsError(f"{where}: vocab.json and merges.txt do not belong together: {error}") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if "<|endoftext|>" in vocab:
        backend.add_special_tokens(["<|endoftext|>"])
    return backend


def _json(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        return dict(json.loads(files[name]))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{where}: {name} is not a JSON object: {error}") from error


def _text(files: Mapping[str, bytes], name: str, where: str) -> str:
    try:
        return files[name].decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"{where}: {name} is not UTF-8: {error}") from error


def _token(value: Any) -> str | None:
    """Return a token, which stands as text, or as an object that holds it."""
    found = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
    return found if isinstance(found, str) else None


def _template(files: Mapping[str, bytes], config: Mapping[str, Any], where: str) -> str | None:
    if "chat_template.jinja" in files:
        return _text(files, "chat_template.jinja", where)
    found: Any = _json(files, "chat_template.json", where).get("chat_template") or config.get("chat_template")
    try:
        if isinstance(found, list):  # several by name
            found = {entry["name"]: entry["template"] for entry in cast("list[Any]", found)}.get("default")
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{where}: chat_template is no list of names and templates") from error
    if found is not None and not isinstance(found, str):
        raise WeightsError(f"{where}: chat_template is no text")
    return found
