"""`odonata check-data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from odonata.app.commands.arguments import at_least, parse, print_json, print_table
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.data.check import DataReport
    from odonata.data.check_dialogues import DialogueReport
    from odonata.data.check_objects import ObjectReport
    from odonata.data.check_semantic import SemanticReport

_TEXT_KINDS = ("chat", "preference", "judgement", "steps", "questions")


@dataclass(frozen=True)
class CheckArguments:
    """Report what is wrong with a data set: `odonata check-data PATH`.

    Unreadable pictures, duplicates, empty and repeated captions, histograms of sizes and lengths. Of pictures with
    boxes: broken and stray boxes, ids, empty pictures, sizes, and the best recall that anchors and points can reach. Of
    pictures with maps of classes: unknown values, and each class's share. Of text (say which --kind): broken rows,
    repeats, prompts that are held out as well, lengths, and the balance of labels. Ends with status 1 where something
    would stop a training.
    """

    path: Annotated[str, tyro.conf.Positional]
    """Manifest, json, folder, shards, or an embedded set; what --data.path takes."""
    kind: Literal[
        "auto", "pictures", "objects", "semantic", "chat", "preference", "judgement", "steps", "questions"
    ] = "auto"
    """What to look at: pictures with captions or classes, with boxes, with maps, which are told apart by themselves; or
    text: chats to learn, preferences, wanted and unwanted answers, judged steps, questions for rewards."""
    size: int = 800
    """Shorter side in pixels at which a detector is to see the pictures."""
    images: Path | None = None
    """Folder that picture names are relative to."""
    image_column: str | None = None
    """Column of a manifest with the pictures."""
    caption_column: str | None = None
    """Column of a manifest with the captions."""
    split: str | None = None
    """Only this split."""
    near_duplicates: bool = False
    """Also look for pictures that differ only by scaling or compression."""
    heldout: Path | None = None
    """Of text: another file that must share no prompt with this one."""
    zero: Literal["neutral", "wrong"] | None = None
    """Of steps labelled 0 and 1: what 0 means."""
    json: bool = False
    """For programs."""


def check_data(arguments: Sequence[str]) -> int:
    """Print the report."""
    options = parse(CheckArguments, "check-data", arguments)
    at_least(1, size=options.size)
    report = _report(options)
    if options.json:
        print_json(report.to_dict())
    else:
        print_table(report.render())
    return 0 if report.ok else 1


def _report(options: CheckArguments) -> DataReport | ObjectReport | SemanticReport | DialogueReport:
    _refuse_unused(options)
    if options.kind in _TEXT_KINDS:
        from odonata.data.check_dialogues import check_dialogues

        return check_dialogues(options.path, options.kind, heldout=options.heldout, zero=options.zero)
    from odonata.data.open_objects import is_object_set
    from odonata.data.open_semantic import is_semantic_set

    kind = options.kind
    if kind == "auto":
        described = options.image_column is not None or options.caption_column is not None
        kind = "pictures" if described else "objects" if is_object_set(options.path) else kind
        kind = "semantic" if kind == "auto" and is_semantic_set(options.path) else kind
    if kind == "objects":
        from odonata.data.check_objects import check_objects
        from odonata.data.framing import Framing

        framing = Framing().with_size(options.size)
        return check_objects(options.path, images=options.images, split=options.split, framing=framing)
    if kind == "semantic":
        from odonata.data.check_semantic import check_semantic

        return check_semantic(options.path, images=options.images, split=options.split)
    from odonata.data.check import check

    return check(
        options.path,
        images=options.images,
        image_column=options.image_column,
        caption_column=options.caption_column,
        split=options.split,
        near_duplicates=options.near_duplicates,
    )


def _refuse_unused(options: CheckArguments) -> None:
    """Refuse an option that a check of text, or of pictures, would not use."""
    text = options.kind in _TEXT_KINDS
    unused = (
        ("images", "image_column", "caption_column", "split", "near_duplicates", "size")
        if text
        else ("heldout", "zero")
    )
    for name in unused:
        if getattr(options, name) != CheckArguments.__dataclass_fields__[name].default:
            other = "pictures" if text else f"text: --kind {', '.join(_TEXT_KINDS)}"
            raise RecipeError(f"--{name.replace('_', '-')} is for {other}")
