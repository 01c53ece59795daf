"""A recipe's options in words: flags, values, and the help lines that stand under the fields. No torch of its own."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
from typing import Any, NamedTuple


class OptionLine(NamedTuple):
    """One option of `odonata train`."""

    flag: str
    """As on the command line."""
    value: Any
    """What it is unless it is given."""
    help: str


def option_lines(config: Any, prefix: str = "") -> list[OptionLine]:
    """Return the options of a dataclass of a recipe, those of dataclasses within it under their names.

    Args:
        config: an instance.
        prefix: of the flags, such as `data.`.
    """
    lines: list[OptionLine] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            lines += option_lines(value, f"{prefix}{field.name}.")
        else:
            lines.append(OptionLine(flag_of(prefix + field.name), value, field_help(type(config)).get(field.name, "")))
    return lines


def flag_of(path: str) -> str:
    """Return the command-line flag of a field by its path, as the option parser spells it.

    >>> flag_of("data.batch_size")
    '--data.batch-size'
    """
    return "--" + path.replace("_", "-")


@functools.cache
def field_help(kind: type) -> dict[str, str]:
    """Return the docstrings under the fields of a class and of those that it extends, each as one line."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(part):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, after in zip(tree.body, tree.body[1:], strict=False):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and told:
                found[field.target.id] = " ".join(str(after.value.value).split())  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
    return found
