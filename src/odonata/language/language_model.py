"""What people touch: a decoder with its tokenizer, that continues texts, talks, and is converted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from odonata.engine.checkpoint import weights_file
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.language.assets import DecoderAssets, LoRA
from odonata.language.decoder import Decoder, DecoderConfig
from odonata.language.generate import Completions, Stop, generate
from odonata.language.sampling import Sampling
from odonata.language.sequences import pad_sequences, token_logprobs
from odonata.nn.lora import lora_state_dict, merge_lora
from odonata.text.chat import Message
from odonata.text.text_tokenizer import TextTokenizer
from odonata.weights.decoders import files_of, is_decoder, read_decoder
from odonata.weights.layout import Files
from odonata.weights.maps import check_fit
from odonata.weights.peft import peft_files
from odonata.weights.published import write_folder
from odonata.weights.read import read_state

Text = str | Sequence[Message]
"""A text to go on from, or a conversation to answer."""
Heard = Callable[[Sequence[int]], None]
"""Takes the tokens of a completion so far."""


@dataclass(frozen=True)
class Said:
    """One completion."""

    text: str
    """Without special tokens."""
    ids: tuple[int, ...]
    """Its tokens, the end token included."""
    logprob: float
    """Of all of it, under the distribution it was drawn from."""
    finished: bool
    """Whether it came to an end, rather than to the limit."""

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"text": self.text, "tokens": len(self.ids), "logprob": self.logprob, "finished": self.finished}


@dataclass
class LanguageModel:
    """A decoder in evaluation mode, and what belongs to it.

    Args:
        decoder: the network, adapters merged.
        assets: its sizes, tokenizer and template.
        device: where it is.
        name: of the directory, or of the run's method.
        notes: what was inferred in reading.
        adapters: those that a run trained, under our names, and what they were made with; merged in the network.
    """

    decoder: Decoder
    assets: DecoderAssets
    device: torch.device
    name: str = ""
    notes: list[str] = field(default_factory=list[str])
    adapters: tuple[dict[str, Tensor], LoRA] | None = None

    @property
    def tokenizer(self) -> TextTokenizer:
        """Text to ids and back."""
        return self.assets.tokenizer

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end what it writes."""
        return self.assets.tokenizer.eos_ids

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Return the ids of a prompt: a text as it stands, a conversation through the chat template.

        Raises:
            DataError: it has no token, or the template refuses it.
        """
        return prompt_ids(self.tokenizer, prompt, self.assets.template)

    def generate(
        self,
        prompts: Sequence[Text],
        *,
        n: int = 1,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        batch_rows: int = 64,
        heard: Heard | None = None,
    ) -> list[list[Said]]:
        """Continue each prompt in `n` ways.

        Args:
            prompts: texts, or conversations.
            n: ways.
            max_new_tokens: of a completion at most.
            sampling: how tokens are drawn; by default at temperature 1.
            seed: of all chance; each row has a stream of its own.
            stop: texts that end a completion; they stay in it.
            batch_rows: completions made at a time.
            heard: is told the tokens so far of each completion, whenever there is one more.

        Raises:
            DataError: a prompt is empty or too long.
            RecipeError: `sampling` is no distribution, or a text in `stop` is empty.
        """
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        found = generate(
            self.decoder, ids, max_new_tokens=max_new_tokens, eos_ids=self.eos_ids, sampling=sampling, group=n,
            seeds=seed, pad_id=self.tokenizer.pad_id, batch_rows=batch_rows, stop=self._stop(stop, heard),
        )  # fmt: skip
        said = self.said(found)
        return [said[i * n : (i + 1) * n] for i in range(len(ids))]

    def said(self, found: Completions) -> list[Said]:
        """Return completions as text."""
        sums, finished = found.logprobs.sum(1).tolist(), found.finished.tolist()
        return [
            Said(self.tokenizer.decode(row), tuple(row), total, ended)
            for row, total, ended in zip(found.lists(), sums, finished, strict=True)
        ]

    def _stop(self, texts: Sequence[str], heard: Heard | None) -> Stop | None:
        if not texts and heard is None:
            return None
        if not all(texts):
            raise RecipeError("--stop is empty: it would end every completion before it begins")
        # A token is a byte at least: a text of k bytes lies within the last k tokens, and one that it may begin inside.
        tail = max((len(text.encode()) for text in texts), default=0) + 1

        def stopped(ids: Sequence[int]) -> bool:
            if heard is not None:
                heard(ids)
            said = self.tokenizer.decode(ids[-tail:])
            return any(text in said for text in texts)

        return stopped

    @torch.no_grad()
    def logprob(self, prompt: Text, completion: str) -> float:
        """Return the log-probability of a completion, its end token included."""
        ids = [*self.tokenizer.encode(completion), self.tokenizer.end()]
        batch = pad_sequences([self.prompt_ids(prompt)], [ids], self.tokenizer.pad_id)
        moved = dataclasses.replace(batch, ids=batch.ids.to(self.device), scored=batch.scored.to(self.device))
        return float(token_logprobs(self.decoder, moved)[0].sum())

    def convert(self, folder: Path, layout: str = "hf") -> list[Path]:
        """Write the model as transformers, vLLM and llama.cpp read it; return the files.

        Args:
            folder: to write.
            layout: `hf`: the whole model, adapters merged; `peft`: the adapters alone.

        Raises:
            WeightsError: another layout, an architecture or a model that has no such form, or a folder that is not
                empty.
        """
        if layout == "peft":
            if self.adapters is None:
                raise WeightsError("--to peft: the run trained no adapters (--lora.rank); write the model with --to hf")
            state, lora = self.adapters
            return write_folder(
                folder,
                peft_files(
                    state, self.assets.config.to_dict(), rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout,
                    targets=lora.targets,
                ),
            )  # fmt: skip
        if layout != "hf":
            raise WeightsError(f"--to {layout}: a language model is written as hf, its adapters as peft")
        return write_folder(folder, published_files(self.decoder.state_dict(), self.assets))


def prompt_ids(tokenizer: TextTokenizer, prompt: Text, template: str = "auto") -> list[int]:
    """Return the ids of a prompt.

    Raises:
        DataError: it has no token, or the template refuses it.
    """
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt, special=True)
    else:
        ids = tokenizer.encode(tokenizer.chat(prompt, template))  # the template writes special tokens itself
    if not ids:
        raise DataError("a prompt of no tokens: give the model something to go on from")
    return ids


def published_files(state: dict[str, Tensor], assets: DecoderAssets) -> Files:
    """Return the files of a model in the published layout.

    Raises:
        WeightsError: no published architecture has its options.
    """
    return with_assets(files_of(state, assets.config.to_dict(), assets.published or None), assets)


def with_assets(files: Files, assets: DecoderAssets) -> Files:
    """Return a model's files with those of its tokenizer, and with what its configuration says of end and padding."""
    tokenizer = assets.tokenizer
    config = cast("dict[str, Any]", files.texts["config.json"])
    eos = list(tokenizer.eos_ids)
    ends = {"eos_token_id": eos if len(eos) > 1 else eos[0]} if eos else {}
    ends |= {"pad_token_id": tokenizer.pad_id}
    ends |= {"bos_token_id": tokenizer.bos_id} if tokenizer.bos_id is not None else {}
    texts: dict[str, Any] = {name: content.decode() for name, content in tokenizer.files.items()}
    texts["config.json"] = {**ends, **config} if assets.published else {**config, **ends}
    texts["generation_config.json"] = assets.generation or ends
    return dataclasses.replace(files, texts=texts)


