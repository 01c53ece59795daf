"""What a room says of a method's meaning, for `odonata explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NOT_PRINTED = "not printed"
"""Of what a paper does not say."""
UNUSED = "-"
"""Of what another option makes idle."""


class Beside(NamedTuple):
    """One option with its value here, in the paper, and in TRL."""

    flag: str
    here: Any
    paper: Any
    trl: Any

    @property
    def differs(self) -> bool:
        """Whether any two differ, of those that are known and used."""
        known = [_plain(value) for value in (self.here, self.paper, self.trl) if value not in (NOT_PRINTED, UNUSED)]
        return any(value != known[0] for value in known)


def _plain(value: Any) -> Any:
    """Rounds of sampling are a number here, and on or off elsewhere."""
    return bool(value) if isinstance(value, str) and value.endswith("rounds") else value


class Block(NamedTuple):
    """One equation."""

    name: str
    text: str
    source: str
    """Where it is printed."""
    flags: Sequence[str]
    """Options that are in it."""


@dataclass(frozen=True)
class Explanation:
    """Equations, and how defaults differ."""

    equations: Sequence[Block] = ()
    symbols: str = ""
    beside: Sequence[Beside] = ()
    source: str = ""
    """Where the paper's values are printed, and what is not."""
