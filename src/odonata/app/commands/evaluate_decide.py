"""`odonata evaluate` of what decides: returns of played episodes, or how far tables are from the exact values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from odonata.errors import RecipeError


@dataclass(frozen=True)
class DecideArguments:
    """Measure tables or a policy for control: `odonata evaluate RUN`.

    A policy plays episodes and its returns are told, greedily and by chance; tables are compared with the exact values
    of their world.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a policy that was converted."""
    episodes: int = 100
    """Of a policy, played greedily and by chance."""
    env: str = ""
    """For a policy that does not say what it was trained on: the environment, such as CartPole-v1."""
    seed: int = 1_000_003
    """Of the episodes."""
    json: bool = False
    """For programs."""
    out: Path | None = None
    """Also write the figures into this file."""


def evaluate_decide(options: DecideArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}.

    Raises:
        OdonataError: the model cannot be used, or there is nothing to compare with.
    """
    from odonata.app.api import load
    from odonata.decide.control_policy import PolicyPredictor

    if options.episodes < 2:
        raise RecipeError(f"--episodes is {options.episodes}; an interval needs two")
    model = load(options.model, device="cpu")
    if isinstance(model, PolicyPredictor):
        return _returns(model, options)
    return _distances(options)


def _returns(model: Any, options: DecideArguments) -> dict[str, Any]:
    from odonata.metrics.bootstrap import bootstrap_mean

    figures: dict[str, Any] = {}
    for name, greedy in (("return", False), ("return/greedy", True)):
        returns = model.play(options.episodes, env=options.env, greedy=greedy, seed=options.seed).returns
        found = bootstrap_mean(returns)
        figures[name] = {"value": found.estimate, "low": found.low, "high": found.high, "count": len(returns)}
    return figures


def _distances(options: DecideArguments) -> dict[str, Any]:
    from odonata.app.commands.evaluate_recipe import measured

    if not (options.model / "config.yaml").is_file():
        raise RecipeError(f"{options.model}: tables alone do not tell their world's exact values: evaluate the run")
    return {
        name: {"value": value, "low": None, "high": None, "count": ""}
        for name, value in measured(options.model, "best").items()
    }
