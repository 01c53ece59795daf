"""Darknet's `.cfg`: a network as text, in sections of `option=value`.

Notable:
- Each section keeps the line that it began on, and that of each option, so that every complaint can name both.
- Darknet strips all blanks, drops lines that begin with `#` or `;`, and of an option that is given twice takes the
  first. So does this. It also takes what follows a number for a remark; here only what follows a `#` is one.
- Darknet warns of an option that it does not know and goes on with a default, and takes an unknown activation for a
  ReLU. Here both are errors, in `darknet_plan`: a slip of the pen makes another network.

Source: pjreddie/darknet `src/parser.c` (`read_cfg`, `string_to_layer_type`) and `src/option_list.c`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from odonata.errors import WeightsError

_Value = TypeVar("_Value")
_SHORT = {
    "network": "net",
    "conv": "convolutional",
    "conn": "connected",
    "max": "maxpool",
    "avg": "avgpool",
    "soft": "softmax",
}
"""Other names of sections → the usual ones."""


@dataclass(frozen=True)
class Section:
    """One section: a layer, or `[net]`."""

    kind: str
    """What stands between its brackets, under the usual name."""
    source: str
    """File that it stands in."""
    line: int
    """Line that it begins on, counted from 1."""
    index: int
    """Number of the layer, counted from 0; -1 for `[net]`."""
    options: dict[str, str] = field(default_factory=dict[str, str])
    """Values as they stand there, without blanks."""
    lines: dict[str, int] = field(default_factory=dict[str, int])
    """Line of each option."""

    def integer(self, name: str, default: int) -> int:
        """Returns an option as a whole number; WeightsError if it is none."""
        return self._converted(name, int, "a whole number") if name in self.options else default

    def number(self, name: str, default: float) -> float:
        """Returns an option as a number; WeightsError if it is none."""
        return self._converted(name, float, "a number") if name in self.options else default

    def text(self, name: str, default: str) -> str:
        """Returns an option as it stands."""
        return self.options.get(name, default)

    def integers(self, name: str) -> tuple[int, ...]:
        """Returns an option as whole numbers between commas; empty where it is absent."""
        return self._converted(name, _integers, "whole numbers between commas") if name in self.options else ()

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns an option as numbers between commas; empty where it is absent."""
        return self._converted(name, _numbers, "numbers between commas") if name in self.options else ()

    def wrong(self, message: str, option: str | None = None) -> WeightsError:
        """Returns the error that says what is wrong with this section, and where.

        Args:
            message: what is wrong.
            option: whose line is named; that of the section without it.
        """
        line = self.lines.get(option, self.line) if option else self.line
        layer = "" if self.index < 0 else f"layer {self.index} "
        return WeightsError(f"{self.source}:{line}: {layer}[{self.kind}]: {message}")

    def _converted(self, name: str, convert: Callable[[str], _Value], kind: str) -> _Value:
        try:
            return convert(self.options[name])
        except ValueError:
            raise self.wrong(f"{name}={self.options[name]} wants {kind}", name) from None


@dataclass(frozen=True)
class DarknetCfg:
    """A whole `.cfg`."""

    source: str
    """Its file, for messages."""
    text: str
    """As it was read."""
    net: Section
    """Size of the image, and how the network was trained."""
    layers: tuple[Section, ...]
    """The layers in order."""


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip(",").split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.strip(",").split(","))


def read_cfg(path: str | Path) -> DarknetCfg:
    """Reads a `.cfg` file.

    Raises:
        WeightsError: there is none, or its text is not one; names the line.
    """
    path = Path(path)
    try:
        return parse_cfg(path.read_text(encoding="utf-8", errors="replace"), str(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error


def parse_cfg(text: str, source: str = "cfg") -> DarknetCfg:
    """Parses the text of a `.cfg`. Whether its layers fit together is for `odonata.weights.darknet_plan.plan_layers`.

    Args:
        text: the whole of it.
        source: what to call it in messages.

    Raises:
        WeightsError: a line that is neither a section nor an option, or no `[net]` in front.

    >>> cfg = parse_cfg("[net]\\nwidth=416\\n[convolutional]\\nfilters = 16  # narrow")
    >>> cfg.layers[0].integer("filters", 1), cfg.layers[0].lines["filters"]
    (16, 4)
    """
    sections: list[Section] = []
    for number, written in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = "".join(written.split("#")[0].split())
        if not line or line[0] == ";":
            continue
        if line[0] == "[":
            if line[-1] != "]":
                raise WeightsError(f"{source}:{number}: {written.strip()!r} lacks its closing bracket")
            kind = line[1:-1].lower()
            sections.append(Section(_SHORT.get(kind, kind), source, number, len(sections) - 1))
            continue
        name, equals, value = line.partition("=")
        if not (name and equals and value):
            raise WeightsError(f"{source}:{number}: {written.strip()!r} is neither a [section] nor option=value")
        if not sections:
            raise WeightsError(f"{source}:{number}: {written.strip()!r} stands before the first [section]")
        if name not in sections[-1].options:
            sections[-1].options[name], sections[-1].lines[name] = value, number
    if not sections or sections[0].kind != "net":
        found = f"it begins with [{sections[0].kind}]" if sections else "it has no sections"
        raise WeightsError(f"{source}: a darknet cfg begins with [net]; {found}")
    if len(sections) == 1:
        raise WeightsError(f"{source}: there are no layers after [net]")
    return DarknetCfg(source, text, sections[0], tuple(sections[1:]))
