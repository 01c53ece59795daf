"""Boxes: conversions, areas, and how much two of them overlap.

Notable: boxes are xyxy in absolute pixels unless a name says otherwise; a picture's size is (height, width). Overlaps
are computed in float32 or better whatever comes in. "Matrix" compares each box with each other, "paired" the i-th with
the i-th; a loss of boxes is `1 - paired_giou(...)` and so on.

Deliberate difference: torchvision's losses add 1e-7 to what they divide by, which is a tenth of a box of 0.001 × 0.001
in normalised coordinates; its matrices divide 0 by 0. Here a divisor below `SMALLEST_AREA` counts as that. Degenerate
boxes then overlap nothing, and no value or gradient is NaN; all others have torchvision's numbers.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

SMALLEST_AREA = 1e-12
"""Areas and squared lengths below this count as this when they divide: a millionth of a side, squared."""

CELLS_AT_ONCE = 100_000
"""Pairs of boxes that are compared at a time on a CPU."""

Metric = Literal["iou", "iom"]
"""Overlap as intersection over union, or over the smaller of the two areas."""


def xyxy_to_xywh(boxes: Num[Tensor, "*batch 4"]) -> Num[Tensor, "*batch 4"]:
    """Returns corner, width and height (COCO's files) of boxes given by two corners."""
    return torch.cat([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(boxes_xywh: Num[Tensor, "*batch 4"]) -> Num[Tensor, "*batch 4"]:
    """Returns the two corners of boxes given by corner, width and height."""
    return torch.cat([boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]], -1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Returns centre, width and height (YOLO, DETR) of boxes given by two corners."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Returns the two corners of boxes given by centre, width and height."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def normalize_boxes(boxes: Float[Tensor, "*batch 4"], size: tuple[int, int]) -> Float[Tensor, "*batch 4"]:
    """Returns boxes as fractions of their picture; for any of the three formats.

    Args:
        boxes: in pixels.
        size: height and width of the picture in pixels.
    """
    return boxes / _scale(boxes, size)


def denormalize_boxes(boxes_normalized: Float[Tensor, "*batch 4"], size: tuple[int, int]) -> Float[Tensor, "*batch 4"]:
    """Returns boxes in pixels of a picture of this height and width, from fractions of it; for any format."""
    return boxes_normalized * _scale(boxes_normalized, size)


def clip_boxes(boxes: Num[Tensor, "*batch 4"], size: tuple[int, int]) -> Num[Tensor, "*batch 4"]:
    """Returns the parts of boxes within a picture; what lies outside becomes a box without area on the border.

    Args:
        boxes: in pixels.
        size: height and width of the picture in pixels.
    """
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], -1).flatten(-2)


def box_area(boxes: Num[Tensor, "*batch 4"]) -> Num[Tensor, "*batch"]:
    """Returns width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def sides_reach(boxes: Num[Tensor, "*batch 4"], minimum: float) -> Bool[Tensor, "*batch"]:
    """Returns which boxes are at least `minimum` wide and high."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= minimum).all(-1)


def iou_matrix(boxes: Num[Tensor, "boxes 4"], others: Num[Tensor, "others 4"]) -> Float[Tensor, "boxes others"]:
    """Returns intersection over union of each box with each other box, within [0, 1]."""
    boxes, others = _floats(boxes), _floats(others)
    learns = torch.is_grad_enabled() and (boxes.requires_grad or others.requires_grad)
    if boxes.device.type != "cpu" or learns or torch.compiler.is_compiling() or not len(boxes):
        return paired_iou(boxes[:, None], others[None])
    # Large matrices part by part: a dozen steps on what fits into the cache, not each through all of the memory.
    matrix = boxes.new_empty(len(boxes), len(others), dtype=torch.promote_types(boxes.dtype, others.dtype))
    columns = max(1, CELLS_AT_ONCE // len(boxes))
    for start in range(0, len(others), columns):
        matrix[:, start : start + columns] = paired_iou(boxes[:, None], others[None, start : start + columns])
    return matrix


def giou_matrix(boxes: Num[Tensor, "boxes 4"], others: Num[Tensor, "others 4"]) -> Float[Tensor, "boxes others"]:
    """Returns the generalised IoU of each box with each other box, within [-1, 1].

    It is the IoU less the share of the smallest enclosing box that neither covers.

    Source: Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1.
    """
    return _giou(_floats(boxes)[:, None], _floats(others)[None])


def iom_matrix(boxes: Num[Tensor, "boxes 4"], others: Num[Tensor, "others 4"]) -> Float[Tensor, "boxes others"]:
    """Returns intersection over the smaller area of each box with each other box: 1 where one holds the other.

    Source: MTCNN's last suppression ("Min"); merging of tiles.
    """
    intersection, _, smaller = _overlaps(_floats(boxes)[:, None], _floats(others)[None])
    return _ratio(intersection, smaller)


def ioa_matrix(boxes: Num[Tensor, "boxes 4"], others: Num[Tensor, "others 4"]) -> Float[Tensor, "boxes others"]:
    """Returns the share of each box's own area that each other box covers (crowd regions, visibility)."""
    boxes = _floats(boxes)
    intersection, _, _ = _overlaps(boxes[:, None], _floats(others)[None])
    return _ratio(intersection, box_area(boxes)[:, None])


def overlap_matrix(
    boxes: Num[Tensor, "boxes 4"], others: Num[Tensor, "others 4"], metric: Metric
) -> Float[Tensor, "boxes others"]:
    """Returns `iou_matrix` or `iom_matrix`, as named."""
    return iou_matrix(boxes, others) if metric == "iou" else iom_matrix(boxes, others)


def shape_iou(sizes: Num[Tensor, "boxes 2"], others: Num[Tensor, "others 2"]) -> Float[Tensor, "boxes others"]:
    """Returns the IoU that boxes of these widths and heights would have around one centre.

    What YOLO v2 and v3 match anchors by and cluster them with (1 - IoU is the distance).

    Args:
        sizes: width and height of each, in any unit that both share.
        others: likewise.

    Source: Redmon and Farhadi 2017, arXiv:1612.08242, sec. 2, "Dimension Clusters".
    """
    sizes, others = _floats(sizes), _floats(others)
    intersection = torch.minimum(sizes[:, None], others[None]).relu().prod(-1)
    return _ratio(intersection, sizes.prod(-1)[:, None] + others.prod(-1)[None] - intersection)


def paired_iou(boxes: Num[Tensor, "*#batch 4"], others: Num[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch"]:
    """Returns intersection over union of the i-th box with the i-th other box, within [0, 1]."""
    intersection, union, _ = _overlaps(_floats(boxes), _floats(others))
    return _ratio(intersection, union)


def paired_giou(boxes: Num[Tensor, "*#batch 4"], others: Num[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch"]:
    """Returns the generalised IoU of the i-th box with the i-th other box, within [-1, 1].

    Source: Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1.
    """
    return _giou(_floats(boxes), _floats(others))


def paired_diou(boxes: Num[Tensor, "*#batch 4"], others: Num[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch"]:
    """Returns the IoU less the squared distance of the centres over the enclosing box's squared diagonal.

    Source: Zheng et al. 2020, arXiv:1911.08287, eq. 7.
    """
    boxes, others = _floats(boxes), _floats(others)
    low, high = _enclosing(boxes, others)
    diagonal = (high - low).square().sum(-1)
    between = ((boxes[..., :2] + boxes[..., 2:]) / 2 - (others[..., :2] + others[..., 2:]) / 2).square().sum(-1)
    return paired_iou(boxes, others) - _ratio(between, diagonal)


def paired_ciou(boxes: Num[Tensor, "*#batch 4"], others: Num[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch"]:
    """Returns the DIoU less a penalty for another aspect ratio.

    The weight of the penalty takes no part in the gradient, as the paper has it.

    Source: Zheng et al. 2020, arXiv:1911.08287, eq. 8 to 11.
    """
    boxes, others = _floats(boxes), _floats(others)
    v = 4 / math.pi**2 * (_aspect(others) - _aspect(boxes)).square()
    with torch.no_grad():
        alpha = v / (1 - paired_iou(boxes, others) + v).clamp(min=SMALLEST_AREA)
    return paired_diou(boxes, others) - alpha * v


def _floats(boxes: Num[Tensor, "*batch axes"]) -> Float[Tensor, "*batch axes"]:
    """Areas overflow float16, and bfloat16 has three digits."""
    return boxes.to(torch.promote_types(boxes.dtype, torch.float32))


def _scale(boxes: Float[Tensor, "*batch 4"], size: tuple[int, int]) -> Float[Tensor, "4"]:
    height, width = size
    return boxes.new_tensor([width, height, width, height])


def _overlaps(
    boxes: Float[Tensor, "*#batch 4"], others: Float[Tensor, "*#batch 4"]
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Returns the intersection, the union and the smaller area of boxes that broadcast."""
    # relu rather than clamp: boxes that only touch get no gradient, as in torchvision's masked form.
    width = (torch.minimum(boxes[..., 2], others[..., 2]) - torch.maximum(boxes[..., 0], others[..., 0])).relu()
    height = (torch.minimum(boxes[..., 3], others[..., 3]) - torch.maximum(boxes[..., 1], others[..., 1])).relu()
    intersection, area, other = width * height, box_area(boxes), box_area(others)
    return intersection, area + other - intersection, torch.minimum(area, other)


def _enclosing(
    boxes: Float[Tensor, "*#batch 4"], others: Float[Tensor, "*#batch 4"]
) -> tuple[Float[Tensor, "*batch 2"], Float[Tensor, "*batch 2"]]:
    return torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])


def _giou(boxes: Float[Tensor, "*#batch 4"], others: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch"]:
    intersection, union, _ = _overlaps(boxes, others)
    low, high = _enclosing(boxes, others)
    enclosing = (high - low).prod(-1)
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def _aspect(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """The angle whose tangent is width over height; a box without extent has one too."""
    size = boxes[..., 2:] - boxes[..., :2]
    return torch.atan2(size[..., 0], size[..., 1].clamp(min=math.sqrt(SMALLEST_AREA)))


def _ratio(part: Float[Tensor, "*#batch"], whole: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
    return part / whole.clamp(min=SMALLEST_AREA)
