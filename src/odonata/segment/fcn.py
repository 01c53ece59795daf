"""FCN: the layers of a classifier slide over the whole picture, and their coarse scores are enlarged to it.

FCN-32s enlarges the last scores 32 times. FCN-16s enlarges them twice, adds scores of the fourth pooling, and enlarges
that 16 times; FCN-8s does the same once more with the third pooling. Skipped layers see small things, deep ones know
what they are.

Reference: Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic Segmentation, arXiv:1411.4038; the
authors' Caffe networks (shelhamer/fcn.berkeleyvision.org `voc-fcn{32,16,8}s`, `voc-fcn8s-atonce`), whose conventions
the preset `voc` has: VGG-16 whose first convolution pads by 100 pixels, poolings that round up, scores that begin at
zero, an unnormalised loss at a rate of 1e-10, biases at twice the rate.

Notable:
- What is cut off before maps are added (5 and 9 cells) and from the enlarged scores (19, 27 and 31 pixels) follows from
  where the cells lie, so the same code takes a VGG with ordinary padding; see `cell`.
- Enlarging is a transposed convolution with bilinear weights. All of them are fixed in the authors' released networks;
  `learn_upsampling` lets all but the last learn, as the paper says.
- Staged training begins 16s at a run of 32s, and 8s at one of 16s (--init). `at_once` trains 8s in one go: the poolings
  are scaled by 0.01 and 0.0001 before they are scored.
- torchvision's "FCN" is another system: a dilated residual network without skips, with an auxiliary output.
  `head="torchvision"` is that one.

Differences: the defaults are a small VGG for laptops, whose pictures are padded to a multiple of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.create import variant
from odonata.backbones.vgg import VGG, VGGConfig
from odonata.data.framing import Framing
from odonata.errors import RecipeError
from odonata.segment.dilated import DilatedNetwork
from odonata.segment.segmenter import Network, Segmenter, SegmenterOptions, padded_to

CAFFE_MEAN = (122.67891434 / 255, 116.66876762 / 255, 104.00698793 / 255)
_VOC = {
    "backbone": "vgg16-fcn",
    "framing": Framing(resize="keep", divisor=1, mean=CAFFE_MEAN, std=(1 / 255, 1 / 255, 1 / 255)),
    "loss_over": "pictures",
    "bias_lr": 2.0,
}
AT_ONCE = {4: 0.01, 3: 0.0001}
"""Pooling → what its map is multiplied by before it is scored, in training at once."""


def _torchvision(depth: int) -> dict[str, Any]:
    return {
        "backbone": f"resnet{depth}:output_stride=8",
        "head": "torchvision",
        "framing": Framing(size=520, max_size=0, divisor=1),
        "scale": (0.5, 2.0),
        "crop": 480,
        "aux_weight": 0.5,
    }


@dataclass(frozen=True)
class FCNOptions(SegmenterOptions):
    """FCN of any of the three strides.

    Raises:
        RecipeError: an auxiliary output is asked for where there is none.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"voc": _VOC}
    stride: ClassVar[int] = 32
    """Pixels from one cell of the finest scores to the next."""

    head: Literal["skips", "torchvision"] = "skips"
    """`skips`: the paper's, on a VGG. `torchvision`: two convolutions on a dilated residual network."""
    learn_upsampling: bool = False
    """Let all transposed convolutions but the last learn, as the paper says; the released networks fix them."""
    at_once: bool = False
    """Scale the skipped poolings by 0.01 and 0.0001, which lets FCN-8s learn in one stage."""
    dropout: float = 0.1
    """Of torchvision's head; that of the paper's belongs to the tower: vgg16-fcn:dropout=0.5."""
    aux_weight: float = 0.0
    """What the loss of torchvision's auxiliary output counts (0 = there is none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head == "skips" and self.aux_weight:
            raise RecipeError(f"--aux-weight is {self.aux_weight}; the head of skips has no auxiliary output")


@dataclass(frozen=True)
class FCN32sConfig(FCNOptions):
    """FCN-32s; the preset `voc` is the authors' network."""


