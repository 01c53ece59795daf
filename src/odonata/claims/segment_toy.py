"""The small worlds of the segmentation claims: digits to be told apart, and digits whose class the scene decides.

Notable:
- Real handwriting, no download: `odonata.data.object_scenes`, 96 × 96 pixels. Splits share no handwriting; a seed
  paints its own pictures.
- `digits`: every pixel of a digit has the digit's class; what is around it says nothing.
- `scene`: the largest digit is class 1. The others are class 2 where the largest has a warm colour, else class 3: what
  a small digit is called cannot be seen in it, as a boat's pixels look like a car's until one sees the water.
- All are trained by AdamW on a cosine with a warm-up of a tenth, batches of 16, no augmentation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from odonata.claims.align_toy import set_rate, shuffled_batches
from odonata.claims.claim import Figures, Trial
from odonata.data.framing import Framing
from odonata.data.object_scenes import ObjectScenes
from odonata.data.scenes import Split
from odonata.data.semantic_batches import SemanticBatch
from odonata.metrics.segmentation import confusion_matrix, segmentation_figures
from odonata.segment.segmenter import Segmenter

SIDE = 96
BATCH = 16
SEEN: dict[Split, int] = {"train": 1000, "val": 150, "test": 250}
WARM = ("red", "yellow", "orange", "white")
CLASSES = {"digits": 11, "scene": 4}
FRAMING = Framing("keep", size=SIDE, max_size=SIDE, divisor=1)
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "val": 1, "test": 2}


@dataclass
class Maps:
    """Pictures and the class of each of their pixels."""

    images: UInt8[Tensor, "pictures 3 height width"]
    maps: Int64[Tensor, "pictures height width"]


def scenes_of(world: str, count: int, split: Split, seed: int) -> ObjectScenes:
    """The pictures of a world."""
    if world == "digits":
        return ObjectScenes(count, split, seed, SIDE, (1, 4), (12, 56))
    return ObjectScenes(count, split, seed, SIDE, (4, 6), (8, 56))


def scene_map(scenes: ObjectScenes, index: int) -> UInt8[np.ndarray, "height width"]:
    """Class of every pixel where the scene decides: 0 ground, 1 the largest digit, 2 or 3 the others."""
    painted = np.zeros((scenes.size, scenes.size), dtype=np.uint8)
    placed = scenes.layout(index)
    for number, _ in enumerate(placed):
        name = 1 if number == 0 else 2 if placed[0].colour in WARM else 3
        painted[scenes.mask(index, number)] = name
    return painted


@functools.lru_cache(maxsize=6)
def _painted(world: str, count: int, split: Split, seed: int) -> Maps:
    scenes = scenes_of(world, count, split, seed)
    images = np.stack([scenes.pixels(index) for index in range(count)])
    maps = [scenes.classes(index) if world == "digits" else scene_map(scenes, index) for index in range(count)]
    return Maps(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack(maps)).long())


def maps_of(trial: Trial, split: Split, world: str) -> Maps:
    """A trial's own pictures of a split: the same for the same seed, whatever the variant."""
    count = max(32, round(SEEN[split] * min(1.0, trial.budget)))
    return _painted(world, count, split, 10 * trial.seed + _SPLIT_SEEDS[split])


def batch_of(seen: Maps, rows: Tensor) -> SemanticBatch:
    """Some of the pictures as a batch."""
    return SemanticBatch(seen.images[rows], seen.maps[rows], torch.full((len(rows), 2), SIDE), rows)


def train(segmenter: Segmenter, seen: Maps, *, steps: int, lr: float, seed: int) -> None:
    """Train a segmenter."""
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=lr, weight_decay=0.01)
    torch.manual_seed(seed)
    segmenter.train()
    for step, rows in enumerate(shuffled_batches(len(seen.images), BATCH, steps, seed)):
        set_rate(optimizer, step, steps)
        loss = segmenter.loss(batch_of(seen, rows))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(segmenter.parameters(), 5.0)
        optimizer.step()


@torch.no_grad()
def measure(segmenter: Segmenter, seen: Maps) -> Figures:
    """Mean IoU and pixel accuracy in percent."""
    segmenter.eval()
    classes = segmenter.num_classes
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for rows in torch.arange(len(seen.images)).split(25):
        counts += confusion_matrix(segmenter.predict(batch_of(seen, rows)).argmax(1), seen.maps[rows], classes)
    found = segmentation_figures(counts)
    return {"mIoU": 100 * found.miou, "pixel accuracy": 100 * found.pixel_accuracy}