def recognises(path: Path) -> bool:
    """Return whether a directory holds a decoder."""
    return path.is_dir() and is_decoder(path)


def read_folder(path: Path) -> tuple[Decoder, DecoderAssets, list[str]]:
    """Return decoder, assets and notes of a directory as transformers writes it.

    Raises:
        WeightsError: names the file that is missing, or what does not fit.
    """
    found = read_decoder(path)
    config = DecoderConfig.from_dict(found.fields)
    decoder = Decoder(config)
    stored = {str(value.dtype).removeprefix("torch.") for value in found.state.values()} - {"float32"}
    state = {name: value.float() for name, value in found.state.items()}
    check_fit(state, decoder.state_dict(), str(path))
    decoder.load_state_dict(state)
    tokenizer = TextTokenizer.load(path, ends_of(found.config, found.generation))
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} entries and the embedding {config.vocab_size} rows: "
            "they do not belong together"
        )
    notes = [f"{path}: {found.config['model_type']}, {sum(p.numel() for p in decoder.parameters()):,} weights"]
    if stored:
        notes.append(f"weights stored as {', '.join(sorted(stored))}; they are held, and written again, as float32")
    if tokenizer.template is None:
        notes.append(
            f"{path} has no chat template: conversations are written as plain words, unless --template says how"
        )
    if tokenizer.pad_id in tokenizer.eos_ids:
        notes.append("padding is the end token: masks, not ids, say what is real")
    assets = DecoderAssets(config, tokenizer, published=found.config, generation=found.generation)
    return decoder, assets, [*notes, *found.notes]


