"""From rows that name a picture and say something about it to a source: what every caption format has in common.

Readers of formats make rows; here pictures are found, captions checked, repeated pictures gathered, labels numbered and
bad rows reported with the place they stand at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from odonata.data.records import has_bad_bytes
from odonata.data.sample import ImageRef, ImageText, ImageTextSource, Problem
from odonata.errors import DataError

OnError = Literal["raise", "skip"]
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass
class Problems:
    """What to do with a bad row: raise at once, or note it and go on."""

    on_error: OnError = "raise"
    found: list[Problem] = field(default_factory=list[Problem])

    def report(self, where: str, what: str) -> None:
        """Raise DataError "where: what", or note it when bad rows are skipped."""
        if self.on_error == "raise":
            raise DataError(f"{where}: {what}")
        self.found.append(Problem(where, what))

    def note(self, where: str, what: str) -> None:
        """Note what was mended without loss: no reason to stop, whatever is done about bad rows."""
        self.found.append(Problem(where, what, mended=True))


@dataclass(frozen=True, eq=False)
class Row:
    """One row as a format gives it.

    Args:
        where: place of the row, "file:line".
        image: name of the picture as written, or a reference that the format has found itself.
        captions: as written; not checked yet.
        label: class name.
        id: given explicitly by the file; two rows with the same are an error.
        split: name of the split.
        image_names: other names to look for, best first.
    """

    where: str
    image: str | ImageRef
    captions: Sequence[Any]
    label: str | None = None
    id: str | None = None
    split: str | None = None
    image_names: tuple[str, ...] = ()


@dataclass(eq=False)
class _Gathered:
    row: Row
    image: ImageRef
    captions: list[str]


def source_from_rows(
    rows: Iterable[Row],
    roots: Sequence[Path],
    problems: Problems,
    *,
    origin: str,
    kind: str,
    classes: tuple[str, ...] | None = None,
) -> ImageTextSource:
    """Find the pictures, check the captions and gather the rows of one picture into one sample.

    Args:
        rows: in the order of the file.
        roots: folders that picture names are relative to, tried in turn.
        problems: what happens to bad rows.
        origin, kind: of the source.
        classes: class names in the order of their numbers; from the labels, sorted, where None.
    """
    gathered: dict[str, _Gathered] = {}
    by_id: dict[str, tuple[Row, str]] = {}
    for row in rows:
        captions = _good_captions(row, problems)
        image = _find(row, roots, problems) if captions else None
        if not captions or image is None:
            continue
        name = image.name
        if row.id is not None and row.id in by_id:
            first, first_name = by_id[row.id]
            # Files with a line per caption repeat the picture's id: only another picture or the same line is wrong.
            if first_name != name or any(text in gathered[name].captions for text in captions):
                problems.report(row.where, f"duplicate id {row.id!r}, first used at {first.where}")
                continue
        elif row.id is not None:
            by_id[row.id] = (row, name)
        if name in gathered:
            gathered[name].captions.extend(captions)
        else:
            gathered[name] = _Gathered(row, image, list(captions))
    if not gathered:
        reason = f" ({len(problems.found)} bad rows, first: {problems.found[0]})" if problems.found else ""
        raise DataError(f"{origin}: no usable pictures with captions were found{reason}")
    names = classes or _class_names(item.row.label for item in gathered.values())
    numbers = {name: number for number, name in enumerate(names or ())}
    samples = [
        ImageText(
            item.image,
            tuple(item.captions),
            None if item.row.label is None else numbers[item.row.label],
            item.row.id if item.row.id is not None else _relative(name, roots),
            item.row.split,
        )
        for name, item in gathered.items()
    ]
    return ImageTextSource(samples, names, origin, tuple(problems.found), kind)


def _good_captions(row: Row, problems: Problems) -> list[str]:
    if not row.captions:
        problems.report(row.where, "the caption is missing")
        return []
    captions: list[str] = []
    for caption in row.captions:
        if caption is None:
            problems.report(row.where, "the caption is missing")
        elif not isinstance(caption, str):
            problems.report(row.where, f"the caption is {type(caption).__name__} {caption!r}, not text")
        elif not caption.strip():
            problems.report(row.where, "the caption is empty")
        elif has_bad_bytes(caption):
            problems.report(row.where, "the caption is not UTF-8; save the file as UTF-8")
        else:
            captions.append(caption.strip())
    return captions


def _find(row: Row, roots: Sequence[Path], problems: Problems) -> ImageRef | None:
    if isinstance(row.image, ImageRef):
        return row.image
    if not row.image.strip() or has_bad_bytes(row.image):
        problems.report(row.where, "the picture's name is empty or not UTF-8")
        return None
    if "://" in row.image:
        problems.report(row.where, f"the picture {row.image!r} is an address; download it and name the file")
        return None
    tried: list[Path] = []
    for name in (row.image, *row.image_names):
        for root in roots:
            path = root / name
            if path.is_file():
                return ImageRef(path)
            tried.append(path)
    places = ", ".join(str(path) for path in dict.fromkeys(tried))
    problems.report(row.where, f"the picture {row.image!r} was not found; tried {places}")
    return None


def _class_names(labels: Iterable[str | None]) -> tuple[str, ...] | None:
    found = {label for label in labels if label is not None}
    if not found:
        return None
    numeric = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numeric else 0, label)))


def _relative(name: str, roots: Sequence[Path]) -> str:
    for root in roots:
        if Path(name).is_relative_to(root):
            return Path(name).relative_to(root).as_posix()
    return name
