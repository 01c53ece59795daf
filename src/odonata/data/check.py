"""A look at a data set before it is trained on: what is unreadable, repeated, empty, lopsided or strangely sized."""

import hashlib
import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odonata.data.images import MAX_PIXELS
from odonata.data.pictures import open_pictures
from odonata.data.report_tables import Histogram, bars, histogram, listing
from odonata.data.sample import ImageTextSource
from odonata.errors import DataError

LONG_CAPTION_WORDS = 77
HUGE_CAPTION_WORDS = 1000
NEAR_BITS = 2
NEAR_LEVELS = 4.0


@dataclass(frozen=True)
class DataReport:
    """What a check of a data set found.

    Args:
        origin, kind: what was read.
        num_images, num_captions: usable pictures and their captions.
        splits, classes: number of pictures of each.
        unreadable: (place, reason) of pictures that cannot be decoded.
        problems: (place, reason) of rows that were left out: missing files, empty captions, captions not UTF-8.
        exact_duplicates: groups of pictures with the same bytes.
        near_duplicates: pairs whose difference hashes (2 of 64 bits) and thumbnails (4 grey levels) nearly agree;
            None: not looked for.
        repeated_captions: share of captions that equal an earlier one.
        long_captions: captions of more than 77 words, which most text encoders cut.
        huge_captions: (place, number of words) of captions with more than 1,000 words.
        warnings: what to mind before training.
        sides, aspects, words: histograms of the shorter side, of width / height, and of the words in a caption.
    """

    origin: str
    kind: str
    num_images: int
    num_captions: int
    splits: dict[str, int]
    classes: dict[str, int]
    unreadable: list[tuple[str, str]]
    problems: list[tuple[str, str]]
    exact_duplicates: list[list[str]]
    near_duplicates: list[tuple[str, str]] | None
    repeated_captions: float
    long_captions: int
    huge_captions: list[tuple[str, int]]
    warnings: list[str]
    sides: Histogram = field(default_factory=Histogram)
    aspects: Histogram = field(default_factory=Histogram)
    words: Histogram = field(default_factory=Histogram)

    @property
    def ok(self) -> bool:
        """Whether every row and picture can be used."""
        return not self.unreadable and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)

    def render(self) -> RenderableType:
        """The report as tables for a terminal."""
        table = Table(show_header=False)
        table.add_row("pictures", f"{self.num_images:,}")
        table.add_row("captions", f"{self.num_captions:,}")
        table.add_row("splits", ", ".join(f"{name} {count:,}" for name, count in self.splits.items()) or "none")
        table.add_row("unreadable pictures", f"{len(self.unreadable):,}")
        table.add_row("rows left out", f"{len(self.problems):,}")
        table.add_row("groups of equal pictures", f"{len(self.exact_duplicates):,}")
        if self.near_duplicates is not None:
            table.add_row("pairs of nearly equal pictures", f"{len(self.near_duplicates):,}")
        table.add_row("repeated captions", f"{self.repeated_captions:.1%}")
        table.add_row(f"captions over {LONG_CAPTION_WORDS} words", f"{self.long_captions:,}")
        parts: list[RenderableType] = [Text(f"{self.origin} ({self.kind})", style="italic"), table]
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        parts += listing("unreadable", [f"{where}: {what}" for where, what in self.unreadable])
        parts += listing("left out", [f"{where}: {what}" for where, what in self.problems])
        parts += listing("equal pictures", [" = ".join(group) for group in self.exact_duplicates])
        parts += listing("nearly equal pictures", [" ~ ".join(pair) for pair in self.near_duplicates or []])
        for title, counts in (
            ("shorter side, pixels", self.sides),
            ("width / height", self.aspects),
            ("words in a caption", self.words),
            ("classes", Counter(self.classes).most_common(20)),
        ):
            if counts:
                parts.append(bars(title, counts))
        return Group(*parts)


@dataclass
class _Pictures:
    """What looking at every picture gathers."""

    unreadable: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    by_content: dict[bytes, list[str]] = field(default_factory=dict[bytes, list[str]])
    hashes: list[int] = field(default_factory=list[int])
    thumbnails: list[np.ndarray] = field(default_factory=list[np.ndarray])
    names: list[str] = field(default_factory=list[str])
    sizes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


