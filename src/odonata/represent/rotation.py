"""Rotation (RotNet): say by which of four quarter turns a picture was turned.

Whoever knows how things stand upright can tell, and to know that is to know what the things are. There is nothing to
cheat by: a quarter turn moves pixels and leaves none interpolated, so no trace of resampling gives it away. All four
turns of a picture are in the same batch, which the paper found better than one at random.

The paper's second finding is that the middle of the tower transfers better than its end, which has specialised in
turns (its table 1, on CIFAR-10). `measured_stages` therefore measures and exports a residual network's first stages;
the whole tower of a run is its part `backbone`.

Where a thing looks the same upside down there is nothing to learn: of the digits that is so of 0, of 8 and of a 1
drawn as a stroke, and a turned 6 is a 9. The task's accuracy has a ceiling below 1 there.

Reference: Gidaris, Singh and Komodakis, Unsupervised Representation Learning by Predicting Image Rotations,
arXiv:1803.07728; sec. 2.2 (four turns), sec. 2.2 "Implementing image rotations" (flips and transposes).

Difference: the paper's network in network and AlexNet are replaced by any tower with a linear classifier of four.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.backbones.resnet import ResNet
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.data.transforms import Compose, HorizontalFlip, RandomResizedCrop
from odonata.errors import RecipeError
from odonata.represent.representation import Representation, TowerOptions, embedding_spread

TURNS = 4
"""0°, 90°, 180° and 270° counter-clockwise."""


@dataclass(frozen=True)
class RotationConfig(TowerOptions):
    """RotNet."""

    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Least and most share of the picture's area that is seen; wide enough to leave something to orient by."""
    mirror: float = 0.5
    """Probability of mirroring (0 where left and right mean something, as in letters)."""
    measured_stages: int = 0
    """Measure and export only so many stages of a residual network, the lowest (0 = the whole tower)."""


def quarter_turns(
    images: Shaped[Tensor, "batch channels side side"],
) -> tuple[Shaped[Tensor, "four_batch channels side side"], Shaped[Tensor, " four_batch"]]:
    """Return each picture in its four turns, and which turn each is; all pictures upright first, then all by 90°, ….

    Args:
        images: square, of any type.

    Raises:
        ValueError: the pictures are not square: their turns would not fit into one batch.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"quarter turns of a batch want square pictures; got {height} × {width}")
    turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(TURNS)])
    return turned, torch.arange(TURNS, device=images.device).repeat_interleave(len(images))


class Rotation(Representation):
    """A tower and a classifier of turns.

    Args:
        config: the method's options.
        backbone: the tower.
        preprocess: of the pictures.

    Raises:
        RecipeError: `measured_stages` for a tower that has none, or fewer.
    """

    chance = math.log(TURNS)

    def __init__(self, config: RotationConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        self.config = config
        self.classifier = nn.Linear(backbone.num_features, TURNS)
        if config.measured_stages:
            first_stages(backbone, config.measured_stages)  # refuses before a run, not at its first evaluation

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """One view, cropped and mirrored; it is turned on the device."""
        assert isinstance(config, RotationConfig)
        steps = (RandomResizedCrop(config.image_size, config.crop_scale), HorizontalFlip(config.mirror))
        return (View(Compose(steps)),)

    @property
    def encoder(self) -> Backbone:
        """The tower, or its first stages with `measured_stages`."""
        stages = self.config.measured_stages
        return first_stages(self.backbone, stages) if stages else self.backbone

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of the turns (eqs. 2 and 3), and how many are told right."""
        images, turns = quarter_turns(batch.views[0])
        features = self.backbone(self.pixels(images))
        logits = self.classifier(features).float()
        right = (logits.detach().argmax(1) == turns).float().mean()
        return {
            "loss": F.cross_entropy(logits, turns),
            "rotation_top1": right,
            "spread": embedding_spread(features),
        }


def first_stages(tower: Backbone, count: int) -> ResNet:
    """Return the first stages of a residual network as a tower of their own, which shares their weights.

    Args:
        tower: a residual network.
        count: how many, 1 to all.

    Raises:
        RecipeError: the tower is no residual network, or has fewer stages.
    """
    if not isinstance(tower, ResNet):
        raise RecipeError(f"--measured-stages is for residual networks, and the tower is a {tower.family}: leave it 0")
    depths, widths = tower.config.depths, tower.config.widths
    if not 1 <= count <= len(depths):
        raise RecipeError(f"--measured-stages is {count}; the tower has {len(depths)} stages")
    with torch.device("meta"):
        part = ResNet(dataclasses.replace(tower.config, depths=depths[:count], widths=widths[:count]))
    part.stem, part.stages = tower.stem, tower.stages[:count]
    return part.train(tower.training)
