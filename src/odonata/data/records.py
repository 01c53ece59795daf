"""Rows of files, whatever they are about: JSON lines, JSON lists, CSV, TSV and Parquet, the text files also gzipped.

A row comes with its place, "file:line" (a JSON list and Parquet have no lines: "file: item 3"). Bytes that are not
UTF-8 are kept as surrogates, so that the row that holds them can be named.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from odonata.errors import DataError

Report = Callable[[str, str], None]
"""Takes a place and what is wrong there; raises, or notes it, and the row is left out."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def record_files(path: Path) -> list[Path]:
    """Return the file, or the files of rows that lie in a folder (not deeper), in order of name.

    Raises:
        DataError: nothing is there, no file holds rows, or the file's ending is unknown.
    """
    known = " ".join(SUFFIXES)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
        if not files:
            raise DataError(f"{path}: no file of rows lies in this folder; known are {known}, also with .gz")
        return files
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if _suffix(path) not in SUFFIXES:
        raise DataError(f"{path}: unknown kind of file; rows are read from {known}, also with .gz")
    return [path]


def read_records(path: Path, report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file, each with its place.

    Args:
        path: its ending says how it is read; an unknown one as JSON lines.
        report: is told of each row that cannot be read.

    Raises:
        DataError: the file cannot be read at all.
    """
    suffix = _suffix(path)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if suffix == ".tsv" else ",", report)
    if suffix == ".json":
        return _numbered(path, load_json(path), report)
    if suffix == ".parquet":
        return _numbered(path, _parquet(path), report)
    return _json_lines(path, report)


def read_text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 are kept as surrogates, so that their row can be named."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: broken or no gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read the file: {error.strerror or error}") from error
    return content.decode("utf-8-sig", errors="surrogateescape")


def has_bad_bytes(text: str) -> bool:
    """Whether text that was decoded with `surrogateescape` holds bytes that are not UTF-8, or half a surrogate pair."""
    return any("\ud800" <= char <= "\udfff" for char in text) if not text.isascii() else False


def load_json(path: Path) -> Any:
    """Parse a JSON file. Raises DataError with the line of a mistake."""
    text = read_text(path)
    if has_bad_bytes(text):
        line = next(number for number, line in enumerate(text.split("\n"), 1) if has_bad_bytes(line))
        raise DataError(f"{path}:{line}: the file is not UTF-8; save it as UTF-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; JSON lines need a name that ends in .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}{hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def _suffix(path: Path) -> str:
    name = path.name.lower()
    # Parquet compresses by itself; a gzipped one is no file of rows.
    inner = name.removesuffix(".gz")
    suffix = Path(inner).suffix
    return "" if suffix == ".parquet" and inner != name else suffix


def _csv_rows(path: Path, delimiter: str, report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts of a whole page are long, not wrong
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        header = next(reader, None)
        if header is None:
            return
        line = reader.line_num
        for cells in reader:
            where, line = f"{path}:{line + 1}", reader.line_num
            if not cells:
                continue
            if len(cells) > len(header):
                report(where, f"{len(cells)} cells, but {len(header)} columns; a text with {delimiter!r} needs quotes")
                continue
            yield where, dict(zip(header, [*cells, *[None] * (len(header) - len(cells))], strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a valid table: {error}") from error


def _json_lines(path: Path, report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        if has_bad_bytes(line):
            report(where, "the line is not UTF-8; save the file as UTF-8")
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            report(where, f"not valid JSON: {error.msg} at column {error.colno}")
            continue
        except (ValueError, RecursionError) as error:  # an integer of too many digits, or lists in lists in lists
            report(where, f"not valid JSON: {error}")
            continue
        if not isinstance(record, dict):
            report(where, f"want an object {{...}}, got {type(record).__name__}")
            continue
        yield where, record


def _numbered(path: Path, rows: Any, report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(rows, list):
        raise DataError(f"{path}: want a list of rows [{{...}}, ...], got {type(rows).__name__}")
    for number, record in enumerate(rows):
        where = f"{path}: item {number}"
        if isinstance(record, dict):
            yield where, record
        else:
            report(where, f"want an object {{...}}, got {type(record).__name__}")


def _parquet(path: Path) -> list[Any]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"{path}: Parquet is read by pyarrow: pip install pyarrow, or save it as .jsonl") from error
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path}: cannot read the Parquet file: {error}") from error
