"""What key point detectors share: the loss of heat maps, values at cells, branches, and frames with centred pictures.

Notable:
- The loss of a heat map is the focal loss with two exponents: α for what is told easily, β for what lies near a key
  point and is therefore only half wrong. It is divided by the number of key points.
- Cells of an ignored object take no part as negatives; a key point on them still is a positive.
- Published models look at a picture in its own size, in the middle of a frame whose sides follow from `bits`, with
  black margins that are normalised like the picture (elsewhere in the library margins are zero after normalisation).

Sources: Law and Deng 2018 (CornerNet, 1808.01244), eq. 1; Zhou et al. 2019 (Objects as Points, 1904.07850), eq. 1;
`models/py_utils/kp_utils.py` and `test/coco.py` of the former's code, `models/losses.py` and
`detectors/base_detector.py` of the latter's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from odonata.backbones.interface import channels_last
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.nn.ranks import mean_over_ranks

EPSILON = 1e-4
"""What both codes add to the counts that they divide by, and how near to 0 and 1 probabilities may come."""
HEAT_BIAS = -2.19
"""Bias that heat maps begin with: a probability of about 0.1."""
PUBLISHED_FRAMING = Framing(
    resize="keep",
    size=512,
    mean=(0.47026115, 0.44719302, 0.40789654),
    std=(0.27809835, 0.27408164, 0.28863828),
    order="bgr",
)
"""CornerNet's and CenterNet's pictures: their own size, mean and deviation of COCO, channels from blue to red."""


class Branch(nn.Sequential):
    """A 3 × 3 convolution, a rectifier and a 1 × 1 convolution.

    Args:
        channels: of the map that it stands on.
        hidden: between the two.
        outputs: of the second.
        bias: what the outputs begin with.
    """

    def __init__(self, channels: int, hidden: int, outputs: int, bias: float = 0.0) -> None:
        out = nn.Conv2d(hidden, outputs, 1)
        nn.init.constant_(out.bias, bias)  # pyright: ignore[reportArgumentType]
        super().__init__(nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(), out)


def full_precision(x: Tensor) -> Tensor:
    """The same in float32 at least: losses are not computed in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def heatmap_loss(
    logits: Float[Tensor, "batch classes height width"],
    targets: Float[Tensor, "batch classes height width"],
    counted: Bool[Tensor, "batch 1 height width"],
    alpha: float = 2.0,
    beta: float = 4.0,
) -> Float[Tensor, ""]:
    """Focal loss of a heat map, divided by the number of its key points (at least 1).

    Args:
        logits: of the maps.
        targets: 1 at key points, Gaussians around them, 0 elsewhere.
        counted: cells that may be negatives.
        alpha: exponent of what is missing to the right answer.
        beta: exponent of 1 − target, the weight of negatives.

    Source: Law and Deng 2018, eq. 1; Zhou et al. 2019, eq. 1.
    """
    chance = full_precision(logits).sigmoid().clamp(EPSILON, 1 - EPSILON)
    targets = targets.to(chance.dtype)
    positive = targets == 1
    found = (1 - chance) ** alpha * chance.log() * positive
    quiet = (1 - targets) ** beta * chance**alpha * (1 - chance).log() * (counted & ~positive)
    return -(found.sum() + quiet.sum()) / mean_over_ranks(positive.sum(), chance)


def values_at(
    maps: Float[Tensor, "batch fields height width"],
    pictures: Int64[Tensor, " points"],
    cells: Int64[Tensor, "points 2"],
) -> Float[Tensor, "points fields"]:
    """What maps say at cells (x, y) of some of their pictures."""
    return maps[pictures, :, cells[:, 1], cells[:, 0]]


def covered_cells(boxes: Float[Tensor, "objects 4"], height: int, width: int) -> Bool[Tensor, "height width"]:
    """Which cells boxes touch, from the cell of the left upper to that of the right lower corner.

    Args:
        boxes: xyxy in cells.
        height, width: of the map.
    """
    low, high = boxes[:, :2].floor(), boxes[:, 2:].floor()
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    across = (x >= low[:, :1]) & (x <= high[:, :1])
    down = (y >= low[:, 1:]) & (y <= high[:, 1:])
    return (down[:, :, None] & across[:, None]).any(0)


def countable(
    ignored: Sequence[Float[Tensor, "_objects 4"]], height: int, width: int
) -> Bool[Tensor, "batch 1 height width"]:
    """Cells that may be negatives: those that no ignored object touches.

    Args:
        ignored: boxes of each picture, xyxy in cells.
        height, width: of the map.
    """
    return ~torch.stack([covered_cells(boxes, height, width) for boxes in ignored])[:, None]


def cell_of(points: Float[Tensor, "points 2"], height: int, width: int) -> Int64[Tensor, "points 2"]:
    """The cell (x, y) that each point, in cells, lies in; one on the far edge lies in the last cell."""
    return torch.minimum(points.floor().clamp(min=0), points.new_tensor([width - 1, height - 1])).long()


def cell_size(pixels: int, cells: int) -> float:
    """Pixels a cell, for a map at about a quarter of a frame's size: a frame of 511 has 128 cells.

    4 is written out, so that an exported graph holds no quotient of its sizes.
    """
    return 4.0 if pixels % 4 == 0 else pixels / cells


def boxes_in_cells(batch: ObjectBatch, height: int, width: int) -> list[Float[Tensor, "_objects 4"]]:
    """All boxes of a batch, the ignored ones too, in cells of a map of this size."""
    cell = cell_size(batch.images.shape[-1], width), cell_size(batch.images.shape[-2], height)
    return [boxes / boxes.new_tensor([*cell, *cell]) for boxes in batch.boxes]


def frames_of(
    batch: ObjectBatch, framing: Framing, bits: int, beyond: int
) -> Iterator[tuple[Float[Tensor, "batch 3 height width"], list[tuple[int, int]], tuple[int, int]]]:
    """Yield prepared pictures, the (height, width) of each, and how far (right, down) they were moved.

    Args:
        batch: of which images and sizes are read.
        framing: gives the normalisation.
        bits: 0 leaves the batch as it is. Otherwise each picture comes alone, in the middle of a frame whose sides are
            (side | bits) + beyond.
        beyond: 1 in CenterNet, 0 in CornerNet.

    Source: `test/coco.py` of CornerNet's code; `detectors/base_detector.py` of CenterNet's.
    """
    sizes = [(int(height), int(width)) for height, width in batch.sizes.tolist()]
    if not bits:
        yield channels_last(framing.normalize(batch.images, batch.sizes)), sizes, (0, 0)
        return
    for image, (height, width) in zip(batch.images, sizes, strict=True):
        frame = (height | bits) + beyond, (width | bits) + beyond
        top, left = frame[0] // 2 - height // 2, frame[1] // 2 - width // 2
        padding = (left, frame[1] - left - width, top, frame[0] - top - height)
        canvas = F.pad(image[None, :, :height, :width], padding)
        whole = torch.tensor([frame], device=canvas.device)
        yield channels_last(framing.normalize(canvas, whole)), [(height, width)], (left, top)
