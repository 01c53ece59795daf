"""`odonata explain`: a method's options, its equations, and how its defaults differ from the paper's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import odonata
from odonata.app.catalog import Entry, default_recipe, find, named_presets, resolve, room_index
from odonata.app.commands.arguments import parse, print_json, print_table
from odonata.engine.explanation import Explanation
from odonata.engine.option_help import OptionLine, option_lines
from odonata.engine.recipe import Recipe


@dataclass(frozen=True)
class ExplainArguments:
    """Explain a method: `odonata explain grpo`.

    Its equations, where the room has them, with where they are printed; how the defaults here differ from the paper's
    and from TRL's, `*` where they do; what `--preset` takes; and its options with what they mean.
    """

    method: Annotated[str, tyro.conf.Positional]
    """Its name in `odonata list`."""
    json: bool = False
    """For programs."""


def explain(arguments: Sequence[str]) -> None:
    """Print one method."""
    options = parse(ExplainArguments, "explain", arguments)
    entry = find(options.method)
    recipe = default_recipe(entry.name)
    room = room_index(entry.room)
    told: Explanation = resolve(room.EXPLAIN)(recipe) if hasattr(room, "EXPLAIN") else Explanation()
    lines = options_of(recipe)
    presets = named_presets(entry.name)
    if options.json:
        print_json(as_plain(entry, told, lines, presets))
        return
    print_table(as_page(entry, told, lines, presets))


def options_of(recipe: Recipe) -> list[OptionLine]:
    """Return the method's own options, those of data and evaluation, and the few of training that recipes choose."""
    return [
        *option_lines(recipe.method),
        *option_lines(recipe.data, "data."),
        *option_lines(recipe.evaluation, "evaluation."),
        OptionLine("--optim.lr", recipe.optim.lr, "Peak learning rate."),
        OptionLine("--steps", recipe.steps, "Updates in the whole run."),
    ]


def as_page(
    entry: Entry, told: Explanation, lines: Sequence[OptionLine], presets: Mapping[str, Mapping[str, Any]]
) -> RenderableType:
    """Return what is printed."""
    parts: list[RenderableType] = [
        Text.assemble((entry.name, "bold"), f" ({entry.room})  {entry.card.summary}"), Text(entry.card.paper),
        Text(f"train:  odonata train {entry.name}    every option: odonata train {entry.name} --help"),
    ]  # fmt: skip
    if page := docs_page(entry.name):
        parts.append(Text(f"page:   {page}"))
    if told.equations:
        parts += [_title("Equations"), Text(told.symbols, style="dim")]
        for block in told.equations:
            parts += [Text(), Text(block.name, style="italic"), *(Text("  " + line) for line in block.text.split("\n"))]
            options = f"   {' '.join(block.flags)}" if block.flags else ""
            parts.append(Text(f"  {block.source}{options}", style="dim"))
    if told.beside:
        parts += [_title("Defaults beside others'"), _beside(told)]
        if told.source:
            parts.append(Text("paper: " + told.source, style="dim"))
    if presets:
        parts.append(_title("Presets"))
        for name, fields in presets.items():
            shown = ", ".join(f"{key} {shown_value(value)}" for key, value in fields.items() if is_plain(value))
            parts.append(Text(f"--preset {name}: {shown or 'the defaults'}"))
    parts += [_title("Options"), _options(lines)]
    return Group(*parts)


def as_plain(
    entry: Entry, told: Explanation, lines: Sequence[OptionLine], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "name": entry.name,
        "room": entry.room,
        "summary": entry.card.summary,
        "paper": entry.card.paper,
        "page": docs_page(entry.name),
        "equations": [block._asdict() for block in told.equations],
        "beside": [{**row._asdict(), "differs": row.differs} for row in told.beside],
        "source": told.source,
        "presets": {name: {k: v for k, v in fields.items() if is_plain(v)} for name, fields in presets.items()},
        "options": [{"flag": o.flag, "default": _jsonable(o.value), "help": o.help} for o in lines],
    }


def docs_page(name: str) -> str:
    """Return the method's page in the documents, or its family's; empty where the project's own folder is not at hand.

    >>> docs_page("yolo-v3-spp")
    'docs/methods/yolo.md'
    """
    root, words = Path(odonata.__file__).parents[2], name.split("-")
    pages = (Path("docs/methods") / f"{'-'.join(words[:count])}.md" for count in range(len(words), 0, -1))
    return next((str(page) for page in pages if (root / page).is_file()), "")


def shown_value(value: Any) -> str:
    """Return an option's value as it is typed."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (tuple, list)):
        return " ".join(map(shown_value, value)) or "none"  # pyright: ignore[reportUnknownArgumentType]
    return (repr(value) if value != value.strip() or not value else value) if isinstance(value, str) else str(value)


def is_plain(value: Any) -> bool:
    """Whether a value fits a line."""
    return value is None or isinstance(value, (str, int, float))


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) or not isinstance(value, (str, int, float, bool, tuple, list, dict, type(None))):
        return str(value)
    return value


def _title(text: str) -> Text:
    return Text("\n" + text, style="bold")


def _beside(told: Explanation) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "option", "here", "paper", "TRL"):
        table.add_column(column)
    for row in told.beside:
        table.add_row("*" if row.differs else "", row.flag, *(shown_value(v) for v in row[1:]))
    return table


def _options(lines: Sequence[OptionLine]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("option", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("what it is")
    for line in lines:
        table.add_row(line.flag, shown_value(line.value), line.help)
    return table
