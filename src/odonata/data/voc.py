"""Pascal VOC's xml, one file a picture; read and written.

- The devkit counts pixels from 1 and includes the last: box = [xmin - 1, ymin - 1, xmax, ymax]. Other tools count from
  0; a set in which any corner is below 1 is one of theirs, and its numbers are taken as they are.
- `difficult` objects are kept as crowds: neither found nor missed, as VOC's measure has it.
- Classes are in order of name (as VOC's twenty are), or as `classes.txt` in the folder lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np

from odonata.data.mend import (
    RawPicture,
    declared_size,
    header_size,
    pictures_by_stem,
    source_from_pictures,
)
from odonata.data.objects import Category, ObjectImage, ObjectSource
from odonata.data.rows import IMAGE_SUFFIXES, Problems
from odonata.data.sample import ImageRef
from odonata.errors import DataError

_SPLITS = ("train", "val", "test")
_PICTURES = ("JPEGImages", "images", "Images", "")


@dataclass(frozen=True)
class _Object:
    """One object as the xml has it."""

    where: str
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    """One xml file."""

    path: Path
    filename: str
    size: tuple[int, int] | None
    objects: tuple[_Object, ...]
    split: str | None = None


def is_voc(folder: Path) -> bool:
    """Whether a folder holds VOC's annotations: in `Annotations`, or beside the pictures."""
    first = next((path for place, _ in _places(folder) for path in place.glob("*.xml")), None)
    if first is None:
        return False
    with first.open("rb") as file:
        return b"<annotation" in file.read(1000)


