"""The value tables that Zhao's book prints for its 5 × 5 grid, with what each is a table of; all reproduce to 0.05.

Notable: figures 5.6 and 5.7 hold only if the border costs the sum of both penalties on a forbidden cell, figure 8.6
only if it costs its own; see `odonata.decide.gridworld`. One cell is misprinted: row 3, column 1 of figure
5.7(c), that of ε = 0.2, says −1.2, and the value is −1.134.

Source: Zhao 2025, Mathematical Foundations of Reinforcement Learning; the chapters' files in the book's repository.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from odonata.decide import dynamic_programming as dp
from odonata.decide.gridworld import GridRules, grid_mdp
from odonata.decide.mdp import Values

TOLERANCE = 0.05
"""Tables are printed with one decimal."""
UNSAID = "·"
"""Stands in a table where the book's figure is not known, or is misprinted."""
_LETTERS = "urdlo"


@dataclass(frozen=True)
class Printed:
    """One table of the book.

    Args:
        figure: where it stands.
        table: the numbers, rows divided by /.
        r_forbidden: for entering a forbidden cell.
        discount: γ.
        policy: 25 letters u, r, d, l, o (stay), or `uniform`; empty: the best one.
        epsilon: share of random actions.
        horizon: steps that count; 0: all.
        bumps_add: whether the border costs both penalties on a forbidden cell.
    """

    figure: str
    table: str
    r_forbidden: float
    discount: float = 0.9
    policy: str = ""
    epsilon: float = 0.0
    horizon: int = 0
    bumps_add: bool = False

    @property
    def values(self) -> Float64[np.ndarray, "states"]:
        """The printed numbers; NaN where none is known."""
        words = self.table.replace("/", " ").split()
        return np.array([np.nan if word == UNSAID else float(word) for word in words])

    def solve(self) -> Values:
        """Return the exact values of what the table is of."""
        rules = GridRules(r_forbidden=self.r_forbidden, bump_on_forbidden="sum" if self.bumps_add else "boundary")
        mdp = grid_mdp(rules=rules, discount=self.discount)
        if self.horizon:
            return dp.finite_horizon(mdp, self.horizon)
        if self.policy == "uniform":
            return dp.evaluate_exactly(mdp, dp.uniform(mdp))
        if self.policy:
            chosen = np.eye(mdp.actions)[[_LETTERS.index(letter) for letter in self.policy]]
            return dp.evaluate_exactly(mdp, dp.soft(chosen, self.epsilon))
        values = dp.optimal(mdp, self.epsilon)
        assert values is not None  # the discount is below 1
        return values

    def error(self) -> float:
        """Return the largest distance of a printed number from the exact one."""
        return float(np.nanmax(np.abs(self.solve() - self.values)))


