"""Folders: a folder per class (with or without a folder per split above), and pictures with a .txt of the same name."""

from collections.abc import Iterator
from pathlib import Path

from odonata.data.rows import IMAGE_SUFFIXES, Problems, Row, source_from_rows
from odonata.data.sample import ImageRef, ImageTextSource
from odonata.errors import DataError

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


def read_folder(path: Path, problems: Problems, *, class_template: str = "a photo of a {}") -> ImageTextSource:
    """Read a folder of class folders, or of pictures that have their captions beside them.

    Args:
        path: the folder; its sub-folders are classes, or splits (train, val, validation, test) that hold classes.
        problems: what happens to pictures without a caption.
        class_template: makes the caption of a class name, underscores read as spaces.
    """
    own = _pictures(path)
    folders = _folders(path)
    if own:
        return source_from_rows(_paired(path, own), [path], problems, origin=str(path), kind="paired")
    splits = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if splits and any(_folders(folder) for folder in splits):
        groups = [(folder.name.lower(), classes) for folder in splits for classes in _folders(folder)]
    else:
        groups = [(None, folder) for folder in folders]
    rows = [row for split, folder in groups for row in _class_rows(folder, split, class_template)]
    if not rows:
        raise DataError(
            f"{path}: no pictures, class folders or caption files here; "
            f"want path/class/*.jpg, path/train/class/*.jpg, captions.jsonl, captions.csv or *.tar"
        )
    return source_from_rows(rows, [path], problems, origin=str(path), kind="folders")


def _folders(path: Path) -> list[Path]:
    return sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))


def _pictures(path: Path) -> list[Path]:
    return sorted(
        item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".")
    )


def _class_rows(folder: Path, split: str | None, template: str) -> Iterator[Row]:
    caption = template.format(folder.name.replace("_", " "))
    for item in sorted(folder.rglob("*")):
        if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith("."):
            yield Row(str(item), ImageRef(item), [caption], label=folder.name, split=split)


def _paired(path: Path, pictures: list[Path]) -> Iterator[Row]:
    for picture in pictures:
        text = picture.with_suffix(".txt")
        lines = text.read_bytes().decode("utf-8", errors="surrogateescape").splitlines() if text.is_file() else []
        where = str(text) if text.is_file() else f"{picture} (no {text.name} beside it)"
        yield Row(
            where, ImageRef(picture), [line for line in lines if line.strip()] or ([""] if text.is_file() else [])
        )
