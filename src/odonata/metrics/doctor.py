"""Why is AP nearly zero? Tests that undo one mistake each in the detections, and see whether AP comes back.

What most often lies behind an AP of zero on one's own data is no weak model but a convention: categories counted from 1
instead of 0, boxes as (x, y, width, height) instead of corners, normalised, with x and y exchanged, or left in the
pixels of the resized picture; scores that are all below the threshold, equal, or not numbers. Each has its test. Where
none brings AP back, the recall at a low IoU says whether boxes are near the objects or elsewhere.

Detections are compared as they are, labels out of range included; no test changes what was passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from odonata.errors import DataError
from odonata.metrics.object_matches import Found, Truth, average_precision, greedy_pairs, match_class, overlaps
from odonata.metrics.recall import best_recall

MOST_PICTURES = 200
MOST_DETECTIONS = 100
GAIN = 0.2
"""AP50 or recall must rise by so much for a test to say anything."""

_ENOUGH = 10
"""Detections, or pairs of a detection and an object, below which nothing is concluded from them."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        name: of the test: scores, boxes, labels, training, location, objects.
        text: what is wrong and what to do, in a sentence or two.
        figures: what it rests on.
    """

    name: str
    text: str
    figures: dict[str, float] = field(default_factory=dict[str, float])

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"name": self.name, "text": self.text, "figures": self.figures}


def diagnose(
    truths: Sequence[Truth],
    found: Sequence[Found],
    names: Sequence[str],
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    threshold: float = 0.0,
    trained: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Look for the reason of a low AP.

    Args:
        truths: the objects of each picture.
        found: the detections of each picture, *before* the score threshold.
        names: of the classes, by label.
        sizes: (height, width) of each picture; without them normalised boxes are not recognised.
        threshold: scores below it were not counted.
        trained: how many objects of each class there were in training.
        seed: of the choice of 200 pictures, where there are more.

    Returns:
        what was found, the surest first; nothing where the detections are good.

    Raises:
        DataError: the numbers of pictures differ.
    """
    if len(truths) != len(found) or not truths or (sizes is not None and len(sizes) != len(truths)):
        raise DataError(f"detections of {len(found)} pictures cannot be compared with the objects of {len(truths)}")
    findings = [*_objects(truths, names, trained), *_scores(found, threshold)]
    rows = np.random.default_rng(seed).permutation(len(truths))[:MOST_PICTURES]
    truths = [truths[row] for row in rows]
    found = [_usable(found[row]) for row in rows]
    sizes = None if sizes is None else [sizes[row] for row in rows]
    if not any(len(guess.labels) for guess in found) or not any((~truth.ignored).any() for truth in truths):
        return findings
    boxes, mended = _boxes(truths, found, sizes)
    labels = _labels(truths, mended, names)
    findings += boxes + labels
    if not boxes:
        findings += _location(truths, found)
    return findings


def ap50(truths: Sequence[Truth], found: Sequence[Found], classes: int) -> float:
    """Mean over classes of AP at IoU .5; labels out of range match nothing."""
    each = [average_precision(match_class(truths, found, label)) for label in range(classes)]
    return float(np.nanmean(each)) if not np.isnan(each).all() else float("nan")


def _usable(guess: Found) -> Found:
    """The surest detections with numbers for scores and boxes."""
    good = np.flatnonzero(np.isfinite(guess.scores) & np.isfinite(guess.boxes).all(1))
    order = good[np.argsort(-guess.scores[good], kind="stable")][:MOST_DETECTIONS]
    return Found(np.asarray(guess.boxes, dtype=np.float64)[order], guess.scores[order], guess.labels[order])


def _objects(truths: Sequence[Truth], names: Sequence[str], trained: Sequence[int] | None) -> Iterator[Finding]:
    counts = np.zeros(len(names), dtype=np.int64)
    for truth in truths:
        counts += np.bincount(truth.labels[~truth.ignored], minlength=len(names))[: len(names)]
    if counts.sum() == 0:
        yield Finding("objects", f"None of the {len(truths)} pictures has an object to be found: AP has no meaning.")
    if trained is None:
        return
    if sum(trained) == 0:
        yield Finding("training", "There was no object at all in training.")
        return
    for name, here, there in zip(names, counts.tolist(), trained, strict=True):
        if here > 0 and there == 0:
            yield Finding(
                "training",
                f"Class {name!r} has {here} objects here and had none in training: its AP can only be 0.",
                {"objects": here},
            )


