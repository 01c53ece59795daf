"""YOLO's text files, one a picture, one line an object; read and written.

- A line is `class cx cy width height` in shares of the picture, or `class x1 y1 x2 y2 x3 y3 …`, a polygon.
- A picture without a text file, or with an empty one, has no objects: it is kept as a negative.
- Class names come from data.yaml (`names`, a list or a table), classes.txt, obj.names, or are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from odonata.data.mend import RawPicture, header_size, source_from_pictures
from odonata.data.objects import Category, ObjectImage, ObjectSource, Outline
from odonata.data.rows import IMAGE_SUFFIXES, Problems
from odonata.data.sample import ImageRef, split_names
from odonata.errors import DataError

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTINGS = ("classes.txt", "obj.names", "classes.names", "names.txt")
_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class _Line:
    """One object as the text has it, in shares of the picture."""

    where: str
    number: int
    box: tuple[float, float, float, float]
    polygon: tuple[float, ...] | None


def is_yolo(folder: Path) -> bool:
    """Whether a folder holds a data.yaml, labels beside images, or pictures with text files and a list of classes."""
    if _yaml_of(folder) is not None:
        return True
    labels = [folder / "labels", *(folder / name / "labels" for name in _FOLDERS)]
    if any(path.name not in _LISTINGS for place in labels for path in place.rglob("*.txt")):
        return True
    listed = any((folder / name).is_file() for name in _LISTINGS)
    return listed and any(_beside(path) for path in folder.rglob("*.txt"))


def _beside(path: Path) -> bool:
    """Whether a text file lies beside a picture of its name and reads as labels."""
    if not any(path.with_suffix(suffix).is_file() for suffix in IMAGE_SUFFIXES):
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        words = file.readline().split()
    return not words or (len(words) >= 5 and words[0].isdecimal())


def _yaml_of(folder: Path) -> Path | None:
    return next((folder / name for name in _YAML if (folder / name).is_file()), None)


def read_yolo(path: Path, problems: Problems, *, images: Path | None = None) -> ObjectSource:
    """Read a data.yaml, or a folder of images and labels.

    Args:
        path: the yaml, or the folder.
        problems: what happens to bad lines.
        images: folder of the pictures, where it is not found by itself.

    Raises:
        DataError: nothing usable is there, or a line is bad.
    """
    listing = path if path.is_file() else _yaml_of(path)
    folder = path.parent if path.is_file() else path
    if listing is not None:
        parts, names = _described(listing)
        folder = listing.parent
    else:
        parts, names = _divided(folder, images), _listed(folder)
    pictures = [(split, picture) for split, place in parts for picture in _pictures(place)]
    if not pictures:
        raise DataError(f"{path}: no pictures were found in {', '.join(str(place) for _, place in parts)}")
    lines = {picture: _lines(_label_file(picture), problems) for _, picture in pictures}
    _orphans({_label_file(picture) for picture in lines}, problems)
    if not names:
        numbers = sorted({line.number for found in lines.values() for line in found})
        names = {number: str(number) for number in range(max(numbers, default=-1) + 1)}
    if not names:
        raise DataError(f"{path}: no class names and no labels; write data.yaml or classes.txt")
    categories = tuple(Category(number, name) for number, name in sorted(names.items()))
    outlined = any(line.polygon is not None for found in lines.values() for line in found)
    found = _raw(pictures, lines, categories, outlined, folder, problems)
    return source_from_pictures(found, categories, problems, origin=str(path), kind="yolo")


def _described(path: Path) -> tuple[list[tuple[str | None, Path]], dict[int, str]]:
    """Splits with their folders or lists, and class names, of a data.yaml."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not YAML: {error}") from error
    if not isinstance(data, dict) or not any(key in data for key in _FOLDERS):
        raise DataError(f"{path}: want train, val and names")
    names: Any = data.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(str(key).isdecimal() for key in names):
        raise DataError(f"{path}: names is {names!r}; want a list of class names, or a table from number to name")
    if isinstance(data.get("nc"), int) and data["nc"] != len(names):
        raise DataError(f"{path}: nc is {data['nc']}, and there are {len(names)} names")
    root = path.parent / str(data.get("path") or "")
    parts: list[tuple[str | None, Path]] = []
    for key, split in _FOLDERS.items():
        value = data.get(key) or []
        for place in value if isinstance(value, list) else [value]:
            # Roboflow writes ../train/images beside train.
            tries = [root / str(place), path.parent / str(place), path.parent / str(place).removeprefix("../")]
            found = next((item for item in tries if item.exists()), None)
            if found is None and split != "test":
                raise DataError(f"{path}: {key}: {place!r} does not exist; tried {', '.join(map(str, tries))}")
            if found is not None:
                parts.append((split, found))
    return parts, {int(key): str(name) for key, name in names.items()}


def _divided(folder: Path, images: Path | None) -> list[tuple[str | None, Path]]:
    """Splits with their folders, of images/ and labels/ in either order of nesting."""
    root = images or (folder / "images" if (folder / "images").is_dir() else folder)
    parts = [(split, root / name) for name, split in _FOLDERS.items() if (root / name).is_dir()]
    return [*parts] or [(None, root)]


