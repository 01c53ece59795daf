"""A figure as it is reported: its value, its interval, over how many samples, and what was chosen to get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A measured value with its 95 % interval, and over how many samples it was taken."""

    value: float
    low: float | None
    high: float | None
    count: int
    note: str = ""
    """Settings that were chosen, or of which kind the interval is where it is not over samples."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        plain: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high, "count": self.count}
        return plain | ({"note": self.note} if self.note else {})
