"""COCO's json of instances: boxes, polygons, run lengths, crowds; read and written.

- Category ids may start anywhere and have gaps: the table keeps them, and labels count the table's rows in order of id.
- A crowd (`iscrowd`) is kept as such with its run lengths. Run lengths may be compressed or not.
- Several files (instances_train.json, instances_val.json) become one source with splits; the first file's table holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odonata.data.mend import RawPicture, declared_size, header_size, source_from_pictures
from odonata.data.objects import Category, ObjectImage, ObjectSource, Outline
from odonata.data.rows import Problems
from odonata.data.sample import ImageRef
from odonata.errors import DataError

_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:val|id|idation|ing|-?dev)?\d*(?![a-z])")


def find_coco(folder: Path) -> list[Path]:
    """The files of instances that describe a folder: `instances_*.json` in it or in `annotations`, Roboflow's
    `*/_annotations.coco.json`, or the only json that holds boxes.

    Raises:
        DataError: several other files hold boxes, and it must be said which is meant.
    """
    places = [folder, *(folder / name for name in ("annotations", "Annotations") if (folder / name).is_dir())]
    for pattern in ("instances_*.json", "instances.json", "_annotations.coco.json", "*/_annotations.coco.json"):
        if found := sorted({path.resolve(): path for place in places for path in place.glob(pattern)}.values()):
            return sorted(found, key=lambda path: (("train", "val", "test", None).index(split_of(path)), path.name))
    others = [path for place in places for path in sorted(place.glob("*.json")) if holds_boxes(path)]
    others = list({path.resolve(): path for path in others}.values())
    splits = [split_of(path) for path in others]
    if len(others) > 1 and (None in splits or len(set(splits)) < len(splits)):
        raise DataError(
            f"{folder}: several files hold boxes: {', '.join(p.name for p in others)}; name the one to read"
        )
    return sorted(others, key=lambda path: ("train", "val", "test", None).index(split_of(path)))


def holds_boxes(path: Path) -> bool:
    """Whether a json is one of instances."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(data, dict) or not isinstance(data.get("images"), list) or "categories" not in data:
        return False
    annotations = data.get("annotations")
    return isinstance(annotations, list) and (not annotations or "bbox" in annotations[0])


def split_of(path: Path) -> str | None:
    """The split that the name of a file, or else of its folder, speaks of."""
    folder = "" if path.parent.name.lower() == "annotations" else path.parent.name
    for name in (path.stem, folder):
        if found := _SPLIT.search(name.lower().replace("_", " ")):
            return found[1]
    return None


def read_coco(
    files: Sequence[Path], problems: Problems, *, images: Path | None = None, origin: str = ""
) -> ObjectSource:
    """Read files of instances into one source.

    Args:
        files: in the order wanted; the first gives the table of categories.
        problems: what happens to bad annotations.
        images: folder that picture names are relative to, where it is not found by itself.
        origin: of the source.

    Raises:
        DataError: a file is damaged or of another kind, or an annotation is bad.
    """
    read = [(path, _load(path)) for path in files]
    table = _table(read[0][1]["categories"], read[0][0])
    outlined = any(_outline(item) is not None for _, data in read for item in data["annotations"])

    def pictures() -> Iterator[RawPicture]:
        for path, data in read:
            yield from _File(path, data, table, problems, images, outlined).pictures()

    return source_from_pictures(pictures(), table, problems, origin=origin or str(files[0]), kind="coco")


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    if isinstance(data, list):
        raise DataError(f"{path}: a list, as COCO's results are; want an object with images, annotations, categories")
    wanted = ("images", "annotations", "categories")
    if missing := [key for key in wanted if not isinstance(data.get(key), list)]:
        raise DataError(f"{path}: no list under {missing[0]!r}; keys found: {', '.join(sorted(data)) or 'none'}")
    for key in wanted:
        for number, row in enumerate(data[key]):
            if not isinstance(row, dict):
                raise DataError(f"{path}: {key}[{number}] is {type(row).__name__}, not an object")
    return data


