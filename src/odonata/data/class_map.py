"""What a segmenter says of one picture: the class of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from odonata.data.semantic import VOID, Colour

LISTED = 6
"""Classes named in a line for people."""


@dataclass(frozen=True, eq=False)
class ClassMap:
    """A map of classes, as large as its picture.

    Args:
        map: label of every pixel; 255 where nothing is said.
        classes: names, in the order of the labels.
        palette: a colour for each class.
        scores: probability of the pixel's class, where it was asked for.
        image: name of the picture.
    """

    map: UInt8[Tensor, "height width"]
    classes: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()
    scores: Float[Tensor, "height width"] | None = None
    image: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.map.shape[0], self.map.shape[1]

    def __len__(self) -> int:
        """How many classes occur."""
        return len(self.pixels())

    def name_of(self, label: int) -> str:
        """What a label is called."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    def above(self, score: float) -> ClassMap:
        """The same map, void where the class is less sure than this. Without scores nothing is known to be."""
        if self.scores is None or score <= 0:
            return self
        sure = self.map.masked_fill(self.scores < score, VOID)
        return ClassMap(sure, self.classes, self.palette, self.scores, self.image)

    def pixels(self) -> dict[int, int]:
        """Label → its number of pixels, of the classes that occur, the largest first; void is none."""
        counts = torch.bincount(self.map.flatten().long(), minlength=VOID + 1)[:VOID]
        order = counts.argsort(descending=True, stable=True).tolist()
        return {label: int(counts[label]) for label in order if counts[label]}

    def summary(self, threshold: float = 0.0) -> tuple[str, str, str]:
        """One line for people: the picture, how many classes, and which with their shares.

        Args:
            threshold: least score of a pixel that counts, where there are scores.
        """
        found = self.above(threshold).pixels()
        total = max(1, self.map.numel())
        named = [f"{self.name_of(label)} {count / total:.0%}" for label, count in list(found.items())[:LISTED]]
        return self.image, str(len(found)), ", ".join(named) + (", …" if len(found) > LISTED else "")

    def to_dict(self) -> dict[str, Any]:
        """For programs: {image, height, width, classes: [{label, name, pixels, share}]}, the largest first."""
        height, width = self.size
        total = max(1, height * width)
        rows = [
            {"label": label, "name": self.name_of(label), "pixels": count, "share": round(count / total, 6)}
            for label, count in self.pixels().items()
        ]
        return {"image": self.image, "height": height, "width": width, "classes": rows}

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """As COCO's stuff results, a run-length mask a class: [{image_id, category_id, segmentation, score}].

        Args:
            image_id: of the picture; its name where None.
        """
        from odonata.ops.masks import encode

        rows: list[dict[str, Any]] = []
        for label in self.pixels():
            mask = self.map == label
            score = 1.0 if self.scores is None else float(self.scores[mask].mean())
            where = self.image if image_id is None else image_id
            rows.append(
                {"image_id": where, "category_id": label, "segmentation": dict(encode(mask)), "score": round(score, 6)}
            )
        return rows

    def draw(self, picture: Image.Image | UInt8[Tensor, "3 height width"], threshold: float = 0.0) -> Image.Image:
        """The picture with the classes painted onto it, and a legend of those that occur at its right.

        Args:
            picture: as it was given to the segmenter.
            threshold: least score of a pixel that is painted, where there are scores.
        """
        from odonata.data.drawing import draw_class_map
        from odonata.data.images import to_image

        canvas = picture if isinstance(picture, Image.Image) else to_image(picture)
        shown = self.above(threshold).map.cpu().numpy()
        return draw_class_map(canvas, shown, self.palette or None, self.classes)

    def to_image(self) -> Image.Image:
        """As a palette picture: its values are the labels, its colours those of the classes."""
        image = Image.fromarray(np.ascontiguousarray(self.map.cpu().numpy()))
        image.putpalette(_levels(self.palette))
        return image

    def save(self, path: str | Path) -> None:
        """Write the map as a palette PNG, as VOC's are; 255 stands for void."""
        self.to_image().save(path, "PNG")


def _levels(palette: Sequence[Colour]) -> list[int]:
    """The 768 levels of a palette; labels without a colour are grey, void is VOC's cream."""
    rows = [*palette, *([(128, 128, 128)] * (VOID - len(palette))), (224, 224, 192)]
    return [level for colour in rows for level in colour]