def _scores(found: Sequence[Found], threshold: float) -> Iterator[Finding]:
    scores = np.concatenate([guess.scores for guess in found])
    if scores.size == 0:
        yield Finding(
            "scores",
            f"There is no detection in any of the {len(found)} pictures: nothing passed the score threshold, or the "
            "network's output is not read.",
        )
        return
    wrong = ~np.isfinite(scores) | ~np.concatenate([np.isfinite(guess.boxes).all(1) for guess in found])
    if wrong.any():
        yield Finding(
            "scores",
            f"{int(wrong.sum())} of {scores.size} detections have a score or a box that is not a number: training has "
            "diverged. Try a lower learning rate, a longer warm-up or full precision.",
            {"share": float(wrong.mean())},
        )
    scores = scores[~wrong]
    if scores.size == 0:
        return
    if scores.max() < threshold:
        yield Finding(
            "scores",
            f"All {scores.size} scores lie below the threshold of {threshold:g}; the highest is {scores.max():.3g}. "
            "Lower the threshold, or train longer.",
            {"highest": float(scores.max()), "threshold": threshold},
        )
    if scores.size >= _ENOUGH and np.ptp(scores) < 1e-6:
        yield Finding(
            "scores",
            f"All {scores.size} detections have the same score, {scores[0]:.3g}: they cannot be ranked. The scores are "
            "not those of the network, or its classification has not begun to learn.",
            {"score": float(scores[0])},
        )


Change = Callable[[Float[np.ndarray, "objects 4"], int], Float[np.ndarray, "objects 4"]]
"""What makes right boxes of wrong ones; the number is that of the picture."""


def _boxes(
    truths: Sequence[Truth], found: Sequence[Found], sizes: Sequence[tuple[int, int]] | None
) -> tuple[list[Finding], Sequence[Found]]:
    """Whether boxes read in another way lie on the objects, and the detections with boxes read so."""
    base = best_recall(truths, [guess.boxes for guess in found]).all
    # It must double, or nothing is said.
    if base > 0.5:
        return [], found
    tried: list[tuple[float, str, Sequence[Found]]] = []
    for text, change in _readings(sizes):
        changed = [replace(guess, boxes=change(guess.boxes, number)) for number, guess in enumerate(found)]
        tried.append((best_recall(truths, [guess.boxes for guess in changed]).all, text, changed))
    # The first of equally good ones: a plain mistake before a fitted factor.
    recall, text, changed = max(tried, key=lambda row: row[0])
    if recall < base + GAIN or recall < 2 * base:
        return [], found
    before, after = (average_precision(match_class(truths, rows, None)) for rows in (found, changed))
    # Many boxes everywhere reach objects by chance; they have no precision.
    if after < before + GAIN / 2:
        return [], found
    finding = Finding(
        "boxes",
        f"Boxes lie on the objects if they are {text}: then recall at IoU .5 rises from {base:.2f} to {recall:.2f} and "
        f"AP50 without classes from {before:.2f} to {after:.2f}.",
        {"recall": base, "recall_changed": recall, "ap50": before, "ap50_changed": after},
    )
    return [finding], changed