def _table(rows: Sequence[dict[str, Any]], path: Path) -> tuple[Category, ...]:
    table: list[Category] = []
    for number, row in enumerate(rows):
        if not isinstance(row.get("id"), (int, str)) or not isinstance(row.get("name"), str):
            raise DataError(f"{path}: categories[{number}] needs an id and a name, and is {row}")
        table.append(Category(row["id"], row["name"]))
    if not table:
        raise DataError(f"{path}: the table of categories is empty")
    for number, category in enumerate(table):
        for what, same in (
            ("id", [c.id == category.id for c in table]),
            ("name", [c.name == category.name for c in table]),
        ):
            if sum(same) > 1:
                raise DataError(
                    f"{path}: categories[{number}] {category.name!r} (id {category.id}): the {what} occurs twice"
                )
    numbered = all(isinstance(category.id, int) for category in table)
    return tuple(sorted(table, key=lambda category: int(category.id))) if numbered else tuple(table)


def _outline(row: dict[str, Any]) -> Outline | None:
    """The outline as the row has it; polygons empty or absent are none."""
    found = row.get("segmentation")
    return found if isinstance(found, (list, dict)) and found else None


@dataclass(frozen=True, eq=False)
class _File:
    """One file of instances while it is read."""

    path: Path
    data: dict[str, Any]
    table: tuple[Category, ...]
    problems: Problems
    images: Path | None
    outlined: bool

    def pictures(self) -> Iterator[RawPicture]:
        entries: dict[int | str, dict[str, Any]] = {}
        names: set[str] = set()
        for number, row in enumerate(self.data["images"]):
            where, name = f"{self.path}: images[{number}]", row.get("file_name")
            if not isinstance(row.get("id"), (int, str)) or not isinstance(name, str) or not name:
                self.problems.report(where, "an image needs an id and a file_name")
            elif row["id"] in entries:
                self.problems.report(where, f"duplicate image id {row['id']!r}")
            elif name in names:
                self.problems.report(where, f"the picture {name!r} is listed twice, with its objects divided")
            else:
                entries[row["id"]] = row
                names.add(name)
        rows = self._by_image(entries)
        roots, split = self._roots(), split_of(self.path)
        for key, entry in entries.items():
            image = self._find(entry["file_name"], roots, f"{self.path}: image {key!r}")
            if image is not None and (size := self._size(entry, image)) is not None:
                yield self._picture(entry, image, size, rows[key], split)

    def _by_image(self, entries: dict[int | str, dict[str, Any]]) -> dict[int | str, list[dict[str, Any]]]:
        labels = self._labels()
        rows: dict[int | str, list[dict[str, Any]]] = {key: [] for key in entries}
        listed = {row.get("id") for row in self.data["images"]}
        seen: set[int | str] = set()
        for number, row in enumerate(self.data["annotations"]):
            key, where = row.get("id"), f"{self.path}: annotation {row.get('id', f'number {number}')!r}"
            label, box = labels.get(row.get("category_id")), row.get("bbox")
            if key is not None and key in seen:
                self.problems.report(where, "duplicate annotation id")
            elif row.get("image_id") not in listed:
                self.problems.report(where, f"belongs to image {row.get('image_id')!r}, which is not listed")
            elif label is None:
                self.problems.report(where, self._unknown(row.get("category_id")))
            elif not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) for v in box):
                self.problems.report(where, f"bbox is {box!r}; want [x, y, width, height]")
            elif row["image_id"] in rows:
                rows[row["image_id"]].append({**row, "label": label, "where": where})
            seen.add(key if key is not None else f"number {number}")
        return rows

    def _labels(self) -> dict[Any, int]:
        """From this file's category ids to places in the common table; categories that it lacks are absent."""
        places = {category.name: place for place, category in enumerate(self.table)}
        own = _table(self.data["categories"], self.path)
        return {category.id: places[category.name] for category in own if category.name in places}

    def _unknown(self, key: object) -> str:
        own = {category.id: category.name for category in _table(self.data["categories"], self.path)}
        known = ", ".join(f"{category.id} {category.name}" for category in self.table[:6])
        more = ", …" if len(self.table) > 6 else ""
        if isinstance(key, (int, str)) and key in own:
            return f"class {own[key]!r} (id {key}) is unknown in the first split, which has {known}{more}"
        return f"category_id {key!r} is not in the table, which has {known}{more}"

    def _roots(self) -> list[Path]:
        split, name = split_of(self.path), self.path.stem.partition("_")[2]
        folders = [self.path.parent]
        if self.path.parent.name.lower() == "annotations":
            folders.append(self.path.parent.parent)
        if self.images is not None:
            folders = [self.images]
        parts = [name, split or "", f"{split}2017", "valid" if split == "val" else ""]
        parts = [part for part in dict.fromkeys(parts) if part]
        inner = ["", *parts, *(f"images/{part}" for part in parts), *(f"{part}/images" for part in parts)]
        places = [folder / place for folder in folders for place in (*inner, "images", "JPEGImages")]
        return list(dict.fromkeys(place for place in places if place.is_dir()))

    def _find(self, name: str, roots: list[Path], where: str) -> ImageRef | None:
        for place, root in enumerate(roots):
            if (path := root / name).is_file():
                # The folder that held one picture is asked first for the next.
                roots.insert(0, roots.pop(place))
                return ImageRef(path)
        tried = ", ".join(str(root) for root in roots)
        self.problems.report(where, f"the picture {name!r} was not found; looked in {tried}; give the folder of images")
        return None

    def _size(self, entry: dict[str, Any], image: ImageRef) -> tuple[int, int] | None:
        if (size := declared_size(entry.get("height"), entry.get("width"))) is not None:
            return size
        try:
            return header_size(image)
        except DataError as error:
            self.problems.report(f"{self.path}: image {entry['id']!r}", str(error))
            return None

    def _picture(
        self,
        entry: dict[str, Any],
        image: ImageRef,
        size: tuple[int, int],
        rows: list[dict[str, Any]],
        split: str | None,
    ) -> RawPicture:
        boxes = [row["bbox"] for row in rows]
        return RawPicture(
            image=image,
            size=size,
            boxes=[(x, y, x + width, y + height) for x, y, width, height in boxes],
            labels=[row["label"] for row in rows],
            places=[row["where"] for row in rows],
            crowd=[bool(row.get("iscrowd")) for row in rows],
            outlines=[_outline(row) for row in rows] if self.outlined else None,
            areas=[row.get("area") for row in rows],
            id=entry["id"],
            split=split,
        )


