"""Manifests: CSV, TSV, JSON lines and JSON lists whose rows name a picture and its caption or class."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odonata.data.rows import Problems, Row, has_bad_bytes, source_from_rows
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
    records = list(_records(path, problems))
    if not records:
        raise DataError(f"{path}: the manifest has no usable rows")
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


def read_text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 are kept as surrogates, so that their row can be named."""
    try:
        return path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error


def _records(path: Path, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _csv_records(path, "\t" if suffix == ".tsv" else ",", problems)
    if suffix == ".json":
        return _json_records(path, problems)
    return _json_lines(path, problems)


def _csv_records(path: Path, delimiter: str, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # captions of a whole page are long, not wrong
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            raise DataError(f"{path}: the manifest is empty; its first line must name the columns")
        line = reader.line_num
        for cells in reader:
            where, line = f"{path}:{line + 1}", reader.line_num
            if not cells:
                continue
            if len(cells) > len(header):
                problems.report(
                    where, f"{len(cells)} cells, but {len(header)} columns; a caption with {delimiter!r} needs quotes"
                )
                continue
            yield where, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a valid table: {error}") from error


def _json_lines(path: Path, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        if has_bad_bytes(line):
            problems.report(where, "the line is not UTF-8; save the file as UTF-8")
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.report(where, f"not valid JSON: {error.msg} at column {error.colno}")
            continue
        if not isinstance(record, dict):
            problems.report(where, f"want an object {{...}}, got {type(record).__name__}")
            continue
        yield where, record


def _json_records(path: Path, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, record in enumerate(load_json(path)):
        where = f"{path}: item {number}"
        if isinstance(record, dict):
            yield where, record
        else:
            problems.report(where, f"want an object {{...}}, got {type(record).__name__}")


def load_json(path: Path) -> Any:
    """Parse a JSON file. Raises DataError with the line of a mistake."""
    text = read_text(path)
    if has_bad_bytes(text):
        line = next(number for number, line in enumerate(text.split("\n"), 1) if has_bad_bytes(line))
        raise DataError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from error
