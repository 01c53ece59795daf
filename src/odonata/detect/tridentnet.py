"""TridentNet: three branches with the same weights and different dilations, each for objects of its own size.

What the paper found: a receptive field suits some sizes of objects only. One stage of the tower runs once with each
dilation, and each branch learns from, and answers for, the objects of its range; as all weights are shared, no branch
sees too few of them. `fast` gives up the ranges, and in prediction runs the middle branch alone, at the cost of the
plain detector.

Notable:
- The tower is a plain residual network, and so are its weights: a branch is a way to compute a stage. With one branch
  of dilation 1 this is Faster R-CNN on one map, to the bit.
- Branches follow one another on the batch axis, so that both stages of the detector see them as further pictures.
- The ranges count √area in the picture's own pixels, whatever size it is framed to.

Deliberate differences:
- An object outside a branch's range is not known there as an object. The original first gives it its anchors, and then
  takes away those that overlap it by more than 0.3; what it overlaps by less could stay its own.
- A region of the right size that overlaps an object of the wrong size by 0.5 is not taught as background.
- Sides of boxes are not counted one pixel longer.

Sources: Li et al. 2019 (1901.01892), sec. 3; SimpleDet `models/tridentnet/input.py` for the anchors' rule; Detectron2
`projects/TridentNet` for the numbers of regions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.create import create
from odonata.backbones.resnet import BasicBlock, Bottleneck, ResNet
from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect.detector import Detector, DetectorOptions, freeze_stages
from odonata.detect.faster_rcnn import (
    FasterRCNNConfig,
    Seen,
    SingleMap,
    make_stages,
    rest_of,
    targets_of,
    two_stage_candidates,
    two_stage_loss,
)
from odonata.detect.roi_head import Candidates, RoIOptions
from odonata.detect.rpn import RPNOptions, Targets
from odonata.detect.scale_policy import INFINITE, Range, in_range
from odonata.errors import RecipeError

_COCO: dict[str, Any] = {
    "layer": 2,
    "valid_ranges": ((0.0, 90.0), (30.0, 160.0), (90.0, INFINITE)),
    "framing": Framing(size=800, max_size=1333),
    "rpn": RPNOptions(
        anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
        invalid_wins=True,
        samples=256,
        pre_nms_train=12000,
        post_nms_train=500,
        post_nms=500,
        min_size=0.0,
    ),
    "roi": RoIOptions(
        head="tower", bins=14, sampling_ratio=0, aligned=True, samples=128, positive_share=0.5, append_objects=False
    ),
    "pre_nms": 6000,
}


@dataclass(frozen=True)
class TridentNetConfig(DetectorOptions):
    """TridentNet; see the presets for the paper's sizes."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "r50": {**_COCO, "backbone": "resnet50:norm=frozen_batch"},
        "r101": {**_COCO, "backbone": "resnet101:norm=frozen_batch"},
    }

    layer: int = 1
    """Stage of the tower that has the branches, counted from 0; those after it are the head. The paper: 2 (res4)."""
    trident_blocks: int = 0
    """So many of its last blocks have branches (0 = all)."""
    dilations: tuple[int, ...] = (1, 2, 3)
    """Of each branch."""
    valid_ranges: tuple[tuple[float, float], ...] = ((0.0, 20.0), (12.0, 36.0), (24.0, INFINITE))
    """Least and largest √area, in the picture's own pixels, of the objects of each branch."""
    fast: bool = False
    """Whether every branch learns from all objects, and the middle one alone answers."""
    rpn: RPNOptions = field(
        default_factory=lambda: RPNOptions(anchor_sizes=(16.0, 32.0, 64.0, 96.0), invalid_wins=True)
    )
    """The first stage."""
    roi: RoIOptions = field(default_factory=lambda: RoIOptions(head="tower", bins=8, samples=32, positive_share=0.5))
    """The second stage."""
    nms_threshold: float = 0.5
    """Overlap (IoU) above which the less sure of two boxes of a class is dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dilations or any(dilation < 1 for dilation in self.dilations):
            raise RecipeError(f"--dilations is {self.dilations}; want one branch at least, and dilations of 1 or more")
        if len(self.valid_ranges) != len(self.dilations) and not self.fast:
            raise RecipeError(
                f"--valid-ranges has {len(self.valid_ranges)} ranges for {len(self.dilations)} branches; give each its "
                "own, or take --fast"
            )
        if any(low > high for low, high in self.valid_ranges):
            raise RecipeError(f"--valid-ranges {self.valid_ranges}: want pairs of a least and a largest √area")

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What each branch learns from: all, where they are open."""
        return ((0.0, INFINITE),) * len(self.dilations) if self.fast else self.valid_ranges

    def as_faster_rcnn(self) -> FasterRCNNConfig:
        """The same detector without branches."""
        shared = {option.name: getattr(self, option.name) for option in fields(DetectorOptions)}
        return FasterRCNNConfig(**shared, pyramid=False, layers=(self.layer,), rpn=self.rpn, roi=self.roi)


