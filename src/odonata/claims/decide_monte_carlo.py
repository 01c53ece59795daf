"""Monte Carlo and temporal differences against dynamic programming, on the grid whose tables the book prints."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.decide import book
from odonata.decide import dynamic_programming as dp
from odonata.decide import monte_carlo as mc
from odonata.decide import temporal_difference as td
from odonata.decide.gridworld import grid_mdp
from odonata.decide.mdp import Values
from odonata.decide.stochastic_approximation import StepSize

EPSILON = 0.5
LENGTH = 100
EXPERIENCE = {"20,000": 20_000, "200,000": 200_000, "2,000,000": 2_000_000}
FALLING = StepSize(power=0.7)
"""Between the slowest and the fastest step that converges."""
MDP = grid_mdp()
Learner = Callable[[int, np.random.Generator], Values]


def _basic(transitions: int, rng: np.random.Generator) -> Values:
    q = np.zeros((MDP.states, MDP.actions))
    for _ in range(max(1, transitions // (q.size * LENGTH))):
        q = mc.mc_basic(MDP, q, episodes=1, length=LENGTH, rng=rng)
    return q.max(1)


def _exploring_starts(transitions: int, rng: np.random.Generator) -> Values:
    start, episodes = td.begin(MDP), max(1, transitions // LENGTH)
    q, _ = mc.mc_exploring_starts(
        MDP, start.q, start.visits, episodes=episodes, length=LENGTH, sizes=StepSize(), rng=rng
    )
    return q.max(1)


def _epsilon_greedy(transitions: int, rng: np.random.Generator) -> Values:
    start, episodes = td.begin(MDP), max(1, transitions // LENGTH)
    q, _ = mc.mc_epsilon_greedy(
        MDP, start.q, start.visits, episodes=episodes, length=LENGTH, sizes=StepSize(), epsilon=EPSILON, rng=rng
    )
    return (dp.soft(q, EPSILON) * q).sum(1)


def _soft(learn: Callable[..., td.Walk], **more: int) -> Learner:
    def learner(transitions: int, rng: np.random.Generator) -> Values:
        q = learn(MDP, td.begin(MDP), td.Block(transitions, FALLING, EPSILON, LENGTH), rng, **more).q
        return (dp.soft(q, EPSILON) * q).sum(1)

    return learner


def _q_learning(transitions: int, rng: np.random.Generator) -> Values:
    return td.q_learning(MDP, td.begin(MDP), td.Block(transitions, FALLING, 1.0, LENGTH), rng).q.max(1)


def _td0(transitions: int, rng: np.random.Generator) -> Values:
    block = td.Block(transitions, FALLING, length=LENGTH)
    return td.td0(MDP, td.begin(MDP, 1), dp.uniform(MDP), block, rng).q[:, 0]


LEARNERS: dict[str, Learner] = {
    "MC Basic": _basic,
    "MC exploring starts": _exploring_starts,
    "MC ε-greedy": _epsilon_greedy,
    "TD(0)": _td0,
    "Sarsa": _soft(td.sarsa),
    "4-step Sarsa": _soft(td.n_step_sarsa, n=4),
    "expected Sarsa": _soft(td.expected_sarsa),
    "Q-learning": _q_learning,
}
FALL = 0.5
"""What may be left of an error after a hundredfold experience; a tenth is what independent samples would leave."""


def target(variant: str) -> Values:
    """Return what a learner's values should become."""
    if variant == "MC Basic":
        return dp.finite_horizon(MDP, LENGTH)
    if variant == "TD(0)":
        return dp.evaluate_exactly(MDP, dp.uniform(MDP))
    values = dp.optimal(MDP, 0.0 if variant in ("MC exploring starts", "Q-learning") else EPSILON)
    assert values is not None  # the discount is below 1
    return values


def trial(trial: Trial) -> Figures:
    """Learn from so many transitions, and compare with dynamic programming; reproduce the tables on the way."""
    transitions = trial.steps(EXPERIENCE[trial.condition])
    values = LEARNERS[trial.variant](transitions, np.random.default_rng(trial.seed))
    apart = values - target(trial.variant)
    figures = {"error": float(np.sqrt((apart**2).mean())), "largest": float(np.abs(apart).max())}
    if trial.variant == "MC Basic":
        figures["tables"] = max(table.error() for table in book.TABLES)
    return figures


CLAIM = Claim(
    name="monte-carlo-dp",
    room="decide",
    methods=("gridworld",),
    source="Zhao 2025, Mathematical Foundations of Reinforcement Learning, chapters 5 and 7 (figures 5.4, 5.6, 5.7, "
    "7.4) against chapters 3 and 4",
    hypothesis="Learners that see samples only come to the values that dynamic programming finds with the model: MC "
    "Basic to what the best steps of an episode give, to the last digit, and every other one nearer with more "
    "experience.",
    data="The book's 5 × 5 grid (r_forbidden −1, discount 0.9); episodes of 100 steps from anywhere. The tables "
    "printed in the book, with its two readings of a bump.",
    scaled_down="Nothing is. Errors are root mean squares over the 25 states, each learner against its own target: v* "
    "for Q-learning (uniform behaviour) and exploring starts, the best ε-soft policy (ε 0.5) for what acts by one, the "
    "uniform policy for TD(0). Step sizes: 1 / visits^0.7, and the mean for Monte Carlo.",
    trial=trial,
    conditions=tuple(EXPERIENCE),
    variants=tuple(LEARNERS),
    comparisons=(
        Comparison("MC Basic: distance from the best 100 steps", "MC Basic@2,000,000", 0.0, "largest", "<", 1e-9),
        Comparison("the printed tables: largest distance", "MC Basic@20,000", 0.0, "tables", "<",
                   book.TOLERANCE + 1e-9),
        *(Comparison(f"{name}: error of a hundredfold experience", f"{name}@2,000,000", f"{name}@20,000", "error", "<",
                     FALL, ratio=True) for name in LEARNERS if name != "MC Basic"),
        Comparison("exploring starts, whose mean counts old policies, err more than Q-learning",
                   "MC exploring starts@2,000,000", "Q-learning@2,000,000", "error", ">", primary=False),
    ),
    plots=(Plot("error", "root mean square of v − v by dynamic programming", log=True),),
    axis="transitions seen",
)  # fmt: skip
