"""MTCNN's cascade: from one picture to faces, by three networks that see fewer and fewer windows.

Notable: levels of the pyramid and windows come out of one table of running sums (`odonata.ops.area_crops`), all windows
of a network at once, with the very values that cutting and shrinking them one by one gives; nothing here loops over
windows.

Source: Zhang et al. 2016, sec. II; timesler/facenet-pytorch `models/utils/detect_face.py`, whose order of operations is
kept, so that the same weights give the same boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float64, Int64, Real
from torch import Tensor, nn

from odonata.data.framing import Framing
from odonata.ops.area_crops import area_crops, running_sums
from odonata.ops.nms import nms

if TYPE_CHECKING:
    from odonata.detect.mtcnn import MTCNNConfig

CELL = 12
"""Side of what P-Net looks at, in pixels of a level."""
STRIDE = 2
CHUNK = 128
"""Windows that a network looks at together; more of them fall out of the processor's caches."""


@dataclass(eq=False)
class Faces:
    """What the cascade says of one picture.

    Args:
        boxes: xyxy in pixels, the surest first, not cut at the picture's edge.
        scores: from 0 to 1.
        points: landmarks (x, y), where O-Net took part.
        windows: squares that reached `rnet` and `onet`.
        counts: see `MTCNN.cascade_counts`.
    """

    boxes: Float[Tensor, "faces 4"]
    scores: Float[Tensor, " faces"]
    points: Float[Tensor, "faces 5 2"] | None
    windows: dict[str, Tensor]
    counts: dict[str, int]


def find(nets: Sequence[nn.Module], pixels: Real[Tensor, "3 height width"], options: MTCNNConfig) -> Faces:
    """Run the first one, two or three networks of the cascade on a picture.

    Args:
        nets: P-Net, R-Net, O-Net, or the first of them.
        pixels: values from 0 to 255.
        options: thresholds and conventions; the score threshold is that of the last network.
    """
    table = running_sums(pixels)
    before = [options.proposal_threshold, options.refine_threshold][: len(nets) - 1]
    thresholds = [*before, options.score_threshold]
    boxes, scores, counts = propose(nets[0], table, thresholds[0], options)
    windows: dict[str, Tensor] = {}
    points: Tensor | None = None
    for name, side, net, threshold in zip(("rnet", "onet"), (24, 48), nets[1:], thresholds[1:], strict=False):
        boxes = squares(boxes)
        boxes = boxes[(~is_empty(pixel_windows(boxes, table, options.origin)))]
        windows[name], counts[name] = boxes, len(boxes)
        logits, sides, *more = in_chunks(net, table, boxes, side, options)
        scores = logits.softmax(1)[:, 1]
        chosen = (scores > threshold).nonzero()[:, 0]
        if name == "rnet":
            chosen = chosen[nms(boxes[chosen], scores[chosen], options.refine_nms)]
        boxes, scores, sides = boxes[chosen], scores[chosen], sides[chosen]
        points = landmarks(boxes, more[0][chosen], options.origin) if more else None
        boxes = regressed(boxes, sides, options.origin)
    if points is not None:
        # The last suppression counts the smaller area, and pixels as the origin says.
        enclosed = boxes + boxes.new_tensor([0, 0, options.origin, options.origin])
        kept = nms(enclosed, scores, options.nms_threshold, metric="iom")
        boxes, scores, points = boxes[kept], scores[kept], points[kept]
    most = options.max_detections
    counts["faces"] = min(len(boxes), most)
    return Faces(boxes[:most], scores[:most], None if points is None else points[:most], windows, counts)


def pyramid(height: int, width: int, min_face: float, factor: float) -> list[float]:
    """The factors by which a picture is scaled, the largest first, until its shorter side is below 12 pixels.

    Args:
        height, width: of the picture in pixels.
        min_face: side of the smallest face, which becomes 12 pixels on the first level.
        factor: from level to level.
    """
    scale = CELL / min_face
    side, found = min(height, width) * scale, list[float]()
    while side >= CELL:
        found.append(scale)
        scale, side = scale * factor, side * factor
    return found


def propose(
    net: nn.Module, table: Float64[Tensor, "rows columns 3"], threshold: float, options: MTCNNConfig
) -> tuple[Float[Tensor, "windows 4"], Float[Tensor, " windows"], dict[str, int]]:
    """P-Net's windows with their regression done, the surest first, and how many there were.

    Args:
        net: P-Net.
        table: running sums of the picture.
        threshold: least probability.
        options: pyramid, suppression and origin.
    """
    height, width = table.shape[0] - 1, table.shape[1] - 1
    whole = torch.tensor([[0, height, 0, width]], device=table.device)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    looked = passed = 0
    for scale in pyramid(height, width, options.min_face, options.factor):
        size = int(height * scale + 1), int(width * scale + 1)
        logits, sides = net(prepared(area_crops(table, whole, size), options.framing))
        probabilities = logits.float().softmax(1)[0, 1]
        looked += probabilities.numel()
        places = (probabilities >= threshold).nonzero()
        passed += len(places)
        scores, boxes = probabilities[tuple(places.T)], cells(places, scale, options.origin)
        if len(scores) > options.pre_nms:
            scores, best = scores.topk(options.pre_nms)
            places, boxes = places[best], boxes[best]
        kept = nms(boxes, scores, options.level_nms)
        places = places[kept]
        parts.append((boxes[kept], scores[kept], sides[0].float()[:, places[:, 0], places[:, 1]].T))
    if not parts:
        nothing = torch.zeros(0, 4, device=table.device)
        return nothing, nothing[:, 0], {"windows": 0, "proposed": 0}
    boxes, scores, sides = (torch.cat(values) for values in zip(*parts, strict=True))
    kept = nms(boxes, scores, options.proposal_nms)
    # Unlike those of the other networks, its sides are not counted one pixel longer.
    return regressed(boxes[kept], sides[kept], 0), scores[kept], {"windows": looked, "proposed": passed}