def _listed(folder: Path) -> dict[int, str]:
    for place in (folder, folder / "labels", folder.parent):
        for name in _LISTINGS:
            if (place / name).is_file():
                lines = (place / name).read_text(encoding="utf-8").splitlines()
                return dict(enumerate(line.strip() for line in lines if line.strip()))
    return {}


def _pictures(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    found: list[Path] = []
    for line in place.read_text(encoding="utf-8").splitlines():
        if name := line.strip():
            found.append(place.parent / name)
    return found


def _label_file(picture: Path) -> Path:
    """…/labels/name.txt for …/images/name.jpg, or the text file beside the picture."""
    parts = list(picture.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            return Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
    return picture.with_suffix(".txt")


def _orphans(wanted: set[Path], problems: Problems) -> None:
    """Report text files that belong to no picture."""
    for folder in sorted({path.parent for path in wanted}):
        for path in sorted(folder.glob("*.txt")):
            if path not in wanted and path.name not in _LISTINGS and folder.name != "images":
                if path.stem in split_names(path.stem) and path.stem in _FOLDERS:
                    continue  # a list of pictures
                problems.report(str(path), "the labels belong to a picture that is missing")


def _lines(path: Path, problems: Problems) -> list[_Line]:
    if not path.is_file():
        return []
    found: list[_Line] = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        problems.report(str(path), "not a text file in UTF-8")
        return []
    for number, row in enumerate(text.splitlines(), start=1):
        if row.strip() and (line := _line(row.split(), f"{path}:{number}", problems)) is not None:
            found.append(line)
    return found


def _line(words: list[str], where: str, problems: Problems) -> _Line | None:
    try:
        values = [float(word) for word in words]
    except ValueError:
        problems.report(where, f"{' '.join(words[:6])!r} is not a class and numbers")
        return None
    if not values[0].is_integer() or values[0] < 0:
        problems.report(where, f"the class is {words[0]}; want a whole number from 0")
    elif len(values) < 5 or (len(values) > 5 and len(values) % 2 == 0):
        problems.report(
            where,
            f"{len(values)} numbers; want class cx cy width height, or class and three points or more of a polygon",
        )
    elif not all(map(math.isfinite, values)):
        problems.report(where, f"{' '.join(words[1:5])} is not finite")
    elif max(values[1:]) > 2:
        problems.report(where, f"{' '.join(words[1:5])} looks like pixels; want shares of the picture, 0 to 1")
    elif len(values) == 5:
        _, cx, cy, width, height = values
        return _Line(where, int(values[0]), (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), None)
    else:
        xs, ys = values[1::2], values[2::2]
        return _Line(where, int(values[0]), (min(xs), min(ys), max(xs), max(ys)), tuple(values[1:]))
    return None


def _raw(
    pictures: list[tuple[str | None, Path]],
    lines: Mapping[Path, list[_Line]],
    categories: tuple[Category, ...],
    outlined: bool,
    folder: Path,
    problems: Problems,
) -> Iterator[RawPicture]:
    labels = {category.id: label for label, category in enumerate(categories)}
    seen: set[Path] = set()
    for split, path in pictures:
        if path in seen:
            problems.report(str(path), "the picture is in two splits")
            continue
        seen.add(path)
        try:
            height, width = header_size(ImageRef(path))
        except DataError as error:
            problems.report(str(path), str(error).removeprefix(f"{path}: "))
            continue
        known = [line for line in lines[path] if line.number in labels]
        for line in lines[path]:
            if line.number not in labels:
                table = ", ".join(f"{category.id} {category.name}" for category in categories[:6])
                problems.report(line.where, f"class {line.number} is unknown; the {len(categories)} names are {table}")
        yield RawPicture(
            image=ImageRef(path),
            size=(height, width),
            boxes=[_pixels(line.box, height, width) for line in known],
            labels=[labels[line.number] for line in known],
            places=[line.where for line in known],
            outlines=[_outline(line, height, width) for line in known] if outlined else None,
            surely_pixels=True,
            id=path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name,
            split=split,
        )


def _pixels(box: tuple[float, float, float, float], height: int, width: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return x1 * width, y1 * height, x2 * width, y2 * height


def _outline(line: _Line, height: int, width: int) -> Outline | None:
    if line.polygon is None:
        return None
    return [[value * (height if place % 2 else width) for place, value in enumerate(line.polygon)]]


def yolo_text(sample: ObjectImage, ids: tuple[int, ...], polygons: bool = False) -> str:
    """The lines of one picture; crowds, which YOLO does not know, are left out.

    Args:
        sample: the picture.
        ids: number of each label.
        polygons: write outlines where each is one polygon, else boxes.

    Raises:
        DataError: polygons are wanted, and an object has none or several.
    """
    height, width = sample.size
    rows: list[str] = []
    for number, box in enumerate(sample.boxes.astype(np.float64)):
        if sample.crowd[number]:
            continue
        x1, y1, x2, y2 = box.tolist()
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        if polygons:
            outline = sample.outlines[number] if sample.outlines is not None else None
            if not isinstance(outline, list) or len(outline) != 1:
                raise DataError(
                    f"{sample.image.name}: object {number} is not one polygon, and YOLO holds no other outline"
                )
            values = [value / (height if place % 2 else width) for place, value in enumerate(outline[0])]
        rows.append(" ".join([str(ids[int(sample.labels[number])]), *(repr(float(value)) for value in values)]))
    return "".join(f"{row}\n" for row in rows)
