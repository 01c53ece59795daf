"""A finite Markov decision process as arrays, whoever describes it: a map, or a Gymnasium environment with a model.

Notable: what an action may lead to is a short list of *outcomes* (probability, successor, reward, end of the episode),
as in Gymnasium's `P`, and not a matrix over all pairs of states: a sweep costs states × actions × outcomes, a sample is
one draw, and two outcomes with one successor may be rewarded differently. Where an episode ends, nothing follows: the
successor's value is not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import csr_array

from odonata.errors import DataError, RecipeError

Values = Float64[np.ndarray, "states"]
"""What is expected from each state on."""
ActionValues = Float64[np.ndarray, "states actions"]
"""What is expected from each state on, if this action is taken first."""
Policy = Float64[np.ndarray, "states actions"]
"""The probability of each action in each state; rows sum to 1."""


@dataclass(frozen=True)
class MDP:
    """States, actions, and what they lead to.

    Args:
        probabilities: of each outcome; they sum to 1. Actions with fewer outcomes than others are filled up with
            outcomes of probability 0.
        successors: where it leads.
        rewards: what it gives.
        ends: whether the episode ends with it.
        discount: γ in [0, 1].
        starts: how likely an episode begins in each state.

    Raises:
        DataError: arrays that no process can have; says in which state and action.
    """

    probabilities: Float64[np.ndarray, "states actions outcomes"]
    successors: Int64[np.ndarray, "states actions outcomes"]
    rewards: Float64[np.ndarray, "states actions outcomes"]
    ends: Bool[np.ndarray, "states actions outcomes"]
    discount: float
    starts: Float64[np.ndarray, "states"]

    def __post_init__(self) -> None:
        check_discount(self.discount)
        wrong = np.abs(self.probabilities.sum(2) - 1) > 1e-9
        wrong |= (self.probabilities < 0).any(2) | ~np.isfinite(self.rewards).all(2)
        wrong |= ((self.successors < 0) | (self.successors >= self.states)).any(2)
        if wrong.any():
            state, action = (int(i) for i in np.argwhere(wrong)[0])
            shown = (each[state, action].tolist() for each in (self.probabilities, self.successors, self.rewards))
            raise DataError(
                "state {}, action {}: probabilities {}, successors {}, rewards {}: ".format(state, action, *shown)
                + f"wants probabilities that sum to 1, states below {self.states} and finite rewards"
            )
        if abs(float(self.starts.sum()) - 1) > 1e-9 or bool((self.starts < 0).any()):
            raise DataError(f"the probabilities of the first state sum to {self.starts.sum():g}; they must sum to 1")

    @property
    def states(self) -> int:
        """Their number."""
        return self.probabilities.shape[0]

    @property
    def actions(self) -> int:
        """Their number, the same in every state."""
        return self.probabilities.shape[1]

    @cached_property
    def expected_rewards(self) -> ActionValues:
        """r(s, a), the mean over the outcomes."""
        return (self.probabilities * self.rewards).sum(2)

    @cached_property
    def continuing(self) -> Float64[np.ndarray, "states actions outcomes"]:
        """The probability of each outcome after which the episode goes on."""
        return self.probabilities * ~self.ends

    @cached_property
    def cumulative(self) -> Float64[np.ndarray, "states actions outcomes"]:
        """Sums of the probabilities up to each outcome, for drawing."""
        return cumulative(self.probabilities)

    @cached_property
    def cumulative_starts(self) -> Values:
        """Sums of the probabilities of the first state, for drawing."""
        return cumulative(self.starts)

    @cached_property
    def reachable(self) -> Bool[np.ndarray, "states"]:
        """Whether an episode can come to a state; what it cannot come to, samples say nothing of."""
        follows = self.transitions_under(np.full((self.states, self.actions), 1 / self.actions)).T
        found = self.starts > 0
        while (grown := found | (follows @ found > 0)).sum() > found.sum():
            found = grown
        return found

    def backup(self, values: Values) -> ActionValues:
        """Return q(s, a) = r(s, a) + γ Σ p(s' | s, a) v(s') (Zhao, eq. 2.13)."""
        return self.expected_rewards + self.discount * (self.continuing * values[self.successors]).sum(2)

    def transitions_under(self, policy: Policy) -> csr_array:
        """Return P_π [states states]: how likely each follows each other; rows sum to less than 1 before an end."""
        flow = policy[:, :, None] * self.continuing
        rows = np.broadcast_to(np.arange(self.states)[:, None, None], flow.shape)
        shape = (self.states, self.states)
        return csr_array((flow.ravel(), (rows.ravel(), self.successors.ravel())), shape)

    def rewards_under(self, policy: Policy) -> Values:
        """Return r_π: what each state's next step gives on average."""
        return (policy * self.expected_rewards).sum(1)

    def with_discount(self, discount: float) -> MDP:
        """Return the same process with another γ."""
        return replace(self, discount=discount)

    def fingerprint(self) -> str:
        """Return what changes when the process does."""
        digest = hashlib.sha256(repr((self.probabilities.shape, self.discount)).encode())
        for array in (self.probabilities, self.successors, self.rewards, self.ends, self.starts):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def cumulative(probabilities: Float64[np.ndarray, "*any choices"]) -> Float64[np.ndarray, "*any choices"]:
    """Return sums along the last axis, for drawing; exactly 1 from the last choice on that can happen at all."""
    count = probabilities.shape[-1]
    last = count - 1 - (probabilities[..., ::-1] > 0).argmax(-1)
    return np.where(np.arange(count) >= last[..., None], 1.0, probabilities.cumsum(-1))


