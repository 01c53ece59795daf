"""A look at a set of pictures with objects before a detector is trained on it.

What would stop the training, what would spoil it unseen, and whether a detector's anchors and points can reach the
objects at all at the size that it sees them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from odonata.data.coverage import Coverage, coverage
from odonata.data.framing import Framing
from odonata.data.images import MAX_PIXELS
from odonata.data.objects import ObjectSource
from odonata.data.open_objects import open_objects
from odonata.data.report_tables import Histogram, bars, histogram, listing
from odonata.errors import DataError

SMALL, LARGE = 32**2, 96**2
"""COCO's bounds in pixels of the picture: small below the first, large from the second."""
GOOD_RECALL = 0.98
_FAULTS = (
    ("over the edge", "boxes over the edge of the picture"),
    ("lies outside", "boxes outside the picture"),
    ("looks normalised", "normalised values where pixels are expected"),
    ("looks like pixels", "pixels where normalised values are expected"),
    ("not finite", "values that are not numbers"),
    ("x2 < x1", "degenerate boxes"),
    ("y2 < y1", "degenerate boxes"),
    ("has no ", "degenerate boxes"),
    ("max <= ", "degenerate boxes"),
    ("duplicate", "duplicate ids"),
    ("which is not listed", "annotations of a missing image"),
    ("picture that is missing", "annotations of a missing image"),
    ("was not found", "missing pictures"),
    ("polygon", "broken outlines"),
    ("mask is", "broken outlines"),
    ("run lengths", "broken outlines"),
    ("outline", "objects without outlines"),
    ("class", "unknown classes"),
    ("category_id", "unknown classes"),
)


