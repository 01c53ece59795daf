"""What a room says of its methods before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

MARKS = ("trains", "parity", "weights", "claim", "manners")
"""What every method must show: it learns, its numbers agree with an independent implementation, published weights go
in and out, the paper's claim is an experiment with a recorded verdict, and bad input gets a clear error."""


@dataclass(frozen=True)
class Card:
    """One method in a room's index. Needs no torch: `odonata list` reads hundreds of these in milliseconds."""

    summary: str
    """One line: what the method does and by which idea."""
    paper: str
    """Authors, year and arXiv number."""
    recipe: str
    """`module:function` that returns the default `Recipe`."""
    claims: tuple[str, ...] = ()
    """Names of the executable claims about this method."""
