"""Contrastive predictive coding: from the upper rows of a picture, tell which patches come below.

A picture is cut into overlapping patches, each encoded alone. A causal network over the grid of codes gathers what is
above and at a place; from that context, a linear map for each distance k predicts the code k rows below, which must be
found among all codes of the group. The loss, InfoNCE, bounds mutual information from below: I ≥ ln(candidates) − L, so
a run logs `mi_k`, and none can exceed ln(candidates).

v2 predicts in four directions (the grid is turned), scores codes in a space of 64 dimensions, and augments each patch
by itself: colours dropped, mirrored, turned, sheared, brightness and contrast changed.

Towers take layer normalisation here (`:norm=layer`). Batch normalisation mixes the statistics of all patches of a
batch into each code, a patch's neighbours among them; that solves the task without any knowledge of what follows what.
v1 used no normalisation, v2 layer normalisation, for that reason.

References: van den Oord, Li and Vinyals, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748,
sec. 2.3 (loss), 3.2 (pictures); Hénaff et al., Data-Efficient Image Recognition with Contrastive Predictive Coding,
arXiv:1905.09272, sec. 3.2 and the appendix's pseudo-code (context network, scores against all codes).

Differences: the tower is any, pooled, in the place of a ResNet-101 cut after its third stage. The loss is the mean
over distances and directions, not the sum, so that ln(candidates) is its chance. The pseudo-code of v2 leaves out the
nearest rows, whose patches overlap; here `first_step` does so on demand. v2's elastic deformation is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.data.transforms import Compose, Grayscale
from odonata.errors import RecipeError
from odonata.represent.augmentations import supervised
from odonata.represent.representation import Representation, TowerOptions, embedding_spread

Codes = Float[Tensor, "batch rows columns dim"]


@dataclass(frozen=True)
class CPCConfig(TowerOptions):
    """CPC on pictures; the paper's patches are 64 px at a stride of 32 in pictures of 256."""

    backbone: str = "resnet8:norm=layer"
    """Tower by name, for pictures of a patch's size; batch normalisation leaks from patch to patch."""
    version: Literal["v1", "v2"] = "v1"
    """v1 predicts downwards; v2 in four directions, in a space of 64 dimensions, from augmented patches."""
    patch: int = 0
    """Side of a patch in pixels (0 = a quarter of the picture's, as in the paper)."""
    stride: int = 0
    """Pixels from one patch to the next (0 = half a patch, as in the paper)."""
    first_step: int = 1
    """The nearest row that is predicted; 2 leaves out the one whose patches overlap the context's."""
    last_step: int = 5
    """The farthest row that is predicted."""
    group: int = 16
    """Pictures whose patches are contrasted with one another (the paper: 16, what one of its 32 GPUs held)."""
    context_layers: int = 5
    """Residual blocks of the context network."""
    context_width: int = 64
    """Their inner width (the paper: 256)."""
    grey: float = 0.25
    """Share of the pictures without colour (v1: all)."""
    drop_colours: float = 0.5
    """Share of the patches that keep one of three colours (v2)."""
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Least and most share of the picture's area that is cut into patches."""


@dataclass(frozen=True)
class Version:
    """What the second paper changed."""

    directions: int
    """Ways in which the grid is read: downwards, and turned by quarters."""
    dim: int
    """Width of the space of scores; 0: that of the codes themselves."""
    scale: float
    """Factor on predictions (`emb_scale` of the pseudo-code)."""


VERSIONS = {"v1": Version(1, 0, 1.0), "v2": Version(4, 64, 0.1)}


def cut_patches(
    images: Float[Tensor, "batch 3 height width"], size: int, stride: int
) -> Float[Tensor, "batch rows columns 3 size size"]:
    """Return overlapping square patches as a grid."""
    return images.unfold(2, size, stride).unfold(3, size, stride).permute(0, 2, 3, 1, 4, 5)


def jitter_patches(patches: Float[Tensor, "patches 3 size size"]) -> Float[Tensor, "patches 3 size size"]:
    """Crop each patch at random and pad it back with zeros (v1, sec. 3.2): 60 of 64 pixels, at least one off."""
    size = patches.shape[-1]
    margin = max(1, round(size / 16))
    kept, before = size - margin, margin // 2
    corners = torch.randint(margin + 1, (2, len(patches), 1), device=patches.device)
    rows, columns = corners + torch.arange(kept, device=patches.device)
    number = torch.arange(len(patches), device=patches.device)[:, None, None, None]
    plane = torch.arange(3, device=patches.device)[:, None, None]
    cropped = patches[number, plane, rows[:, None, :, None], columns[:, None, None, :]]
    return F.pad(cropped, (before, margin - before, before, margin - before))


