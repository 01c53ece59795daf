"""The embedded set: pictures of coloured handwritten digits with captions, boxes, masks and relations, made on demand.

It needs no download, so every command of the library can be tried at once, and it holds what vision–language methods
are
about: several objects, their attributes and relations, several true captions for one picture, classes for zero-shot
    tests.
Picture i is a pure function of (seed, split, i). The digits are real handwriting and no exemplar is shared between
splits.

Digits: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
doi 10.24432/C50P49, CC BY 4.0; the 1,797 pictures of its test part as scikit-learn ships them, 8×8 values from 0 to 16,
unchanged, in `embedded/digits.npz`.
"""

import functools
import importlib.resources
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal, overload

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image

from odonata.data.keys import mix
from odonata.data.sample import ImageRef, ImageText, ImageTextSource
from odonata.data.scene_captions import COLOURS, article, describe

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 235),
    "yellow": (245, 225, 50),
    "purple": (155, 50, 200),
    "cyan": (50, 215, 225),
    "orange": (250, 140, 30),
    "white": (245, 245, 245),
}
# The templates of zero-shot classification on this set; class names come with their article ("an orange 3").
TEMPLATES = ("{}", "a picture of {}", "there is {}", "a drawing of {}")
_PLACEMENT_TRIES = 60


@dataclass(frozen=True, eq=False)
class Relation:
    """Object number `subject` is `predicate` ("above", "below", "left of", "right of") object number `object`."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, eq=False)
class Placed:
    """One digit of a picture: which exemplar, how large, where, in which colour."""

    digit: int
    colour: str
    tint: tuple[int, int, int]
    alpha: Float[np.ndarray, "side side"]
    top: int
    left: int
    box: tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture with everything that is known about it.

    Args:
        image: uint8 RGB pixels.
        captions: several true descriptions, the fullest first.
        digits, colours: of each object.
        boxes: xyxy in absolute pixels, tight around the masks.
        masks: pixels of each object.
        relations: every clear relation, in both directions.
    """

    image: UInt8[np.ndarray, "height width 3"]
    captions: tuple[str, ...]
    digits: Int64[np.ndarray, " objects"]
    colours: tuple[str, ...]
    boxes: Float[np.ndarray, "objects 4"]
    masks: Bool[np.ndarray, "objects height width"]
    relations: tuple[Relation, ...]


@functools.cache
def load_digits() -> tuple[UInt8[np.ndarray, "1797 8 8"], UInt8[np.ndarray, " 1797"]]:
    """The handwritten digits: values from 0 to 16, and their classes."""
    with importlib.resources.files("odonata.data").joinpath("embedded/digits.npz").open("rb") as file:
        archive = np.load(file)
        return archive["images"], archive["labels"]


@functools.cache
def exemplars(split: Split) -> tuple[tuple[int, ...], ...]:
    """For each digit, the numbers of its exemplars of this split: 7 of 10 train, 1 val, 2 test."""
    places = {"train": range(7), "val": range(7, 8), "test": range(8, 10)}[split]
    _, labels = load_digits()
    return tuple(
        tuple(int(number) for place, number in enumerate(np.flatnonzero(labels == digit)) if place % 10 in places)
        for digit in range(10)
    )