def ends_of(config: dict[str, Any], generation: dict[str, Any]) -> list[int]:
    """Return the end tokens that config.json and generation_config.json name, each a number, a list, or nothing."""
    ids: list[int] = []
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids += value if isinstance(value, list) else [] if value is None else [value]
    return list(dict.fromkeys(ids))


def read_run(path: Path, which: str = "best") -> tuple[Decoder, DecoderAssets]:
    """Return the decoder of a run of this room or of posttrain/, adapters merged, and its assets.

    Raises:
        RunError: the run has no checkpoint yet.
        WeightsError: its weights do not fit its description.
    """
    decoder, assets = _read_adapted(path, which)
    if assets.lora.rank:
        merge_lora(decoder)
    return decoder, assets.without_lora()


def _read_adapted(path: Path, which: str) -> tuple[Decoder, DecoderAssets]:
    """Return the decoder of a run with its adapters beside the frozen weights."""
    assets = DecoderAssets.load(path / "assets")
    decoder = assets.make()
    state = read_state(weights_file(path, which)).state
    own = {key.removeprefix("decoder."): value for key, value in state.items() if key.startswith("decoder.")}
    check_fit(own, decoder.state_dict(), str(path))
    decoder.load_state_dict(own)
    return decoder, assets


def open_model(path: str | Path) -> tuple[Decoder, DecoderAssets, list[str]]:
    """Return decoder, assets and notes of a run, or of a directory.

    Raises:
        WeightsError: nothing there that is a language model.
    """
    path = Path(path)
    if (path / "config.yaml").is_file():
        if not (path / "assets" / "decoder.json").is_file():
            raise WeightsError(f"{path} is a run of another kind: it holds no language model")
        return *read_run(path), [f"weights of the run {path}"]
    return read_folder(path)


def load(path: Path, method: str | None, device: torch.device, which: str = "best") -> LanguageModel:
    """Return what generates with a run, or with a directory of published weights.

    Raises:
        WeightsError: nothing there that is a language model.
    """
    adapters = None
    if method is not None:
        decoder, assets = _read_adapted(path, which)
        notes = [f"weights of the run {path}"]
        if assets.lora.rank:
            adapters = lora_state_dict(decoder), assets.lora
            merge_lora(decoder)
            assets = assets.without_lora()
    else:
        decoder, assets, notes = read_folder(path)
    return LanguageModel(decoder.eval().to(device), assets, device, method or path.name, notes, adapters)
