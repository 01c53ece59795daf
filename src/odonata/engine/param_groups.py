"""Which parameters decay, how fast each layer learns, and the optimiser that follows from it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from odonata.engine import lars
from odonata.engine.recipe import LARS, SGD, AdamW
from odonata.errors import RecipeError

_LAYER = re.compile(r"^(?P<stack>.*?)\.?layers\.(?P<index>\d+)\.")
_STAGE = re.compile(r"^(?P<tower>.*?)\.?stages\.(?P<stage>\d+)$")
_BELOW = re.compile(r"embed|position|class_token|distillation_token|register_tokens|patch|stem|conv1|probe_in")
_NO_DECAY = re.compile(r"position|class_token|register_tokens|logit_scale|logit_bias|(^|\.)bias$")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to norms, biases, scalars, positions, class tokens."""
    return parameter.ndim >= 2 and not _NO_DECAY.search(name)


def layer_indices(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return for each parameter its layer (0 = what lies below the stack) and the topmost index of its tower.

    Layers are counted within a tower, that is within the first part of the dotted name that precedes `layers.N.`;
    what has no such number lies below the stack if it embeds, else above it (BEiT and MAE count so).
    """
    names = list(names)
    found = {name: match for name in names if (match := _LAYER.match(name))}
    before = _layers_before(found.values())
    depth: dict[str, int] = defaultdict(int)
    for match in found.values():
        tower = match["stack"].split(".")[0]
        depth[tower] = max(depth[tower], before[match["stack"]] + int(match["index"]) + 1)
    result: dict[str, tuple[int, int]] = {}
    for name in names:
        tower = name.split(".")[0]
        top = depth.get(tower, 0) + 1
        if match := found.get(name):
            result[name] = (before[match["stack"]] + int(match["index"]) + 1, top)
        elif stage := re.match(r"^(.*?stages\.\d+)\.", name):  # what joins two stages learns like the layer above it
            result[name] = (before.get(stage[1], 0) + 1, top)
        else:
            result[name] = (0 if depth.get(tower) and _BELOW.search(name) else top, top)
    return result


def _layers_before(found: Iterable[re.Match[str]]) -> dict[str, int]:
    """Return for each stack how many layers lie below it in earlier stages of the same tower; 0 without stages."""
    sizes: dict[str, int] = defaultdict(int)
    for match in found:
        sizes[match["stack"]] = max(sizes[match["stack"]], int(match["index"]) + 1)
    before: dict[str, int] = {}
    for stack in sizes:
        stage = _STAGE.match(stack)
        earlier = [
            size
            for other, size in sizes.items()
            if stage
            and (o := _STAGE.match(other))
            and o["tower"] == stage["tower"]
            and int(o["stage"]) < int(stage["stage"])
        ]
        before[stack] = sum(earlier)
    return before


def build_optimizer(module: nn.Module, optim: AdamW | SGD | LARS) -> Optimizer:
    """Return the recipe's optimiser over the trainable parameters of `module`, grouped by decay and rate.

    Each group carries `scale`, the factor on the scheduled rate, `decay`, its weight decay before any schedule,
    `adapt`, whether LARS scales it, and `names`, for messages.

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
            "decay": optim.weight_decay if decay else 0.0,
            "adapt": decay,
            "scale": scale,
            "lr": optim.lr * scale,
        }
        for (decay, scale), members in sorted(groups.items())
    ]
    if isinstance(optim, LARS):
        return lars.LARS(params, optim.lr, optim.momentum, optim.weight_decay, optim.trust, optim.clip)
    if isinstance(optim, SGD):
        return torch.optim.SGD(params, lr=optim.lr, momentum=optim.momentum, nesterov=optim.nesterov)
    # One pass over memory for the whole update: a third of the time on a CPU. Devices without it get the plain form.
    fused = {p.device.type for _, p in named} <= {"cpu", "cuda"}
    return torch.optim.AdamW(params, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=fused or None)