@dataclass(frozen=True)
class ObjectReport:
    """What a check of a set of pictures with objects found.

    Args:
        origin, kind: what was read.
        num_images, num_objects, num_crowds: usable pictures, their objects, and regions that are not counted.
        splits: number of pictures of each.
        classes: number of objects of each.
        class_images: number of pictures with each.
        ids: category ids in the order of the labels.
        empty_images: pictures without an object, kept as negatives.
        faults: number of faults by kind.
        problems: (place, reason) of what would stop a training.
        mended: (place, reason) of what was mended without loss.
        unreadable: (place, reason) of pictures that cannot be decoded, or are of another size than stated.
        exact_duplicates: groups of pictures with the same bytes.
        repeated_boxes: (picture, how many) of objects that repeat another of the same class and box.
        sizes: objects that COCO calls small, medium and large.
        coverage: best possible recall of anchors and points; None where there is no object.
        roots, aspects, per_image: histograms of √area in pixels, of width / height, and of objects in a picture.
        warnings: what to mind before training.
    """

    origin: str
    kind: str
    num_images: int
    num_objects: int
    num_crowds: int
    splits: dict[str, int]
    classes: dict[str, int]
    class_images: dict[str, int]
    ids: list[int | str]
    empty_images: int
    faults: dict[str, int]
    problems: list[tuple[str, str]]
    mended: list[tuple[str, str]]
    unreadable: list[tuple[str, str]]
    exact_duplicates: list[list[str]]
    repeated_boxes: list[tuple[str, int]]
    sizes: dict[str, int]
    coverage: Coverage | None
    roots: Histogram
    aspects: Histogram
    per_image: Histogram
    warnings: list[str]

    @property
    def ok(self) -> bool:
        """Whether a training on it would not stop."""
        return not self.problems and not self.unreadable and self.num_objects > 0

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, and whether a training would go on."""
        return {**asdict(self), "ok": self.ok}

    def render(self) -> RenderableType:
        """The report as tables for a terminal."""
        table = Table(show_header=False)
        for name, value in (
            ("pictures", f"{self.num_images:,}"),
            ("objects", f"{self.num_objects:,}"),
            ("crowds, not counted", f"{self.num_crowds:,}"),
            ("pictures without an object", f"{self.empty_images:,}"),
            ("splits", ", ".join(f"{name} {count:,}" for name, count in self.splits.items()) or "none"),
            ("small, medium, large", ", ".join(f"{count:,}" for count in self.sizes.values())),
            ("unreadable pictures", f"{len(self.unreadable):,}"),
            ("groups of equal pictures", f"{len(self.exact_duplicates):,}"),
            ("repeated boxes", f"{sum(count for _, count in self.repeated_boxes):,}"),
            *((name, f"{count:,}") for name, count in self.faults.items()),
        ):
            table.add_row(name, value)
        parts: list[RenderableType] = [Text(f"{self.origin} ({self.kind})", style="italic"), table]
        if self.coverage is not None:
            parts.append(_coverage_table(self.coverage))
        parts.append(self._class_table())
        parts += [Text(f"warning: {warning}", style="yellow") for warning in self.warnings]
        parts += listing("would stop a training", [f"{where}: {what}" for where, what in self.problems])
        parts += listing("unreadable", [f"{where}: {what}" for where, what in self.unreadable])
        parts += listing("mended", [f"{where}: {what}" for where, what in self.mended])
        parts += listing("equal pictures", [" = ".join(group) for group in self.exact_duplicates])
        parts += listing("repeated boxes", [f"{name}: {count}" for name, count in self.repeated_boxes])
        for title, counts in (
            ("√area of objects, pixels", self.roots),
            ("width / height of objects", self.aspects),
            ("objects in a picture", self.per_image),
        ):
            if counts:
                parts.append(bars(title, counts))
        return Group(*parts)

    def _class_table(self) -> Table:
        table = Table("label", "id", "class", "objects", "pictures")
        rows = list(zip(self.ids, self.classes.items(), strict=True))
        for label, (key, (name, count)) in enumerate(rows[:100]):
            table.add_row(str(label), str(key), Text(name), f"{count:,}", f"{self.class_images[name]:,}")
        if len(rows) > 100:
            table.add_row("…", "", f"{len(rows) - 100} more", "", "")
        return table


def _coverage_table(found: Coverage) -> Table:
    table = Table(show_header=False, title=f"best possible recall, shorter side {found.size} px", title_justify="left")
    table.add_row("RetinaNet, an anchor at IoU ≥ 0.5", f"{found.anchors:.2%}")
    table.add_row("RetinaNet, an anchor at IoU ≥ 0.4", f"{found.anchors_low:.2%}")
    table.add_row("FCOS, a point assigned", f"{found.points:.2%}")
    table.add_row("objects by FCOS level, P3 to P7", ", ".join(f"{count:,}" for count in found.levels))
    if found.missed is not None:
        least, median, most = found.missed
        table.add_row("√area of those that anchors miss", f"{least:.0f} to {most:.0f} px, median {median:.0f}")
    return table


def check_objects(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    framing: Framing | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ObjectReport:
    """Read a set whole, decode every picture, and report.

    Args:
        path, images: as in `open_objects`; bad annotations are gathered, not raised.
        split: look at this one only.
        framing: how the detector will see the pictures; the shorter side at 800 where None.
        max_pixels: limit on a picture's size.

    Raises:
        DataError: nothing usable is there at all.
    """
    source = open_objects(path, images=images, on_error="skip")
    source = source if split is None else source.split(split)
    return check_object_source(source, framing=framing, max_pixels=max_pixels)


def check_object_source(
    source: ObjectSource, *, framing: Framing | None = None, max_pixels: int = MAX_PIXELS
) -> ObjectReport:
    """Check a source that is open already; see `check_objects`."""
    unreadable, by_content = _look(source, max_pixels)
    real = [sample.labels[~sample.crowd] for sample in source]
    boxes = np.concatenate([sample.boxes[~sample.crowd] for sample in source]).astype(np.float64)
    extent = boxes[:, 2:] - boxes[:, :2]
    areas = np.concatenate([_areas(source, index) for index in range(len(source))])
    counts = np.bincount(np.concatenate(real), minlength=len(source.categories))
    pictures = np.bincount(np.concatenate([np.unique(labels) for labels in real]), minlength=len(source.categories))
    classes = dict(zip(source.names, counts.tolist(), strict=True))
    duplicates = [names for names in by_content.values() if len(names) > 1]
    covered = coverage(source, framing)
    repeated = _repeated(source)
    problems = [(p.where, p.what) for p in source.problems if not p.mended]
    return ObjectReport(
        origin=source.origin,
        kind=source.kind,
        num_images=len(source),
        num_objects=len(boxes),
        num_crowds=sum(int(sample.crowd.sum()) for sample in source),
        splits=dict(Counter(sample.split for sample in source if sample.split is not None)),
        classes=classes,
        class_images=dict(zip(source.names, pictures.tolist(), strict=True)),
        ids=[category.id for category in source.categories],
        empty_images=sum(len(labels) == 0 for labels in real),
        faults=dict(Counter(_fault(problem.what) for problem in source.problems)),
        problems=problems,
        mended=[(p.where, p.what) for p in source.problems if p.mended],
        unreadable=unreadable,
        exact_duplicates=duplicates,
        repeated_boxes=repeated,
        sizes={
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < LARGE)).sum()),
            "large": int((areas >= LARGE).sum()),
        },
        coverage=covered,
        roots=histogram(np.sqrt(extent.prod(1)).tolist(), (4, 8, 16, 32, 64, 96, 128, 256, 512)),
        aspects=histogram((extent[:, 0] / extent[:, 1]).tolist(), (0.125, 0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 8.0)),
        per_image=histogram([len(labels) for labels in real], (1, 2, 3, 5, 10, 20, 50, 100)),
        warnings=_warnings(source, classes, duplicates, repeated, covered),
    )


def _areas(source: ObjectSource, index: int) -> np.ndarray:
    sample = source[index]
    boxes = sample.boxes.astype(np.float64)
    found = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) if sample.areas is None else sample.areas
    return np.asarray(found)[~sample.crowd]


def _look(source: ObjectSource, max_pixels: int) -> tuple[list[tuple[str, str]], dict[bytes, list[str]]]:
    """Decode every picture: those that fail, and the names by content."""
    unreadable: list[tuple[str, str]] = []
    by_content: dict[bytes, list[str]] = {}
    for sample in source:
        name = sample.image.name
        try:
            content = sample.image.read_bytes()
            image = sample.image.open(max_pixels=max_pixels)
        except DataError as error:
            unreadable.append((name, str(error).removeprefix(f"{name}: ")))
            continue
        by_content.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(name)
        if (image.height, image.width) != sample.size:
            height, width = sample.size
            what = f"the picture is {image.width} × {image.height} px, and its annotation is for {width} × {height}"
            unreadable.append((name, what))
    return unreadable, by_content


def _repeated(source: ObjectSource) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for sample in source:
        rows = np.concatenate([sample.boxes, sample.labels[:, None], sample.crowd[:, None]], axis=1)
        if extra := len(rows) - len(np.unique(rows, axis=0)):
            found.append((sample.image.name, extra))
    return found


def _fault(what: str) -> str:
    return next((name for sign, name in _FAULTS if sign in what), "other faults")


def _warnings(
    source: ObjectSource,
    classes: dict[str, int],
    duplicates: list[list[str]],
    repeated: list[tuple[str, int]],
    covered: Coverage | None,
) -> list[str]:
    warnings = _id_warnings(source)
    if not any(classes.values()):
        warnings.append("there is no object in any picture: nothing can be learned")
    if empty := [name for name, count in classes.items() if not count]:
        warnings.append(f"{len(empty)} classes have no objects: {', '.join(empty[:5])}")
    warnings += _split_warnings(source)
    if duplicates:
        split = {sample.image.name: sample.split for sample in source}
        leaks = sum(len({split[name] for name in names}) > 1 for names in duplicates)
        warnings.append(f"{len(duplicates)} pictures are there more than once, {leaks} of them in several splits")
    if repeated:
        warnings.append(f"{sum(n for _, n in repeated)} objects repeat another of the same class and box")
    if covered is not None and covered.anchors < GOOD_RECALL:
        warnings.append(
            f"RetinaNet's anchors reach {covered.anchors:.1%} of the objects at size {covered.size}: train at another "
            "size, or with other anchors"
        )
    if covered is not None and covered.points < GOOD_RECALL:
        warnings.append(f"FCOS's points reach {covered.points:.1%} of the objects at size {covered.size}")
    return warnings


def _id_warnings(source: ObjectSource) -> list[str]:
    ids = [int(category.id) for category in source.categories if isinstance(category.id, int)]
    if len(ids) < len(source.categories) or not ids:
        return []
    missing = sorted(set(range(min(ids), max(ids) + 1)) - set(ids))
    if missing:
        shown = ", ".join(map(str, missing[:6])) + (", …" if len(missing) > 6 else "")
        text = f"category ids run from {min(ids)} to {max(ids)} with {len(missing)} gaps ({shown})"
    elif min(ids) == 0 and source.kind == "coco":
        text = "category ids start at 0, where COCO's start at 1"
    elif min(ids) > 1:
        text = f"category ids start at {min(ids)}"
    else:
        return []
    return [f"{text}: labels count the rows of the table, and predictions carry the ids of the file"]


def _split_warnings(source: ObjectSource) -> list[str]:
    if not source.has_split("train"):
        return []
    used = {
        split: {name for sample in source if sample.split == split for name in np.array(source.names)[sample.labels]}
        for split in source.splits
    }
    known = set[str]().union(*(used[split] for split in source.split("train").splits))
    return [
        f"{len(lost)} classes are in {split} and not in train: {', '.join(sorted(lost)[:5])}"
        for split, names in used.items()
        if (lost := names - known)
    ]