def check(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    near_duplicates: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DataReport:
    """Read a data set whole, decode every picture, and report.

    Args:
        path, images, split, image_column, caption_column: as in `open_pictures`; bad rows are gathered, not raised.
        near_duplicates: also look for pictures that differ only by scaling or compression.
        max_pixels: limit on a picture's size.

    Raises:
        DataError: nothing usable is there at all.
    """
    source = open_pictures(path, "skip", images=images, image_column=image_column, caption_column=caption_column)
    source = source if split is None else source.split(split)
    return check_source(source, near_duplicates=near_duplicates, max_pixels=max_pixels)


def check_source(source: ImageTextSource, *, near_duplicates: bool = False, max_pixels: int = MAX_PIXELS) -> DataReport:
    """Check a source that is open already; see `check`."""
    pictures = _look(source, near_duplicates, max_pixels)
    captions = [(sample.image.name, caption) for sample in source for caption in sample.captions]
    lengths = [len(caption.split()) for _, caption in captions]
    unique = len({caption.lower() for _, caption in captions})
    classes = dict.fromkeys(source.classes or (), 0)
    for sample in source:
        if sample.label is not None and source.classes:
            classes[source.classes[sample.label]] += 1
    huge = [(name, n) for (name, _), n in zip(captions, lengths, strict=True) if n > HUGE_CAPTION_WORDS]
    repeated = 1 - unique / max(1, len(captions))
    duplicates = [names for names in pictures.by_content.values() if len(names) > 1]
    return DataReport(
        origin=source.origin,
        kind=source.kind,
        num_images=len(source),
        num_captions=len(captions),
        splits=dict(Counter(sample.split for sample in source if sample.split is not None)),
        classes=classes,
        unreadable=pictures.unreadable,
        problems=[(problem.where, problem.what) for problem in source.problems],
        exact_duplicates=duplicates,
        near_duplicates=_near(pictures) if near_duplicates else None,
        repeated_captions=repeated,
        long_captions=sum(n > LONG_CAPTION_WORDS for n in lengths),
        huge_captions=huge,
        warnings=_warnings(classes, duplicates, repeated, huge),
        sides=histogram([min(size) for size in pictures.sizes], (32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048)),
        aspects=histogram([w / h for h, w in pictures.sizes], (0.25, 0.5, 0.75, 1.0, 1.01, 1.34, 1.5, 2.0, 4.0)),
        words=histogram(lengths, (1, 2, 4, 8, 12, 16, 24, 32, 48, 78, 256, 1001)),
    )


def _look(source: ImageTextSource, near_duplicates: bool, max_pixels: int) -> _Pictures:
    pictures = _Pictures()
    for sample in source:
        name = sample.image.name
        try:
            content = sample.image.read_bytes()
            image = sample.image.open(max_pixels=max_pixels)
        except DataError as error:
            pictures.unreadable.append((name, str(error).removeprefix(f"{name}: ")))
            continue
        pictures.by_content.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(name)
        pictures.sizes.append((image.height, image.width))
        pictures.names.append(name)
        if near_duplicates:
            pictures.hashes.append(difference_hash(image))
            small = image.resize((16, 16), Image.Resampling.BOX)
            pictures.thumbnails.append(np.asarray(small, dtype=np.int16))
    return pictures


def difference_hash(image: Image.Image) -> int:
    """64 bits that say where brightness rises from left to right in a 9×8 thumbnail (dHash)."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def _near(pictures: _Pictures) -> list[tuple[str, str]]:
    """Pairs that agree in the hash and then in a thumbnail; pictures of the same bytes are reported elsewhere."""
    hashes = np.array(pictures.hashes, dtype=np.uint64)
    set_bits = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)
    same = {name: number for number, names in enumerate(pictures.by_content.values()) for name in names}
    pairs: list[tuple[str, str]] = []
    for i in range(len(hashes) - 1):
        distances = set_bits[(hashes[i + 1 :] ^ hashes[i]).view(np.uint16).reshape(-1, 4)].sum(1)
        for j in (np.flatnonzero(distances <= NEAR_BITS) + i + 1).tolist():
            # Product photographs on white agree in their hashes alone.
            apart = float(np.abs(pictures.thumbnails[i] - pictures.thumbnails[j]).mean())
            if apart <= NEAR_LEVELS and same[pictures.names[i]] != same[pictures.names[j]]:
                pairs.append((pictures.names[i], pictures.names[j]))
    return pairs


def _warnings(
    classes: dict[str, int], duplicates: list[list[str]], repeated: float, huge: list[tuple[str, int]]
) -> list[str]:
    warnings: list[str] = []
    used = [count for count in classes.values() if count]
    if len(used) == 1:
        name = next(name for name, count in classes.items() if count)
        warnings.append(f"only one class has pictures ({name!r}): nothing can be told apart")
    if empty := [name for name, count in classes.items() if not count]:
        warnings.append(f"{len(empty)} classes have no pictures: {', '.join(empty[:5])}")
    if len(used) > 1 and max(used) > 20 * statistics.median(used):
        warnings.append("the classes are very uneven; consider balanced sampling")
    if duplicates:
        extra = sum(len(names) - 1 for names in duplicates)
        warnings.append(f"{extra} pictures repeat others byte for byte; they may leak between splits")
    if repeated > 0.5 and not classes:
        warnings.append(f"{repeated:.0%} of the captions repeat others: equal captions are false negatives in contrast")
    if huge:
        warnings.append(f"{len(huge)} captions have more than {HUGE_CAPTION_WORDS:,} words, the first at {huge[0][0]}")
    return warnings
