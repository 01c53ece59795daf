"""The small world of the detection claims: digits of many sizes on textured grounds, and how detectors are trained.

Notable:
- Real handwriting, no download: `odonata.data.object_scenes`, 96 × 96 pixels, one to four digits with sides of 8 to 48
  pixels, spread evenly over the octaves, ten classes. Splits share no handwriting. A seed paints its own pictures.
- Sizes are named as COCO names them, on this scale: small is below 12 pixels of √area, large from 36 on.
- Every detector is trained by AdamW on a cosine with a warm-up of a tenth, gradients clipped to a norm of 10, batches
  of 16, no augmentation: digits must not be mirrored, and nothing else differs between the arms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from odonata.backbones.fpn import FPNConfig
from odonata.claims.align_toy import set_rate, shuffled_batches
from odonata.claims.claim import Figures, Trial
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.item import Item
from odonata.data.object_batches import read_item, to_batch
from odonata.data.object_scenes import CATEGORIES, ObjectScenes
from odonata.data.scenes import Split
from odonata.detect.detector import Detector
from odonata.detect.fcos import FCOSConfig
from odonata.metrics.coco import coco_figures
from odonata.metrics.object_matches import Found, Truth

SIDE = 96
CLASSES = len(CATEGORIES)
SEEN: dict[Split, int] = {"train": 1500, "val": 200, "test": 300}
BATCH = 16
STEPS = 400
SMALL = 12.0
"""√area in pixels below which an object is small; large is three times that."""
FRAMING = Framing("keep", size=SIDE, max_size=SIDE, divisor=32)
DATA = (
    "Pictures of 96 × 96 pixels with one to four real handwritten digits (UCI), 8 to 48 pixels high, on textured "
    "grounds "
    "with grey dashes; 10 classes. 1,500 training pictures, 300 with handwriting never seen to test on. Small: "
    "below 12 "
    "pixels of √area; large: from 36."
)
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class World:
    """What the pictures show."""

    size: int = SIDE
    objects: tuple[int, int] = (1, 4)
    sides: tuple[int, int] = (8, 48)
    clutter: int = 3


PLAIN = World()


def fcos_config(**changes: object) -> FCOSConfig:
    """FCOS at the size of these claims: a thin ResNet, levels of strides 4, 8 and 16, 48 channels."""
    base = FCOSConfig(framing=FRAMING, fpn=FPNConfig(48), layers=(0, 1, 2), tower_depth=1, first_range=14.0)
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=6)
def _painted(count: int, split: Split, seed: int, world: World) -> tuple[Item, ...]:
    scenes = ObjectScenes(count, split, seed, world.size, world.objects, world.sides, world.clutter)
    return tuple(read_item(scenes.sample(index)) for index in range(count))


def items(trial: Trial, split: Split, world: World = PLAIN, count: int | None = None) -> tuple[Item, ...]:
    """A trial's own pictures of a split: the same for the same seed, whatever the variant."""
    wanted = max(48, round((count or SEEN[split]) * min(1.0, trial.budget)))
    return _painted(wanted, split, 10 * trial.seed + _SPLIT_SEEDS[split], world)


Change = Callable[[list[Item], torch.Generator], list[Item]]
"""What a policy does to the pictures of a batch."""


def train(
    detector: Detector,
    seen: Sequence[Item],
    *,
    steps: int,
    lr: float,
    seed: int,
    change: Change | None = None,
    watch: dict[int, Callable[[Detector], None]] | None = None,
) -> list[dict[str, float]]:
    """Train a detector and return the parts of its loss at every step.

    Args:
        detector: what learns.
        seen: the training pictures.
        steps: updates.
        lr: peak rate.
        seed: of the order, and of what the method itself draws.
        change: applied to the pictures of each batch.
        watch: called after so many updates, with the detector in evaluation mode.
    """
    optimizer = torch.optim.AdamW(detector.parameters(), lr=lr, weight_decay=0.05)
    generator, rows = torch.Generator().manual_seed(seed), list[dict[str, float]]()
    batches = shuffled_batches(len(seen), BATCH, steps, seed)
    torch.manual_seed(seed)
    detector.train()
    for step in range(steps):
        set_rate(optimizer, step, steps)
        chosen = [seen[int(i)] for i in next(batches)]
        batch = to_batch(change(chosen, generator) if change else chosen, detector.options.framing.divisor)
        parts = detector.loss(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        rows.append({name: float(value.detach()) for name, value in parts.items()})
        if watch and step + 1 in watch:
            detector.eval()
            watch[step + 1](detector)
            detector.train()
    return rows


@torch.no_grad()
def answers(detector: Detector, seen: Sequence[Item], batch_size: int = 50) -> list[Detections]:
    """What a detector finds in pictures, in their order."""
    detector.eval()
    found: list[Detections] = []
    for start in range(0, len(seen), batch_size):
        found += detector.predict(to_batch(seen[start : start + batch_size], detector.options.framing.divisor))
    return found


def figures(seen: Sequence[Item], found: Sequence[Detections]) -> Figures:
    """COCO's AP in percent, over all and by size on this world's scale."""
    grow = 32.0 / SMALL
    there = [Truth(item.boxes.numpy() * grow, item.labels.numpy()) for item in seen if item.boxes is not None
             and item.labels is not None]  # fmt: skip
    said = [Found(a.boxes.numpy() * grow, a.scores.numpy(), a.labels.numpy().astype(np.int64)) for a in found]
    flat = coco_figures(there, said, [category.name for category in CATEGORIES]).flat()
    return {name: 100 * flat[name] for name in ("AP", "AP50", "AP_S", "AP_M", "AP_L", "AR100")}


def measure(detector: Detector, trial: Trial, world: World = PLAIN) -> Figures:
    """The figures of a detector on a trial's measured split."""
    seen = items(trial, trial.split, world)
    return figures(seen, answers(detector, seen))
