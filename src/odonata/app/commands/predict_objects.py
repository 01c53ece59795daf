"""`odonata predict` of detectors and segmenters: tables, drawings, COCO's results, videos."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from odonata.app.commands.arguments import PICTURE_SUFFIXES, print_table
from odonata.errors import DataError, RecipeError


@dataclass(frozen=True)
class ObjectArguments:
    """Find objects: `odonata predict RUN photo.jpg clip.mp4 folder/ --draw out/ --json results.json`.

    Prints a line a picture. Boxes are in pixels of the picture as it lies on disk.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A run folder, published weights, or a method's name with --weights."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Pictures, videos, or folders of them."""
    weights: Path | None = None
    """Published weights, where the model is named by its method."""
    draw: Path | None = None
    """Folder for the pictures and videos with what was found."""
    json: Path | None = None
    """File for what was found: [{image, height, width, objects: [{label, name, score, box}]}]."""
    coco: Path | None = None
    """File for what was found as COCO's results; the name of the file stands for the picture's id."""
    score: float | None = None
    """Least score, 0 to 1; by default the model's own for the files, and 0.3 for drawings."""
    tile: int = 0
    """Look at windows of this side, in pixels (0 = the whole picture)."""
    overlap: float | None = None
    """Share of a window that the next repeats."""
    merge: Literal["nms", "nmm"] = "nms"
    """How windows' answers become one: keep the surest box, or enlarge it to what it suppresses."""
    every: int = 1
    """Of a video, every so many frames."""
    batch_size: int = 4
    """Pictures computed together."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is about twice as fast on CPUs that have it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


DRAWN = 0.3
"""Least score that is drawn where none is said."""


def predict_objects(options: ObjectArguments) -> None:
    """Find objects and say so."""
    places = list(_places(options.pictures))
    if options.every < 1 or options.batch_size < 1:
        raise RecipeError("--every and --batch-size must be at least 1")
    model = _load(options)
    for folder in filter(None, (options.draw, *(p.parent for p in (options.json, options.coco) if p))):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[Any] = []
    table = Table(box=None, pad_edge=False)
    for column in ("picture", "found", "what"):
        table.add_column(column)
    taken: Counter[str] = Counter()
    for place in places:
        from odonata.data.video import is_video

        answers = _video(model, place, options) if is_video(place) else _picture(model, place, options, taken)
        for answer in answers:
            rows.append(answer)
            table.add_row(*answer.summary(_threshold(options)))
    print_table(table)
    _write(options, rows)


def _threshold(options: ObjectArguments) -> float:
    return DRAWN if options.score is None else options.score


def _write(options: ObjectArguments, rows: list[Any]) -> None:
    from odonata.engine.run import write_atomically

    if options.json:
        write_atomically(options.json, json.dumps([row.to_dict() for row in rows], indent=1))
    if options.coco:
        results = [result for row in rows for result in row.to_coco(Path(row.image).stem)]
        write_atomically(options.coco, json.dumps(results))


def _load(options: ObjectArguments) -> Any:
    from odonata.app.api import load

    path = Path(options.model)
    if path.exists():
        return load(path, device=options.device)
    if options.weights is None:
        raise RecipeError(f"{options.model} is a method: name its --weights, or give a run folder")
    model = load(options.weights, device=options.device)
    if model.assets.method != options.model:
        raise RecipeError(f"{options.weights} holds weights of {model.assets.method}, not of {options.model}")
    return model


def _places(pictures: tuple[Path, ...]) -> Iterator[Path]:
    """Yield pictures and videos, those of folders in order of name."""
    from odonata.data.video import is_video

    count = 0
    for place in pictures:
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES or is_video(p))
        elif place.is_file():
            inside = [place]
        else:
            raise DataError(f"{place}: no such picture, video or folder")
        count += len(inside)
        yield from inside
    if not count:
        raise DataError(f"no pictures in {', '.join(map(str, pictures)) or 'nothing'}")


def _ways(options: ObjectArguments) -> dict[str, Any]:
    ways: dict[str, Any] = {"batch_size": options.batch_size, "precision": options.precision}
    if options.score is not None:
        ways["score"] = options.score
    if options.tile or options.overlap is not None:
        ways |= {"tile": options.tile, "overlap": options.overlap, "merge": options.merge}
    return ways


def _picture(model: Any, place: Path, options: ObjectArguments, taken: Counter[str]) -> Iterator[Any]:
    from odonata.data.sample import ImageRef

    answer = model.predict(ImageRef(place), **_ways(options))
    if options.draw:
        # Pictures of the same name from several folders are numbered, so that none is lost.
        taken[place.stem] += 1
        number = f"-{taken[place.stem]}" if taken[place.stem] > 1 else ""
        drawn = answer.draw(ImageRef(place).open(), _threshold(options))
        drawn.save(options.draw / f"{place.stem}{number}.png")
    yield answer


def _video(model: Any, place: Path, options: ObjectArguments) -> Iterator[Any]:
    import dataclasses

    from odonata.data.video import VideoWriter, frame_rate, read_frames

    rate = frame_rate(place) / options.every
    target = (options.draw or Path()) / f"{place.stem}.mp4"
    with VideoWriter(target, rate) as writer:
        for number, frame in read_frames(place, options.every):
            answer = model.predict(frame, **_ways(options))
            if options.draw:
                writer.write(answer.draw(frame, _threshold(options)))
            yield dataclasses.replace(answer, image=f"{place}#{number}")
