"""The IDX files of MNIST, Fashion-MNIST and their kin, plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from odonata.data.rows import Problems, Row, source_from_rows
from odonata.data.sample import ImageRef, ImageTextSource
from odonata.errors import DataError


def is_idx(path: Path) -> bool:
    """Whether the name is that of an IDX picture file."""
    return "images" in path.name and "idx3" in path.name


def read_array(path: Path) -> UInt8[np.ndarray, "..."]:
    """Read one IDX file of bytes. Raises DataError for another type, or a file of the wrong length."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot read the IDX file: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an IDX file of bytes: it starts with {content[:4].hex()}, want 000008..")
    dims = content[3]
    shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    if len(content) - 4 - 4 * dims != math.prod(shape):
        raise DataError(f"{path}: the header says {shape}, but {len(content) - 4 - 4 * dims} bytes follow")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_idx(path: Path, problems: Problems, *, class_template: str = "a photo of a {}") -> ImageTextSource:
    """Read an IDX picture file with its labels beside it, or a folder of such pairs.

    Args:
        path: "…images-idx3-ubyte[.gz]", or the folder; "train-…" is split train, "t10k-…" is split test.
        problems: what happens to bad rows.
        class_template: makes a caption of a class name (from classes.txt in the folder, else the number).
    """
    files = [path] if path.is_file() else sorted(item for item in path.iterdir() if is_idx(item))
    folder = path.parent if path.is_file() else path
    listing = folder / "classes.txt"
    classes: tuple[str, ...] | None = None
    if listing.is_file():
        classes = tuple(line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip())
    rows: list[Row] = []
    for file in files:
        rows += _rows(file, classes, class_template, problems)
    names = classes or tuple(str(i) for i in range(1 + max((int(row.label or 0) for row in rows), default=0)))
    return source_from_rows(rows, [folder], problems, origin=str(path), kind="idx", classes=names)


def _rows(path: Path, classes: tuple[str, ...] | None, template: str, problems: Problems) -> list[Row]:
    pictures = read_array(path)
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if not beside.is_file():
        raise DataError(f"{path}: the labels {beside.name} are not beside it")
    labels = read_array(beside)
    if pictures.ndim != 3 or labels.shape != pictures.shape[:1]:
        raise DataError(f"{path}: {pictures.shape} pictures do not fit {labels.shape} labels in {beside.name}")
    split = "test" if path.name.startswith(("t10k", "test")) else "train" if path.name.startswith("train") else None
    rows: list[Row] = []
    for number, label in enumerate(labels.tolist()):
        where = f"{path}: picture {number}"
        if classes is not None and label >= len(classes):
            problems.report(where, f"label {label}, but classes.txt has {len(classes)} classes")
            continue
        name = str(label) if classes is None else classes[label]
        image = ImageRef(pixels=pictures[number], label=where)
        rows.append(Row(where, image, [template.format(name)], label=name, split=split))
    return rows
