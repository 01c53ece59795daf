"""What a report shows of a language model: nothing to look at, so no pictures."""

from __future__ import annotations

from pathlib import Path

from odonata.engine.recipe import Recipe


def exhibits(recipe: Recipe, run: Path, count: int) -> list[tuple[str, list[str]]]:
    """Return no pictures: what such a model says is text."""
    return []