def cells(places: Int64[Tensor, "windows 2"], scale: float, origin: int) -> Float[Tensor, "windows 4"]:
    """What P-Net's positions look at, xyxy in pixels of the picture.

    Args:
        places: (row, column) of the output.
        scale: of the level.
        origin: 1: counted from 1 and rounded down, as in the original.
    """
    corner = STRIDE * places.flip(1).float()
    boxes = torch.cat([(corner + origin) / scale, (corner + CELL) / scale], dim=1)
    return boxes.floor() if origin else boxes


def regressed(
    boxes: Float[Tensor, "windows 4"], sides: Float[Tensor, "windows 4"], origin: int
) -> Float[Tensor, "windows 4"]:
    """Windows whose sides are moved by shares of their width and height (`origin` is added to both)."""
    lengths = boxes[:, 2:] - boxes[:, :2] + origin
    return boxes + sides * lengths.repeat(1, 2)


def squares(boxes: Float[Tensor, "windows 4"]) -> Float[Tensor, "windows 4"]:
    """Squares about the same middles with the longer sides."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    side = torch.maximum(width, height)
    left, top = boxes[:, 0] + width * 0.5 - side * 0.5, boxes[:, 1] + height * 0.5 - side * 0.5
    return torch.stack([left, top, left + side, top + side], dim=1)


def landmarks(
    boxes: Float[Tensor, "faces 4"], shares: Float[Tensor, "faces 10"], origin: int
) -> Float[Tensor, "faces 5 2"]:
    """(x, y) of O-Net's landmarks.

    Args:
        boxes: what O-Net looked at, before the regression.
        shares: all x and then all y, in sides of the box.
        origin: number of the first pixel.
    """
    lengths = boxes[:, 2:] - boxes[:, :2] + origin
    return shares.unflatten(1, (2, 5)).mT * lengths[:, None] + boxes[:, None, :2] - origin


def pixel_windows(
    boxes: Float[Tensor, "windows 4"], table: Float64[Tensor, "rows columns 3"], origin: int
) -> Int64[Tensor, "windows 4"]:
    """Whole pixels (top, bottom, left, right) of windows, cut at the picture's edge; those outside become empty."""
    height, width = table.shape[0] - 1, table.shape[1] - 1
    # Cut towards zero, as the original does, and not below; bounded first, for whole numbers end somewhere.
    x1, y1, x2, y2 = boxes.clamp(-1e6, 1e6).trunc().long().unbind(1)
    sides = (y1 - origin).clamp(min=0), y2.clamp(max=height), (x1 - origin).clamp(min=0), x2.clamp(max=width)
    return torch.stack(sides, dim=1)


def is_empty(windows: Int64[Tensor, "windows 4"]) -> Bool[Tensor, " windows"]:
    """Which windows hold no pixel."""
    return (windows[:, 1] <= windows[:, 0]) | (windows[:, 3] <= windows[:, 2])


def crops(
    table: Float64[Tensor, "rows columns 3"], boxes: Float[Tensor, "windows 4"], side: int, options: MTCNNConfig
) -> Float[Tensor, "windows 3 side side"]:
    """Windows as a network expects them; none may lie outside the picture."""
    return prepared(area_crops(table, pixel_windows(boxes, table, options.origin), (side, side)), options.framing)


def prepared(pixels: Float[Tensor, "batch 3 height width"], framing: Framing) -> Float[Tensor, "batch 3 height width"]:
    """Values from 0 to 255 as the networks expect them."""
    mean = pixels.new_tensor([255 * value for value in framing.mean])[:, None, None]
    share = pixels.new_tensor([1 / (255 * value) for value in framing.std])[:, None, None]
    pixels = pixels.sub_(mean).mul_(share)
    return pixels.flip(1) if framing.order == "bgr" else pixels


def in_chunks(
    net: nn.Module,
    table: Float64[Tensor, "rows columns 3"],
    boxes: Float[Tensor, "windows 4"],
    side: int,
    options: MTCNNConfig,
) -> list[Float[Tensor, "windows _outputs"]]:
    """The answers of R-Net or O-Net to windows."""
    answers = [net(crops(table, part, side, options)) for part in boxes.split(CHUNK)]
    return [torch.cat(values).float() for values in zip(*answers, strict=True)]
