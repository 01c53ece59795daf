"""Control problems as environments: several copies that step together, in numpy, and any of Gymnasium's.

Notable:
- CartPole-v1, Acrobot-v1 and MountainCar-v0 have the dynamics of Gymnasium's, operation by operation, so that a course
  of actions leads through the same numbers; but all copies move in one go, and no call is checked.
- `step` tells *terminated* (the task is over: what follows is worth nothing) from *truncated* (the time is up: what
  would follow is worth something). A copy whose episode has ended begins the next in the same step; where the episode
  ended is kept in `final`.
- The start of an episode is drawn by a generator of (seed, copy, number of the episode). So the state of the random
  numbers is a count, starts do not depend on how copies are shared among processes, and `state` is a few arrays, from
  which a resumed run goes on to the same bits.
- Environments of Gymnasium keep their state to themselves: where such a run is resumed, its episodes begin anew, and a
  warning says so.

Sources: Gymnasium 1.4.0, `gymnasium/envs/classic_control/{cartpole,acrobot,mountain_car}.py`; Barto, Sutton and
Anderson 1983; Sutton 1996; Moore 1990.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from odonata.errors import RecipeError

log = logging.getLogger(__name__)
WINDOW = 100
"""Episodes that the figures of training are means of: the last so many, as Gymnasium defines CartPole as solved."""
GYMNASIUM = "gymnasium:"
"""How the name of an environment begins that Gymnasium makes."""


Moved: TypeAlias = tuple[
    Float32[np.ndarray, "envs dim"], Float[np.ndarray, "envs"], Bool[np.ndarray, "envs"], Bool[np.ndarray, "envs"]
]
"""Observations, rewards, terminated and truncated."""


class Transition(NamedTuple):
    """What one step of all copies led to."""

    observations: Float32[np.ndarray, "envs dim"]
    """What is seen next: of a copy whose episode has ended, the first of the next episode."""
    rewards: Float[np.ndarray, "envs"]
    terminated: Bool[np.ndarray, "envs"]
    """The task is over."""
    truncated: Bool[np.ndarray, "envs"]
    """The time limit is reached, whether the task is over or not."""
    final: Float32[np.ndarray, "envs dim"]
    """What the step led to before any new episode."""


class ControlEnv(ABC):
    """Copies of an environment with numbered actions, and a record of their episodes.

    Args:
        copies: how many step together.
        dim: numbers in an observation.
        seed: of the starts; integers that are not negative.
        first: number of the first copy, where others belong to other processes.
    """

    num_actions: int

    def __init__(self, copies: int, dim: int, seed: Sequence[int], first: int = 0) -> None:
        self.copies, self.dim, self.seed, self.first = copies, dim, tuple(seed), first
        self.observations: Float32[np.ndarray, "envs dim"] = np.zeros((copies, dim), np.float32)
        self.episodes = np.zeros(copies, np.int64)
        """Episodes begun by each copy."""
        self.elapsed = np.zeros(copies, np.int64)
        """Steps done in the episode at hand."""
        self.running = np.zeros(copies)
        """Return of the episode at hand."""
        self.recent = np.zeros((2, WINDOW))
        """Return and length of the last episodes that ended, in a ring."""
        self.finished = np.zeros(1, np.int64)
        """Episodes that ended."""

    @abstractmethod
    def _begin(self, copy: int, generator: np.random.Generator) -> Float32[np.ndarray, "dim"]:
        """Begin an episode of one copy and return what it sees."""

    @abstractmethod
    def _advance(self, actions: Int[np.ndarray, "envs"]) -> Moved:
        """Move all copies and return observations, rewards, terminated and truncated; `elapsed` counts this step."""

    def begin(self) -> Float32[np.ndarray, "envs dim"]:
        """Begin the first episode of every copy and return what they see."""
        for copy in range(self.copies):
            self._next_episode(copy)
        return self.observations

    def step(self, actions: Int[np.ndarray, "envs"]) -> Transition:
        """Take an action in each copy; where that ends an episode, begin the next.

        Args:
            actions: numbers below `num_actions`.
        """
        self.elapsed += 1
        final, rewards, terminated, truncated = self._advance(actions)
        self.running += rewards
        self.observations = final
        ended = terminated | truncated
        if ended.any():
            self.observations = final.copy()
            for copy in np.flatnonzero(ended):
                self.recent[:, self.finished[0] % WINDOW] = self.running[copy], self.elapsed[copy]
                self.finished += 1
                self._next_episode(int(copy))
        return Transition(self.observations, rewards, terminated, truncated, final)

    def _next_episode(self, copy: int) -> None:
        self.episodes[copy] += 1
        self.elapsed[copy], self.running[copy] = 0, 0.0
        generator = np.random.default_rng([*self.seed, self.first + copy, int(self.episodes[copy])])
        self.observations[copy] = self._begin(copy, generator)

    def last_episodes(self) -> Float[np.ndarray, "2 episodes"]:
        """Return the returns and lengths of the last `WINDOW` episodes that ended, or of all, in no order."""
        return self.recent[:, : min(int(self.finished[0]), WINDOW)]

    def state(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Return all that `restore` needs, as arrays of fixed shapes."""
        names = ("observations", "episodes", "elapsed", "running", "recent", "finished")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
        """Go on from what `state` returned, here or in another process."""
        for name in ("observations", "episodes", "elapsed", "running", "recent", "finished"):
            setattr(self, name, np.array(state[name]))