def augment_patches(
    patches: Float[Tensor, "patches 3 size size"], drop_colours: float
) -> Float[Tensor, "patches 3 size size"]:
    """Change each patch by itself (v2): mirror, turn, shear, brightness, contrast, and colours dropped.

    Args:
        patches: normalised; a dropped colour is 0, the mean.
        drop_colours: share of the patches that keep one colour of three.
    """
    count, device = len(patches), patches.device
    turn, shear = torch.empty(2, count, device=device).uniform_(-0.26, 0.26)  # ±15°, ±0.26
    mirror = torch.randint(2, (count,), device=device) * 2.0 - 1
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * turn.cos(), shear - turn.sin()
    theta[:, 1, 0], theta[:, 1, 1] = mirror * turn.sin(), turn.cos()
    grid = F.affine_grid(theta, list(patches.shape), align_corners=False)
    moved = F.grid_sample(patches, grid.to(patches.dtype), padding_mode="reflection", align_corners=False)
    contrast = torch.empty(count, 1, 1, 1, device=device).uniform_(0.6, 1.4)
    brightness = torch.empty(count, 1, 1, 1, device=device).uniform_(-0.4, 0.4)
    mean = moved.mean((1, 2, 3), keepdim=True)
    moved = (moved - mean) * contrast + mean + brightness
    kept = F.one_hot(torch.randint(3, (count,), device=device), 3)[:, :, None, None]
    dropped = (torch.rand(count, device=device) < drop_colours)[:, None, None, None]
    return torch.where(dropped, moved * kept, moved)


class ContextBlock(nn.Module):
    """A residual step of the context network: a row sees itself and the row above."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(dim, width, 1)
        self.across = nn.Conv2d(width, width, (1, 3), padding=(0, 1))
        self.down = nn.Conv2d(width, width, (2, 1))
        self.widen = nn.Conv2d(width, dim, 1)

    def forward(self, x: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch dim rows columns"]:
        """Return the input and what this block adds."""
        inner = self.across(F.relu(self.narrow(x)))
        return x + self.widen(F.relu(self.down(F.pad(inner, (0, 0, 1, 0)))))


class ContextNetwork(nn.Module):
    """A PixelCNN over the grid: the context of row r sees the codes of rows ≤ r, all columns within reach.

    Args:
        dim: of a code.
        width: within a block.
        depth: blocks; each lets a row see one more row above and one more column to either side.
    """

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ContextBlock(dim, width) for _ in range(depth))

    def forward(self, codes: Codes) -> Codes:
        """Return the context at each place."""
        x = codes.permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x)
        return F.relu(x).permute(0, 2, 3, 1)


def info_nce_grid(
    predictions: Float[Tensor, "batch near_rows columns dim"],
    targets: Float[Tensor, "batch rows columns dim"],
    step: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return InfoNCE over a grid (v1, eq. 4), and the share of places whose own patch comes first.

    A prediction is scored against the codes of all places of all pictures. Its own, `step` rows below, is among them
    once, so that none of the negatives is the positive; the cross-entropy is by a log-softmax, which no score can
    overflow.

    Args:
        predictions: W_k c for the rows that have one `step` rows below: all but the last `step`.
        targets: codes of the whole grid; the candidates are batch · rows · columns.
        step: k, at least 1.

    Raises:
        ValueError: the rows do not fit the step.
    """
    batch, rows, columns, dim = targets.shape
    if step < 1 or predictions.shape[1] != rows - step:
        raise ValueError(f"{predictions.shape[1]} rows of predictions for {rows} rows of codes, {step} steps ahead")
    place = torch.arange(batch * rows * columns, device=targets.device).view(batch, rows, columns)
    own = place[:, step:].flatten()
    scores = (predictions.reshape(-1, dim) @ targets.reshape(-1, dim).T).float()
    return F.cross_entropy(scores, own), (scores.detach().argmax(1) == own).float().mean()