def coco_dict(source: ObjectSource, names: Sequence[str]) -> dict[str, Any]:
    """A source as COCO's json holds it.

    Args:
        source: pictures with objects; ids that are not numbers are counted from 1.
        names: file name of each picture.
    """
    numbered = all(isinstance(category.id, int) for category in source.categories)
    ids = [category.id if numbered else place + 1 for place, category in enumerate(source.categories)]
    own = len({s.id for s in source}) == len(source) and all(isinstance(s.id, int) for s in source)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (sample, name) in enumerate(zip(source, names, strict=True), start=1):
        key = sample.id if own else number
        images.append({"id": key, "file_name": name, "height": sample.size[0], "width": sample.size[1]})
        for row in coco_annotations(sample, ids):
            annotations.append({"id": len(annotations) + 1, "image_id": key, **row})
    categories = [{"id": ids[place], "name": category.name} for place, category in enumerate(source.categories)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_annotations(sample: ObjectImage, ids: Sequence[int | str]) -> Iterator[dict[str, Any]]:
    """The objects of one picture as COCO's annotations, without ids of their own.

    Args:
        sample: the picture.
        ids: category id of each label.
    """
    for number, box in enumerate(sample.boxes.astype(np.float64)):
        x1, y1, x2, y2 = (_plain(value) for value in box)
        area = (x2 - x1) * (y2 - y1) if sample.areas is None else _plain(sample.areas[number])
        row: dict[str, Any] = {
            "category_id": ids[int(sample.labels[number])],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": area,
            "iscrowd": int(sample.crowd[number]),
        }
        if sample.outlines is not None:
            row["segmentation"] = _written(sample.outlines[number])
        yield row


def _plain(value: float) -> float | int:
    """Whole numbers without a point."""
    return int(value) if float(value).is_integer() else float(value)


def _written(outline: Outline) -> Any:
    import torch

    from odonata.ops.masks import encode

    found = encode(torch.from_numpy(outline())) if callable(outline) else outline
    if isinstance(found, dict) and isinstance(found["counts"], bytes):
        return {**found, "counts": found["counts"].decode("ascii")}
    return found