class ClassicControl(ControlEnv):
    """An environment of classic control: a few variables of state and a time limit.

    Args:
        copies: how many step together.
        seed: of the starts.
        first: number of the first copy.
    """

    variables: ClassVar[int]
    """Numbers in the state."""
    outputs: ClassVar[int]
    """Numbers in an observation."""
    time_limit: ClassVar[int]
    """Steps after which an episode is truncated."""

    def __init__(self, copies: int, seed: Sequence[int] = (0,), first: int = 0) -> None:
        super().__init__(copies, self.outputs, seed, first)
        self.variable: Float[np.ndarray, "variables envs"] = np.zeros((self.variables, copies))
        """The state, in Gymnasium's order."""

    @staticmethod
    @abstractmethod
    def draw(generator: np.random.Generator) -> Float[np.ndarray, "variables"]:
        """Return where an episode begins; the same draws as Gymnasium's `reset` makes."""

    @staticmethod
    @abstractmethod
    def observe(variable: Float[np.ndarray, "variables envs"]) -> Float32[np.ndarray, "envs dim"]:
        """Return what is seen of a state."""

    @abstractmethod
    def move(self, actions: Int[np.ndarray, "envs"]) -> tuple[Float[np.ndarray, "envs"], Bool[np.ndarray, "envs"]]:
        """Move the state and return rewards and whether the task is over."""

    def _begin(self, copy: int, generator: np.random.Generator) -> Float32[np.ndarray, "dim"]:
        start = self.draw(generator)
        self.variable[:, copy] = start
        return self.observe(start[:, None])[0]

    def _advance(self, actions: Int[np.ndarray, "envs"]) -> Moved:
        rewards, terminated = self.move(actions)
        return self.observe(self.variable), rewards, terminated, self.elapsed >= self.time_limit

    def state(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Return all that `restore` needs, as arrays of fixed shapes."""
        return {**super().state(), "variable": self.variable}

    def restore(self, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
        """Go on from what `state` returned, here or in another process."""
        super().restore(state)
        self.variable = np.array(state["variable"])


class CartPole(ClassicControl):
    """CartPole-v1: keep a pole upright on a cart that is pushed left (0) or right (1); 1 for every step, up to 500."""

    num_actions, variables, outputs, time_limit = 2, 4, 4, 500

    @staticmethod
    def draw(generator: np.random.Generator) -> Float[np.ndarray, "variables"]:
        """Return a start near the upright rest."""
        return generator.uniform(-0.05, 0.05, 4)

    @staticmethod
    def observe(variable: Float[np.ndarray, "variables envs"]) -> Float32[np.ndarray, "envs dim"]:
        """Return position, velocity, angle and angular velocity."""
        return variable.T.astype(np.float32)

    def move(self, actions: Int[np.ndarray, "envs"]) -> tuple[Float[np.ndarray, "envs"], Bool[np.ndarray, "envs"]]:
        """Move by Euler's method over 0.02 s; over beyond 2.4 m or 12 degrees."""
        x, velocity, angle, spin = self.variable
        force = np.where(actions == 1, 10.0, -10.0)
        cos, sin = np.cos(angle), np.sin(angle)
        total_mass, pole = 0.1 + 1.0, 0.1 * 0.5  # of cart and pole; mass of the pole times half its length
        push = (force + pole * np.square(spin) * sin) / total_mass
        spin_change = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * np.square(cos) / total_mass))
        velocity_change = push - pole * spin_change * cos / total_mass
        x, angle = x + 0.02 * velocity, angle + 0.02 * spin
        velocity, spin = velocity + 0.02 * velocity_change, spin + 0.02 * spin_change
        self.variable = np.array((x, velocity, angle, spin))
        over = (np.abs(x) > 2.4) | (np.abs(angle) > 12 * 2 * math.pi / 360)
        return np.ones(self.copies), over


