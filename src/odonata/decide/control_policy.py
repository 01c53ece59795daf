"""What people touch of a policy for control: it acts, plays whole episodes, and is converted."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.decide.control_env import ControlEnv, make_env
from odonata.decide.ppo_control import Act, ActorCritic
from odonata.engine.checkpoint import weights_file
from odonata.engine.run import write_atomically
from odonata.errors import OdonataError, RecipeError, WeightsError
from odonata.weights.control_policies import files_of, layout_of, policy_file, read_any, read_policy, widths_of
from odonata.weights.layout import Files
from odonata.weights.maps import check_fit
from odonata.weights.published import write_folder
from odonata.weights.read import read_json, read_state

KIND = "control-policy"
"""What `model.json` calls a policy of this room."""
LONGEST = 10_000
"""Steps after which an episode is counted as it stands: some environments of Gymnasium never end one."""
LARGEST = 2**26
"""Bytes of a file that may hold a policy: two networks of a few layers."""
_EVALUATION, _NOISE = 1, 2  # apart from the starts of training, whose seed has 0 in that place


@dataclass(frozen=True)
class PolicyAssets:
    """What a policy is, besides its weights."""

    env: str
    """The environment that it learned in; empty where that is not known."""
    dim: int
    """Numbers in an observation."""
    actions: int
    """How many there are."""
    hidden: tuple[int, ...]
    """Widths of the hidden layers."""

    def build(self) -> ActorCritic:
        """Return the networks, untrained."""
        return ActorCritic(self.dim, self.actions, self.hidden)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values."""
        return {"kind": KIND, **dataclasses.asdict(self), "hidden": list(self.hidden)}

    def save(self, folder: Path) -> None:
        """Write `model.json`."""
        write_atomically(folder / "model.json", json.dumps(self.to_plain(), indent=1))

    @classmethod
    def load(cls, folder: Path) -> PolicyAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: it is missing or not what it should be.
        """
        path = folder / "model.json"
        if not path.is_file():
            raise WeightsError(f"{path}: the policy's description is missing")
        plain = read_json(path)
        try:
            return cls(
                str(plain["env"]), int(plain["dim"]), int(plain["actions"]), tuple(int(w) for w in plain["hidden"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: cannot read the policy's description: {error!r}") from error


class Played(NamedTuple):
    """Episodes from their beginning to their end."""

    returns: Float[np.ndarray, "episodes"]
    lengths: Int[np.ndarray, "episodes"]


def play_episodes(act: Act, env: ControlEnv, noise: np.random.Generator | None) -> Played:
    """Play one episode of every copy and return what they came to.

    Args:
        act: the actor.
        env: before its first episode.
        noise: to sample actions; None takes the likeliest.
    """
    env.begin()
    returns, lengths = np.zeros(env.copies), np.zeros(env.copies, np.int64)
    playing = np.ones(env.copies, bool)
    for _ in range(LONGEST):
        logits = act(env.observations)
        step = env.step((logits if noise is None else logits + noise.gumbel(size=logits.shape)).argmax(axis=1))
        returns += step.rewards * playing
        lengths += playing
        playing &= ~(step.terminated | step.truncated)
        if not playing.any():
            break
    return Played(returns, lengths)


def play_in(act: Act, env: str, episodes: int, seed: int, *, greedy: bool) -> Played:
    """Play episodes of an environment side by side, with starts that training does not see.

    Raises:
        RecipeError: there is no such environment.
    """
    noise = None if greedy else np.random.default_rng([seed, _NOISE])
    return play_episodes(act, make_env(env, episodes, (seed, _EVALUATION)), noise)


@dataclass
class PolicyPredictor:
    """A policy that acts.

    Args:
        policy: its networks.
        assets: what it is.
        device: where it is.
        name: of the method, or the source of the weights.
        notes: what was inferred in reading.
    """

    policy: ActorCritic
    assets: PolicyAssets
    device: torch.device
    name: str = ""
    notes: list[str] = field(default_factory=list[str])

    @torch.no_grad()
    def logits(self, observations: Any) -> Float[Tensor, "steps actions"]:
        """Return the actions' scores for observations [steps, dim]; their softmax is the policy."""
        return self.policy.logits(self._rows(observations)).cpu()

    @torch.no_grad()
    def values(self, observations: Any) -> Float[Tensor, "steps"]:
        """Return the return that is expected from observations [steps, dim]."""
        return self.policy.values(self._rows(observations)).cpu()

    def act(self, observation: Any, *, greedy: bool = True) -> int | Int[np.ndarray, "steps"]:
        """Return the action for one observation, or one for each of several.

        Args:
            observation: `dim` numbers, or rows of them.
            greedy: the likeliest; else drawn by torch's generator.

        Raises:
            RecipeError: the observation is of another size.
        """
        logits = self.logits(observation)
        chosen = logits.argmax(1) if greedy else torch.distributions.Categorical(logits=logits).sample()
        return int(chosen[0]) if np.ndim(observation) == 1 else chosen.numpy()

    def play(self, episodes: int = 20, *, env: str = "", greedy: bool = True, seed: int = 0) -> Played:
        """Play whole episodes and return what they came to.

        Args:
            episodes: played side by side.
            env: the environment; empty: the one it learned in.
            greedy: take the likeliest action; else draw it.
            seed: of starts and draws.

        Raises:
            RecipeError: the environment is not known, or is not what the policy was made for.
        """
        name = env or self.assets.env
        if not name:
            raise RecipeError(f"{self.name}: the weights do not tell their environment: name it, as play(env=…)")
        made = make_env(name, 1)
        if (made.dim, made.num_actions) != (self.assets.dim, self.assets.actions):
            raise RecipeError(
                f"{name} shows {made.dim} numbers and takes {made.num_actions} actions; the policy was made for "
                f"{self.assets.dim} and {self.assets.actions}"
            )
        return play_in(self.policy.acting(), name, episodes, seed, greedy=greedy)

    def convert(self, folder: Path, layout: str) -> list[Path]:
        """Write the policy as `odonata`, `cleanrl` or `sb3` has it; return the files.

        Raises:
            WeightsError: the layout is unknown, or the folder is not empty.
        """
        state = dict(self.policy.state_dict())
        if layout == "odonata":
            return write_folder(folder, Files("model.safetensors", state, {"model.json": self.assets.to_plain()}))
        return write_folder(folder, files_of(layout, state))

    def _rows(self, observations: Any) -> Float[Tensor, "steps dim"]:
        rows = torch.as_tensor(np.atleast_2d(np.asarray(observations, np.float32)))
        if rows.ndim != 2 or rows.shape[1] != self.assets.dim:
            raise RecipeError(
                f"an observation has {self.assets.dim} numbers here; got shape {list(np.shape(observations))}"
            )
        return rows.to(self.device)