@dataclass(frozen=True)
class Scenes(Sequence[Scene]):
    """A sequence of `n` pictures.

    Args:
        n: number of pictures.
        split: which exemplars of handwriting, and which pictures.
        seed: another seed, another set.
        size: side of the pictures in pixels, 32 or more.
        objects: fewest and most digits in a picture, 1 to 4.
        clutter: number of grey dashes behind the digits.
        relations: whether two digits or more always stand in a clear relation, and captions say so.
    """

    n: int
    split: Split = "train"
    seed: int = 0
    size: int = 64
    objects: tuple[int, int] = (1, 3)
    clutter: int = 3
    relations: bool = True

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is unknown; known: {', '.join(SPLITS)}")
        if self.size < 32 or self.n < 0 or not 1 <= self.objects[0] <= self.objects[1] <= 4:
            raise ValueError(f"want size >= 32, n >= 0 and 1 to 4 objects, got {self}")

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.n))]
        placed, relations, captions = self.layout(index)
        image, masks = self._render(index, placed)
        return Scene(
            image=image,
            captions=captions,
            digits=np.array([item.digit for item in placed], dtype=np.int64),
            colours=tuple(item.colour for item in placed),
            boxes=np.array([item.box for item in placed], dtype=np.float32),
            masks=masks,
            relations=relations,
        )

    def pixels(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """The picture alone."""
        return self._render(index, self.layout(index)[0])[0]

    def layout(self, index: int) -> tuple[tuple[Placed, ...], tuple[Relation, ...], tuple[str, ...]]:
        """What is in the picture, without painting it: digits, relations and captions."""
        if not -self.n <= index < self.n:
            raise IndexError(f"picture {index} of {self.n}")
        random = Random(mix(self.seed, SPLITS.index(self.split), index % self.n))
        count = random.randint(*self.objects)
        kinds = random.sample(range(10 * len(COLOURS)), count)
        return self._compose(random, kinds)

    def _compose(
        self, random: Random, kinds: Sequence[int]
    ) -> tuple[tuple[Placed, ...], tuple[Relation, ...], tuple[str, ...]]:
        placed: list[Placed] = []
        relations: tuple[Relation, ...] = ()
        for _ in range(_PLACEMENT_TRIES):
            placed = self._place(random, kinds)
            relations = _relations(placed)
            if len(placed) == len(kinds) and (len(placed) < 2 or relations or not self.relations):
                break
        objects = [(item.colour, item.digit, item.box) for item in placed]
        said = [(r.subject, r.predicate, r.object) for r in relations] if self.relations else []
        return tuple(placed), relations, describe(objects, said, self.size)

    def _place(self, random: Random, kinds: Sequence[int]) -> list[Placed]:
        """Put the digits one by one where they touch none that is there; crowded pictures get smaller digits."""
        largest = {1: 0.8, 2: 0.5, 3: 0.42, 4: 0.38}[len(kinds)]
        placed: list[Placed] = []
        for kind in kinds:
            digit, colour = kind % 10, COLOURS[kind // 10]
            side = max(12, round(self.size * random.uniform(0.25, largest)))
            alpha, (x1, y1, x2, y2) = glyph(random.choice(exemplars(self.split)[digit]), side)
            for _ in range(20):
                # The glyph's ink, not its square, must lie within the picture.
                top, left = random.randint(-y1, self.size - y2), random.randint(-x1, self.size - x2)
                box = (left + x1, top + y1, left + x2, top + y2)
                if not any(touch(box, other.box, gap=2) for other in placed):
                    red, green, blue = (max(0, min(255, value + random.randint(-14, 14))) for value in PALETTE[colour])
                    placed.append(Placed(digit, colour, (red, green, blue), alpha, top, left, box))
                    break
        return placed

    def _render(
        self, index: int, placed: Sequence[Placed]
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "objects height width"]]:
        random = Random(mix(self.seed, SPLITS.index(self.split), index % self.n, 1))
        size = self.size
        canvas = background(random, size)
        for _ in range(self.clutter):
            dash(canvas, random)
        masks = np.zeros((len(placed), size, size), dtype=bool)
        for number, item in enumerate(placed):
            side = item.alpha.shape[0]
            y1, x1 = max(0, item.top), max(0, item.left)
            y2, x2 = min(size, item.top + side), min(size, item.left + side)
            alpha = item.alpha[y1 - item.top : y2 - item.top, x1 - item.left : x2 - item.left]
            window = canvas[y1:y2, x1:x2]
            window += (np.array(item.tint, np.float32) - window) * alpha[:, :, None]
            masks[number, y1:y2, x1:x2] = alpha >= 0.5
        return canvas.astype(np.uint8), masks

    def as_source(self) -> ImageTextSource:
        """The set as any other source; pixels are painted when they are asked for."""
        return ImageTextSource([self.sample(i) for i in range(self.n)], None, f"scenes:{self.split}", kind="scenes")

    def sample(self, index: int) -> ImageText:
        """The item as a source holds it."""
        placed, relations, captions = self.layout(index)
        extra: dict[str, Any] = {
            "boxes": np.array([item.box for item in placed], dtype=np.float32),
            "digits": tuple(item.digit for item in placed),
            "colours": tuple(item.colour for item in placed),
            "relations": relations,
        }
        name = f"scenes-{self.split}-{self.seed}-{index}"
        picture = ImageRef(pixels=functools.partial(self.pixels, index), label=name)
        return ImageText(picture, captions, id=name, split=self.split, extra=extra)


@dataclass(frozen=True)
class ClassScenes(Scenes):
    """Pictures of one digit each, the 80 colour–digit classes in turn: item i is of class i modulo 80."""

    def layout(self, index: int) -> tuple[tuple[Placed, ...], tuple[Relation, ...], tuple[str, ...]]:
        """See `Scenes.layout`."""
        if not -self.n <= index < self.n:
            raise IndexError(f"picture {index} of {self.n}")
        index %= self.n
        random = Random(mix(self.seed, SPLITS.index(self.split), index, 2))
        return self._compose(random, [index % (10 * len(COLOURS))])


def class_names() -> tuple[str, ...]:
    """The 80 colour–digit classes, "a red 0" to "a white 9"; class = 10 · colour + digit."""
    return tuple(f"{article(colour)} {colour} {digit}" for colour, digit in itertools.product(COLOURS, range(10)))


def zeroshot_set(
    n: int = 800, split: Split = "test", seed: int = 0, size: int = 64, clutter: int = 3
) -> ImageTextSource:
    """Pictures of one digit each with labels and class names, for zero-shot classification with `TEMPLATES`.

    The classes come in turn, so any multiple of 80 is balanced.
    """
    scenes = ClassScenes(n, split, seed, size, (1, 1), clutter)
    samples: list[ImageText] = []
    for index in range(n):
        sample = scenes.sample(index)
        samples.append(
            ImageText(sample.image, sample.captions, index % 80, f"zeroshot-{sample.id}", split, sample.extra)
        )
    return ImageTextSource(samples, class_names(), f"scenes:zeroshot:{split}", kind="scenes")


def digit_set(n: int = 800, split: Split = "test", seed: int = 0, size: int = 64, clutter: int = 3) -> ImageTextSource:
    """The pictures of `zeroshot_set` with the digit alone as class: colour, place, size and ground say nothing."""
    found = zeroshot_set(n, split, seed, size, clutter)
    samples = [replace(sample, label=int(sample.label or 0) % 10) for sample in found]
    return ImageTextSource(samples, tuple("0123456789"), f"scenes:digits:{split}", kind="scenes")


def glyph(exemplar: int, side: int) -> tuple[Float[np.ndarray, "side side"], tuple[int, int, int, int]]:
    """The opacity of one handwritten digit at this size, and the tight box of its opaque part."""
    image = Image.fromarray(load_digits()[0][exemplar] * 15).resize((side, side), Image.Resampling.BICUBIC)
    # 240 is full ink; steeper than the pen's own grey so that a digit has one colour and an edge.
    alpha = np.clip((np.asarray(image, dtype=np.float32) / 240 - 0.3) * 3, 0, 1)
    opaque = alpha >= 0.5
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    return alpha, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int) -> bool:
    """Whether two xyxy boxes come nearer than `gap` pixels."""
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _relations(placed: Sequence[Placed]) -> tuple[Relation, ...]:
    return tuple(_clear_relations(placed))