class Acrobot(ClassicControl):
    """Acrobot-v1: swing the tip of two links above the bar by a torque of −1, 0 or 1 between them; −1 a step, 500."""

    num_actions, variables, outputs, time_limit = 3, 4, 6, 500

    @staticmethod
    def draw(generator: np.random.Generator) -> Float[np.ndarray, "variables"]:
        """Return a start near the hanging rest, rounded to float32 as Gymnasium does."""
        return generator.uniform(-0.1, 0.1, 4).astype(np.float32)

    @staticmethod
    def observe(variable: Float[np.ndarray, "variables envs"]) -> Float32[np.ndarray, "envs dim"]:
        """Return cosine and sine of both angles, and both angular velocities."""
        first, second, first_spin, second_spin = variable
        seen = (np.cos(first), np.sin(first), np.cos(second), np.sin(second), first_spin, second_spin)
        return np.stack(seen, axis=1).astype(np.float32)

    def move(self, actions: Int[np.ndarray, "envs"]) -> tuple[Float[np.ndarray, "envs"], Bool[np.ndarray, "envs"]]:
        """Move by one Runge-Kutta step over 0.2 s; over once the tip is a link above the bar."""
        torque, y, dt = actions - 1.0, self.variable, 0.2
        k1 = self._derivative(y, torque)
        k2 = self._derivative(y + dt / 2.0 * k1, torque)
        k3 = self._derivative(y + dt / 2.0 * k2, torque)
        k4 = self._derivative(y + dt * k3, torque)
        y = y + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        for angle in y[:2]:
            while (high := angle > np.pi).any():
                angle[high] -= 2 * np.pi
            while (low := angle < -np.pi).any():
                angle[low] += 2 * np.pi
        y[2] = np.clip(y[2], -4 * np.pi, 4 * np.pi)
        y[3] = np.clip(y[3], -9 * np.pi, 9 * np.pi)
        self.variable = y
        over = -np.cos(y[0]) - np.cos(y[1] + y[0]) > 1.0
        return np.where(over, 0.0, -1.0), over

    @staticmethod
    def _derivative(
        y: Float[np.ndarray, "variables envs"], torque: Float[np.ndarray, "envs"]
    ) -> Float[np.ndarray, "variables envs"]:
        """The book's equations of motion (Sutton and Barto 2018), links of 1 m and 1 kg; g = 9.8."""
        first, second, first_spin, second_spin = y
        cos, sin = np.cos(second), np.sin(second)
        d1 = 0.25 + (1.25 + 2 * 0.5 * cos) + 1.0 + 1.0
        d2 = (0.25 + 0.5 * cos) + 1.0
        phi2 = 0.5 * 9.8 * np.cos(first + second - np.pi / 2.0)
        phi1 = (
            -0.5 * _squared(second_spin) * sin
            - 2 * 0.5 * second_spin * first_spin * sin
            + 1.5 * 9.8 * np.cos(first - np.pi / 2)
            + phi2
        )
        second_change = (torque + d2 / d1 * phi1 - 0.5 * _squared(first_spin) * sin - phi2) / (
            0.25 + 1.0 - _squared(d2) / d1
        )
        return np.array((first_spin, second_spin, -(d2 * second_change + phi1) / d1, second_change))


def _squared(numbers: Float[np.ndarray, "envs"]) -> Float[np.ndarray, "envs"]:
    """By the C library's power, as Gymnasium's scalars: a product may differ in the last bit."""
    return np.array([number**2 for number in numbers.tolist()])


