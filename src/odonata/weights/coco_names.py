"""COCO's categories: 80 of the ids from 1 to 90, with their gaps (Lin et al. 2014; the ids of `instances_*.json`)."""

from __future__ import annotations

_NAMES = (
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant||stop sign|parking meter|"
    "bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe||backpack|umbrella|||handbag|tie|suitcase|frisbee|"
    "skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle||wine glass|"
    "cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed||dining table|||toilet||tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|"
    "refrigerator||book|clock|vase|scissors|teddy bear|hair drier|toothbrush"
).split("|")

COCO_80: tuple[tuple[int, str], ...] = tuple((number + 1, name) for number, name in enumerate(_NAMES) if name)
"""(id, name) of the 80 categories in the order of their ids: the labels of models with 80 outputs."""

COCO_91: tuple[tuple[int, str], ...] = (
    (0, "background"),
    *((number + 1, name or f"unused {number + 1}") for number, name in enumerate(_NAMES)),
)
"""(id, name) for models whose output number is COCO's id: torchvision's and DETR's."""


def table(classes: int) -> tuple[tuple[int, str], ...] | None:
    """COCO's table for a model with so many outputs, or None where the number is not COCO's."""
    return {80: COCO_80, 91: COCO_91}.get(classes)
