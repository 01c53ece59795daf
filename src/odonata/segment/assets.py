"""What belongs to a segmenter besides its weights: its method, its configuration, and the table of classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odonata.data.semantic import Colour
from odonata.engine.config_file import from_plain, to_plain
from odonata.engine.run import write_atomically
from odonata.errors import OdonataError, WeightsError
from odonata.segment.methods import CONFIG_OF, METHOD_OF
from odonata.segment.segmenter import Segmenter, SegmenterOptions


@dataclass(frozen=True)
class SegmenterAssets:
    """What a segmenter is."""

    method: str
    config: SegmenterOptions
    """All conventions; no preset is left open."""
    classes: tuple[str, ...]
    """Labels count the rows of this table."""
    palette: tuple[Colour, ...]
    """A colour for each."""

    def build(self) -> Segmenter:
        """Return the segmenter, randomly initialised."""
        return METHOD_OF[type(self.config)](self.config, len(self.classes))

    def save(self, folder: Path) -> None:
        """Write `model.json`."""
        write_atomically(folder / "model.json", json.dumps(self.to_plain(), indent=1))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values."""
        table = [{"name": n, "colour": list(c)} for n, c in zip(self.classes, self.palette, strict=True)]
        return {"segmenter": self.method, "config": to_plain(self.config), "classes": table}

    @classmethod
    def load(cls, folder: Path) -> SegmenterAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: it is missing or not what it should be.
        """
        path = folder / "model.json"
        try:
            plain = json.loads(path.read_text())
            names = tuple(str(row["name"]) for row in plain["classes"])
            colours = tuple((int(r), int(g), int(b)) for r, g, b in (row["colour"] for row in plain["classes"]))
            config = from_plain(plain["config"], CONFIG_OF[plain["segmenter"]](), str(path))
            return cls(plain["segmenter"], config, names, colours)
        except OdonataError as error:
            raise WeightsError(str(error)) from error
        except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: cannot read the model's description: {error}") from error