def _places(folder: Path) -> list[tuple[Path, str | None]]:
    """Folders that hold xml files, and the split that each stands for."""
    if (folder / "Annotations").is_dir():
        return [(folder / "Annotations", None)]
    divided = (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test"))
    found: list[tuple[Path, str | None]] = [
        (folder / name, split) for name, split in divided if any((folder / name).glob("*.xml"))
    ]
    return found or [(folder, None)]


def read_voc(folder: Path, problems: Problems, *, images: Path | None = None) -> ObjectSource:
    """Read a folder of VOC's layout: Annotations, JPEGImages, ImageSets/Main; or of xml files beside their pictures.

    Args:
        folder: with Annotations in it.
        problems: what happens to bad annotations.
        images: folder of the pictures, where it is not found by itself.

    Raises:
        DataError: a file is damaged, or an annotation is bad.
    """
    places = _places(folder)
    listed = _listed(folder, problems)
    annotations: list[_Annotation] = []
    for place, split in places:
        for path in sorted(place.glob("*.xml")):
            annotation = _parse(path, problems)
            if annotation is not None:
                annotations.append(replace(annotation, split=split or listed.get(path.stem)))
    known = {annotation.path.stem for annotation in annotations}
    for stem in listed:
        if stem not in known:
            problems.report(
                f"{folder / 'ImageSets' / 'Main'}: {stem}", "the picture is listed and has no annotation file"
            )
    names = _names(folder, annotations)
    # One corner below 1 anywhere shows how the tool that wrote the whole set counts.
    shift = 0.0 if any(min(o.corners) < 1 for a in annotations for o in a.objects) else 1.0
    pictures = _pictures(folder, [place for place, _ in places], images)
    found = _raw(annotations, names, pictures, shift, problems)
    categories = tuple(Category(name, name) for name in names)
    return source_from_pictures(found, categories, problems, origin=str(folder), kind="voc")


def _listed(folder: Path, problems: Problems) -> dict[str, str]:
    """The split of each picture by ImageSets/Main."""
    main = folder / "ImageSets" / "Main"
    splits = [name for name in _SPLITS if (main / f"{name}.txt").is_file()]
    found: dict[str, str] = {}
    for name in splits or ["trainval"]:
        path = main / f"{name}.txt"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
            stem = line.split()[0] if line.split() else ""
            if stem in found:
                problems.report(f"{path}:{number}", f"the picture {stem!r} is already in {found[stem]}.txt")
            elif stem:
                found[stem] = "train" if name == "trainval" else name
    return found


def _parse(path: Path, problems: Problems) -> _Annotation | None:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        problems.report(str(path), f"not XML: {error}")
        return None
    objects: list[_Object] = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        where = f"{path}: object {number} ({name or 'no name'})"
        corners = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = (float(corner or "") for corner in corners)
        except ValueError:
            problems.report(where, f"the box (xmin ymin xmax ymax) is {corners}; want four numbers")
            continue
        if not name:
            problems.report(where, "the object has no class name")
            continue
        objects.append(_Object(where, name, (x1, y1, x2, y2), (element.findtext("difficult") or "0").strip() == "1"))
    size = declared_size(root.findtext("size/height"), root.findtext("size/width"))
    return _Annotation(path, (root.findtext("filename") or "").strip(), size, tuple(objects))


def _names(folder: Path, annotations: list[_Annotation]) -> tuple[str, ...]:
    listing = folder / "classes.txt"
    if listing.is_file():
        return tuple(line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(sorted({item.name for annotation in annotations for item in annotation.objects}))


def _pictures(folder: Path, places: list[Path], images: Path | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    roots = [images] if images is not None else [*(folder / name for name in _PICTURES), *places]
    for root in roots:
        if root.is_dir():
            for stem, path in pictures_by_stem(root, IMAGE_SUFFIXES).items():
                found.setdefault(stem, path)
    return found


def _raw(
    annotations: list[_Annotation],
    names: tuple[str, ...],
    pictures: Mapping[str, Path],
    shift: float,
    problems: Problems,
) -> Iterator[RawPicture]:
    numbers = {name: number for number, name in enumerate(names)}
    for annotation in annotations:
        # VOC names a picture by its annotation; <filename> is often that of another machine.
        path = pictures.get(annotation.path.stem) or pictures.get(Path(annotation.filename).stem)
        if path is None:
            problems.report(
                str(annotation.path), f"the picture {annotation.filename or annotation.path.stem!r} was not found"
            )
            continue
        image = ImageRef(path)
        try:
            size = annotation.size or header_size(image)
        except DataError as error:
            problems.report(str(annotation.path), str(error))
            continue
        objects = [item for item in annotation.objects if _usable(item, numbers, problems)]
        yield RawPicture(
            image=image,
            size=size,
            boxes=[(x1 - shift, y1 - shift, x2, y2) for x1, y1, x2, y2 in (item.corners for item in objects)],
            labels=[numbers[item.name] for item in objects],
            places=[item.where for item in objects],
            crowd=[item.difficult for item in objects],
            id=annotation.path.stem,
            split=annotation.split,
        )


def _usable(item: _Object, numbers: Mapping[str, int], problems: Problems) -> bool:
    x1, y1, x2, y2 = item.corners
    text = f"box [{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
    if item.name not in numbers:
        problems.report(item.where, f"class {item.name!r} is not in classes.txt ({', '.join(list(numbers)[:8])})")
    elif x2 <= x1 or y2 <= y1:
        # In VOC's counting equal corners are one pixel; no tool that people use means that.
        problems.report(item.where, f"{text} has {'xmax <= xmin' if x2 <= x1 else 'ymax <= ymin'}")
    else:
        return True
    return False


def voc_xml(sample: ObjectImage, filename: str, names: tuple[str, ...]) -> str:
    """The xml of one picture.

    Raises:
        DataError: a box of one pixel or less, which VOC cannot tell from a degenerate one.
    """
    rows: list[str] = []
    for box, label, difficult in zip(sample.boxes.astype(np.float64), sample.labels, sample.crowd, strict=True):
        x1, y1, x2, y2 = box.tolist()
        if x2 - x1 <= 1 or y2 - y1 <= 1:
            raise DataError(
                f"{sample.image.name}: box {[x1, y1, x2, y2]} is one pixel wide or high, and VOC cannot tell it from a "
                "degenerate one; write COCO or YOLO, or leave such objects out"
            )
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
        values = "".join(f"<{key}>{int(v) if v.is_integer() else repr(v)}</{key}>" for key, v in corners)
        rows.append(
            f"  <object><name>{escape(names[int(label)])}</name><difficult>{int(difficult)}</difficult>"
            f"<bndbox>{values}</bndbox></object>\n"
        )
    height, width = sample.size
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{escape(filename)}</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{''.join(rows)}</annotation>\n"
    )