class MountainCar(ClassicControl):
    """MountainCar-v0: rock a car out of a valley by pushing left (0), not (1) or right (2); −1 a step, 200 at most."""

    num_actions, variables, outputs, time_limit = 3, 2, 2, 200

    @staticmethod
    def draw(generator: np.random.Generator) -> Float[np.ndarray, "variables"]:
        """Return a start at rest in the valley."""
        return np.array([generator.uniform(-0.6, -0.4), 0.0])

    @staticmethod
    def observe(variable: Float[np.ndarray, "variables envs"]) -> Float32[np.ndarray, "envs dim"]:
        """Return position and velocity."""
        return variable.T.astype(np.float32)

    def move(self, actions: Int[np.ndarray, "envs"]) -> tuple[Float[np.ndarray, "envs"], Bool[np.ndarray, "envs"]]:
        """Move the car; over at position 0.5."""
        position, velocity = self.variable
        # By the C library, as Gymnasium: numpy's own cosine may differ in the last bit.
        slope = np.array([math.cos(angle) for angle in (3 * position).tolist()])
        velocity = np.clip(velocity + ((actions - 1) * 0.001 + slope * -0.0025), -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity[(position == -1.2) & (velocity < 0)] = 0.0
        self.variable = np.array((position, velocity))
        return np.full(self.copies, -1.0), (position >= 0.5) & (velocity >= 0)


CLASSIC: dict[str, type[ClassicControl]] = {
    "CartPole-v1": CartPole,
    "Acrobot-v1": Acrobot,
    "MountainCar-v0": MountainCar,
}
"""Environments of our own by Gymnasium's names."""


class GymnasiumEnv(ControlEnv):
    """Copies of an environment that Gymnasium makes, with numbered actions and a box of observations, made flat.

    Args:
        name: as `gymnasium.make` has it.
        copies: how many step together.
        seed: of the starts.
        first: number of the first copy.

    Raises:
        RecipeError: Gymnasium is not installed, does not know the name, or has spaces of another kind.
    """

    def __init__(self, name: str, copies: int, seed: Sequence[int] = (0,), first: int = 0) -> None:
        try:
            gymnasium: Any = importlib.import_module("gymnasium")
        except ImportError as error:
            raise RecipeError(
                f"--env {GYMNASIUM}{name}: gymnasium is not installed; pip install 'odonata[control]', or take one of "
                f"{', '.join(CLASSIC)}"
            ) from error
        try:
            self.envs: list[Any] = [gymnasium.make(name) for _ in range(copies)]
        except (gymnasium.error.Error, ImportError) as error:
            raise RecipeError(f"--env {GYMNASIUM}{name}: {' '.join(str(error).split())}") from error
        actions, seen = self.envs[0].action_space, self.envs[0].observation_space
        if not isinstance(actions, gymnasium.spaces.Discrete):
            raise RecipeError(f"--env {GYMNASIUM}{name}: its actions are {actions}; only Discrete ones can be learned")
        if not isinstance(seen, gymnasium.spaces.Box):
            raise RecipeError(f"--env {GYMNASIUM}{name}: its observations are {seen}; only a Box can be learned from")
        super().__init__(copies, math.prod(seen.shape), seed, first)
        self.name, self.num_actions, self.offset = name, int(actions.n), int(actions.start)

    def _begin(self, copy: int, generator: np.random.Generator) -> Float32[np.ndarray, "dim"]:
        seen, _ = self.envs[copy].reset(seed=int(generator.integers(2**31)))
        return np.asarray(seen, np.float32).reshape(-1)

    def _advance(self, actions: Int[np.ndarray, "envs"]) -> Moved:
        found = [env.step(action + self.offset) for env, action in zip(self.envs, actions, strict=True)]
        seen = np.stack([np.asarray(step[0], np.float32).reshape(-1) for step in found])
        rewards = np.array([step[1] for step in found], np.float64)
        return seen, rewards, np.array([step[2] for step in found], bool), np.array([step[3] for step in found], bool)

    def restore(self, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
        """Go on from what `state` returned; in another process, with new episodes."""
        same = np.array_equal(self.episodes, state["episodes"]) and np.array_equal(self.elapsed, state["elapsed"])
        super().restore(state)
        if not same:
            log.warning("%s%s keeps its state to itself: %d episodes begin anew", GYMNASIUM, self.name, self.copies)
            self.begin()


def make_env(name: str, copies: int, seed: Sequence[int] = (0,), first: int = 0) -> ControlEnv:
    """Return copies of an environment, before their first episode.

    Args:
        name: of `CLASSIC`, or `gymnasium:` and a name of Gymnasium's.
        copies: how many step together.
        seed: of the starts; integers that are not negative.
        first: number of the first copy, where others belong to other processes.

    Raises:
        RecipeError: there is no such environment, or it cannot be learned; names the nearest.

    >>> env = make_env("CartPole-v1", 2)
    >>> env.begin().shape
    (2, 4)
    """
    if name.startswith(GYMNASIUM):
        return GymnasiumEnv(name.removeprefix(GYMNASIUM), copies, seed, first)
    if name not in CLASSIC:
        near = difflib.get_close_matches(name, CLASSIC, 2)
        hint = f"did you mean {' or '.join(near)}, or" if near else f"there are {', '.join(CLASSIC)}, and"
        raise RecipeError(f"--env {name!r} is unknown; {hint} Gymnasium's own: --env {GYMNASIUM}{name}")
    return CLASSIC[name](copies, seed, first)
