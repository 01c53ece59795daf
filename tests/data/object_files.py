"""Small sets of pictures with objects, written by hand as each format has them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, height: int = 40, width: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
    return path


def coco(folder: Path, boxes: list, *, size: tuple[int, int] | None = (40, 60), name: str = "instances.json", **more):
    """One picture a.png with these [x, y, width, height], all of category 7."""
    picture(folder / "images" / "a.png")
    entry = {"id": 1, "file_name": "a.png"}
    if size:
        entry |= {"height": size[0], "width": size[1]}
    rows = [{"id": 10 + n, "image_id": 1, "category_id": 7, "bbox": box} for n, box in enumerate(boxes)]
    data = {"images": [entry], "annotations": rows, "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]}
    data |= more
    path = folder / "annotations" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def voc(
    folder: Path, objects: str, *, stem: str = "a", size: str = "<size><width>60</width><height>40</height></size>"
):
    """One picture with these <object>s."""
    picture(folder / "JPEGImages" / f"{stem}.png")
    path = folder / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<annotation><filename>{stem}.png</filename>{size}{objects}</annotation>")
    return path


def voc_object(x1: object, y1: object, x2: object, y2: object, name: str = "cat", difficult: int = 0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1, y1, x2, y2), strict=True)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def yolo(folder: Path, lines: str, *, names: str = "names: [cat, dog]\n"):
    """One picture images/train/a.png with these lines, and data.yaml."""
    picture(folder / "images" / "train" / "a.png")
    path = folder / "labels" / "train" / "a.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines)
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\n{names}")
    return path