@dataclass(frozen=True)
class FCN16sConfig(FCNOptions):
    """FCN-16s; the preset `voc` is the authors' network."""

    stride: ClassVar[int] = 16


@dataclass(frozen=True)
class FCN8sConfig(FCNOptions):
    """FCN-8s; `voc` and `voc-at-once` are the authors' networks, `torchvision-r50` and `-r101` torchvision's."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "voc": _VOC,
        "voc-at-once": {**_VOC, "at_once": True},
        "torchvision-r50": _torchvision(50),
        "torchvision-r101": _torchvision(101),
    }
    stride: ClassVar[int] = 8


class FCN(Segmenter):
    """FCN with its objective.

    Args:
        config: its options; their class says the stride.
        num_classes: classes in the table.

    Raises:
        RecipeError: the tower does not fit the head.
    """

    def __init__(self, config: FCNOptions, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.aux_weight = config.aux_weight
        self.network = dilated(config, num_classes) if config.head == "torchvision" else Skips(config, num_classes)


def dilated(config: FCNOptions, num_classes: int) -> DilatedNetwork:
    """torchvision's network.

    Raises:
        RecipeError: the tower has another stride than the method's name says.
    """
    network = DilatedNetwork(
        config.backbone, num_classes, auxiliary=config.aux_weight > 0, dropout=config.dropout, whole_maps=False
    )
    if network.stride != config.stride:
        name = config.backbone.partition(":")[0]
        raise RecipeError(
            f"--backbone {config.backbone} has a cell every {network.stride} pixels, and the method every "
            f"{config.stride}: {name}:output_stride={config.stride}, or fcn-{network.stride}s"
        )
    return network


class Skips(Network):
    """A VGG with scores of its last layer and of the poolings that are not skipped.

    Args:
        config: tower, stride, and what learns.
        classes: scores of each pixel.

    Raises:
        RecipeError: the tower is no VGG whose layers are convolutions.
    """

    def __init__(self, config: FCNOptions, classes: int) -> None:
        super().__init__()
        made_of = variant(config.backbone)
        if not isinstance(made_of, VGGConfig) or made_of.top == "dense" or made_of.last_pool != "2x2":
            raise RecipeError(
                f"--backbone {config.backbone}: FCN's skips stand on a VGG whose layers are convolutions: vgg16-fcn, "
                "vgg-small; --head torchvision takes residual networks"
            )
        self.vgg, self.stride = made_of, config.stride
        self.backbone = tower = VGG(made_of)
        self.poolings = tuple(number for number in (4, 3) if 1 << number >= config.stride)
        self.factors = tuple(AT_ONCE[number] if config.at_once else 1.0 for number in self.poolings)
        self.score = nn.Conv2d(tower.taps[-1].channels, classes, 1)
        names = [f"pool{number}" for number in self.poolings]
        self.layers_read = [tower.layer(name) for name in names] + [len(tower.names) - 1]
        self.skip_scores = nn.ModuleList(nn.Conv2d(tower.taps[i].channels, classes, 1) for i in self.layers_read[:-1])
        self.doublings = nn.ModuleList(
            LearnedEnlarge(classes, 2) if config.learn_upsampling else Enlarge(2) for _ in self.poolings
        )
        self.last = Enlarge(config.stride)
        for layer in (self.score, *self.skip_scores):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, images: Float[Tensor, "batch 3 height width"], auxiliary: bool = False) -> list[Tensor]:
        """Logits as large as the pictures; see `Network.forward`."""
        height, width = images.shape[-2:]
        # A wide margin leaves room for every picture; without one the poolings must divide its sides.
        framed = images if self.vgg.first_padding >= MARGIN else padded_to(images, 32)
        *skipped, last = self.backbone.features(framed, self.layers_read)
        scores, place = self.score(last), cell(self.vgg, 5, deep=True)
        rows = zip(self.poolings, self.factors, self.skip_scores, self.doublings, skipped, strict=True)
        for number, factor, score, double, pooled in rows:
            fine = score(pooled if factor == 1 else pooled * factor)
            scores, place = added(double(scores), place, fine, cell(self.vgg, number), 1 << number)
        start = int(self.stride - 0.5 - place)
        return [self.last(scores)[:, :, start : start + height, start : start + width]]


MARGIN = 100
"""Padding of the first convolution, in pixels, that leaves room for pictures of any size."""


def cell(config: VGGConfig, pooling: int, deep: bool = False) -> float:
    """The pixel of the picture, counted from 0, at which the first cell of a layer has its middle.

    Args:
        config: of the VGG.
        pooling: the layer is the map after this pooling.
        deep: or what stands on it, `fc7` where there is one.

    >>> cell(VGGConfig(top="convolutions", first_padding=100), 5, deep=True)
    12.5
    """
    # A 3 × 3 convolution padded by 1 moves nothing; a pooling's cell lies between the two that it takes.
    place = 1 - config.first_padding + ((1 << pooling) - 1) / 2
    if deep and config.top == "convolutions" and not config.fc6_pads:
        place += (config.fc6_kernel // 2) * config.fc6_dilation * (1 << pooling)
    return place


def added(
    coarse: Float[Tensor, "batch classes h w"],
    coarse_place: float,
    fine: Float[Tensor, "batch classes h2 w2"],
    fine_place: float,
    stride: int,
) -> tuple[Float[Tensor, "batch classes h3 w3"], float]:
    """The sum of two maps where both lie, and where its first cell lies.

    Args:
        coarse: scores of the deeper layer, enlarged twice.
        coarse_place: pixel of its first cell, before it was enlarged.
        fine: scores of the skipped layer.
        fine_place: pixel of its first cell.
        stride: pixels from one of its cells to the next.
    """
    # Enlarging twice (4 × 4 kernel, stride 2) puts cell i at 2i + 1.5.
    begin = coarse_place - 1.5 * stride
    offset = int((begin - fine_place) / stride)
    if offset >= 0:
        height, width = coarse.shape[-2:]
        return coarse + fine[:, :, offset : offset + height, offset : offset + width], begin
    height, width = fine.shape[-2:]
    return coarse[:, :, -offset : height - offset, -offset : width - offset] + fine, fine_place


def bilinear_kernel(factor: int) -> Float[Tensor, "side side"]:
    """Weights of a transposed convolution that interpolates: side twice the factor, stride the factor.

    Source: `surgery.py` of the authors' code, `upsample_filt`.
    """
    side = 2 * factor
    ramp = 1 - (torch.arange(side, dtype=torch.float32) - (factor - 0.5)).abs() / factor
    return ramp[:, None] * ramp[None, :]


class Enlarge(nn.Module):
    """A fixed bilinear transposed convolution; each class is enlarged by itself.

    Args:
        factor: by which a map of h cells becomes one of (h + 1) · factor.
    """

    kernel: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.register_buffer("kernel", bilinear_kernel(factor)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch classes h w"]) -> Float[Tensor, "batch classes h2 w2"]:
        """Returns the enlarged map."""
        classes = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(classes, 1, -1, -1)
        return F.conv_transpose2d(x, kernel, stride=self.factor, groups=classes)


class LearnedEnlarge(nn.ConvTranspose2d):
    """A transposed convolution that begins at bilinear weights, no class touching another, and learns.

    Args:
        classes: in and out.
        factor: as of `Enlarge`.
    """

    def __init__(self, classes: int, factor: int) -> None:
        super().__init__(classes, classes, 2 * factor, factor, bias=False)
        with torch.no_grad():
            self.weight.copy_(torch.eye(classes)[:, :, None, None] * bilinear_kernel(factor))
