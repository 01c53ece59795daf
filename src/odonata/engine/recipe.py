"""Recipes: everything that decides a run, as frozen dataclasses. Imports no torch.

A method's room supplies the three open fields (`method`, `data`, `evaluation`), each a frozen dataclass of its own; the
rest is the same for every method. The command line derives its options from these types, docstrings and defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from odonata.errors import RecipeError


@dataclass(frozen=True)
class AdamW:
    """AdamW (1711.05101)."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay; never applied to norms, biases, embeddings of position or scalars."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    final_weight_decay: float | None = None
    """Where the decay ends, on a half cosine over the run (DINO: from 0.04 to 0.4); None: it stays."""
    layer_decay: float = 1.0
    """Each layer's rate is this times that of the layer above it (1 = off); BEiT's layer-wise decay."""
    lr_scales: dict[str, float] = field(default_factory=dict[str, float])
    """Factor on the rate of parameters whose name begins so, e.g. `visual 0.1 logit_scale 10`; 0 freezes."""

    def decay_factor(self, step: int, steps: int) -> float:
        """Return the factor on the weight decay for update number `step` (from 0) of `steps`."""
        if self.final_weight_decay is None or not self.weight_decay:
            return 1.0
        share = 0.5 * (1 - math.cos(math.pi * step / max(1, steps - 1)))
        return 1 + share * (self.final_weight_decay / self.weight_decay - 1)


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    lr: float = 0.1
    """Peak learning rate."""
    weight_decay: float = 1e-4
    """L2 penalty; never applied to norms, biases, embeddings of position or scalars."""
    momentum: float = 0.9
    """Momentum."""
    nesterov: bool = False
    """Nesterov's momentum."""
    layer_decay: float = 1.0
    """Each layer's rate is this times that of the layer above it (1 = off)."""
    lr_scales: dict[str, float] = field(default_factory=dict[str, float])
    """Factor on the rate of parameters whose name begins so; 0 freezes."""

    def decay_factor(self, step: int, steps: int) -> float:
        """Return 1: the decay stays."""
        return 1.0


@dataclass(frozen=True)
class LARS:
    """Layer-wise adaptive rates for batches of thousands (1708.03888); norms and biases learn at the plain rate."""

    lr: float = 0.3
    """Peak learning rate."""
    weight_decay: float = 1e-6
    """L2 penalty; never applied to norms, biases, embeddings of position or scalars."""
    momentum: float = 0.9
    """Momentum."""
    trust: float = 1e-3
    """Coefficient of the ratio of weight norm to gradient norm."""
    clip: bool = False
    """Never exceed the plain rate (LARC)."""
    layer_decay: float = 1.0
    """Each layer's rate is this times that of the layer above it (1 = off)."""
    lr_scales: dict[str, float] = field(default_factory=dict[str, float])
    """Factor on the rate of parameters whose name begins so; 0 freezes."""

    def decay_factor(self, step: int, steps: int) -> float:
        """Return 1: the decay stays."""
        return 1.0


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the run, as a pure function of the step: a resumed run needs no state for it."""

    kind: Literal["cosine", "linear", "poly", "constant", "rsqrt", "steps"] = "cosine"
    """Shape after the warm-up."""
    warmup: float = 0.05
    """Warm-up: a share of all steps if below 1, else a number of steps."""
    final: float = 0.0
    """Where cosine, linear and poly end, as a share of the peak."""
    power: float = 0.9
    """For `poly`: the factor is what is left of the run to this power (Caffe's; DeepLab and PSPNet take 0.9)."""
    cooldown: float = 0.0
    """Linear descent to `final` at the end (for constant and rsqrt): a share of all steps if below 1, else steps."""
    milestones: tuple[float, ...] = ()
    """For `steps`: shares of the run after which the rate falls by `gamma`."""
    gamma: float = 0.1
    """For `steps`: the factor at each milestone."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the peak rate for update number `step` (from 0) of `steps`."""
        warmup = _as_steps(self.warmup, steps)
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(1, steps - warmup)
        match self.kind:
            case "cosine":
                return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))
            case "linear":
                return self.final + (1 - self.final) * (1 - share)
            case "poly":
                return self.final + (1 - self.final) * (1 - share) ** self.power
            case "steps":
                return self.gamma ** sum(step >= milestone * steps for milestone in self.milestones)
            case "constant":
                level = 1.0
            case "rsqrt":
                level = math.sqrt(max(1, warmup) / (step + 1)) if warmup else 1 / math.sqrt(step + 1)
        cooldown = _as_steps(self.cooldown, steps)
        left = (steps - step) / cooldown if cooldown else 1.0
        return level if left >= 1 else self.final + (level - self.final) * left


