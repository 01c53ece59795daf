"""What a tower shows of itself on the way: stem, stages, what they were before their last activation, and the end.

Hooks read it off one forward pass, so any tower of the house can be teacher or student: convolutional ones by their
stages, plain transformers by four of their blocks, evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.interface import Backbone, Tap, tokens_in_format
from odonata.distill.losses.interface import Taps, TapShapes
from odonata.errors import RecipeError

BLOCKS = 4
"""Blocks of a plain transformer that stand for stages."""


class TappedTower(nn.Module):
    """A tower whose call returns its taps: a teacher.

    Args:
        backbone: the tower, with a classifier if its logits are to be compared.
        name: what errors call it.
    """

    def __init__(self, backbone: Backbone, name: str) -> None:
        super().__init__()
        self.backbone, self.name = backbone, name

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Taps:
        """Return the taps of normalised pictures."""
        return read_taps(self.backbone, images, self.name)


def read_taps(backbone: Backbone, images: Float[Tensor, "batch 3 height width"], name: str) -> Taps:
    """Run a tower and return maps of stem and stages, preactivations of the stages, pooled features, and logits.

    Raises:
        RecipeError: the tower has nothing to tap.
    """
    modules, taps = stages_of(backbone, name)
    seen: dict[str, Tensor] = {}
    before: dict[int, Tensor] = {}
    handles = [module.register_forward_hook(_keep(seen, str(i))) for i, module in enumerate(modules)]
    stem = stem_of(backbone)
    if stem is not None:
        handles.append(stem.register_forward_hook(_keep(seen, "stem")))
    for i, module in enumerate(modules):
        if (act := last_activation(module)) is not None:
            handles.append(act.register_forward_pre_hook(_keep_input(before, i)))
    try:
        features = backbone.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    pooled = backbone.forward_head(features, pre_logits=True)
    logits = None if isinstance(backbone.head, nn.Identity) else backbone.head(pooled)
    size = (images.shape[2], images.shape[3])
    maps = [_as_map(seen[str(i)], tap, size, name) for i, tap in enumerate(taps)]
    preactivations = [before.get(i, found) for i, found in enumerate(maps)]
    # Where nothing stands before the stages as one module, the first stage stands for it.
    first = _stem_map(seen["stem"]) if "stem" in seen else None
    return Taps([maps[0] if first is None else first, *maps], preactivations, pooled, logits)


def shapes_of(read: Callable[[Tensor], Taps], name: str, size: int, device: torch.device) -> TapShapes:
    """Return the shapes of the taps of pictures of this side."""
    with torch.no_grad():
        return TapShapes.of(name, read(torch.zeros(2, 3, size, size, device=device)))


def _as_map(output: Tensor, tap: Tap, size: tuple[int, int], name: str) -> Tensor:
    if output.ndim == 3:
        grid = (size[0] // tap.stride, size[1] // tap.stride)
        return tokens_in_format(output, output.shape[1] - grid[0] * grid[1], grid, "nchw")
    if output.shape[1] == tap.channels:
        return output
    if output.shape[-1] == tap.channels:
        return output.permute(0, 3, 1, 2)
    raise RecipeError(f"{name}: a stage gives {list(output.shape)}, not a map of {tap.channels} channels")


def _stem_map(output: Tensor) -> Tensor | None:
    if output.ndim == 4:
        return output
    side = round(output.shape[1] ** 0.5)
    return output.transpose(1, 2).unflatten(2, (side, side)) if side * side == output.shape[1] else None


def stages_of(backbone: Backbone, name: str) -> tuple[list[nn.Module], list[Tap]]:
    """Return the modules whose outputs are taken, and what they give.

    Raises:
        RecipeError: the tower has neither stages nor blocks.
    """
    stages = getattr(backbone, "stages", None)
    if isinstance(stages, nn.ModuleList):
        return list(stages), list(backbone.taps)
    transformer = getattr(backbone, "transformer", None)
    layers = getattr(transformer, "layers", None)
    if isinstance(layers, nn.ModuleList):
        depth, count = len(layers), min(BLOCKS, len(layers))
        chosen = [(i + 1) * depth // count - 1 for i in range(count)]
        return [layers[i] for i in chosen], [backbone.taps[i] for i in chosen]
    stacks = [getattr(backbone, f"layer{i}", None) for i in range(1, 5)]
    if all(isinstance(stack, nn.Module) for stack in stacks):
        return [stack for stack in stacks if stack is not None], list(backbone.taps)
    raise RecipeError(f"{name}: a {backbone.family} has neither stages nor blocks to tap")


def stem_of(backbone: Backbone) -> nn.Module | None:
    """Return what stands before the stages; None where nothing stands there as one module."""
    for name in ("stem", "patch_embed"):
        stem = getattr(backbone, name, None)
        if isinstance(stem, nn.ModuleDict):
            return list(stem.values())[-1]
        if isinstance(stem, nn.Module):
            return stem
    return None


def last_activation(stage: nn.Module) -> nn.Module | None:
    """Return the module of a stage's last activation, where it has one whose input can be read."""
    layers = getattr(stage, "layers", None)
    last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    act = getattr(last, "act", None)
    return act if isinstance(act, nn.ReLU) and not act.inplace else None


def _keep(seen: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        seen[name] = output

    return hook


def _keep_input(before: dict[int, Tensor], number: int) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        before[number] = inputs[0]

    return hook
