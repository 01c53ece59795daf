"""An embedded set of single handwritten digits, white on black, turned, slanted, scaled and moved at random.

What differs between two pictures of a digit is the hand, the pose and the size, and nothing else: no colour, no ground.
So methods that learn without labels, by cropping, recolouring or masking, have the digit's shape to learn from. (On the
textured grounds of `scenes`, two crops of a picture are told from others by their ground.)

Picture i is a pure function of (seed, split, i); no exemplar is shared between splits. Source of the handwriting: see
`odonata.data.scenes`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from odonata.data.keys import mix
from odonata.data.sample import ImageRef, ImageText, ImageTextSource
from odonata.data.scenes import SPLITS, Split, exemplars, load_digits

TURN = 20.0
"""Largest rotation in degrees, either way."""
SLANT = 0.2
"""Largest shear."""
SIZES = (0.45, 0.85)
"""Side of the digit as a share of the picture's, least and most."""


@dataclass(frozen=True)
class Digits:
    """One split of the set.

    Args:
        n: number of pictures; the ten classes come in turn.
        split: which exemplars.
        seed: of all chance.
        size: side of a picture in pixels, 16 or more.

    Raises:
        ValueError: a size below 16, or n below 1.
    """

    n: int
    split: Split = "train"
    seed: int = 0
    size: int = 32

    def __post_init__(self) -> None:
        if self.size < 16 or self.n < 1:
            raise ValueError(f"want size >= 16 and n >= 1, got {self}")

    def pixels(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """Paint one picture."""
        random = Random(mix(self.seed, SPLITS.index(self.split), index, 7))
        image = Image.fromarray(load_digits()[0][random.choice(exemplars(self.split)[index % 10])] * 15)
        side = random.uniform(*SIZES) * self.size
        angle, slant = math.radians(random.uniform(-TURN, TURN)), random.uniform(-SLANT, SLANT)
        free = self.size - side
        centre = (side / 2 + random.random() * free, side / 2 + random.random() * free)
        # PIL asks where each pixel comes from: out of the picture's frame into the exemplar's 8 × 8.
        shrink = 8 / side
        cosine, sine = math.cos(angle) * shrink, math.sin(angle) * shrink
        a, b, d, e = cosine + slant * sine, sine, -sine + slant * cosine, cosine
        shift = (4 - a * centre[0] - b * centre[1], 4 - d * centre[0] - e * centre[1])
        data = (a, b, shift[0], d, e, shift[1])
        painted = image.transform((self.size, self.size), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
        # Steeper than the pen's own grey, so that a digit has an edge.
        ink = np.clip((np.asarray(painted, np.float32) / 240 - 0.15) * 1.6, 0, 1) * random.uniform(0.7, 1.0)
        return np.repeat((ink * 255).astype(np.uint8)[:, :, None], 3, axis=2)

    def as_source(self) -> ImageTextSource:
        """The set as any other source; pixels are painted when they are asked for."""
        samples = [
            ImageText(
                ImageRef(
                    pixels=functools.partial(self.pixels, index), label=f"digits-{self.split}-{self.seed}-{index}"
                ),
                (f"a {index % 10}",),
                index % 10,
                f"digits-{self.split}-{self.seed}-{index}",
                self.split,
            )
            for index in range(self.n)
        ]
        return ImageTextSource(samples, tuple("0123456789"), f"digits:{self.split}", kind="scenes")
