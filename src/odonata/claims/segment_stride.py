"""FCN's claim about strides: how good a map can be that knows the truth, but only once every so many pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.segment_toy import CLASSES
from odonata.data.object_scenes import ObjectScenes
from odonata.metrics.segmentation import confusion_matrix, segmentation_figures

STRIDES = (32, 16, 8, 4)
PICTURES = 100


def run(trial: Trial) -> Figures:
    """Shrink true maps to one cell a stride, enlarge them bilinearly, and take the likeliest class."""
    stride, classes = int(trial.variant.removeprefix("stride ")), CLASSES["digits"]
    scenes = ObjectScenes(trial.steps(PICTURES), "train", trial.seed, size=256, sides=(24, 128))
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for index in range(scenes.n):
        truth = torch.from_numpy(scenes.classes(index)).long()
        shares = F.one_hot(truth, classes).permute(2, 0, 1)[None].float()
        cells = F.avg_pool2d(shares, stride)
        back = F.interpolate(cells, truth.shape, mode="bilinear", align_corners=False)[0].argmax(0)
        counts += confusion_matrix(back, truth, classes)
    return {"mIoU": 100 * segmentation_figures(counts).miou}


_WHERE = "true maps"

CLAIM = Claim(
    name="fcn-stride-ceiling",
    room="segment",
    methods=("fcn-32s", "fcn-16s", "fcn-8s"),
    source="Long, Shelhamer and Darrell 2014, arXiv:1411.4038, section 4.4: the ceilings are 86.1, 92.8 and 96.3 "
    "mIoU at "
    "factors of 32, 16 and 8 (PASCAL VOC)",
    hypothesis="The best map that a network of stride 32 can give is worse than that of stride 16, and this worse "
    "than that "
    "of stride 8.",
    data="True maps of digits of 24 to 128 pixels on embedded pictures of 256, eleven classes; 100 pictures a seed.",
    scaled_down="Nothing is trained, in the paper neither: the truth is shrunk and enlarged. Its objects are larger "
    "beside "
    "the stride, so its ceilings are higher.",
    trial=run,
    conditions=(_WHERE,),
    variants=tuple(f"stride {stride}" for stride in STRIDES),
    comparisons=(
        Comparison("stride 16 against 32", f"stride 16@{_WHERE}", f"stride 32@{_WHERE}", "mIoU", ">"),
        Comparison("stride 8 against 16", f"stride 8@{_WHERE}", f"stride 16@{_WHERE}", "mIoU", ">"),
        Comparison("stride 4 against 8", f"stride 4@{_WHERE}", f"stride 8@{_WHERE}", "mIoU", ">", primary=False),
    ),
    plots=(Plot("mIoU", "mean IoU at best, %"),),
    seeds=(1, 2, 3, 4, 5),
)  # fmt: skip
