"""Sequences of any length in few rows: each sees only itself.

Notable: rows are filled first fit, longest sequence first; a mask keeps the sequences of a row apart, so that the
answers are those of one by one.

Source: Dehghani et al. 2023, Patch n' Pack: NaViT, arXiv:2307.06304, sec. 2.1 and appendix A.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Sequences packed into rows."""

    tokens: Float[Tensor, "rows length dim"]
    """Sequences one after another, zeros behind the last."""
    mask: Bool[Tensor, "rows 1 length length"]
    """True where a token may be seen: within its own sequence. Padding sees padding, so that no row is empty."""
    spans: tuple[tuple[int, int, int], ...]
    """Row, first and one past the last token of each sequence, in the order in which they came."""

    def unpack(self, tokens: Float[Tensor, "rows length dim"]) -> list[Float[Tensor, "tokens dim"]]:
        """Returns the sequences out of tokens that have been through a network."""
        return [tokens[row, start:end] for row, start, end in self.spans]


def first_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Returns which sequences share a row: each, longest first, goes to the first row that has space.

    Raises:
        ValueError: a sequence is longer than a row.
    """
    if max(lengths, default=0) > row_length:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit a row of {row_length}")
    rows: list[list[int]] = []
    space: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(space) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            space.append(row_length)
        rows[row].append(index)
        space[row] -= lengths[index]
    return rows


def pack(sequences: Sequence[Float[Tensor, "_ dim"]], row_length: int | None = None) -> Packed:
    """Packs sequences into rows.

    Args:
        sequences: tokens of each.
        row_length: tokens in a row; that of the longest sequence if not given.

    Raises:
        ValueError: there is none, or one is longer than a row.
    """
    if not sequences:
        raise ValueError("there is nothing to pack")
    lengths = [len(sequence) for sequence in sequences]
    rows = first_fit(lengths, row_length or max(lengths))
    length = max(sum(lengths[i] for i in row) for row in rows)
    tokens = sequences[0].new_zeros(len(rows), length, sequences[0].shape[1])
    owner = torch.full((len(rows), length), -1, device=tokens.device)
    spans: dict[int, tuple[int, int, int]] = {}
    for number, row in enumerate(rows):
        start = 0
        for index in row:
            end = start + lengths[index]
            tokens[number, start:end] = sequences[index]
            owner[number, start:end] = index
            spans[index] = number, start, end
            start = end
    mask = (owner[:, :, None] == owner[:, None, :])[:, None]
    return Packed(tokens, mask, tuple(spans[i] for i in range(len(sequences))))