def recognises(path: Path) -> bool:
    """Return whether a policy for control is there: a folder of Odonata's, or a file of CleanRL's or SB3's.

    Large files are not opened: another room would read them once more.
    """
    try:
        if (path / "model.json").is_file():
            return read_json(path / "model.json").get("kind") == KIND
        file = policy_file(path)
        if file is None or file.stat().st_size > LARGEST:
            return False
        return layout_of(read_any(path).state) is not None
    except OdonataError:
        return False


def load(path: Path, name: str | None, device: torch.device, **options: Any) -> PolicyPredictor:
    """Return what acts by a run of this method, a folder of Odonata's, or a published policy.

    Args:
        path: run folder, or weights.
        name: of the run's method; None for weights.
        device: where to.
        options: `which` checkpoint of a run (`best`, `last`); `env` of published weights, which do not tell it.

    Raises:
        WeightsError: nothing that can be read.
        RecipeError: an option that says nothing of a policy.
    """
    wrong = [key for key, value in options.items() if value is not None and key not in ("which", "env")]
    if wrong:
        raise RecipeError(f"{path}: --{wrong[0].replace('_', '-')} says nothing of a policy for control")
    if name is not None:
        which = options.get("which", "best")
        assets = PolicyAssets.load(path / "assets")
        state = read_state(weights_file(path, which)).state
        state = {key.removeprefix("policy."): value for key, value in state.items()}
        return _filled(assets, state, device, name, [f"{which} checkpoint of a {name} run"], path)
    if (path / "model.json").is_file():
        state = read_state(path / "model.safetensors").state
        return _filled(PolicyAssets.load(path), state, device, str(path), [], path)
    state, layout, notes = read_policy(path)
    assets = PolicyAssets(str(options.get("env") or ""), *widths_of(state, path))
    return _filled(assets, state, device, layout, notes, path)


def _filled(
    assets: PolicyAssets, state: dict[str, Tensor], device: torch.device, name: str, notes: list[str], path: Path
) -> PolicyPredictor:
    policy = assets.build()
    check_fit(state, policy.state_dict(), str(path))
    policy.load_state_dict(state)
    return PolicyPredictor(policy.eval().to(device), assets, device, name, notes)
