"""Opens folders of pictures with maps of classes, whatever their layout.

- CamVid: `train/` and `trainannot/`, and so on.
- VOC: JPEGImages, SegmentationClass (palette pictures, 255 at the borders), ImageSets/Segmentation.
- `images/` and `masks/`, with splits inside or outside: images/train and masks/train, or train/images and train/masks.
- Maps alone, of pictures that lie one folder higher under the same name of split (COCO's `semantic/train2017`).

The classes are read from classes.txt (a name a line), or from a table (.csv, .tsv) with the columns id and name, or
name, r, g and b, or all five. Classes named void, ignore, unlabelled or unlabeled are none: their pixels are void. Of
the embedded set "objects", the digits are classes and so is the ground.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from odonata.data.coco import split_of
from odonata.data.mend import header_size, pictures_by_stem
from odonata.data.object_scenes import parse_scenes
from odonata.data.rows import IMAGE_SUFFIXES, OnError, Problems
from odonata.data.sample import ImageRef
from odonata.data.semantic import ClassTable, Colour, MapRef, SemanticImage, SemanticSource, raw_map, voc_palette
from odonata.errors import DataError

VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
_NOT_CLASSES = frozenset({"void", "ignore", "ignored", "unlabelled", "unlabeled"})
_TABLES = ("classes.csv", "classes.tsv", "palette.csv", "class_dict.csv", "palette.txt", "classes.txt")
_MAPS = ("masks", "mask", "maps", "annotations", "labels", "SegmentationClass", "annot")
_PICTURES = ("images", "image", "JPEGImages", "imgs")
_SPLITS = ("train", "val", "valid", "test", "train2017", "val2017", "training", "validation")


@dataclass(frozen=True)
class _Part:
    """One folder of maps with its pictures."""

    split: str | None
    pictures: Path
    maps: Path
    kind: str


def open_semantic(path: str | Path, *, images: str | Path | None = None, on_error: OnError = "raise") -> SemanticSource:
    """Open a set of pictures with maps of classes. Sizes are compared by the files' headers; no picture is decoded.

    Args:
        path: the folder, or the embedded set "objects:…" as `open_objects` takes it.
        images: folder of the pictures, where it is not found by itself.
        on_error: "raise" at the first bad picture, and where a value is no class's when the map is read; or "skip",
            which leaves pictures out and takes such values for void.

    Raises:
        DataError: nothing there, an unknown layout, no names of classes, or a bad picture.
    """
    text = str(path)
    if text.split(":")[0] == "objects":
        return _embedded(text)
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise DataError(f"{text}: no such folder; for the embedded set write 'objects'")
    root = None if images is None else Path(images).expanduser()
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: the folder of pictures does not exist")
    parts = _parts(folder, root)
    if not parts:
        raise DataError(
            f"{folder}: no maps of classes were found; known are CamVid (train/ and trainannot/), VOC (JPEGImages and "
            "SegmentationClass), images/ and masks/"
        )
    problems = Problems(on_error)
    table = _class_table(folder, parts)
    splits = _listed(folder)
    unknown: Literal["raise", "void"] = "raise" if on_error == "raise" else "void"
    samples = [sample for part in parts for sample in _samples(part, folder, table, splits, unknown, problems)]
    if not samples:
        reason = f" ({len(problems.found)} problems, first: {problems.found[0]})" if problems.found else ""
        raise DataError(f"{folder}: no picture with a map was found{reason}")
    return SemanticSource(
        samples, table.names, table.palette, origin=text, problems=tuple(problems.found), kind=parts[0].kind
    )


def is_semantic_set(path: str | Path) -> bool:
    """Whether a folder holds pictures with maps of classes; the files are not checked."""
    folder = Path(path).expanduser()
    return folder.is_dir() and bool(_parts(folder, None)) and (_table_file(folder) is not None or _is_voc(folder))


def _is_voc(folder: Path) -> bool:
    return (folder / "SegmentationClass").is_dir()


def _parts(folder: Path, images: Path | None) -> list[_Part]:
    """Folders of maps with the folders of their pictures."""
    beside = [(folder / name, folder / f"{name}annot") for name in _SPLITS]
    if found := [(pictures, maps) for pictures, maps in beside if pictures.is_dir() and maps.is_dir()]:
        return [_Part(_split(pictures), images or pictures, maps, "camvid") for pictures, maps in found]
    if (folder / "SegmentationClass").is_dir():
        return [_Part(None, images or folder / "JPEGImages", folder / "SegmentationClass", "voc")]
    pairs: list[tuple[Path, Path]] = []
    for name in _SPLITS:
        pairs += [(folder / p / name, folder / m / name) for p in _PICTURES for m in _MAPS]
        pairs += [(folder / name / p, folder / name / m) for p in _PICTURES for m in _MAPS]
        pairs.append((folder.parent / name, folder / name) if folder.name in ("semantic", *_MAPS) else (folder, folder))
    pairs += [(folder / p, folder / m) for p in _PICTURES for m in _MAPS]
    found = [(p, m) for p, m in pairs if p != m and p.is_dir() and _holds_maps(m)]
    return [_Part(_split(maps), images or pictures, maps, "folders") for pictures, maps in found]


def _holds_maps(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.suffix.lower() in (".png", ".bmp", ".tif", ".tiff") for path in folder.iterdir()
    )


def _split(maps: Path) -> str | None:
    name = maps.parent.name if maps.name in _MAPS else maps.name
    return split_of(Path(name)) if name in _SPLITS else None


def _listed(folder: Path) -> dict[str, str]:
    """The split of each picture by ImageSets/Segmentation."""
    main = folder / "ImageSets" / "Segmentation"
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        if (main / f"{split}.txt").is_file():
            found |= dict.fromkeys((main / f"{split}.txt").read_text(encoding="utf-8").split(), split)
    return found


def _samples(
    part: _Part,
    folder: Path,
    table: ClassTable,
    splits: dict[str, str],
    unknown: Literal["raise", "void"],
    problems: Problems,
) -> list[SemanticImage]:
    shown, drawn = (pictures_by_stem(place, IMAGE_SUFFIXES) for place in (part.pictures, part.maps))
    samples: list[SemanticImage] = []
    for stem, map_path in drawn.items():
        # Some sets call the map of a.jpg a_mask.png or a_L.png.
        plain = next((stem.removesuffix(end) for end in ("_mask", "_L", "_label") if stem.endswith(end)), stem)
        path = shown.get(stem) or shown.get(plain)
        if path is None:
            problems.report(str(map_path), f"the map belongs to a picture that is missing in {part.pictures}")
            continue
        try:
            size, map_size = header_size(ImageRef(path)), header_size(ImageRef(map_path))
        except DataError as error:
            problems.report(str(map_path), str(error).removeprefix(f"{map_path}: "))
            continue
        if size != map_size:
            problems.report(
                str(map_path), f"the map is {map_size[1]} × {map_size[0]} px, and its picture {size[1]} × {size[0]}"
            )
            continue
        where = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        map_ref = MapRef(map_path, table, unknown=unknown)
        samples.append(SemanticImage(ImageRef(path), map_ref, size, where, part.split or splits.get(path.stem)))
    return samples


def _table_file(folder: Path) -> Path | None:
    return next((folder / name for name in _TABLES if (folder / name).is_file()), None)


def _class_table(folder: Path, parts: list[_Part]) -> ClassTable:
    path = _table_file(folder)
    if path is not None:
        return read_class_table(path)
    if _is_voc(folder):
        return ClassTable(tuple(VOC_CLASSES), voc_palette(len(VOC_CLASSES)), tuple(range(len(VOC_CLASSES))))
    first = next(
        (map_path for part in parts for map_path in pictures_by_stem(part.maps, IMAGE_SUFFIXES).values()), None
    )
    raise DataError(
        f"{folder}: no names of classes; write classes.txt with a name a line, or classes.csv with the columns id,name "
        f"or name,r,g,b{'' if first is None else f' ({first.name} holds {_contents(first)})'}"
    )


def _contents(path: Path) -> str:
    raw = raw_map(path)
    if raw.ndim == 3:
        colours = sorted({tuple(row) for row in raw.reshape(-1, 3).tolist()})
        return f"the colours {', '.join(map(str, colours[:8]))}{', …' if len(colours) > 8 else ''}"
    values = sorted(set(raw.ravel().tolist()))
    return f"the values {', '.join(map(str, values[:12]))}{', …' if len(values) > 12 else ''}"


def read_class_table(path: Path) -> ClassTable:
    """Read names, numbers and colours of classes.

    Args:
        path: .txt with a name a line, or .csv or .tsv with the columns id, name, r, g, b in any choice that has names;
            without a heading the columns are told by what is in them.

    Raises:
        DataError: no names, or two classes with the same name, number or colour; the message names the line.
    """
    rows = [row for row in _rows(path) if row[1]]
    found: dict[str, set[object]] = {"name": set(), "number": set(), "colour": set()}
    kept: list[tuple[str, int, Colour | None]] = []
    void: list[tuple[int, Colour | None]] = []
    for place, (line, (number, name, colour)) in enumerate(rows):
        value = place if number is None else number
        for what, thing in (("name", name), ("number", value), ("colour", colour)):
            if thing is not None and thing in found[what]:
                raise DataError(f"{path}:{line}: the {what} {thing!r} is given to two classes")
            found[what].add(thing)
        if not 0 <= value < 1 << 16:
            raise DataError(f"{path}:{line}: the number {value} is not from 0 to 65535")
        if name.lower() in _NOT_CLASSES:
            void.append((value, colour))
        else:
            kept.append((name, value, colour))
    if not kept:
        raise DataError(f"{path}: no names of classes")
    given = voc_palette(len(kept))
    palette = tuple(colour or given[label] for label, (_, _, colour) in enumerate(kept))
    try:
        return ClassTable(
            tuple(name for name, _, _ in kept),
            palette,
            tuple(value for _, value, _ in kept),
            tuple(value for value, _ in void),
            tuple(colour for _, colour in void if colour is not None),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


_Row = tuple[int | None, str, Colour | None]


def _rows(path: Path) -> list[tuple[int, _Row]]:
    """(line, (number, name, colour)) of each class."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    if path.suffix == ".txt" and not any(char in text for char in "\t,"):
        return [(line, (None, name.strip(), None)) for line, name in enumerate(text.splitlines(), 1) if name.strip()]
    delimiter = "\t" if "\t" in text else ","
    table = [
        (line, [cell.strip() for cell in row])
        for line, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), start=1)
        if any(cell.strip() for cell in row)
    ]
    heading = [cell.lower() for cell in table[0][1]] if table else []
    if "name" in heading or "class" in heading:
        return [(line, _by_heading(path, line, dict(zip(heading, row, strict=False)))) for line, row in table[1:]]
    return [(line, _by_contents(path, line, row)) for line, row in table]