def check_discount(discount: float) -> None:
    """Refuse a discount outside of [0, 1].

    Raises:
        RecipeError: says so.
    """
    if not 0 <= discount <= 1:
        raise RecipeError(f"--discount is {discount}; it must lie in [0, 1]")


def deterministic(
    successors: Int64[np.ndarray, "states actions"],
    rewards: ActionValues,
    ends: Bool[np.ndarray, "states actions"],
    discount: float,
    starts: Values,
) -> MDP:
    """Return the process in which every action has one outcome; see `MDP` for the arguments."""
    return MDP(
        np.ones((*successors.shape, 1)), successors[:, :, None], rewards[:, :, None], ends[:, :, None], discount, starts
    )


Model = Mapping[int, Mapping[int, Sequence[tuple[float, SupportsIndex, float, bool]]]]
"""Gymnasium's `P[state][action]`: (probability, successor, reward, terminated) of each outcome."""


def from_model(model: Model, discount: float, starts: Values | None = None) -> MDP:
    """Return the process of a model in Gymnasium's form.

    Args:
        model: states and actions are numbered from 0 without gaps.
        discount: γ.
        starts: of the first state; None: every state is as likely.

    Raises:
        DataError: the numbers have gaps, or states differ in their actions, or the probabilities are none.
    """
    states, actions = len(model), len(model[0]) if 0 in model else 0
    for state in range(states):
        if state not in model or sorted(model[state]) != list(range(actions)) or not actions:
            raise DataError(
                f"the model has {states} states, but state {state} lacks one of the actions 0 … {actions - 1}"
            )
    most = max(len(outcomes) for row in model.values() for outcomes in row.values())
    shape = (states, actions, most)
    probabilities, rewards = np.zeros(shape), np.zeros(shape)
    successors, ends = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for state, row in model.items():
        for action, outcomes in row.items():
            for place, (probability, successor, reward, terminated) in enumerate(outcomes):
                probabilities[state, action, place] = probability
                successors[state, action, place] = int(successor)
                rewards[state, action, place] = reward
                ends[state, action, place] = terminated
    return MDP(
        probabilities, successors, rewards, ends, discount, np.full(states, 1 / states) if starts is None else starts
    )


def from_environment(environment: Any, discount: float) -> MDP:
    """Return the process that a Gymnasium environment holds as `unwrapped.P`.

    Args:
        environment: of Gymnasium; FrozenLake, CliffWalking and Taxi carry their model.
        discount: γ, which environments do not say.

    Raises:
        RecipeError: it has no model.
    """
    bare = environment.unwrapped
    model = getattr(bare, "P", None)
    if model is None:
        raise RecipeError(
            f"{type(bare).__name__} has no model (env.unwrapped.P), so there is nothing to put into tables; "
            f"FrozenLake-v1, CliffWalking-v1 and Taxi-v4 have one"
        )
    starts = getattr(bare, "initial_state_distrib", None)
    return from_model(model, discount, None if starts is None else np.asarray(starts, np.float64))
