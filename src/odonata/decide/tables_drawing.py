"""Tables as a picture: each cell in the colour of its value, with the number, the arrow, and the map's mark."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from odonata.decide.mdp import Policy, Values
from odonata.decide.world import Legend

CELL = 72
"""Side of a cell in pixels."""
COLUMNS = 10
"""Cells in a row, where the states are no grid."""
LOW, MIDDLE, HIGH = (178, 62, 62), (247, 246, 242), (38, 108, 148)
"""Colours of the lowest value, of zero, and of the highest."""
INK, LINE = (28, 34, 42), (170, 176, 184)
DIRECTIONS = {"up": (0, -1), "right": (1, 0), "down": (0, 1), "left": (-1, 0)}
"""Arrows in pixels: right, down."""


def draw_tables(values: Values, policy: Policy, legend: Legend) -> Image.Image:
    """Return the drawing.

    Args:
        values: of each state.
        policy: the likelier an action, the longer its arrow; what is as likely as all others has none.
        legend: of the world; without a grid, states stand in rows of ten with the action's number.
    """
    columns = legend.shape[1] if legend.is_grid else min(COLUMNS, len(values))
    rows = -(-len(values) // columns)
    canvas = Image.new("RGB", (columns * CELL + 1, rows * CELL + 1), "white")
    pen = ImageDraw.Draw(canvas)
    largest = max(float(abs(values).max()), 1e-12)
    for state, value in enumerate(values):
        x, y = state % columns * CELL, state // columns * CELL
        colour = _colour(float(value) / largest)
        pen.rectangle((x, y, x + CELL, y + CELL), fill=colour, outline=LINE)
        ink = INK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 150 else (255, 255, 255)
        _mark(pen, x, y, legend.mark(state) if legend.is_grid else str(state), ink)
        text = f"{value:.1f}" if largest >= 5 else f"{value:.2f}" if largest >= 0.1 else f"{value:.4f}"
        pen.text((x + CELL / 2, y + CELL - 4), text, fill=ink, font=_font(13), anchor="mb")
        if legend.is_grid:
            _arrows(pen, (x + CELL // 2, y + CELL // 2 - 6), policy[state].tolist(), legend.actions, ink)
        else:
            action = legend.actions[int(policy[state].argmax())]
            pen.text((x + CELL / 2, y + CELL / 2 - 6), action, fill=ink, font=_font(20), anchor="mm")
    return canvas


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _colour(share: float) -> tuple[int, int, int]:
    """The colour of a value as a share of the largest, from −1 to 1."""
    end, weight = (HIGH, share) if share >= 0 else (LOW, -share)
    red, green, blue = (round(m + weight * (e - m)) for m, e in zip(MIDDLE, end, strict=True))
    return red, green, blue


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, mark: str, ink: tuple[int, int, int]) -> None:
    """What stands on the map, in the corner; forbidden cells and holes are hatched, targets and goals framed."""
    if mark in ("#", "H"):
        for offset in range(8, 2 * CELL, 12):
            start = (x + min(offset, CELL), y + max(0, offset - CELL))
            pen.line((*start, x + max(0, offset - CELL), y + min(offset, CELL)), fill=LINE, width=1)
    if mark in ("T", "G"):
        pen.rectangle((x + 3, y + 3, x + CELL - 3, y + CELL - 3), outline=ink, width=3)
    if mark not in (".", " ", "F"):
        pen.text((x + 8, y + 6), mark, fill=ink, font=_font(12))


def _arrows(
    pen: ImageDraw.ImageDraw,
    centre: tuple[int, int],
    probabilities: list[float],
    actions: tuple[str, ...],
    ink: tuple[int, int, int],
) -> None:
    x, y = centre
    even = 1 / len(actions)
    for action, probability in zip(actions, probabilities, strict=True):
        if probability <= even + 1e-9:  # what is done by chance alone
            continue
        length = (CELL / 4) * math.sqrt(probability)
        if action == "stay":
            pen.ellipse((x - length / 2, y - length / 2, x + length / 2, y + length / 2), outline=ink, width=3)
            continue
        right, down = DIRECTIONS[action]
        tip = (x + right * length, y + down * length)
        pen.line((x - right * length, y - down * length, *tip), fill=ink, width=3)
        side = 6
        wings = [(tip[0] - right * 8 + turn * down * side, tip[1] - down * 8 + turn * right * side) for turn in (-1, 1)]
        pen.polygon([(tip[0] + right * 3, tip[1] + down * 3), *wings], fill=ink)


def exhibits(recipe: Any, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the drawing of a run's tables, as a `data:` address with lines of text."""
    from odonata.decide.solution import load_tables

    solution = load_tables(run, recipe.name, torch.device("cpu"))
    buffer = io.BytesIO()
    draw_tables(solution.values, solution.policy, solution.legend).save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    yield address, [f"values and policy of {solution.legend.origin}", f"--solver {recipe.method.solver}"]
