"""A claim about YOLO's grids: how many objects can have a prediction of their own, before any training."""

from __future__ import annotations

import numpy as np
import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.data.object_scenes import ObjectScenes
from odonata.detect.anchors import kmeans_anchors
from odonata.ops.boxes import shape_iou

PICTURES = 200
SIDE = 224
OBJECTS = (8, 24)
STRIDES = {"v1": (32,), "v2": (32,), "v3": (8, 16, 32)}
"""Cells of the three versions in pixels, at a picture of 224: 7 × 7, 7 × 7, and three grids."""
ANCHORS = {"v2": 5, "v3": 9}


def scenes_of(seed: int, count: int) -> ObjectScenes:
    """Pictures with many digits, small ones among them."""
    return ObjectScenes(count, "train", seed, SIDE, OBJECTS, (8, 48), 3)


def places(boxes: np.ndarray, version: str, anchors: torch.Tensor | None) -> list[tuple[int, ...]]:
    """The prediction that learns each object: the cell of its middle, and the anchor of its shape where there are any.

    Args:
        boxes: xyxy of one picture's objects.
        version: of YOLO.
        anchors: widths and heights, the smallest first; three for each grid of the third version.
    """
    middles, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, torch.from_numpy(boxes[:, 2:] - boxes[:, :2])
    strides = STRIDES[version]
    best = torch.zeros(len(boxes), dtype=torch.int64) if anchors is None else shape_iou(sizes, anchors).argmax(1)
    found: list[tuple[int, ...]] = []
    for (x, y), anchor in zip(middles, best.tolist(), strict=True):
        stride = strides[anchor // 3] if len(strides) > 1 else strides[0]
        found.append((int(y // stride), int(x // stride), anchor))
    return found


def run(trial: Trial) -> Figures:
    """Share of objects that need not share a prediction with another; of all, and of those below 16 pixels."""
    count = trial.steps(PICTURES)
    known, unseen = scenes_of(10 * trial.seed, count), scenes_of(10 * trial.seed + 1, count)
    anchors = None
    if trial.variant in ANCHORS:
        boxes = np.concatenate([known.sample(i).boxes for i in range(count)])
        anchors = kmeans_anchors(torch.from_numpy(boxes[:, 2:] - boxes[:, :2]), ANCHORS[trial.variant], trial.seed)
    kept = total = small_kept = small = 0
    for index in range(count):
        boxes = unseen.sample(index).boxes
        taken: set[tuple[int, ...]] = set()
        for place, box in zip(places(boxes, trial.variant, anchors), boxes, strict=True):
            own = place not in taken  # of several, the first is learned
            taken.add(place)
            is_small = float(np.prod(box[2:] - box[:2])) < 16**2
            kept, total = kept + own, total + 1
            small_kept, small = small_kept + (own and is_small), small + is_small
    return {"recall": 100 * kept / total, "recall of small": 100 * small_kept / max(1, small)}


_WHERE = "crowded pictures"

CLAIM = Claim(
    name="yolo-grids",
    room="detect",
    methods=("yolo-v1", "yolo-v2", "yolo-v3", "yolo-v3-spp"),
    source="Redmon et al. 2015, arXiv:1506.02640, section 2.4: one class a cell limits nearby objects, small ones "
    "in groups; "
    "2016, arXiv:1612.08242, section 2: anchors raise recall from 81 to 88 %; 2018, arXiv:1804.02767, section 2.3: "
    "three scales",
    hypothesis="Of objects in crowds more can have a prediction of their own in the second version than in the "
    "first, and "
    "more in the third than in the second, also of the small ones.",
    data="Boxes of 8 to 24 digits of 8 to 48 pixels on embedded pictures of 224; 200 pictures a seed to find "
    "anchors by "
    "k-means, 200 others to count on.",
    scaled_down="Nothing is trained: which prediction learns which object is arithmetic (cells of 32 pixels; of 8, "
    "16 and 32 "
    "in the third version). The second version's cells are as large as the first's here; the paper also makes them "
    "smaller.",
    trial=run,
    conditions=(_WHERE,),
    variants=tuple(STRIDES),
    comparisons=tuple(
        Comparison(f"{new} against {old}, {name}", f"{new}@{_WHERE}", f"{old}@{_WHERE}", name, ">")
        for new, old in (("v2", "v1"), ("v3", "v2")) for name in ("recall", "recall of small")
    ),
    plots=(Plot("recall", "objects with a prediction, %"), Plot("recall of small", "the same, small, %")),
    seeds=(1, 2, 3, 4, 5),
)  # fmt: skip
