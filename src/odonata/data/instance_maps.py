"""Pictures with maps of instances: a PNG as large as the picture, 0 the ground, every other value one object.

Boxes are those of the values' pixels, so that each map is read once when the set is opened; masks are read again when a
batch wants them. All objects are of one class, named by `classes.txt` in the folder, or "object".
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int32
from PIL import Image, UnidentifiedImageError

from odonata.data.mend import RawPicture, header_size, pictures_by_stem, source_from_pictures
from odonata.data.objects import Category, ObjectSource
from odonata.data.rows import IMAGE_SUFFIXES, Problems
from odonata.data.sample import ImageRef
from odonata.errors import DataError

_MAPS = ("instance_maps", "instances", "inst_maps", "SegmentationObject")
_PICTURES = ("images", "JPEGImages")
_FOLDERS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def is_instance_maps(folder: Path) -> bool:
    """Whether a folder, or its train and val, holds pictures and maps of instances."""
    return bool(_places(folder))


def _places(folder: Path) -> list[tuple[str | None, Path, Path]]:
    """(split, pictures, maps)."""
    found: list[tuple[str | None, Path, Path]] = []
    for split, place in [(None, folder), *((split, folder / name) for name, split in _FOLDERS.items())]:
        maps = next((place / name for name in _MAPS if (place / name).is_dir()), None)
        pictures = next((place / name for name in _PICTURES if (place / name).is_dir()), None)
        if maps is not None and pictures is not None:
            found.append((split, pictures, maps))
    return found


def read_instance_maps(folder: Path, problems: Problems, *, images: Path | None = None) -> ObjectSource:
    """Read a folder with `images` and `instance_maps`, or with such pairs under train and val.

    Args:
        folder: the folder.
        problems: what happens to bad maps.
        images: folder of the pictures, where it is not found by itself.

    Raises:
        DataError: a map is missing, damaged, or of another size than its picture.
    """
    listing = folder / "classes.txt"
    names = listing.read_text(encoding="utf-8").split() if listing.is_file() else ["object"]
    if len(names) != 1:
        raise DataError(f"{listing}: {len(names)} classes; maps of instances have one")
    pictures = _raw([(split, images or place, maps) for split, place, maps in _places(folder)], problems)
    return source_from_pictures(pictures, (Category(1, names[0]),), problems, origin=str(folder), kind="masks")


def _raw(places: list[tuple[str | None, Path, Path]], problems: Problems) -> Iterator[RawPicture]:
    for split, pictures, maps in places:
        drawn = pictures_by_stem(maps, IMAGE_SUFFIXES)
        shown = pictures_by_stem(pictures, IMAGE_SUFFIXES)
        for stem in drawn.keys() - shown.keys():
            problems.report(str(drawn[stem]), "the map belongs to a picture that is missing")
        for stem, path in shown.items():
            if stem not in drawn:
                problems.report(str(path), f"the picture has no map in {maps}")
                continue
            try:
                size, numbers = header_size(ImageRef(path)), read_map(drawn[stem])
            except DataError as error:
                problems.report(str(drawn[stem]), str(error).removeprefix(f"{drawn[stem]}: "))
                continue
            if numbers.shape != size:
                problems.report(
                    str(drawn[stem]),
                    f"the map is {numbers.shape[1]} × {numbers.shape[0]} px, and the picture {size[1]} × {size[0]}",
                )
                continue
            yield _picture(path, drawn[stem], numbers, split)


def _picture(path: Path, map_path: Path, numbers: Int32[np.ndarray, "height width"], split: str | None) -> RawPicture:
    found = [number for number in np.unique(numbers).tolist() if number]
    boxes, areas = extents(numbers, found)
    return RawPicture(
        image=ImageRef(path),
        size=(numbers.shape[0], numbers.shape[1]),
        boxes=boxes,
        labels=[0] * len(found),
        places=[f"{map_path}: value {number}" for number in found],
        outlines=[functools.partial(instance_mask, map_path, number) for number in found],
        areas=areas,
        surely_pixels=True,
        id=path.stem,
        split=split,
    )


def extents(
    numbers: Int32[np.ndarray, "height width"], wanted: list[int]
) -> tuple[list[tuple[float, float, float, float]], list[float]]:
    """Tight xyxy box and number of pixels of each value."""
    boxes: list[tuple[float, float, float, float]] = []
    areas: list[float] = []
    rows, columns = np.nonzero(numbers)
    values = numbers[rows, columns]
    order = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[order], [*wanted, np.iinfo(np.int32).max])
    for low, high in itertools.pairwise(starts.tolist()):
        ys, xs = rows[order[low:high]], columns[order[low:high]]
        boxes.append((float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)))
        areas.append(float(high - low))
    return boxes, areas


@functools.lru_cache(maxsize=4)
def read_map(path: Path) -> Int32[np.ndarray, "height width"]:
    """The values of a map, as the file holds them: palette pictures by index.

    Raises:
        DataError: it cannot be read, or has colours instead of numbers.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise DataError(
                    f"{path}: the map has mode {image.mode}; want one number a pixel (8 or 16 bits, or palette)"
                )
            array = np.array(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot read the map: {error}") from error
    array = array.astype(np.int32)
    array.setflags(write=False)
    return array


def instance_mask(path: Path, number: int) -> Bool[np.ndarray, "height width"]:
    """Pixels of one value."""
    return read_map(path) == number
