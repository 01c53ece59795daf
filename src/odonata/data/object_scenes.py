"""An embedded set for detection and segmentation: real handwritten digits of many sizes on textured grounds.

Sizes are spread evenly over the octaves between the least and the most, so that every level of a pyramid has work.
Colour says nothing about the class. Digits do not touch, boxes are tight around the masks, and picture i is a pure
function of (seed, split, i). No exemplar of handwriting is shared between splits; its source: `odonata.data.scenes`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Bool, UInt8

from odonata.data.keys import mix
from odonata.data.objects import Category, ObjectImage, ObjectSource
from odonata.data.sample import ImageRef
from odonata.data.scenes import PALETTE, SPLITS, Placed, Split, background, dash, exemplars, glyph, touch
from odonata.errors import DataError

HELD_PART = 7
"""Validation and test have one picture for so many of training."""
CATEGORIES = tuple(Category(digit, str(digit)) for digit in range(10))
_TRIES = 12


@dataclass(frozen=True)
class ObjectScenes:
    """One split of the set.

    Args:
        n: number of pictures.
        split: which exemplars, and which pictures.
        seed: another seed, another set.
        size: side of the pictures in pixels, 32 or more.
        objects: fewest and most digits in a picture.
        sides: least and most side of a digit's square in pixels; its ink is somewhat smaller.
        clutter: number of grey dashes behind the digits.

    Raises:
        ValueError: values outside these ranges.
    """

    n: int
    split: Split = "train"
    seed: int = 0
    size: int = 128
    objects: tuple[int, int] = (1, 4)
    sides: tuple[int, int] = (8, 48)
    clutter: int = 3

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is unknown; known: {', '.join(SPLITS)}")
        if self.size < 32 or self.n < 0 or self.clutter < 0:
            raise ValueError(f"want size >= 32, n >= 0 and clutter >= 0, got {self}")
        if not 0 <= self.objects[0] <= self.objects[1] or not 8 <= self.sides[0] <= self.sides[1] <= self.size:
            raise ValueError(f"want objects fewest-most and sides least-most from 8 to the size, got {self}")

    def layout(self, index: int) -> tuple[Placed, ...]:
        """Which digits are where, the largest first; none is painted."""
        random = Random(mix(self.seed, SPLITS.index(self.split), index, 11))
        low, high = (math.log(side) for side in self.sides)
        count = random.randint(*self.objects)
        wanted = sorted((round(math.exp(random.uniform(low, high))) for _ in range(count)), reverse=True)
        placed: list[Placed] = []
        for side in wanted:
            # A crowded picture gets a smaller digit, or none.
            for smaller in (side, max(self.sides[0], side * 2 // 3), self.sides[0]):
                if (item := self._place(random, smaller, placed)) is not None:
                    placed.append(item)
                    break
        return tuple(placed)

    def _place(self, random: Random, side: int, placed: list[Placed]) -> Placed | None:
        digit = random.randrange(10)
        alpha, (x1, y1, x2, y2) = glyph(random.choice(exemplars(self.split)[digit]), side)
        colour = random.choice(tuple(PALETTE))
        red, green, blue = (max(0, min(255, value + random.randint(-14, 14))) for value in PALETTE[colour])
        for _ in range(_TRIES):
            # The ink, not the square, must lie within the picture.
            top, left = random.randint(-y1, self.size - y2), random.randint(-x1, self.size - x2)
            box = (left + x1, top + y1, left + x2, top + y2)
            if not any(touch(box, other.box, gap=1) for other in placed):
                return Placed(digit, colour, (red, green, blue), alpha, top, left, box)
        return None

    def pixels(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """Paint one picture."""
        random = Random(mix(self.seed, SPLITS.index(self.split), index, 12))
        canvas = background(random, self.size)
        for _ in range(self.clutter):
            dash(canvas, random)
        for item in self.layout(index):
            rows, columns, alpha = self._window(item)
            window = canvas[rows, columns]
            window += (np.array(item.tint, np.float32) - window) * alpha[:, :, None]
        return canvas.astype(np.uint8)

    def mask(self, index: int, number: int) -> Bool[np.ndarray, "height width"]:
        """Pixels of one digit."""
        return self._mask(self.layout(index)[number])

    def classes(self, index: int) -> UInt8[np.ndarray, "height width"]:
        """Class of every pixel: 0 the ground, 1 + digit the digits."""
        painted = np.zeros((self.size, self.size), dtype=np.uint8)
        for item in self.layout(index):
            painted[self._mask(item)] = 1 + item.digit
        return painted

    def _window(self, item: Placed) -> tuple[slice, slice, np.ndarray]:
        side = item.alpha.shape[0]
        y1, x1 = max(0, item.top), max(0, item.left)
        y2, x2 = min(self.size, item.top + side), min(self.size, item.left + side)
        return slice(y1, y2), slice(x1, x2), item.alpha[y1 - item.top : y2 - item.top, x1 - item.left : x2 - item.left]

    def _mask(self, item: Placed) -> Bool[np.ndarray, "height width"]:
        mask = np.zeros((self.size, self.size), dtype=bool)
        rows, columns, alpha = self._window(item)
        mask[rows, columns] = alpha >= 0.5
        return mask

    def picture(self, index: int) -> ImageRef:
        """The picture as a source refers to it; it is painted when it is asked for."""
        return ImageRef(pixels=functools.partial(self.pixels, index), label=self.name(index))

    def name(self, index: int) -> str:
        """What a picture is called."""
        return f"objects-{self.split}-{self.seed}-{index}"

    def sample(self, index: int) -> ObjectImage:
        """One picture with its objects, nothing painted."""
        placed = self.layout(index)
        return ObjectImage(
            image=self.picture(index),
            size=(self.size, self.size),
            boxes=np.array([item.box for item in placed], dtype=np.float32).reshape(-1, 4),
            labels=np.array([item.digit for item in placed], dtype=np.int64),
            crowd=np.zeros(len(placed), dtype=bool),
            outlines=tuple(functools.partial(self.mask, index, number) for number in range(len(placed))),
            areas=np.array([(item.alpha >= 0.5).sum() for item in placed], dtype=np.float64),
            id=self.name(index),
            split=self.split,
        )


def open_object_scenes(text: str) -> ObjectSource:
    """The embedded set as a source.

    Args:
        text: "objects" or "objects:n=1500,size=128,objects=1-4,sides=8-48,seed=0,clutter=3,split=train".

    Raises:
        DataError: an unknown option, or a value out of range.
    """
    return _source(text, parse_scenes(text))


def parse_scenes(text: str) -> tuple[ObjectScenes, ...]:
    """The splits that the text of an embedded set asks for.

    Raises:
        DataError: an unknown option, or a value out of range.
    """
    numbers = {"n": 1500, "size": 128, "seed": 0, "clutter": 3}
    ranges = {"objects": (1, 4), "sides": (8, 48)}
    splits: tuple[Split, ...] = SPLITS
    for option in filter(None, text.partition(":")[2].split(",")):
        name, _, value = option.partition("=")
        if name == "split" and value in SPLITS:
            splits = tuple(split for split in SPLITS if split == value)
        elif name in numbers or name in ranges:
            low, _, high = value.partition("-") if name in ranges else (value, "", "")
            if not low.isdecimal() or not (high or low).isdecimal():
                form = f"{name}=1-4" if name in ranges else f"{name}=100"
                raise DataError(f"{text}: the option {option!r} needs whole numbers ({form})")
            if name in ranges:
                ranges[name] = (int(low), int(high or low))
            else:
                numbers[name] = int(low)
        else:
            known = ", ".join((*numbers, *ranges, "split=train|val|test"))
            raise DataError(f"{text}: unknown option {option!r}; known: {known}")
    n, size, seed, clutter = numbers.values()
    if n < 1:
        raise DataError(f"{text}: n must be at least 1")
    counts: dict[Split, int] = {
        split: n if split == "train" or len(splits) == 1 else max(1, n // HELD_PART) for split in splits
    }
    try:
        return tuple(
            ObjectScenes(count, split, seed, size, ranges["objects"], ranges["sides"], clutter)
            for split, count in counts.items()
        )
    except ValueError as error:
        raise DataError(f"{text}: {error}") from None


@functools.lru_cache(maxsize=4)
def _source(text: str, splits: tuple[ObjectScenes, ...]) -> ObjectSource:
    samples = [scenes.sample(index) for scenes in splits for index in range(scenes.n)]
    return ObjectSource(samples, CATEGORIES, text, kind="objects")
