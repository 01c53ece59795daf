"""What belongs to a detector besides its weights: its method, its configuration, and the table of categories."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odonata.data.objects import Category
from odonata.detect.detector import Detector, DetectorOptions
from odonata.detect.methods import CONFIG_OF, METHOD_OF
from odonata.engine.config_file import from_plain, to_plain
from odonata.engine.run import write_atomically
from odonata.errors import OdonataError, WeightsError


@dataclass(frozen=True)
class DetectorAssets:
    """What a detector is."""

    method: str
    config: DetectorOptions
    """All conventions; no preset is left open."""
    categories: tuple[Category, ...]
    """Labels count the rows of this table."""

    def build(self) -> Detector:
        """Return the detector, randomly initialised."""
        return METHOD_OF[type(self.config)](self.config, len(self.categories))

    def save(self, folder: Path) -> None:
        """Write `model.json`."""
        write_atomically(folder / "model.json", json.dumps(self.to_plain(), indent=1))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values."""
        table = [{"id": category.id, "name": category.name} for category in self.categories]
        return {"detector": self.method, "config": to_plain(self.config), "categories": table}

    @classmethod
    def load(cls, folder: Path) -> DetectorAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: it is missing or not what it should be.
        """
        path = folder / "model.json"
        try:
            plain = json.loads(path.read_text())
            table = tuple(Category(row["id"], row["name"]) for row in plain["categories"])
            config = from_plain(plain["config"], CONFIG_OF[plain["detector"]](), str(path))
            return cls(plain["detector"], config, table)
        except OdonataError as error:
            raise WeightsError(str(error)) from error
        except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: cannot read the model's description: {error}") from error