def _clear_relations(placed: Sequence[Placed]) -> Iterator[Relation]:
    """A relation holds where the boxes do not overlap along its axis and the centres differ mostly along it."""
    for (i, a), (j, b) in itertools.permutations(enumerate(placed), 2):
        dx = (b.box[0] + b.box[2] - a.box[0] - a.box[2]) / 2
        dy = (b.box[1] + b.box[3] - a.box[1] - a.box[3]) / 2
        if a.box[3] <= b.box[1] and dy > 1.3 * abs(dx):
            yield Relation(i, "above", j)
        elif b.box[3] <= a.box[1] and -dy > 1.3 * abs(dx):
            yield Relation(i, "below", j)
        elif a.box[2] <= b.box[0] and dx > 1.3 * abs(dy):
            yield Relation(i, "left of", j)
        elif b.box[2] <= a.box[0] and -dx > 1.3 * abs(dy):
            yield Relation(i, "right of", j)


@functools.lru_cache(maxsize=4)
def _textures(size: int) -> Float[np.ndarray, "textures height width"]:
    """Smooth noise, stripes, slopes and grain between -1 and 1, from which backgrounds are mixed."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    textures: list[np.ndarray] = []
    for number in range(24):
        if number % 4 == 0:
            cells = generator.integers(0, 256, (3 + number // 4, 3 + number // 4), dtype=np.uint8)
            smooth = Image.fromarray(cells).resize((size, size), Image.Resampling.BICUBIC)
            textures.append(np.asarray(smooth, dtype=np.float32) / 127.5 - 1)
        elif number % 4 == 1:
            angle, waves = generator.uniform(0, np.pi), generator.uniform(3, 12)
            textures.append(np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y)).astype(np.float32))
        elif number % 4 == 2:
            angle = generator.uniform(0, 2 * np.pi)
            textures.append((np.cos(angle) * (2 * x - 1) + np.sin(angle) * (2 * y - 1)).astype(np.float32) * 0.7)
        else:
            textures.append(generator.uniform(-1, 1, (size, size)).astype(np.float32))
    return np.stack(textures)


def background(random: Random, size: int) -> Float[np.ndarray, "height width 3"]:
    """A dim, nearly grey texture: no colour of the palette can be read into it."""
    textures = _textures(size)
    first, second = random.randrange(len(textures)), random.randrange(len(textures))
    grey = random.uniform(50, 90) + random.uniform(8, 24) * textures[first]
    grey = grey + random.uniform(2, 8) * np.roll(textures[second], random.randrange(size), axis=random.randrange(2))
    tint = np.array([random.uniform(0.92, 1.08) for _ in range(3)], dtype=np.float32)
    return np.clip(grey[:, :, None] * tint, 0, 255).astype(np.float32)


def dash(canvas: Float[np.ndarray, "height width 3"], random: Random) -> None:
    """Paint one straight grey dash, horizontal or vertical, onto the background."""
    size = canvas.shape[0]
    long, thick = random.randint(4, max(5, size // 4)), random.randint(1, max(1, size // 32))
    height, width = (long, thick) if random.random() < 0.5 else (thick, long)
    top, left = random.randrange(size - height + 1), random.randrange(size - width + 1)
    canvas[top : top + height, left : left + width] = random.uniform(20, 130)
