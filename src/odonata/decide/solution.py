"""What people touch: tables that were learned, which act in a Gymnasium environment and go into files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from odonata.decide import tables_file
from odonata.decide.mdp import ActionValues, Policy, Values
from odonata.decide.tables_drawing import draw_tables
from odonata.decide.tables_text import table_lines
from odonata.decide.world import Legend
from odonata.engine.checkpoint import weights_file
from odonata.errors import RecipeError, WeightsError
from odonata.weights.read import read_state


@dataclass
class Solution:
    """Values and a policy.

    Args:
        values: of each state.
        policy: probability of each action in each state.
        action_values: of each action; None where only states were valued.
        legend: what states and actions are.
        notes: where it came from.
    """

    values: Values
    policy: Policy
    action_values: ActionValues | None
    legend: Legend
    notes: list[str] = field(default_factory=list[str])

    def act(self, observation: int, rng: np.random.Generator | None = None) -> int:
        """Return the action in a state: the likeliest, or with `rng` one drawn by the policy.

        >>> import gymnasium  # doctest: +SKIP
        >>> state, _ = (env := gymnasium.make("FrozenLake-v1")).reset(seed=0)  # doctest: +SKIP
        >>> env.step(solution.act(state))  # doctest: +SKIP
        """
        chances = self.policy[observation]
        return int(chances.argmax()) if rng is None else int(rng.choice(len(chances), p=chances))

    def text(self) -> list[str]:
        """Return values and arrows as lines."""
        return table_lines(self.values, self.policy, self.legend)

    def draw(self) -> Image.Image:
        """Return values and arrows as a picture."""
        return draw_tables(self.values, self.policy, self.legend)

    def convert(self, folder: Path, layout: str) -> list[Path]:
        """Write the tables as `text` or `odonata`; return the files.

        Raises:
            WeightsError: no such layout, or the folder is not empty.
        """
        contents = tables_file.Contents(self.values, self.policy, self.action_values, self.legend)
        return tables_file.write(contents, Path(folder), layout)


def load_tables(path: Path, name: str | None, device: torch.device, **options: Any) -> Solution:
    """Return the tables of a run, or of files that `convert` wrote.

    Args:
        path: run folder, or files.
        name: of the run's method; None for files.
        device: not used; tables stay in memory.
        options: `which` checkpoint of a run, `best` or `last`: here the same.

    Raises:
        WeightsError: the files cannot be read, or are not of one world.
        RecipeError: an option that tables do not have.
    """
    unknown = [key for key, value in options.items() if key != "which" and value is not None]
    if unknown:
        raise RecipeError(f"--{unknown[0].replace('_', '-')}: tables have no such option")
    if name is None:
        found = tables_file.read(path)
        return Solution(found.values, found.policy, found.action_values, found.legend, [f"tables of {path}"])
    legend = Legend.load(path / "assets" / "world.json")
    state = {
        key: tensor.numpy()
        for key, tensor in read_state(weights_file(path, options.get("which", "best"))).state.items()
    }
    states, actions = legend.shape[0] * legend.shape[1], len(legend.actions)
    for key, shape in (("values", (states,)), ("policy", (states, actions))):
        if key not in state or state[key].shape != shape:
            seen = list(state[key].shape) if key in state else "nothing"
            raise WeightsError(f"{path}: {key}: want {list(shape)} for the world of the run, found {seen}")
    q = state.get("q")
    own = q is not None and q.shape == (states, actions)
    return Solution(state["values"], state["policy"], q if own else None, legend, [f"tables of a {name} run, {path}"])
