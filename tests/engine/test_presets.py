"""Named sets of values."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from odonata.engine.presets import with_preset
from odonata.errors import RecipeError


@dataclass(frozen=True)
class Options:
    presets: ClassVar[dict[str, dict[str, int]]] = {"large": {"width": 64, "depth": 9}}
    preset: str = ""
    width: int = 8
    depth: int = 2
    seed: int = 0


def test_a_preset_fills_what_was_left_alone():
    assert with_preset(Options("large", depth=3, seed=5)) == Options("", width=64, depth=3, seed=5)
    assert with_preset(Options(width=1)) == Options(width=1)


def test_an_unknown_preset_is_named_with_those_that_are_known():
    with pytest.raises(RecipeError, match="--preset 'huge' is unknown; there are large"):
        with_preset(Options("huge"))
