"""What a detector says of one picture: boxes, scores, labels, and masks where it has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from odonata.data.objects import Category


@dataclass(frozen=True, eq=False)
class Detections:
    """Found objects, the surest first.

    Args:
        boxes: xyxy in absolute pixels of the picture.
        scores: from 0 to 1.
        labels: place in the table of categories.
        size: (height, width) of the picture.
        categories: the table.
        masks: of each object, as large as the picture.
        points: landmarks of each object, (x, y) in pixels (MTCNN's five).
        image: name of the picture.
        extra: what a method adds, a row an object.
    """

    boxes: Float[Tensor, "objects 4"]
    scores: Float[Tensor, " objects"]
    labels: Int64[Tensor, " objects"]
    size: tuple[int, int]
    categories: tuple[Category, ...] = ()
    masks: Bool[Tensor, "objects height width"] | None = None
    points: Float[Tensor, "objects points 2"] | None = None
    image: str = ""
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __len__(self) -> int:
        return self.boxes.shape[0]

    def name_of(self, label: int) -> str:
        """What a label is called."""
        return self.categories[label].name if label < len(self.categories) else f"class {label}"

    def take(self, chosen: Bool[Tensor, " objects"] | Int64[Tensor, " kept"]) -> Detections:
        """Only the chosen objects, in the order chosen."""
        rows = {"boxes": self.boxes[chosen], "scores": self.scores[chosen], "labels": self.labels[chosen]}
        masks = None if self.masks is None else self.masks[chosen]
        points = None if self.points is None else self.points[chosen]
        return replace(self, **rows, masks=masks, points=points, extra={k: v[chosen] for k, v in self.extra.items()})

    def above(self, score: float) -> Detections:
        """Only objects at least as sure as this."""
        return self.take(self.scores >= score)

    def to(self, device: torch.device | str) -> Detections:
        """The same on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("boxes", "scores", "labels")}
        masks = None if self.masks is None else self.masks.to(device)
        points = None if self.points is None else self.points.to(device)
        return replace(
            self, **moved, masks=masks, points=points, extra={k: v.to(device) for k, v in self.extra.items()}
        )

    def to_dict(self) -> dict[str, Any]:
        """For programs: {image, objects: [{label, name, score, box: [x1, y1, x2, y2], …}]}."""
        found: list[dict[str, Any]] = []
        for number in range(len(self)):
            label = int(self.labels[number])
            row: dict[str, Any] = {
                "label": label,
                "name": self.name_of(label),
                "score": round(float(self.scores[number]), 6),
                "box": [round(value, 3) for value in self.boxes[number].tolist()],
            }
            if self.points is not None:
                row["points"] = [[round(x, 3), round(y, 3)] for x, y in self.points[number].tolist()]
            if self.masks is not None:
                row["mask"] = self._rle(number)
            found.append(row)
        return {"image": self.image, "height": self.size[0], "width": self.size[1], "objects": found}

    def summary(self, threshold: float = 0.0) -> tuple[str, str, str]:
        """One line for people: the picture, how many objects, and which."""
        shown = self.above(threshold)
        counts = Counter(shown.name_of(int(label)) for label in shown.labels)
        what = ", ".join(f"{count} {name}" for name, count in counts.most_common(6))
        return self.image, str(len(shown)), what + (", …" if len(counts) > 6 else "")

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """As COCO's results: [{image_id, category_id, bbox: [x, y, width, height], score, segmentation}].

        Args:
            image_id: of the picture; its name where None.
        """
        rows: list[dict[str, Any]] = []
        for number in range(len(self)):
            x1, y1, x2, y2 = self.boxes[number].tolist()
            label = int(self.labels[number])
            row: dict[str, Any] = {
                "image_id": self.image if image_id is None else image_id,
                "category_id": self.categories[label].id if label < len(self.categories) else label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[number]),
            }
            if self.masks is not None:
                row["segmentation"] = self._rle(number)
            rows.append(row)
        return rows

    def _rle(self, number: int) -> dict[str, Any]:
        from odonata.ops.masks import encode

        assert self.masks is not None
        return dict(encode(self.masks[number]))

    def draw(self, picture: Image.Image | UInt8[Tensor, "3 height width"], threshold: float = 0.0) -> Image.Image:
        """The picture with what was found drawn onto it.

        Args:
            picture: as it was given to the detector.
            threshold: least score drawn.
        """
        from odonata.data.drawing import draw_objects
        from odonata.data.images import to_image

        canvas = picture if isinstance(picture, Image.Image) else to_image(picture)
        return draw_objects(canvas, self.above(threshold))


def empty_detections(size: tuple[int, int], categories: Sequence[Category] = ()) -> Detections:
    """Nothing found in a picture of this (height, width)."""
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), size, tuple(categories))
