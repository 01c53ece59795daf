"""Names of classes that published segmenters were trained on, told by their number."""

from __future__ import annotations

VOC = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
CITYSCAPES = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle"
).split(",")


def table(classes: int, city: bool = False) -> list[tuple[int | str, str]] | None:
    """Returns (label, name) of each class: 21 are VOC's and, where such weights are about, 19 are Cityscapes'."""
    if classes == len(VOC):
        return list(enumerate(VOC))
    if city and classes == len(CITYSCAPES):
        return list(enumerate(CITYSCAPES))
    return None
