"""Which parameters decay, how fast each layer learns, and the optimiser that follows from it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from odonata.engine.recipe import SGD, AdamW
from odonata.errors import RecipeError

_LAYER = re.compile(r"^(?P<stack>.*?)\.?layers\.(?P<index>\d+)\.")
_BELOW = re.compile(r"embed|position|class_token|patch|stem|conv1|probe_in")
_NO_DECAY = re.compile(r"position|class_token|logit_scale|logit_bias|(^|\.)bias$")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to norms, biases, scalars, positions, class tokens."""
    return parameter.ndim >= 2 and not _NO_DECAY.search(name)


def layer_indices(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return for each parameter its layer (0 = what lies below the stack) and the topmost index of its tower.

    Layers are counted within a tower, that is within the first part of the dotted name that precedes `layers.N.`;
    what has no such number lies below the stack if it embeds, else above it (BEiT and MAE count so).
    """
    names = list(names)
    depth: dict[str, int] = defaultdict(int)
    for name in names:
        if found := _LAYER.match(name):
            tower = found["stack"].split(".")[0]
            depth[tower] = max(depth[tower], int(found["index"]) + 1)
    result: dict[str, tuple[int, int]] = {}
    for name in names:
        tower = name.split(".")[0]
        top = depth.get(tower, 0) + 1
        if found := _LAYER.match(name):
            result[name] = (int(found["index"]) + 1, top)
        else:
            result[name] = (0 if depth.get(tower) and _BELOW.search(name) else top, top)
    return result


def build_optimizer(module: nn.Module, optim: AdamW | SGD) -> Optimizer:
    """Return the recipe's optimiser over the trainable parameters of `module`, grouped by decay and rate.

    Each group carries `scale`, the factor on the scheduled rate, and `names`, for messages.

    Raises:
        RecipeError: a prefix of `lr_scales` matches nothing, or nothing is left to train.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    unmatched = [prefix for prefix in optim.lr_scales if not any(n.startswith(prefix) for n, _ in named)]
    if unmatched:
        tops = sorted({n.split(".")[0] for n, _ in named})
        raise RecipeError(f"--optim.lr-scales {unmatched[0]!r} begins no parameter's name; they begin with {tops}")
    layers = layer_indices(n for n, _ in named)
    groups: dict[tuple[bool, float], list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in named:
        index, top = layers[name]
        scale = optim.layer_decay ** (top - index)
        prefixes = [prefix for prefix in optim.lr_scales if name.startswith(prefix)]
        if prefixes:
            scale *= optim.lr_scales[max(prefixes, key=len)]
        if scale > 0:
            groups[decays(name, parameter), scale].append((name, parameter))
    if not groups:
        raise RecipeError("nothing is left to train: every parameter is frozen")
    params = [
        {
            "params": [p for _, p in members],
            "names": [n for n, _ in members],
            "weight_decay": optim.weight_decay if decay else 0.0,
            "scale": scale,
            "lr": optim.lr * scale,
        }
        for (decay, scale), members in sorted(groups.items())
    ]
    if isinstance(optim, SGD):
        return torch.optim.SGD(params, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)
    return torch.optim.AdamW(params, lr=optim.lr, betas=optim.betas, eps=optim.eps)
