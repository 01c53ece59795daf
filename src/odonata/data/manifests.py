"""Manifests: CSV, TSV, JSON lines and JSON lists whose rows name a picture and its caption or class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odonata.data.records import read_records
from odonata.data.rows import Problems, Row, source_from_rows
from odonata.data.sample import ImageTextSource
from odonata.errors import DataError

IMAGE_COLUMNS = (
    "image",
    "image_path",
    "image_file",
    "filepath",
    "file_path",
    "file_name",
    "filename",
    "file",
    "path",
    "img",
    "img_path",
    "picture",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "raw")
CLASS_COLUMNS = ("class", "class_name", "label", "category", "label_name")
# "name" names the class only in files without captions; in files with captions it is often a product's name.
LOOSE_CLASS_COLUMNS = ("name", "type", "synset")
ID_COLUMNS = ("id", "image_id", "uid", "key")
SPLIT_COLUMNS = ("split", "subset", "partition")


@dataclass(frozen=True)
class Columns:
    """Which column holds what; None where the file has none."""

    image: str
    caption: str | None
    label: str | None
    id: str | None
    split: str | None


def read_manifest(
    path: Path,
    problems: Problems,
    *,
    images: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    class_template: str = "a photo of a {}",
) -> ImageTextSource:
    """Read a manifest.

    Args:
        path: a .csv, .tsv, .jsonl, .ndjson or .json file (a list of objects).
        problems: what happens to bad rows.
        images: folder that the names are relative to; the manifest's own and its "images" where None.
        image_column, caption_column: names of the columns; guessed from usual names where None.
        class_template: makes a caption of a class name in files without captions.

    Raises:
        DataError: a column is missing (the message lists those present), or a row is bad and rows are not skipped.
    """
    records = list(read_records(path, problems.report))
    if not records:
        empty = path.stat().st_size == 0
        raise DataError(f"{path}: the manifest {'is empty' if empty else 'has no usable rows'}")
    present = tuple(dict.fromkeys(key for _, record in records for key in record))
    columns = find_columns(path, present, image_column, caption_column)
    rows = (_row(where, record, columns, class_template, problems) for where, record in records)
    roots = [images] if images is not None else [path.parent, path.parent / "images", path.parent.parent]
    good = (row for row in rows if row is not None)
    return source_from_rows(good, roots, problems, origin=str(path), kind="manifest")


def find_columns(path: Path, present: Sequence[str], image: str | None, caption: str | None) -> Columns:
    """Match the columns present with the names asked for, or with usual ones."""
    lowered = {name.strip().lower(): name for name in reversed(present)}
    listing = ", ".join(present)

    def guess(names: Sequence[str]) -> str | None:
        return next((lowered[name] for name in names if name in lowered), None)

    for option, name in (("image_column", image), ("caption_column", caption)):
        if name is not None and name not in present:
            raise DataError(f"{path}: there is no column {name!r} ({option}); columns present: {listing}")
    image = image or guess(IMAGE_COLUMNS)
    if image is None:
        raise DataError(f"{path}: no column with picture files; columns present: {listing}; name it with image_column")
    caption = caption or guess(CAPTION_COLUMNS)
    label = guess(CLASS_COLUMNS) if caption else guess((*CLASS_COLUMNS, *LOOSE_CLASS_COLUMNS))
    if caption is None and label is None:
        raise DataError(f"{path}: no column with captions; columns present: {listing}; name it with caption_column")
    return Columns(image, caption, label, guess(ID_COLUMNS), guess(SPLIT_COLUMNS))


def _row(
    where: str, record: Mapping[str, Any], columns: Columns, class_template: str, problems: Problems
) -> Row | None:
    image = record.get(columns.image)
    if not isinstance(image, str):
        problems.report(where, f"column {columns.image!r} has no picture file, but {image!r}")
        return None
    raw_label = record.get(columns.label) if columns.label else None
    label = None if raw_label is None or str(raw_label) == "" else str(raw_label)
    if columns.caption is not None:
        captions = _caption_list(record.get(columns.caption))
    else:
        captions = [class_template.format(label.replace("_", " "))] if label else [None]
    identifier = record.get(columns.id) if columns.id else None
    split = record.get(columns.split) if columns.split else None
    return Row(
        where,
        image,
        captions,
        label=label,
        id=None if identifier in (None, "") else str(identifier),
        split=None if split in (None, "") else str(split),
    )


def _caption_list(value: Any) -> list[Any]:
    """One caption, a list of captions, or a list of {"raw": caption} as Karpathy's files have."""
    if not isinstance(value, list):
        return [value]
    return [item.get("raw", item.get("caption")) if isinstance(item, Mapping) else item for item in value]
