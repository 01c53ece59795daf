"""One function opens every format of pictures with captions: the format is found from the path."""

import functools
import glob
from dataclasses import replace
from pathlib import Path
from random import Random

from odonata.data.captions import read_captions
from odonata.data.digits import Digits
from odonata.data.folders import read_folder
from odonata.data.idx import is_idx, read_idx
from odonata.data.keys import mix
from odonata.data.manifests import read_manifest
from odonata.data.rows import OnError, Problems
from odonata.data.sample import ImageText, ImageTextSource
from odonata.data.scenes import SPLITS, Scenes, class_names, digit_set, zeroshot_set
from odonata.data.tar_shards import read_shards
from odonata.errors import DataError

MANIFEST_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
_SCENES = ("scenes", "scenes-classes", "scenes-digits", "digits")
_PREFERRED = ("captions", "metadata", "manifest", "annotations", "labels", "train")


def open_image_text(
    path: str | Path,
    *,
    images: str | Path | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    on_error: OnError = "raise",
    class_template: str = "a photo of a {}",
) -> ImageTextSource:
    """Open a data set of pictures with captions.

    Args:
        path: a .csv, .tsv or .jsonl manifest; Karpathy's or COCO's caption .json; a folder of class folders, of tar
            shards, of IDX files, of pictures with .txt beside them, or with a caption file in it; a tar file or a glob
            of them; or "scenes", "scenes:n=2000,size=64,seed=0,objects=1-3,clutter=3",
            "scenes-classes:n=800" (80 classes) or "scenes-digits:n=800" (10 classes), the embedded sets.
        images: folder that picture names are relative to, where it is not found by itself.
        split: keep the items of this split only; "train" takes "restval" too.
        image_column, caption_column: of a manifest, where they have unusual names.
        on_error: "raise" at the first bad row, or "skip" and keep it in the source's `problems`.
        class_template: makes captions of class names.

    Raises:
        DataError: nothing there, an unknown format, or a bad row; the message names file and line.
    """
    text = str(path)
    if text.split(":")[0] in _SCENES:
        source = _open_scenes(text)
        return source if split is None else source.split(split)
    problems = Problems(on_error)
    root = Path(images) if images is not None else None
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: the folder of pictures does not exist")
    place = Path(text).expanduser()
    if any(char in text for char in "*?[") and not place.exists():
        shards = [Path(item) for item in sorted(glob.glob(str(place)))]  # noqa: PTH207 - the pattern may be absolute
        if not shards:
            raise DataError(f"{text}: no file matches the pattern")
        if any(shard.suffix != ".tar" for shard in shards):
            raise DataError(f"{text}: the pattern must match .tar shards only, but matches {shards[0].name}")
        source = read_shards(shards, problems, origin=text, class_template=class_template)
    elif place.is_dir():
        found = _in_folder(place)
        if found is not None:
            return open_image_text(
                found,
                images=images,
                split=split,
                image_column=image_column,
                caption_column=caption_column,
                on_error=on_error,
                class_template=class_template,
            )
        source = _open_folder(place, problems, class_template)
    elif place.is_file():
        source = _open_file(place, problems, root, image_column, caption_column, class_template)
    else:
        raise DataError(f"{text}: no such file or folder; for the embedded set write 'scenes'")
    return source if split is None else source.split(split)


def _open_file(
    path: Path,
    problems: Problems,
    images: Path | None,
    image_column: str | None,
    caption_column: str | None,
    class_template: str,
) -> ImageTextSource:
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return read_shards([path], problems, origin=str(path), class_template=class_template)
    if is_idx(path):
        return read_idx(path, problems, class_template=class_template)
    if suffix == ".json":
        source = read_captions(path, problems, images=images)
        if source is not None:
            return source
    elif suffix not in MANIFEST_SUFFIXES:
        known = ", ".join((*MANIFEST_SUFFIXES, ".json", ".tar", "idx3-ubyte"))
        raise DataError(f"{path}: the format {suffix or 'without suffix'} is unknown; known: {known}")
    return read_manifest(
        path,
        problems,
        images=images,
        image_column=image_column,
        caption_column=caption_column,
        class_template=class_template,
    )


