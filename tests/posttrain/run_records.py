"""Logs of runs as they could be: healthy ones, and what a test changes in them."""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from odonata.engine.findings import Record

LINES = 40
GRPO = {
    "name": "grpo", "steps": 5 * LINES, "precision": "fp32", "optim": {"lr": 3e-4}, "data": {"path": "x.jsonl"},
    "method": {
        "reward": ["math", "format"], "reward_weights": [1.0, 0.1], "group": 8, "max_new_tokens": 64, "beta": 0.04,
        "clip_high": 0.2, "epochs": 1, "minibatches": 1, "resample": 0,
        "aggregation": "sequence", "filter_truncated": False,
    },
}  # fmt: skip
DPO = {"name": "dpo", "steps": 5 * LINES, "optim": {"lr": 3e-4}, "method": {"beta": 0.1, "loss": "sigmoid", "lora": {}}}

Shape = Callable[[float], float] | float
"""A figure by the share of the run that is done, or a constant."""


def rising(low: float, high: float) -> Callable[[float], float]:
    """A straight line."""
    return lambda share: low + (high - low) * share


def rows(figures: Mapping[str, Shape], noise: float = 0.01, every: int = 5, first: int = 0) -> list[dict[str, Any]]:
    """Lines of a log: each figure with a noise of that share of it."""
    chance = Random(0)
    lines: list[dict[str, Any]] = []
    for place in range(LINES):
        share = place / (LINES - 1)
        values = {name: shape if isinstance(shape, float) else shape(share) for name, shape in figures.items()}
        noisy = {name: value * (1 + noise * chance.gauss(0, 1)) for name, value in values.items()}
        noisy |= {name: min(1.0, noisy[name]) for name in ("reward/math", "reward/format") if name in noisy}
        lines.append({"step": first or every * (place + 1), "lr": 3e-4, "samples_per_s": 100.0, "wait": 0.01, **noisy})
        first = 0
    return lines


ONLINE: dict[str, Shape] = {
    "reward": rising(0.4, 0.9), "reward/math": rising(0.35, 0.8), "reward/format": rising(0.6, 1.0),
    "live_groups": 0.7, "length": rising(20.0, 30.0), "truncated": 0.02, "entropy": rising(0.5, 0.3), "unscored": 0.0,
    "loss": 0.2, "clip_fraction": 0.01, "off_policy": 2e-7, "kl": rising(0.001, 0.05), "grad_norm": 0.5,
}  # fmt: skip
PAIRS: dict[str, Shape] = {
    "loss": rising(0.69, 0.4), "margin": rising(0.0, 1.0), "accuracy": rising(0.5, 0.85), "grad_norm": 2.0,
    "chosen_logprob": rising(-20.0, -19.0), "rejected_logprob": rising(-20.0, -28.0),
}  # fmt: skip


def evaluations(**figures: list[float]) -> list[dict[str, Any]]:
    """Lines of evaluations, evenly over the steps of the log."""
    count = len(next(iter(figures.values())))
    return [
        {"step": 5 * LINES * (i + 1) // count, **{f"heldout/{name}": values[i] for name, values in figures.items()}}
        for i in range(count)
    ]


def online_record(
    more: Mapping[str, Shape] | None = None, *, method: Mapping[str, Any] | None = None, rollouts: Any = (),
    evaluated: Any = (), **config: Any,
) -> Record:  # fmt: skip
    """A run of GRPO that learns, with what is changed in it."""
    recipe = {**GRPO, **config, "method": {**GRPO["method"], **(method or {})}}
    return Record(recipe, [*rows({**ONLINE, **(more or {})}), *evaluated], list(rollouts))


def pair_record(
    more: Mapping[str, Shape] | None = None, *, evaluated: Any = (), first: int = 0, **config: Any
) -> Record:
    """A run of DPO that learns, with what is changed in it."""
    return Record({**DPO, **config}, [*rows({**PAIRS, **(more or {})}, first=first), *evaluated])


def answers(*said: tuple[float | None, float, float, bool], step: int = 5) -> dict[str, Any]:
    """A line of rollouts.jsonl: each answer with its reward, its math and format parts, and whether it ended."""
    return {
        "step": step, "prompt": "2+2?",
        "answers": [
            {"text": "4", "reward": total, "parts": {"math": math, "format": form}, "advantage": 0.0, "finished": ended,
             "tokens": 3} for total, math, form, ended in said
        ],
    }  # fmt: skip
