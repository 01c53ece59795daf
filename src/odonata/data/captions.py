"""Caption files of the field: Karpathy's splits (Flickr8k, Flickr30k, COCO) and COCO's own captions_*.json."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from odonata.data.records import load_json
from odonata.data.rows import Problems, Row, source_from_rows
from odonata.data.sample import ImageTextSource
from odonata.errors import DataError


def read_captions(path: Path, problems: Problems, *, images: Path | None = None) -> ImageTextSource | None:
    """Read a Karpathy or COCO caption file, told apart by their keys.

    Args:
        path: the JSON file.
        problems: what happens to bad items.
        images: folder that file names are relative to; else the file's folder, its parent, and "images" in either.

    Returns:
        The source, or None where the file is a plain list of objects (a manifest).
    """
    content = load_json(path)
    if isinstance(content, list):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        keys = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: neither Karpathy nor COCO captions: there is no list 'images'; found: {keys}")
    roots = [images] if images is not None else _roots(path)
    if isinstance(content.get("annotations"), list):
        return source_from_rows(_coco(path, content, problems), roots, problems, origin=str(path), kind="coco")
    return source_from_rows(_karpathy(path, content, problems), roots, problems, origin=str(path), kind="karpathy")


def _roots(path: Path) -> list[Path]:
    folder, parent = path.parent, path.parent.parent
    # COCO lies as annotations/captions_val2017.json beside val2017/.
    beside = path.stem.split("_")[-1]
    return [folder, parent, parent / "images", folder / "images", parent / beside, parent / "images" / beside]


def _karpathy(path: Path, content: Mapping[str, Any], problems: Problems) -> Iterator[Row]:
    for number, item in enumerate(content["images"]):
        where = f"{path}: images[{number}]"
        filename = item.get("filename") if isinstance(item, dict) else None
        if not isinstance(filename, str):
            problems.report(where, "has no 'filename'")
            continue
        sentences = item.get("sentences")
        if not isinstance(sentences, list):
            problems.report(where, f"picture {filename!r} has no list 'sentences'")
            continue
        captions = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
        # COCO's Karpathy file keeps the folder apart from the name.
        folder = item.get("filepath")
        names = (filename,) if isinstance(folder, str) else ()
        identifier = item.get("cocoid", item.get("imgid"))
        split = item.get("split")
        yield Row(
            where,
            f"{folder}/{filename}" if isinstance(folder, str) else filename,
            captions,
            id=None if identifier is None else str(identifier),
            split=split if isinstance(split, str) else None,
            image_names=names,
        )


def _coco(path: Path, content: Mapping[str, Any], problems: Problems) -> Iterator[Row]:
    captions: dict[Any, list[Any]] = {}
    known = {item.get("id") for item in content["images"] if isinstance(item, dict)}
    if content["annotations"] and not any("caption" in note for note in content["annotations"]):
        raise DataError(
            f"{path}: the annotations have no 'caption': this is another COCO file, such as instances_*.json"
        )
    for number, note in enumerate(content["annotations"]):
        if note.get("image_id") not in known:
            problems.report(
                f"{path}: annotations[{number}]", f"image_id {note.get('image_id')!r} is not among 'images'"
            )
            continue
        captions.setdefault(note["image_id"], []).append(note.get("caption"))
    split = next((name for name in ("train", "val", "test") if name in path.stem), None)
    for number, item in enumerate(content["images"]):
        where = f"{path}: images[{number}]"
        name = item.get("file_name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            problems.report(where, "has no 'file_name'")
            continue
        yield Row(where, name, captions.get(item.get("id"), []), id=str(item.get("id")), split=split)
