"""One function opens every format of pictures with objects: the format is found from the path."""

from __future__ import annotations

from pathlib import Path

from odonata.data.coco import find_coco, holds_boxes, read_coco
from odonata.data.instance_maps import is_instance_maps, read_instance_maps
from odonata.data.object_scenes import open_object_scenes
from odonata.data.objects import ObjectSource
from odonata.data.rows import OnError, Problems
from odonata.data.voc import is_voc, read_voc
from odonata.data.yolo import is_yolo, read_yolo
from odonata.errors import DataError

EMBEDDED = "objects"
_KNOWN = (
    "COCO (instances_*.json, here or in annotations/), VOC (Annotations/*.xml), YOLO (data.yaml, or images/ and "
    "labels/), pictures with maps of instances (images/ and instance_maps/)"
)


def open_objects(path: str | Path, *, images: str | Path | None = None, on_error: OnError = "raise") -> ObjectSource:
    """Open a set of pictures with objects. No picture is decoded.

    Args:
        path: COCO's json of instances or its folder; a VOC folder; a YOLO folder or data.yaml; a folder of pictures and
            maps of instances; or "objects", "objects:n=1500,size=128,objects=1-4,sides=8-48,seed=0,clutter=3,
            split=train", the embedded set.
        images: folder that picture names are relative to, where it is not found by itself.
        on_error: "raise" at the first bad annotation, or "skip" and keep it in the source's `problems`.

    Raises:
        DataError: nothing there, an unknown format, or a bad annotation; the message names file and place.
    """
    text = str(path)
    if text.split(":")[0] == EMBEDDED:
        return open_object_scenes(text)
    problems, root = Problems(on_error), Path(images).expanduser() if images is not None else None
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: the folder of pictures does not exist")
    place = Path(text).expanduser()
    if place.is_dir():
        return _open_folder(place, problems, root)
    if not place.is_file():
        raise DataError(f"{text}: no such file or folder; for the embedded set write 'objects'")
    if place.suffix.lower() == ".json":
        return read_coco([place], problems, images=root)
    if place.suffix.lower() in (".yaml", ".yml"):
        return read_yolo(place, problems, images=root)
    raise DataError(f"{text}: the format {place.suffix or 'without suffix'} is unknown; known: {_KNOWN}")


def _open_folder(folder: Path, problems: Problems, images: Path | None) -> ObjectSource:
    if files := find_coco(folder):
        return read_coco(files, problems, images=images, origin=str(folder))
    if is_voc(folder):
        return read_voc(folder, problems, images=images)
    if is_yolo(folder):
        return read_yolo(folder, problems, images=images)
    if is_instance_maps(folder):
        return read_instance_maps(folder, problems, images=images)
    raise DataError(f"{folder}: no objects were found; known are {_KNOWN}")


def is_object_set(path: str | Path) -> bool:
    """Whether a path is of a set that `open_objects` knows; the files are not checked."""
    text = str(path)
    if text.split(":")[0] == EMBEDDED:
        return True
    place = Path(text).expanduser()
    if place.is_file():
        return place.suffix.lower() in (".yaml", ".yml") or (place.suffix.lower() == ".json" and holds_boxes(place))
    if not place.is_dir():
        return False
    try:
        return bool(find_coco(place)) or is_voc(place) or is_yolo(place) or is_instance_maps(place)
    except DataError:
        return True