def _open_folder(path: Path, problems: Problems, class_template: str) -> ImageTextSource:
    if shards := sorted(path.glob("*.tar")):
        return read_shards(shards, problems, origin=str(path), class_template=class_template)
    if any(is_idx(item) for item in path.iterdir()):
        return read_idx(path, problems, class_template=class_template)
    return read_folder(path, problems, class_template=class_template)


def _in_folder(path: Path) -> Path | None:
    """The caption file that describes a folder, if there is one. Raises DataError where several might."""
    found = [item for item in sorted(path.iterdir()) if item.is_file() and item.suffix.lower() in MANIFEST_SUFFIXES]
    for folder in (path, path / "annotations"):
        found += sorted(item for item in folder.glob("*.json") if "caption" in item.name or "karpathy" in item.name)
    if len(found) < 2:
        return found[0] if found else None
    for stem in _PREFERRED:
        matching = [item for item in found if item.stem == stem]
        if len(matching) == 1:
            return matching[0]
    raise DataError(f"{path}: several caption files: {', '.join(item.name for item in found)}; name the one to read")


def _open_scenes(text: str) -> ImageTextSource:
    kind, _, options = text.partition(":")
    known = {"n": 2000, "size": 64, "seed": 0, "clutter": 3, "noise": 0}
    objects = (1, 3)
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        try:
            if name == "objects":
                fewest, _, most = value.partition("-")
                objects = (int(fewest), int(most or fewest))
            elif name in known:
                known[name] = int(value)
            else:
                raise DataError(f"{text}: unknown option {name!r}; known: {', '.join((*known, 'objects'))}")
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{text}: the option {option!r} needs a whole number (objects=1-3)") from None
    if known["n"] < 1:
        raise DataError(f"{text}: n must be at least 1")
    if not 0 <= known["noise"] <= 100:
        raise DataError(f"{text}: noise is a percentage of the training captions")
    try:
        source = _scenes(kind, known["n"], known["size"], known["seed"], known["clutter"], objects)
    except ValueError as error:
        raise DataError(f"{text}: {error}") from None
    return _with_noise(source, known["noise"] / 100, known["seed"]) if known["noise"] else source


def _with_noise(source: ImageTextSource, share: float, seed: int) -> ImageTextSource:
    """Give a share of the training pictures the captions of others: a noisy pool, for methods that filter."""
    random = Random(mix(seed, 5))
    train = [index for index, sample in enumerate(source) if sample.split == "train"]
    wrong = sorted(random.sample(train, round(share * len(train))))
    samples = list(source)
    for index, other in zip(wrong, [*wrong[1:], *wrong[:1]], strict=True):
        samples[index] = replace(source[index], captions=source[other].captions)
    return replace(source, samples=samples, origin=f"{source.origin},noise={round(share * 100)}")


@functools.lru_cache(maxsize=4)
def _scenes(kind: str, n: int, size: int, seed: int, clutter: int, objects: tuple[int, int]) -> ImageTextSource:
    """All three splits; validation and test are an eighth of the training pictures each."""
    samples: list[ImageText] = []
    for split in SPLITS:
        count = n if split == "train" else max(1, n // 8)
        if kind == "scenes-classes":
            samples += zeroshot_set(count, split, seed, size, clutter).samples
        elif kind == "digits":
            samples += Digits(count, split, seed, size).as_source().samples
        elif kind == "scenes-digits":
            samples += digit_set(count, split, seed, size, clutter).samples
        else:
            samples += Scenes(count, split, seed, size, objects, clutter).as_source().samples
    options = f"n={n},size={size},seed={seed},objects={objects[0]}-{objects[1]},clutter={clutter}"
    classes = {
        "scenes-classes": class_names(),
        "scenes-digits": tuple("0123456789"),
        "digits": tuple("0123456789"),
    }.get(kind)
    return ImageTextSource(samples, classes, f"{kind}:{options}", kind="scenes")