_BEST = "rrrrduurrduldrduroldurull"
_OPTIMAL = "3.5 3.9 4.3 4.8 5.3 / 3.1 3.5 4.8 5.3 5.9 / 2.8 2.5 10 5.9 6.6 / 2.5 10 10 10 7.3 / 2.3 9.0 10 9.0 8.1"
_FIFTH = (
    "0.4 0.5 0.9 1.3 1.4 / 0.1 0.0 0.5 1.3 1.7 / 0.1 -0.4 3.4 1.4 1.9 / -0.1 3.4 3.3 3.7 2.2 / -0.3 2.6 3.7 3.1 2.7"
)
_CORNER = "· · · · · / · · · · · / · · · · · / · · · · · / {} · · · ·"
TABLES = (
    Printed("2.7(a), 3.4(d), 5.6(a): v*, r_forbidden −10", _OPTIMAL, -10),
    Printed("5.6(a): its policy, ε 0", _OPTIMAL, -10, policy=_BEST),
    Printed("2.7(b): always right",
            "-6.6 -7.3 -8.1 -9 -10 / -8.5 -8.3 -8.1 -9 -10 / -7.5 -8.3 -8.1 -9 -10 / -7.5 -7.2 -9.1 -9 -10 / "
            "-7.6 -7.3 -8.1 -9 -10", -1, policy="r" * 25),
    Printed("3.4(a): v*, γ 0.9",
            "5.8 5.6 6.2 6.5 5.8 / 6.5 7.2 8.0 7.2 6.5 / "
            "7.2 8.0 10 8.0 7.2 / 8.0 10 10 10 8.0 / 7.2 9.0 10 9.0 8.1", -1),
    Printed("3.4(b): v*, γ 0.5", "0 0 0 0 0 / 0 0 0 0 .1 / 0 0 2 .1 .1 / 0 2 2 2 .2 / 0 1 2 1 .5", -1, 0.5),
    Printed("3.4(c): v*, γ 0", "0 0 0 0 0 / 0 0 0 0 0 / 0 0 1 0 0 / 0 1 1 1 0 / 0 0 1 0 0", -1, 0.0),
    *(Printed(f"5.4: row 5, column 1, in {length} steps", _CORNER.format(value), -10, horizon=length)
      for length, value in ((14, 0), (15, 0.2), (30, 1.9), (100, 2.3))),
    Printed("5.6(b): the policy of (a), ε 0.1", _FIFTH, -10, policy=_BEST, epsilon=0.1, bumps_add=True),
    Printed("5.6(c): the policy of (a), ε 0.2",
            "-2.2 -2.4 -2.1 -1.7 -1.8 / -2.5 -3.0 -3.3 -2.3 -2.0 / "
            "-2.3 -3.3 -2.5 -2.8 -2.2 / -2.5 -2.5 -2.8 -2.0 -2.4 / "
            "-2.8 -3.2 -2.1 -2.3 -2.2", -10, policy=_BEST, epsilon=0.2, bumps_add=True),
    Printed("5.6(d): the policy of (a), ε 0.5",
            "-8.0 -9.0 -8.4 -7.2 -7.8 / -8.7 -10.8 -12.4 -9.6 -8.9 / -8.3 -12.3 -15.3 -12.3 -10.5 / "
            "-9.7 -15.5 -17.0 -14.4 -12.2 / "
            "-10.9 -16.7 -15.2 -14.3 -12.4", -10, policy=_BEST, epsilon=0.5, bumps_add=True),
    Printed("5.7(b): the best policy with ε 0.1", _FIFTH, -10, epsilon=0.1, bumps_add=True),
    Printed("5.7(c): the best policy with ε 0.2",
            "-1.1 -1.5 -1.1 -0.6 -0.6 / -1.5 -2.2 -2.3 -1.0 -0.6 / · -2.4 -2.2 -1.5 -0.6 / -1.6 -2.3 -2.6 -1.4 -1.1 / "
            "-2.0 -3.0 -1.8 -1.4 -1.0", -10, epsilon=0.2, bumps_add=True),
    Printed("5.7(d): the best policy with ε 0.5",
            "-4.3 -5.5 -4.5 -2.6 -2.3 / -5.6 -7.7 -7.7 -4.1 -2.4 / "
            "-5.5 -9.0 -8.0 -5.6 -2.8 / -6.8 -8.9 -9.4 -5.5 -4.2 / "
            "-7.9 -10.1 -6.7 -5.1 -3.7", -10, epsilon=0.5, bumps_add=True),
    Printed("8.6: the uniform policy",
            "-3.8 -3.8 -3.6 -3.1 -3.2 / -3.8 -3.8 -3.8 -3.1 -2.9 / "
            "-3.6 -3.9 -3.4 -3.2 -2.9 / -3.9 -3.6 -3.4 -2.9 -3.2 / "
            "-4.5 -4.2 -3.4 -3.4 -3.5", -1, policy="uniform"),
)  # fmt: skip
"""Every table whose numbers are at hand."""
EVALUATION_SWEEPS: dict[int | None, int] = {1: 88, 3: 30, 6: 15, 9: 10, 56: 8, None: 8}
"""Sweeps of evaluation in each iteration of truncated policy iteration → iterations until no value of the grid with
r_forbidden −10 is 1e-3 or more from v*; None is policy iteration. Measured, not printed."""


def iterations_to(distance: float, sweeps: int | None) -> int:
    """Return how many iterations bring all values of that grid nearer to v* than `distance`."""
    mdp = grid_mdp(rules=GridRules(r_forbidden=-10))
    values, target = np.zeros(mdp.states), dp.optimal(mdp)
    assert target is not None
    for number in range(1, 10_000):
        values, _ = dp.improve(mdp, values, sweeps)
        if np.abs(values - target).max() < distance:
            return number
    raise ArithmeticError(f"{sweeps} sweeps an iteration did not come within {distance:g} of v*")