class TridentNet(Detector):
    """A tower with one stage of branches, and two stages that see them as further pictures.

    Args:
        config: its options.
        num_classes: categories in the table, without the background.

    Raises:
        RecipeError: options that do not go together, or a tower without such a stage.
    """

    def __init__(self, config: TridentNetConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.config = config
        backbone = create(config.backbone)
        if not isinstance(backbone, ResNet) or not 1 <= config.layer < len(backbone.stages):
            raise RecipeError(
                f"--layer {config.layer} of {config.backbone}: branches are for a stage of a residual network, from 1 "
                "on; take --backbone resnet50, say"
            )
        self.trunk = SingleMap(backbone, config.layer)
        self.rpn, self.roi_head = make_stages(config.as_faster_rcnn(), self.trunk, num_classes)
        freeze_stages(backbone, config.freeze)

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`."""
        return self.trunk.backbone

    def see(self, batch: ObjectBatch, dilations: Sequence[int]) -> Seen:
        """The maps of a batch, branch after branch."""
        images, tower, layer = self.pixels(batch), self.trunk.backbone, self.config.layer
        assert isinstance(tower, ResNet)
        below = tower.features(images, [layer - 1])[0]
        level = branched_stage(tower.stages[layer], below, dilations, self.config.trident_blocks)
        top = functools.partial(rest_of, tower, layer) if self.config.roi.head == "tower" else None
        sizes = batch.sizes.repeat(len(dilations), 1)
        return Seen([level], (images.shape[-2], images.shape[-1]), sizes, top)

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the losses of the objectness, the proposals, the classes and the boxes, over all branches."""
        plain = [targets_of(batch, number, self.options) for number in range(len(batch))]
        targets = [of_branch(target, valid) for valid in self.config.ranges for target in plain]
        return two_stage_loss(self.rpn, self.roi_head, self.see(batch, self.config.dilations), targets)

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`."""
        dilations, ranges = self.config.dilations, self.config.ranges
        if self.config.fast:
            middle = len(dilations) // 2
            dilations, ranges = dilations[middle : middle + 1], ranges[middle : middle + 1]
        found = two_stage_candidates(self.rpn, self.roi_head, self.see(batch, dilations), self.options)
        answers: list[Detections] = []
        for number, size in enumerate(batch.sizes):
            branches = zip(found[number :: len(batch)], ranges, strict=True)
            scale = float(batch.scales[number])
            parts = [part.take(in_range(part.boxes, scale, valid)) for part, valid in branches]
            answers.append(joined(parts).detections(size, self.options))
        return answers


def of_branch(target: Targets, valid: Range) -> Targets:
    """What a picture teaches a branch: its objects of the right size; those of a wrong one do not count (sec. 3.3).

    Args:
        target: the whole picture's.
        valid: least and largest √area in the picture's own pixels, both included.
    """
    right = in_range(target.boxes, target.scale, valid)
    invalid = torch.cat([target.invalid, target.boxes[~right]])
    return replace(target, boxes=target.boxes[right], labels=target.labels[right], invalid=invalid, range=valid)


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of all branches."""
    return Candidates(*(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels")))


def branched_stage(
    stage: nn.Module, x: Float[Tensor, "batch channels height width"], dilations: Sequence[int], blocks: int = 0
) -> Float[Tensor, "branches_batch out height2 width2"]:
    """A stage computed once with each dilation, with the same weights.

    Args:
        stage: of a residual network.
        x: the map below.
        dilations: of each branch, times those that the convolutions have.
        blocks: so many last blocks have branches; 0: all.

    Returns:
        The branches one after the other on the batch axis.
    """
    layers = list(stage.layers)  # pyright: ignore[reportArgumentType]
    plain = max(0, len(layers) - blocks) if blocks else 0
    recompute = bool(stage.checkpointing) and stage.training and torch.is_grad_enabled()
    for number, block in enumerate(layers):
        if number == plain:
            x = torch.cat([x] * len(dilations))
        run = block if number < plain else functools.partial(branched_block, block, dilations)
        x = checkpoint(run, x, use_reentrant=False) if recompute else run(x)  # pyright: ignore[reportAssignmentType]
    return x


def branched_block(
    block: nn.Module, dilations: Sequence[int], x: Float[Tensor, "branches_batch channels height width"]
) -> Float[Tensor, "branches_batch out height2 width2"]:
    """A block whose 3 × 3 convolutions have each branch's dilation; 1 × 1 and norms see all branches at once."""
    spread = functools.partial(branched_conv, dilations=dilations)
    if isinstance(block, BasicBlock):
        out = F.relu(block.norm1(spread(block.conv1, x)))
        return block.act(block.norm2(spread(block.conv2, out)) + block.shortcut(x))
    assert isinstance(block, Bottleneck)
    out = F.relu(block.norm1(block.conv1(x)))
    out = F.relu(block.norm2(spread(block.conv2, out)))
    return block.act(block.norm3(block.conv3(out)) + block.shortcut(x))


def branched_conv(
    conv: nn.Conv2d, x: Float[Tensor, "branches_batch channels height width"], dilations: Sequence[int]
) -> Float[Tensor, "branches_batch out height2 width2"]:
    """A convolution applied to each branch with its dilation; the padding grows with it, so that sizes agree."""
    made: list[Tensor] = []
    for part, dilation in zip(x.chunk(len(dilations)), dilations, strict=True):
        wide = dilation * conv.dilation[0]
        made.append(F.conv2d(part, conv.weight, conv.bias, conv.stride, wide, wide, conv.groups))
    return torch.cat(made)