class CPC(Representation):
    """The tower of patches, a context network a direction, and a linear prediction a distance.

    Args:
        config: the method's options.
        backbone: the tower; takes pictures of the patches' size.
        preprocess: of whole pictures.

    Raises:
        RecipeError: patches or distances that do not fit the picture.
    """

    def __init__(self, config: CPCConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        rows = grid_side(config)
        self.config, self.version = config, VERSIONS[config.version]
        self.steps = range(config.first_step, config.last_step + 1)
        self.chance = math.log(config.group * rows * rows)
        width, dim = backbone.num_features, self.version.dim or backbone.num_features
        self.project = nn.Linear(width, dim) if self.version.dim else nn.Identity()
        self.contexts = nn.ModuleList(
            ContextNetwork(width, config.context_width, config.context_layers) for _ in range(self.version.directions)
        )
        self.predictions = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, dim, bias=False) for _ in self.steps) for _ in self.contexts
        )

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """One view, cropped, mirrored and perhaps grey; it is cut on the device."""
        assert isinstance(config, CPCConfig)
        return (View(Compose((supervised(config.image_size, config.crop_scale), Grayscale(config.grey)))),)

    def codes(self, images: Float[Tensor, "batch 3 height width"]) -> Codes:
        """Return the codes of a grid of patches, each changed by itself in training."""
        grid = cut_patches(images, *patch_and_stride(self.config))
        patches = grid.flatten(0, 2)
        if self.training:
            augments = self.config.version == "v2"
            patches = augment_patches(patches, self.config.drop_colours) if augments else jitter_patches(patches)
        return self.backbone(patches).view(*grid.shape[:3], -1)

    def contrast(self, codes: Codes) -> tuple[Float[Tensor, " steps"], Float[Tensor, " steps"]]:
        """Return loss and share of right answers a distance, mean over the directions, for one group of pictures."""
        losses: list[Tensor] = []
        rights: list[Tensor] = []
        for turn, (context, heads) in enumerate(zip(self.contexts, self.predictions, strict=True)):
            grid = torch.rot90(codes, turn, (1, 2))
            seen, targets = context(grid), self.project(grid)
            for step, head in zip(self.steps, heads, strict=True):  # pyright: ignore[reportArgumentType]
                loss, right = info_nce_grid(head(seen[:, :-step]) * self.version.scale, targets, step)
                losses.append(loss)
                rights.append(right)
        shape = (self.version.directions, len(self.steps))
        return torch.stack(losses).view(shape).mean(0), torch.stack(rights).view(shape).mean(0)

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the mean InfoNCE; a distance: `mi_k`, the nats of information it proves, and `top1_k`."""
        codes = self.codes(self.pixels(batch.views[0]))
        count, rows, columns = codes.shape[:3]
        self.chance = math.log(min(count, self.config.group) * rows * columns)
        zero = codes.new_zeros(len(self.steps), dtype=torch.float32)
        losses, proved, right = zero, zero, zero
        for part in codes.split(self.config.group):
            share = len(part) / count
            loss, top1 = self.contrast(part)
            losses, right = losses + share * loss, right + share * top1
            proved = proved + share * (math.log(len(part) * rows * columns) - loss.detach())
        scalars = {"loss": losses.mean(), "spread": embedding_spread(codes.flatten(0, 2))}
        for index, step in enumerate(self.steps):
            scalars |= {f"mi_{step}": proved[index], f"top1_{step}": right[index]}
        return scalars


def patch_and_stride(config: CPCConfig) -> tuple[int, int]:
    """Return side and stride of the patches in pixels: 64 and 32 of 256, where they are left open (v1, sec. 3.2)."""
    patch = config.patch or config.image_size // 4
    return patch, config.stride or max(1, patch // 2)


def grid_side(config: CPCConfig) -> int:
    """Return the patches along a side of the picture.

    Raises:
        RecipeError: patches or distances that do not fit the picture.
    """
    size, (patch, stride) = config.image_size, patch_and_stride(config)
    if not (4 <= patch <= size and 1 <= stride <= size):
        raise RecipeError(
            f"--patch {patch} --stride {stride}: want a patch of 4 to {size} px and a stride of 1 or more"
        )
    rows = (size - patch) // stride + 1
    if not 1 <= config.first_step <= config.last_step < rows:
        raise RecipeError(
            f"--first-step {config.first_step} --last-step {config.last_step}: patches of {patch} px at a stride of "
            f"{stride} make {rows} rows of a picture of {size} px; want 1 ≤ first ≤ last ≤ {rows - 1}"
        )
    if config.group < 1:
        raise RecipeError(f"--group is {config.group}; want at least one picture")
    return rows
