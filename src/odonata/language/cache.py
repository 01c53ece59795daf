"""Keys and values of what a decoder has read, in memory that is allocated once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Cache:
    """Room for `capacity` tokens of each row.

    Args:
        layers: of the decoder.
        rows: sequences.
        heads: heads of keys.
        capacity: tokens of a sequence at most.
        head_dim: width of a head.
        like: gives type and device.
    """

    def __init__(self, layers: int, rows: int, heads: int, capacity: int, head_dim: int, like: Tensor) -> None:
        self.capacity, self.length = capacity, 0
        shape = (rows, heads, capacity, head_dim)
        self.keys = [like.new_empty(shape) for _ in range(layers)]
        self.values = [like.new_empty(shape) for _ in range(layers)]

    @property
    def rows(self) -> int:
        """Sequences that it holds."""
        return self.keys[0].shape[0]

    def extend(
        self, layer: int, keys: Float[Tensor, "rows heads time dim"], values: Float[Tensor, "rows heads time dim"]
    ) -> tuple[Float[Tensor, "rows heads total dim"], Float[Tensor, "rows heads total dim"]]:
        """Write what follows and return all that there is; `length` grows when every layer has written.

        Raises:
            ValueError: it is full.
        """
        stop = self.length + keys.shape[2]
        if stop > self.capacity:
            raise ValueError(f"a cache for {self.capacity} tokens cannot take {stop}")
        self.keys[layer][:, :, self.length : stop] = keys
        self.values[layer][:, :, self.length : stop] = values
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]

    def keep(self, rows: Bool[Tensor, " rows"] | Int[Tensor, " kept"]) -> None:
        """Go on with some of the rows, in the order given; a row may come several times."""
        self.keys = [self._taken(part, rows) for part in self.keys]
        self.values = [self._taken(part, rows) for part in self.values]

    def repeat(self, group: int, capacity: int) -> None:
        """Give every row `group` copies side by side, each with room for `capacity` tokens.

        A prompt that is continued in several ways is read once this way.
        """
        rows = torch.arange(self.rows).repeat_interleave(group)
        self.capacity = capacity
        self.keep(rows.to(self.keys[0].device))

    def _taken(self, part: Tensor, rows: Tensor) -> Tensor:
        # Only what is filled is copied: the room behind it holds nothing yet.
        filled = part[:, :, : self.length][rows]
        taken = part.new_empty(filled.shape[0], part.shape[1], self.capacity, part.shape[3])
        taken[:, :, : self.length] = filled
        return taken
