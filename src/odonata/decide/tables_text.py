"""Tables as text for people: the values in the layout of the grid, and the policy as arrows."""

from __future__ import annotations

from odonata.decide.mdp import Policy, Values
from odonata.decide.world import ARROWS, Legend

SHOWN = 40
"""Rows printed of a world that is no grid."""


def table_lines(values: Values, policy: Policy, legend: Legend) -> list[str]:
    """Return values and policy as lines.

    Args:
        values: of each state.
        policy: each state's most likely action is shown.
        legend: of the world.
    """
    numbers = [_number(value, values) for value in values]
    chosen = policy.argmax(1)
    width = max(map(len, numbers))
    if not legend.is_grid:
        wide = len(str(len(numbers) - 1))
        lines = [
            f"state {state:>{wide}}  value {number:>{width}}  action {legend.actions[chosen[state]]}"
            for state, number in enumerate(numbers)
        ]
        rest = len(lines) - SHOWN
        return [
            *lines[:SHOWN],
            *([f"… and {rest} states more; odonata convert RUN OUT --to text has all"] if rest > 0 else []),
        ]
    rows, columns = legend.shape
    grid = [[row * columns + column for column in range(columns)] for row in range(rows)]
    shown = ["values"] + ["  ".join(f"{numbers[state]:>{width}}" for state in row) for row in grid]
    arrows = [" ".join(f"{ARROWS[legend.actions[chosen[s]]]}{_mark(legend, s)}" for s in row).rstrip() for row in grid]
    return [*shown, "policy", *arrows]


def _mark(legend: Legend, state: int) -> str:
    """What stands on the map beside an arrow: nothing on a free cell."""
    mark = legend.mark(state)
    return " " if mark == "." else mark


def _number(value: float, values: Values) -> str:
    """One decimal, as the book prints; more where all values are small."""
    largest = abs(values).max()
    digits = 1 if largest >= 5 else 2 if largest >= 0.5 else 4
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
