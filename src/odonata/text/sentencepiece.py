"""Reads a SentencePiece model file: a protocol buffer of which a tokenizer needs a dozen fields.

Source: google/sentencepiece `sentencepiece_model.proto` (messages ModelProto, SentencePiece, TrainerSpec and
NormalizerSpec) and the wire format of protocol buffers.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from odonata.errors import DataError

_BPE = 2


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary: its text, its log-probability (or merge order), and what it is."""

    text: str
    score: float
    kind: int

    NORMAL: ClassVar = 1
    UNKNOWN: ClassVar = 2
    CONTROL: ClassVar = 3
    USER_DEFINED: ClassVar = 4
    UNUSED: ClassVar = 5
    BYTE: ClassVar = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says: the pieces in the order of their ids, and how text is prepared for them."""

    pieces: tuple[Piece, ...]
    is_bpe: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    eos_piece: str
    pad_piece: str

    def merges(self) -> list[tuple[str, str]]:
        """Return a BPE model's merges, best first: every way to make a piece of two others, by the piece's score."""
        scores = {piece.text: piece.score for piece in self.pieces if piece.kind in (Piece.NORMAL, Piece.USER_DEFINED)}
        ids = {piece.text: index for index, piece in enumerate(self.pieces)}
        found: list[tuple[float, int, int, str, str]] = []
        for text, score in scores.items():
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in scores and right in scores:
                    found.append((-score, ids[left], ids[right], left, right))
        return [(left, right) for *_, left, right in sorted(found)]


def read_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read a ``.model`` file.

    Raises:
        DataError: the file is missing or is not a unigram or BPE model.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        model = _model(raw)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a SentencePiece model ({error})") from error
    if not model.pieces:
        raise DataError(f"{path}: not a SentencePiece model (it has no pieces)")
    return model


def _model(raw: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(raw):
        if number == 1:
            pieces.append(_piece(dict(_fields(_bytes(value)))))
        elif number == 2:
            trainer = dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_bytes(value)))
    kind = trainer.get(3, 1)
    if kind not in (1, _BPE):
        raise ValueError(f"model type {kind}; only unigram (1) and BPE (2) are read")
    return SentencePieceModel(
        pieces=tuple(pieces),
        is_bpe=kind == _BPE,
        charsmap=_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        eos_piece=_bytes(trainer.get(47, b"</s>")).decode(),
        pad_piece=_bytes(trainer.get(48, b"<pad>")).decode(),
    )


def _piece(fields: dict[int, int | bytes]) -> Piece:
    (score,) = struct.unpack("<f", _bytes(fields.get(2, bytes(4))))
    kind = fields.get(3, Piece.NORMAL)
    return Piece(_bytes(fields[1]).decode(), score, kind if isinstance(kind, int) else Piece.NORMAL)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The message's fields: integers as they are, everything else as bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(raw, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(raw):
            raise ValueError(f"it ends inside a field at byte {at}")
        yield number, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
