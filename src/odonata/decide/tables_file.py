"""Tables in and out of files: as text in the layout of the book's tables, or as tensors. Both to the last bit.

`text` is one file, tables.txt: a line that names a table, its rows and columns, then the rows. Numbers are the shortest
decimals that read back as the same float64, and lines with # are comments, so that `numpy.loadtxt` reads a table from
between two of them. `odonata` is tables.safetensors with tables.json beside it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file

from odonata.decide.world import Legend
from odonata.errors import WeightsError
from odonata.weights.layout import Files
from odonata.weights.published import write_folder

TENSORS, JSON, TEXT = "tables.safetensors", "tables.json", "tables.txt"
LAYOUTS = ("odonata", "text")
Table = Float64[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class Contents:
    """What files of tables hold."""

    values: Float64[np.ndarray, "states"]
    policy: Float64[np.ndarray, "states actions"]
    action_values: Float64[np.ndarray, "states actions"] | None
    """None where only states were valued (td0)."""
    legend: Legend


def is_tables(path: Path) -> bool:
    """Return whether there are files of tables: a folder of either layout, or a file tables.txt."""
    return (path / JSON).is_file() or (path / TEXT).is_file() or path.name == TEXT


def write(contents: Contents, folder: Path, layout: str) -> list[Path]:
    """Write tables into a folder; return the files.

    Args:
        contents: the tables.
        folder: must not exist, or be empty.
        layout: one of `LAYOUTS`.

    Raises:
        WeightsError: no such layout, or the folder is not empty.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"tables have no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    tables = {"values": contents.values[:, None], "policy": contents.policy}
    if contents.action_values is not None:
        tables["action_values"] = contents.action_values
    if layout == "odonata":
        state = {name: torch.from_numpy(np.ascontiguousarray(table)) for name, table in tables.items()}
        return write_folder(folder, Files(TENSORS, state, {JSON: asdict(contents.legend)}))
    if folder.is_dir() and any(folder.iterdir()):
        raise WeightsError(f"{folder} is not empty; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    tables["values"] = contents.values.reshape(contents.legend.shape)
    lines = [f"# legend {json.dumps(asdict(contents.legend), ensure_ascii=False)}"]
    for name, table in tables.items():
        rows, columns = table.shape
        lines.append(f"# {name} {rows} x {columns}")
        lines += [" ".join(repr(number) for number in row) for row in table.tolist()]
    (folder / TEXT).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / TEXT]


def read(path: Path) -> Contents:
    """Return the tables of a folder of either layout, or of a file tables.txt.

    Raises:
        WeightsError: not there, not readable, or not of one world; names file and line.
    """
    if (path / JSON).is_file():
        return _read_tensors(path)
    file = path / TEXT if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{path}: neither {JSON} nor {TEXT} is there")
    return _read_text(file)


def _read_tensors(folder: Path) -> Contents:
    legend = Legend.load(folder / JSON)
    try:
        tables = {name: tensor.numpy() for name, tensor in load_file(folder / TENSORS).items()}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder / TENSORS}: cannot read the tables: {error}") from error
    return _contents(tables, legend, str(folder / TENSORS))


def _read_text(file: Path) -> Contents:
    tables: dict[str, list[list[float]]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    legend, name = None, ""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            if line.startswith("# legend "):
                plain = json.loads(line.removeprefix("# legend "))
                rows, columns = plain["shape"]
                legend = Legend(plain["origin"], tuple(plain["actions"]), (rows, columns), tuple(plain["marks"]))
            elif line.startswith("#"):
                name, rows, _, columns = line.removeprefix("#").split()
                tables[name], shapes[name] = [], (int(rows), int(columns))
            elif line.strip():
                tables[name].append([float(word) for word in line.split()])
                if len(tables[name][-1]) != shapes[name][1]:
                    raise ValueError(f"{len(tables[name][-1])} numbers, and {name} has {shapes[name][1]} columns")
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{file}:{number}: not a line of a table: {error}") from error
    if legend is None:
        raise WeightsError(f"{file}:1: no line '# legend …' that says what states and actions are")
    for name, rows in tables.items():
        if len(rows) != shapes[name][0]:
            raise WeightsError(f"{file}: {name} has {len(rows)} rows and says {shapes[name][0]}: the file is cut short")
    return _contents({name: np.array(rows, np.float64) for name, rows in tables.items()}, legend, str(file))


def _contents(tables: dict[str, Table], legend: Legend, where: str) -> Contents:
    """Check that tables are of one world."""
    states, actions = legend.shape[0] * legend.shape[1], len(legend.actions)
    for name, wanted in (("values", states), ("policy", states * actions)):
        found = tables[name].shape if name in tables else "nothing"
        if name not in tables or tables[name].size != wanted:
            raise WeightsError(f"{where}: {name}: want {wanted} numbers for {states} states, found {found}")
    policy = tables["policy"].reshape(states, actions)
    wrong = np.flatnonzero((np.abs(policy.sum(1) - 1) > 1e-6) | (policy < 0).any(1))
    if len(wrong):
        row = int(wrong[0])
        raise WeightsError(f"{where}: policy of state {row}: {policy[row].tolist()} are no probabilities that sum to 1")
    q = tables.get("action_values")
    if q is not None and q.shape != (states, actions):
        raise WeightsError(f"{where}: action_values: want [{states}, {actions}], found {list(q.shape)}")
    return Contents(tables["values"].reshape(states), policy, q, legend)
