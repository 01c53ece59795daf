"""Tar shards in the WebDataset layout, read at random by an index of offsets: exact shuffling and exact resume.

Members that share a name up to its first dot make one sample: 0001.jpg + 0001.txt (or .json, .cls). The index is made
by reading the headers once (tens of thousands of members a second); `write_index` keeps it beside the shard.
"""

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from odonata.data.rows import IMAGE_SUFFIXES, Problems, Row, source_from_rows
from odonata.data.sample import ImageRef, ImageTextSource
from odonata.errors import DataError

INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True)
class Member:
    """A file within a shard: its name and the span of bytes that holds it."""

    name: str
    offset: int
    length: int


def index_shard(path: Path) -> list[Member]:
    """The members of an uncompressed tar file, from the index beside it if that is up to date."""
    beside = path.with_name(path.name + INDEX_SUFFIX)
    try:
        state = path.stat()
        if beside.is_file():
            stored = json.loads(beside.read_text())
            if stored["size"] == state.st_size and stored["mtime_ns"] == state.st_mtime_ns:
                return [Member(*entry) for entry in stored["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # an index is a shortcut: a damaged one is not used
    try:
        with tarfile.open(path, "r:") as archive:
            return [Member(item.name, item.offset_data, item.size) for item in archive if item.isreg()]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: cannot read the shard: {error}; shards must be plain, uncompressed tar") from error


def write_index(path: Path) -> Path:
    """Keep the index of a shard beside it, for sets of millions. Returns the index's path."""
    beside = path.with_name(path.name + INDEX_SUFFIX)
    beside.unlink(missing_ok=True)
    members = [[item.name, item.offset, item.length] for item in index_shard(path)]
    state = path.stat()
    beside.write_text(json.dumps({"size": state.st_size, "mtime_ns": state.st_mtime_ns, "members": members}))
    return beside


def read_shards(paths: Sequence[Path], problems: Problems, *, origin: str, class_template: str) -> ImageTextSource:
    """Read the captions of all shards and the spans of their pictures.

    Args:
        paths: the shards in order.
        problems: what happens to samples without picture or caption.
        origin: of the source.
        class_template: makes a caption of a .cls class where there is no text.
    """
    rows = (row for path in paths for row in _rows(path, problems, class_template))
    return source_from_rows(rows, [], problems, origin=origin, kind="shards")


def _rows(path: Path, problems: Problems, class_template: str) -> Iterator[Row]:
    groups: dict[str, dict[str, Member]] = {}
    for member in index_shard(path):
        folder, _, base = member.name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if stem:
            groups.setdefault(f"{folder}/{stem}" if folder else stem, {})["." + suffix.lower()] = member
    with path.open("rb") as file:
        for key, members in groups.items():
            where = f"{path}:{key}"
            picture = next((member for suffix, member in members.items() if suffix in IMAGE_SUFFIXES), None)
            if picture is None:
                problems.report(where, f"no picture among {', '.join(key + suffix for suffix in members)}")
                continue
            end = path.stat().st_size
            if picture.offset + picture.length > end:
                problems.report(where, f"the shard ends within {picture.name}: it is truncated")
                continue
            image = ImageRef(path, picture.offset, picture.length, label=f"{path}:{picture.name}")
            row = _row(where, key, image, members, file, problems, class_template)
            if row is not None:
                yield row


def _row(
    where: str,
    key: str,
    image: ImageRef,
    members: dict[str, Member],
    file: BinaryIO,
    problems: Problems,
    class_template: str,
) -> Row | None:
    captions: list[Any] = []
    label: str | None = None
    if ".cls" in members:
        label = _text(file, members[".cls"]).strip()
    if ".json" in members:
        try:
            content = json.loads(_text(file, members[".json"]))
        except json.JSONDecodeError as error:
            problems.report(where, f"{members['.json'].name} is not valid JSON: {error.msg}")
            return None
        if isinstance(content, dict):
            found = content.get("captions", content.get("caption", content.get("text")))
            captions = found if isinstance(found, list) else [] if found is None else [found]
            label = label if label is not None or "label" not in content else str(content["label"])
    if ".txt" in members:
        captions = [_text(file, members[".txt"])]
    if not captions and label:
        captions = [class_template.format(label.replace("_", " "))]
    return Row(where, image, captions, label=label, id=Path(where).name)


def _text(file: BinaryIO, member: Member) -> str:
    file.seek(member.offset)
    return file.read(member.length).decode("utf-8", errors="surrogateescape")