def _as_steps(amount: float, steps: int) -> int:
    return round(amount * steps) if amount < 1 else round(amount)


@dataclass(frozen=True)
class Clip:
    """What is done to gradients before an update."""

    policy: Literal["none", "norm", "tensor", "value", "adaptive"] = "norm"
    """`norm`: global 2-norm; `tensor`: each parameter's own 2-norm (DINO); `value`: each entry; `adaptive`: per
    parameter relative to its own norm (2102.06171)."""
    limit: float = 1.0
    """The largest norm, value, or ratio of gradient norm to parameter norm."""


@dataclass(frozen=True)
class Recipe:
    """A resolved experiment. `odonata train NAME --field value` changes any of it; the run folder keeps all of it."""

    name: Annotated[str, tyro.conf.Suppress]
    """The method's name in `odonata list`."""
    method: Annotated[Any, tyro.conf.arg(name="")]
    """The method's own configuration; its fields are options of the first level."""
    data: Any
    """Where samples come from and how they are made into batches."""
    evaluation: Any
    """What is measured during and after training."""
    optim: AdamW | SGD | LARS = field(default_factory=AdamW)
    """The optimiser."""
    schedule: Schedule = field(default_factory=Schedule)
    clip: Clip = field(default_factory=Clip)
    steps: int = 1000
    """Updates in the whole run."""
    seed: int = 0
    """Decides initialisation, order, augmentation and dropout."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type; fp16 scales the loss."""
    accumulate: int = 1
    """Micro-batches an update. A loss over pairs within the batch then sees a micro-batch; GradCache does not."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which then is what is evaluated and used (0 = off)."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    eval_every: int = 0
    """Steps between evaluations (0 = only at the end)."""
    save_every: int = 0
    """Steps between checkpoints (0 = ten in a run)."""
    keep_checkpoints: int = 2
    """Checkpoints kept besides the best one."""
    early_stop: int = 0
    """Stop after so many evaluations without a better value (0 = never)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""
    devices: int = 1
    """Processes on this machine: GPUs, or CPU ranks."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Replicate the model on each device, or shard it (FSDP2)."""
    out: str = ""
    """Run folder; empty: runs/NAME-1, runs/NAME-2, …"""

    def check(self) -> None:
        """Refuse values that no run can have.

        Raises:
            RecipeError: names the field, its value and its range.
        """
        for name, low in (("steps", 1), ("accumulate", 1), ("log_every", 1), ("keep_checkpoints", 1), ("devices", 1)):
            if getattr(self, name) < low:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {low}")
        for name in ("eval_every", "save_every", "early_stop", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.ema < 1:
            raise RecipeError(f"--ema is {self.ema}; a decay lies in [0, 1)")
        if not (math.isfinite(self.optim.lr) and self.optim.lr > 0):
            raise RecipeError(f"--optim.lr is {self.optim.lr}; it must be positive and finite")
        if self.clip.policy != "none" and self.clip.limit <= 0:
            raise RecipeError(f"--clip.limit is {self.clip.limit}; it must be positive, or set --clip.policy none")
        if self.early_stop and not self.eval_every:
            raise RecipeError("--early-stop counts evaluations: set --eval-every as well")

    @property
    def checkpoint_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or max(1, self.steps // 10)
