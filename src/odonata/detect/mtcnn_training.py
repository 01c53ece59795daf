"""What MTCNN's networks learn from: windows cut at random around the faces and elsewhere, and what each one teaches.

A window that overlaps a face by 0.65 (IoU) or more holds it, one below 0.3 holds none, and one from 0.4 to 0.65 holds a
part, which teaches where the sides are and not whether there is a face. Face or not is learned from the 70 % of a
batch's windows with the greatest loss.

Source: Zhang et al. 2016, sec. II.C, II.D and III.A. Differences: windows are cut anew in each step; for each face-like
window there are one of a part and three without a face, as in the paper, but landmarks are learned from windows that
hold a face and not from a set of their own. R-Net and O-Net also learn from what the networks before them let pass.
What lies on ignored objects (crowds) is no window without a face.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from odonata.detect.mtcnn_cascade import is_empty, pixel_windows, squares
from odonata.nn.ranks import mean_over_ranks
from odonata.ops.area_crops import running_sums
from odonata.ops.boxes import iou_matrix
from odonata.ops.matching import ignore_overlap

if TYPE_CHECKING:
    from odonata.data.object_batches import ObjectBatch
    from odonata.detect.mtcnn import MTCNNConfig

FACE, NONE, PART, UNUSED = 1, 0, -1, -2
NEAR = 4
"""Windows drawn near faces for each one that is wanted; as many as are wanted are drawn elsewhere."""
SPREADS = (0.2, 0.8)
"""How far, in sides of the face, the windows near one may lie off: half of them little, half of them much."""


@dataclass(eq=False)
class Picture:
    """One picture of a batch.

    Args:
        table: its running sums.
        boxes: of faces, xyxy.
        ignored: what is neither a face nor none.
        points: landmarks of the faces, NaN where they are not known.
        passed: windows that reached R-Net and O-Net.
    """

    table: Tensor
    boxes: Float[Tensor, "faces 4"]
    ignored: Float[Tensor, "ignored 4"]
    points: Float[Tensor, "faces 5 2"]
    passed: Mapping[str, Tensor]


@dataclass(eq=False)
class Samples:
    """Windows and what they teach.

    Args:
        windows: xyxy, counted as the configuration's origin says.
        kinds: `FACE`, `NONE` or `PART`.
        sides: of the face, off those of the window, in sides of the window.
        points: all x and then all y of the landmarks within the window, in its sides; NaN where they are not known.
    """

    windows: Float[Tensor, "windows 4"]
    kinds: Int64[Tensor, " windows"]
    sides: Float[Tensor, "windows 4"]
    points: Float[Tensor, "windows 10"]


def picture_of(batch: ObjectBatch, number: int, passed: Mapping[str, Tensor]) -> Picture:
    """One picture of a batch with its table of running sums."""
    height, width = batch.sizes[number].tolist()
    boxes, _ = batch.trained(number)
    ignored = batch.boxes[number][batch.ignore[number]]
    points = boxes.new_full((len(boxes), 5, 2), torch.nan)
    if batch.points is not None:
        points = upright(batch.points[number][~batch.ignore[number]])
    return Picture(running_sums(batch.images[number, :, :height, :width]), boxes, ignored, points, passed)


def upright(points: Float[Tensor, "faces 5 2"]) -> Float[Tensor, "faces 5 2"]:
    """Landmarks with the left eye and corner of the mouth first: a mirrored picture has them the other way round."""
    swapped = points[:, [1, 0, 2, 4, 3]]
    return torch.where((points[:, 0, 0] > points[:, 1, 0])[:, None, None], swapped, points)


def choose(picture: Picture, stage: str, config: MTCNNConfig, generator: torch.Generator | None = None) -> Samples:
    """Draw the windows that a network learns from in one picture.

    Args:
        picture: with faces or without.
        stage: the network: `pnet`, `rnet`, `onet`.
        config: how many windows, and what counts as a face.
        generator: draws, on the CPU; PyTorch's own where None.
    """
    size = picture.table.shape[0] - 1, picture.table.shape[1] - 1
    drawn = draw_windows(picture.boxes, size, config, generator)
    # Counted as the configuration's origin says: the first pixel of what is cut out has that number.
    drawn = drawn + drawn.new_tensor([config.origin, config.origin, 0, 0])
    windows = torch.cat([drawn, picture.passed[stage]]) if stage in picture.passed else drawn
    windows = windows[~is_empty(pixel_windows(windows, picture.table, config.origin))]
    samples = labelled(windows, picture, config)
    share = config.windows // 5
    chosen = [
        _some((samples.kinds == kind).nonzero()[:, 0], count, generator)
        for kind, count in ((FACE, share), (PART, share), (NONE, 3 * share))
    ]
    return _take(samples, torch.cat(chosen))


def draw_windows(
    boxes: Float[Tensor, "faces 4"], size: tuple[int, int], config: MTCNNConfig, generator: torch.Generator | None
) -> Float[Tensor, "windows 4"]:
    """Squares of whole pixels, xyxy: near faces, of about their size, and anywhere.

    Args:
        boxes: of faces.
        size: (height, width) of the picture.
        config: how many, and the smallest.
        generator: draws.
    """
    height, width = size
    wanted, most = config.windows, min(height, width)
    shares = torch.rand(wanted, 3, generator=generator).to(boxes)
    side = config.min_face * (max(most, config.min_face) / config.min_face) ** shares[:, 0]
    corner = shares[:, 1:] * (boxes.new_tensor([width, height]) - side[:, None]).clamp(min=0)
    anywhere = torch.cat([corner, corner + side[:, None]], dim=1).round()
    if not len(boxes):
        return anywhere
    shares = torch.rand(NEAR * wanted, 4, generator=generator).to(boxes)
    face = boxes[(shares[:, 0] * len(boxes)).long().clamp(max=len(boxes) - 1)]
    lengths, middle = face[:, 2:] - face[:, :2], (face[:, 2:] + face[:, :2]) / 2
    least, largest = 0.8 * lengths.amin(1), 1.25 * lengths.amax(1)
    side = (least + shares[:, 1] * (largest - least)).clamp(min=2)[:, None]
    spread = boxes.new_tensor(SPREADS).repeat(-(-len(face) // 2))[: len(face), None]
    middle = middle + (2 * shares[:, 2:] - 1) * spread * lengths
    return torch.cat([anywhere, torch.cat([middle - side / 2, middle + side / 2], dim=1).round()])


def labelled(windows: Float[Tensor, "windows 4"], picture: Picture, config: MTCNNConfig) -> Samples:
    """What each window teaches; those that teach nothing have the kind `UNUSED`.

    Args:
        windows: xyxy, counted as the configuration's origin says.
        picture: with its faces.
        config: limits of overlap.
    """
    edges = windows - windows.new_tensor([config.origin, config.origin, 0, 0])
    kinds = torch.full((len(windows),), UNUSED, device=windows.device)
    if not len(picture.boxes):
        kinds[~ignore_overlap(edges, picture.ignored, config.negative)] = NONE
        return Samples(windows, kinds, torch.zeros_like(windows), windows.new_full((len(windows), 10), torch.nan))
    goals = squares(picture.boxes) if config.overlap == "square" else picture.boxes
    overlap, owner = iou_matrix(edges, goals).max(1)
    kinds[(overlap < config.negative) & ~ignore_overlap(edges, picture.ignored, config.negative)] = NONE
    kinds[overlap >= config.part] = PART
    kinds[overlap >= config.positive] = FACE
    lengths = edges[:, 2:] - edges[:, :2]
    sides = (picture.boxes[owner] - edges) / lengths.repeat(1, 2)
    points = (picture.points[owner] - edges[:, None, :2]) / lengths[:, None]
    return Samples(windows, kinds, sides, points.mT.flatten(1))


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of several pictures in one."""
    names = ("windows", "kinds", "sides", "points")
    return Samples(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def losses(
    stage: str, answers: Sequence[Tensor], samples: Samples, config: MTCNNConfig
) -> dict[str, Float[Tensor, ""]]:
    """The losses of one network: of face or not (eq. 1), of the sides (eq. 2), of the landmarks (eq. 3).

    Args:
        stage: its name, which begins the names of the losses.
        answers: logits, sides, and landmarks where it has them.
        samples: of the whole batch.
        config: gives the share of hard windows.
    """
    logits, sides, *points = (answer.flatten(1).float() for answer in answers)
    told = samples.kinds >= NONE
    each = F.cross_entropy(logits[told], samples.kinds[told], reduction="none")
    hard = each.topk(min(len(each), max(1, round(config.hard * len(each))))).values
    parts = {"face": hard.sum() / mean_over_ranks(each.new_tensor(float(len(hard))), each)}
    near = (samples.kinds == FACE) | (samples.kinds == PART)
    parts["box"] = _squared(sides[near], samples.sides[near])
    if points:
        known = (samples.kinds == FACE) & ~samples.points.isnan().any(1)
        parts["points"] = _squared(points[0][known], samples.points[known])
    return {f"{stage}_{name}": value for name, value in parts.items()}


def _squared(found: Float[Tensor, "windows outputs"], wanted: Float[Tensor, "windows outputs"]) -> Float[Tensor, ""]:
    """The mean over windows of the squared distance."""
    distance = (found - wanted).square().sum()
    return distance / mean_over_ranks(distance.new_tensor(float(len(found))), distance)


def _some(index: Int64[Tensor, " all"], count: int, generator: torch.Generator | None) -> Int64[Tensor, " drawn"]:
    return index[torch.randperm(len(index), generator=generator).to(index.device)[:count]]


def _take(samples: Samples, chosen: Int64[Tensor, " windows"]) -> Samples:
    return Samples(samples.windows[chosen], samples.kinds[chosen], samples.sides[chosen], samples.points[chosen])