def _readings(sizes: Sequence[tuple[int, int]] | None) -> Iterator[tuple[str, Change]]:
    def fixed(change: Callable[[np.ndarray], np.ndarray]) -> Change:
        return lambda boxes, number: change(boxes)

    def corners(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)

    def around(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)

    def extents(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

    yield "read as (x, y, width, height), not as corners", fixed(corners)
    yield "read as (centre x, centre y, width, height), not as corners", fixed(around)
    yield (
        "taken with x1, y1 subtracted from x2, y2: width and height were made corners once too often",
        fixed(extents),
    )
    yield "read with x and y exchanged, (y1, x1, y2, x2)", fixed(lambda boxes: boxes[:, [1, 0, 3, 2]])
    if sizes is not None:
        whole = [np.array([width, height, width, height], dtype=np.float64) for height, width in sizes]
        yield "multiplied by the picture's size: they are normalised", lambda boxes, number: boxes * whole[number]
        yield (
            "multiplied by the picture's size and read as (centre x, centre y, width, height): they are normalised",
            lambda boxes, number: around(boxes) * whole[number],
        )
        yield (
            "divided by the picture's size: they were multiplied once too often",
            (lambda boxes, number: boxes / whole[number]),
        )
    yield from _scalings(sizes)


def _scalings(sizes: Sequence[tuple[int, int]] | None) -> Iterator[tuple[str, Change]]:
    """One factor for all pictures, or one frame that every picture was fitted into."""
    steps = [float(step) for step in np.geomspace(1 / 8, 8, 85) if abs(step - 1) > 0.03]
    for step in sorted(steps, key=lambda step: abs(np.log(step))):
        yield f"multiplied by about {step:.2f}: they are in pixels of another scale", _times([step])
    if sizes is None or len(set(sizes)) == 1:
        return
    for name, side in (("longer", max), ("shorter", min)):
        lengths = np.array([side(size) for size in sizes], dtype=np.float64)
        for frame in np.geomspace(96, 1600, 85):
            yield (
                f"scaled back from frames whose {name} side is about {frame:.0f} pixels: they were left in the frame",
                _times(list(lengths / frame)),
            )


def _times(factors: Sequence[float]) -> Change:
    return lambda boxes, number: boxes * factors[number % len(factors)]


def _labels(truths: Sequence[Truth], found: Sequence[Found], names: Sequence[str]) -> list[Finding]:
    """Whether boxes are right and labels wrong, and by which rule."""
    said, right = _pairs(truths, found)
    if len(said) < _ENOUGH:
        return []
    agreement = float((said == right).mean())
    if agreement >= 0.5:
        return []
    classes = len(names)
    base = ap50(truths, found, classes)
    whole = average_precision(match_class(truths, found, None))
    figures = {"agreement": agreement, "ap50": base, "ap50_without_classes": whole}
    start = (
        f"Boxes are right and labels wrong: of {len(said)} detections on an object {100 * agreement:.0f} % name its "
        f"class; AP50 is {base:.2f}, and {whole:.2f} with classes left aside. "
    )
    for shift in (-1, 1):
        moved = ap50(truths, [replace(guess, labels=guess.labels + shift) for guess in found], classes)
        if moved >= base + GAIN:
            cause = "counted from 1 or have a background before them" if shift < 0 else "one too low"
            text = f"With labels moved by {shift:+d} AP50 is {moved:.2f}: the model's labels are {cause}."
            return [Finding("labels", start + text, figures | {"shift": shift, "ap50_shifted": moved})]
    table = _best_table(said, right, classes)
    inside = [replace(guess, labels=_through(table, guess.labels)) for guess in found]
    permuted = ap50(truths, inside, classes)
    if permuted >= base + GAIN:
        changed = [f"{names[a]!r} means {names[b]!r}" for a, b in enumerate(table.tolist()) if a != b]
        text = f"With labels exchanged AP50 is {permuted:.2f}: {', '.join(changed[:6])}{', …' * (len(changed) > 6)}. "
        text += "The tables of classes of the model and of the data are in different orders."
        return [Finding("labels", start + text, figures | {"ap50_permuted": permuted})]
    return [
        Finding("labels", start + "No table of classes mends it: the classification has not been learned.", figures)
    ]


def _pairs(truths: Sequence[Truth], found: Sequence[Found]) -> tuple[np.ndarray, np.ndarray]:
    """The label of each detection that lies on an object, the surest of each, and the object's own."""
    said: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for truth, guess in zip(truths, found, strict=True):
        crowd = truth.ignored
        pairs = greedy_pairs(overlaps(guess.boxes, truth.boxes, crowd), crowd, 0.5)
        rows = np.flatnonzero((pairs >= 0) & ~np.concatenate([crowd, [False]])[pairs])
        said.append(guess.labels[rows])
        right.append(truth.labels[pairs[rows]])
    return np.concatenate(said), np.concatenate(right)


def _best_table(
    said: Int[np.ndarray, " pairs"], right: Int[np.ndarray, " pairs"], classes: int
) -> Int[np.ndarray, " classes"]:
    """The exchange of labels that agrees with most pairs."""
    known = (said >= 0) & (said < classes)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (said[known], right[known]), 1)
    # Labels that were never said stay as they are where they can.
    return linear_sum_assignment(-(counts + 1e-6 * np.eye(classes)))[1]


def _through(table: Int[np.ndarray, " classes"], labels: Int[np.ndarray, " objects"]) -> Int[np.ndarray, " objects"]:
    known = (labels >= 0) & (labels < len(table))
    return np.where(known, table[np.where(known, labels, 0)], labels)


def _location(truths: Sequence[Truth], found: Sequence[Found]) -> Iterator[Finding]:
    """How near the boxes come to the objects, where no other reading of them helps."""
    boxes = [guess.boxes for guess in found]
    near, half = (best_recall(truths, boxes, iou).all for iou in (0.1, 0.5))
    figures = {"recall_10": near, "recall_50": half}
    if half >= 0.5:
        return
    if near >= 0.5 and half < near / 2:
        yield Finding(
            "location",
            f"Boxes are near the objects but do not fit: recall is {near:.2f} at IoU .1 and {half:.2f} at IoU .5. "
            "Train longer, or look at the coding of boxes, the stride and the sizes of anchors.",
            figures,
        )
    elif near < 0.5:
        yield Finding(
            "location",
            f"Few objects have a box even near them: recall is {near:.2f} at IoU .1. The model has not learned where "
            "objects are, or the detections are of other pictures.",
            figures,
        )
