"""Policies for control as others keep them: CleanRL's files and Stable-Baselines3's, to and from our names.

Notable:
- Our names are CleanRL's (`ppo.py`: `critic.0.weight`, `actor.4.bias`), so its files are read as they are.
- Stable-Baselines3 keeps last layers apart from the others (`mlp_extractor.policy_net.0.weight`, `action_net.weight`,
  `value_net.weight`). Its saved model is an archive; what is in it besides `policy.pth` holds Python objects and is not
  read. A policy is written as `policy.pth`, for `model.policy.load_state_dict`.
- Neither file tells the activation (tanh by default) or the environment.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.layout import Files, require
from odonata.weights.maps import KeyMap, Rule, pair
from odonata.weights.read import Raw, describe, read_state

CLEANRL, SB3 = "ppo.cleanrl_model", "policy.pth"
"""Files that the layouts are kept in."""
LAYOUTS = ("odonata", "cleanrl", "sb3")
_SIGNS = {"cleanrl": ("actor.0.weight", "critic.0.weight"), "sb3": ("action_net.weight", "value_net.weight")}


def policy_file(path: Path) -> Path | None:
    """Return the file that may hold a policy: the path itself, or what lies in the folder; None where nothing does."""
    if path.is_dir():
        return next((path / name for name in ("model.safetensors", CLEANRL, SB3) if (path / name).is_file()), None)
    kinds = (".safetensors", ".cleanrl_model", ".pth", ".pt", ".zip")
    return path if path.is_file() and path.suffix in kinds else None


def layout_of(state: Mapping[str, Tensor]) -> str | None:
    """Return the layout of a policy's tensors, None where they are none; Odonata's names are CleanRL's."""
    return next((layout for layout, names in _SIGNS.items() if all(name in state for name in names)), None)


def read_policy(path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Read a policy.

    Args:
        path: a file of CleanRL's, a `policy.pth` or saved model of Stable-Baselines3's, or a folder with one of them.

    Returns:
        Weights under our names, the layout, and notes.

    Raises:
        WeightsError: unreadable, of another layout, incomplete, or of a policy that is not ours: continuous actions,
            layers of other kinds.
    """
    raw = read_any(path)
    layout = layout_of(raw.state)
    if layout is None:
        raise WeightsError(f"{path}: no policy of {' or '.join(_SIGNS)} ({describe(raw)})")
    if any("log_std" in name or "logstd" in name for name in raw.state):
        raise WeightsError(f"{path}: a policy for continuous actions (it has a log_std); only numbered ones are known")
    ours, _ = key_map(layout, raw.state).to_ours(raw.state, str(path))
    return ours, layout, [f"layout {layout}", *raw.notes, "activations taken as tanh, which the file does not tell"]


def read_any(path: Path) -> Raw:
    """Return the tensors of a file that may hold a policy, whatever it is called.

    Raises:
        WeightsError: nothing there, or it cannot be read.
    """
    file = policy_file(path)
    if file is None:
        raise WeightsError(f"{path}: wants {CLEANRL}, {SB3}, a saved .zip of Stable-Baselines3, or a folder with one")
    if file.suffix in (".safetensors", ".pth", ".pt"):
        return read_state(file)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / SB3
        if file.suffix == ".zip":
            _extract(file, target)
        else:
            shutil.copyfile(file, target)
        try:
            raw = read_state(target)
        except WeightsError as error:
            raise WeightsError(str(error).replace(str(target), str(file))) from error
    raw.path = path
    return raw


def _extract(archive: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(SB3) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{archive} is no saved model of Stable-Baselines3: it holds no {SB3}") from error


def key_map(layout: str, state: Mapping[str, Tensor]) -> KeyMap:
    """Return the map of a layout to ours, for networks of so many layers as `state` has, under either names."""
    return KeyMap(_network(layout, state, "actor") + _network(layout, state, "critic"))


def _network(layout: str, state: Mapping[str, Tensor], ours: str) -> list[Rule]:
    hidden, last = {
        "actor": ("mlp_extractor.policy_net", "action_net"),
        "critic": ("mlp_extractor.value_net", "value_net"),
    }[ours]
    numbers = [int(m[1]) for name in state if (m := re.fullmatch(rf"(?:{ours}|{hidden})\.(\d+)\.weight", name))]
    if layout != "sb3":
        return [rule for number in sorted(numbers) for rule in pair(f"{ours}.{number}", f"{ours}.{number}")]
    last_number = max(numbers, default=-2) + (0 if f"{ours}.0.weight" in state else 2)
    inner = [number for number in sorted(numbers) if number != last_number]
    rules = [rule for number in inner for rule in pair(f"{hidden}.{number}", f"{ours}.{number}")]
    return rules + pair(last, f"{ours}.{last_number}")


def widths_of(state: Mapping[str, Tensor], where: object) -> tuple[int, int, tuple[int, ...]]:
    """Return the sizes of a policy under our names: numbers seen, actions, and hidden layers.

    Raises:
        WeightsError: actor and critic are not of one architecture, or the layers do not follow one another.
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for network in ("actor", "critic"):
        names = [name for name in state if re.fullmatch(rf"{network}\.\d+\.weight", name)]
        names.sort(key=lambda name: int(name.split(".")[1]))
        found[network] = [tuple(state[name].shape) for name in names]
        joined = all(len(shape) == 2 for shape in found[network])
        joined = joined and all(a[0] == b[1] for a, b in zip(found[network], found[network][1:], strict=False))
        require(joined, f"{where}: the {network}'s layers do not follow one another: {found[network]}")
    actor, critic = found["actor"], found["critic"]
    same = [shape[1] for shape in actor] == [shape[1] for shape in critic] and critic[-1][0] == 1
    require(same, f"{where}: actor {actor} and critic {critic} differ in their hidden layers, or the critic says more")
    return actor[0][1], actor[-1][0], tuple(shape[0] for shape in actor[:-1])


def files_of(layout: str, state: Mapping[str, Tensor]) -> Files:
    """Return what a published layout holds of a policy under our names.

    Raises:
        WeightsError: the layout is unknown.
    """
    if layout not in ("cleanrl", "sb3"):
        raise WeightsError(f"layout {layout!r} is unknown: {', '.join(LAYOUTS)}")
    return Files(CLEANRL if layout == "cleanrl" else SB3, key_map(layout, state).from_ours(state))