def _by_heading(path: Path, line: int, cells: dict[str, str]) -> _Row:
    name = cells.get("name") or cells.get("class") or ""
    number = next((cells[key] for key in ("id", "index", "value", "label") if cells.get(key)), None)
    colour = [cells.get(key) or cells.get(key[0]) for key in ("red", "green", "blue")]
    if not name or (number is not None and not number.isdecimal()):
        raise DataError(f"{path}:{line}: {cells}; want a name and a whole number")
    return None if number is None else int(number), name, _colour(path, line, [c for c in colour if c is not None])


def _by_contents(path: Path, line: int, row: list[str]) -> _Row:
    names = [cell for cell in row if not cell.isdecimal()]
    numbers = [cell for cell in row if cell.isdecimal()]
    if len(names) != 1 or len(numbers) not in (0, 1, 3, 4):
        raise DataError(f"{path}:{line}: {row}; want a name with its number, or its colour (r, g, b), or both")
    number = int(numbers[0]) if len(numbers) in (1, 4) else None
    return number, names[0], _colour(path, line, numbers[-3:] if len(numbers) >= 3 else [])


def _colour(path: Path, line: int, cells: list[str]) -> Colour | None:
    if not cells:
        return None
    if len(cells) != 3 or not all(cell.isdecimal() and int(cell) <= 255 for cell in cells):
        raise DataError(f"{path}:{line}: the colour is {cells}; want three whole numbers from 0 to 255")
    return int(cells[0]), int(cells[1]), int(cells[2])


@functools.lru_cache(maxsize=4)
def _embedded(text: str) -> SemanticSource:
    classes = ("background", *(str(digit) for digit in range(10)))
    samples = [
        SemanticImage(
            scenes.picture(index),
            MapRef(paint=functools.partial(scenes.classes, index)),
            (scenes.size, scenes.size),
            scenes.name(index),
            scenes.split,
        )
        for scenes in parse_scenes(text)
        for index in range(scenes.n)
    ]
    return SemanticSource(samples, classes, voc_palette(len(classes)), origin=text, kind="objects")
