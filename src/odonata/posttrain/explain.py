"""How a method of this room is meant: its equations, and its defaults beside the paper's and TRL's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from odonata.engine.explanation import UNUSED, Beside, Block, Explanation
from odonata.engine.option_help import flag_of
from odonata.posttrain.equations import EQUATIONS, SYMBOLS
from odonata.posttrain.presets import FIELDS, PRESETS, SOURCES, Option
from odonata.posttrain.presets_offline import OFFLINE, OFFLINE_SOURCES

if TYPE_CHECKING:
    from odonata.engine.recipe import Recipe


def explained(recipe: Recipe) -> Explanation:
    """Return the equations of a method of this room, and how its default recipe differs from the paper's and TRL's.

    Args:
        recipe: its default.
    """
    name = recipe.name
    blocks = [
        Block(equation.name, equation.text, equation.source, [flag_of(option) for option in equation.options])
        for equation in EQUATIONS.get(name, ())
    ]
    source = SOURCES.get(name) or OFFLINE_SOURCES.get(name, "")
    return Explanation(blocks, SYMBOLS if blocks else "", _table(recipe), source)


def compared(name: str) -> Mapping[str, Option]:
    """Return field of the recipe → (as the paper has it, TRL's default), for a method; nothing where none is known."""
    if name in PRESETS:
        return {FIELDS.get(option, option): values for option, values in PRESETS[name].items()}
    return OFFLINE.get(name, {})


def _table(recipe: Recipe) -> list[Beside]:
    options = compared(recipe.name)
    price = options.get("beta", Option(None, None))
    prices = value_at(recipe, "beta") if "beta" in options else None, price.ours, price.trl
    rows: list[Beside] = []
    for field, values in options.items():
        ours = value_at(recipe, field)
        # Dynamic sampling is a number of rounds here, and on or off elsewhere.
        ours_said = ours if field != "resample" else f"{ours} more rounds" if ours else False
        told = ours_said, values.ours, values.trl
        if field in ("kl", "kl_place", "kl_corrected"):
            told = tuple(UNUSED if beta == 0 else value for value, beta in zip(told, prices, strict=True))
        rows.append(Beside(flag_of(field), *told))
    return rows


def value_at(recipe: Recipe, field: str) -> Any:
    """Return a field of a recipe by its path; one without a dot is the method's own.

    Raises:
        AttributeError: there is no such field.
    """
    node: Any = recipe if "." in field else recipe.method
    for part in field.split("."):
        node = getattr(node, part)
    return node
