"""What belongs to a tower of this room besides its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odonata.backbones.create import from_plain, to_plain
from odonata.data.preprocess import Preprocess
from odonata.engine.run import write_atomically
from odonata.errors import WeightsError


@dataclass(frozen=True)
class TowerAssets:
    """A tower's configuration, what its pictures go through, and the classes that its classifier knows."""

    tower: Any
    preprocess: Preprocess
    classes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Write `model.json`."""
        write_atomically(folder / "model.json", json.dumps(self.to_plain(), indent=1))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "tower": to_plain(self.tower),
            "preprocess": self.preprocess.to_dict(),
            "classes": list(self.classes),
        }

    @classmethod
    def load(cls, folder: Path) -> TowerAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: it is missing or not what it should be.
        """
        path = folder / "model.json"
        try:
            return cls.from_plain(json.loads(path.read_text()), str(path))
        except (OSError, json.JSONDecodeError) as error:
            raise WeightsError(f"{path}: cannot read the model's description: {error}") from error

    @classmethod
    def from_plain(cls, plain: dict[str, Any], where: str) -> TowerAssets:
        """Return what `to_plain` described.

        Raises:
            WeightsError: it is not what it should be; the message begins with `where`.
        """
        try:
            return cls(from_plain(plain["tower"]), Preprocess.from_dict(plain["preprocess"]), tuple(plain["classes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{where}: cannot read the model's description: {error}") from error
