"""One function opens every kind of tokenizer file."""

from __future__ import annotations

from pathlib import Path

from odonata.errors import DataError
from odonata.text.families import clip_tokenizer, sentencepiece_tokenizer, tokenizer_json, wordpiece_tokenizer
from odonata.text.tokenizer import Tokenizer, read_backend

_END = ("<|endoftext|>", "</s>", "<eos>", "[SEP]")
_START = ("<|startoftext|>", "<s>", "<bos>", "[CLS]")
_PAD = ("<|padding|>", "<pad>", "[PAD]")


def open_tokenizer(path: Path, context_length: int) -> Tokenizer:
    """Return the tokenizer of a file or folder, its kind found from the name.

    Args:
        path: what Odonata saved; CLIP's merges (`bpe_simple_vocab_16e6.txt.gz`); a SentencePiece `.model` (cleaned and
            padded as SigLIP does); a WordPiece `vocab.txt`; or a `tokenizer.json`.
        context_length: ids per caption.

    Raises:
        DataError: nothing there, or none of these.
    """
    if not path.exists():
        raise DataError(f"{path}: no such tokenizer")
    if (path / "odonata_tokenizer.json").is_file():
        return Tokenizer.load(path)
    file = next((path / n for n in ("tokenizer.json", "spiece.model") if (path / n).is_file()), path)
    if file.suffix == ".gz":
        return clip_tokenizer(file, context_length)
    if file.suffix == ".model":
        return sentencepiece_tokenizer(file, "siglip", context_length)
    if file.suffix == ".txt":
        return wordpiece_tokenizer(file, context_length=context_length)
    if file.suffix == ".json":
        backend = read_backend(file)
        present = [[t for t in tokens if backend.token_to_id(t) is not None] for tokens in (_END, _START, _PAD)]
        if not present[0]:
            raise DataError(f"{file}: the vocabulary has no end token; known are {' '.join(_END)}")
        end, start, pad = (tokens[0] if tokens else None for tokens in present)
        assert end is not None
        return tokenizer_json(file, context_length=context_length, eos_token=end, pad_token=pad, bos_token=start)
    raise DataError(
        f"{path}: a tokenizer is a .json, .model, .txt.gz of merges, vocab.txt, or a folder with one of them"
    )
