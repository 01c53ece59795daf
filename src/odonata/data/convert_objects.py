"""Sets of pictures with objects written as COCO, VOC or YOLO; what is written reads back the same, to the last bit.

What a format cannot hold: VOC has names where COCO has numbered categories, and no outlines; YOLO numbers the classes
from 0, has no crowds, and one polygon an object at most.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import yaml
from PIL import Image

from odonata.data.coco import coco_dict
from odonata.data.objects import ObjectImage, ObjectSource
from odonata.data.voc import voc_xml
from odonata.data.yolo import yolo_text
from odonata.errors import DataError

ObjectFormat = Literal["coco", "voc", "yolo"]


def convert_objects(source: ObjectSource, folder: str | Path, to: ObjectFormat) -> Path:
    """Write a source in another format, pictures copied.

    Args:
        source: pictures with objects.
        folder: new or empty.
        to: the format.

    Returns:
        What `open_objects` opens: the folder.

    Raises:
        DataError: the folder is not empty, or the format cannot hold an object.
        ValueError: an unknown format.
    """
    writers = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
    if to not in writers:
        raise ValueError(f"format {to!r} is unknown; known: {', '.join(writers)}")
    return writers[to](source, folder)


def write_coco(source: ObjectSource, folder: str | Path) -> Path:
    """annotations/instances_SPLIT.json with pictures in SPLIT/; instances.json and images/ where there is no split."""
    folder, names = _empty(folder), _file_names(source)
    for split in dict.fromkeys(sample.split for sample in source):
        chosen = [index for index, sample in enumerate(source) if sample.split == split]
        data = coco_dict(source.subset(chosen), [names[index] for index in chosen])
        pictures = folder / (split or "images")
        for index in chosen:
            _write_picture(source[index], pictures / names[index])
        path = folder / "annotations" / (f"instances_{split}.json" if split else "instances.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data), encoding="utf-8")
    return folder


def write_voc(source: ObjectSource, folder: str | Path) -> Path:
    """Annotations, JPEGImages, ImageSets/Main and a classes.txt, which keeps the order of the classes.

    Raises:
        DataError: also where a box is one pixel wide or high.
    """
    folder, names = _empty(folder), _file_names(source)
    texts = [voc_xml(sample, name, source.names) for sample, name in zip(source, names, strict=True)]
    listed: dict[str, list[str]] = {}
    for sample, name, text in zip(source, names, texts, strict=True):
        stem = Path(name).stem
        _write_picture(sample, folder / "JPEGImages" / name)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
        if sample.split is not None:
            listed.setdefault(sample.split, []).append(stem)
    for split, stems in listed.items():
        path = folder / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in source.names), encoding="utf-8")
    return folder


def write_yolo(source: ObjectSource, folder: str | Path, polygons: bool = False) -> Path:
    """data.yaml, images/SPLIT and labels/SPLIT.

    Args:
        source: pictures with objects; crowds are left out.
        folder: new or empty.
        polygons: write outlines instead of boxes.

    Raises:
        DataError: also where polygons are wanted and an outline is not one polygon.
    """
    folder, names = _empty(folder), _file_names(source)
    ids = tuple(range(len(source.categories)))
    texts = [yolo_text(sample, ids, polygons) for sample in source]
    data: dict[str, object] = {"path": "."}
    for sample, name, text in zip(source, names, texts, strict=True):
        part = sample.split or "train"
        label = (folder / "labels" / part / name).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(text, encoding="utf-8")
        _write_picture(sample, folder / "images" / part / name)
        data[part] = f"images/{part}"
    data["names"] = dict(enumerate(source.names))
    (folder / "data.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder


def _empty(folder: str | Path) -> Path:
    place = Path(folder).expanduser()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(f"{place}: want a new or empty folder")
    place.mkdir(parents=True, exist_ok=True)
    return place


def _file_names(source: ObjectSource) -> list[str]:
    """A file name for each picture, whose stems are all different."""
    names: list[str] = []
    taken: set[str] = set()
    for sample in source:
        ref = sample.image
        whole = ref.path is not None and ref.offset is None
        stem, suffix = (ref.path.stem, ref.path.suffix) if whole and ref.path is not None else (ref.label, ".png")
        stem, number, base = stem.replace("/", "_") or "picture", 1, stem.replace("/", "_") or "picture"
        while stem in taken:
            number += 1
            stem = f"{base}_{number}"
        taken.add(stem)
        names.append(stem + suffix)
    return names


def _write_picture(sample: ObjectImage, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ref = sample.image
    if ref.path is None:
        Image.fromarray(ref.read_array()).save(path)
    elif ref.offset is None:
        shutil.copyfile(ref.path, path)
    else:
        ref.open().save(path)
