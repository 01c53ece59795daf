"""Every printed table of the grid world, and every figure that is known of its solvers, in one run with their errors.

    python benchmarks/gridworld.py            # some seconds
    python benchmarks/gridworld.py --quick    # a tenth of the samples, tables as they are

Exact values are held against the numbers in the book (one decimal: 0.05), iterations against counts, Gymnasium's models
against their known first values, MC Basic against figure 5.4, and Q-learning, Sarsa and TD(0) against the values that
dynamic programming finds. Wall time of this process, with the compilation of the loops where nothing is cached yet; one
thread. The run fails where a table is off by more than its decimal, or the sum of all exceeds 20 seconds.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
GOAL = 20.0
"""Seconds for all of it."""
Row = tuple[str, float, float]
"""What, how far off, and how far off it may be (∞: shown only)."""


def tables() -> Iterator[Row]:
    """The book's value tables."""
    from odonata.decide import book

    for table in book.TABLES:
        yield f"figure {table.figure}", table.error(), book.TOLERANCE + 1e-9


def iterations() -> Iterator[Row]:
    """Outer iterations of truncated policy iteration to 1e-3 of v*."""
    from odonata.decide import book

    for sweeps, known in book.EVALUATION_SWEEPS.items():
        found = book.iterations_to(1e-3, sweeps)
        yield f"{sweeps or '∞'} sweeps an iteration: {found} iterations", abs(found - known), 0.0


def models() -> Iterator[Row]:
    """The first state's value in Gymnasium's worlds."""
    import gymnasium

    from odonata.decide.dynamic_programming import optimal
    from odonata.decide.mdp import from_environment

    known = (("FrozenLake-v1", {}, 0.99, 0.54203), ("FrozenLake-v1", {"map_name": "8x8"}, 0.99, 0.41464))
    for name, options, discount, value in (*known, ("CliffWalking-v1", {}, 1.0, -13.0)):
        mdp = from_environment(gymnasium.make(name, **options), discount)
        values = optimal(mdp)
        assert values is not None
        yield f"{name} {options.get('map_name', '')}", abs(float(mdp.starts @ values) - value), 5e-6


def episodes() -> Iterator[Row]:
    """MC Basic against what the best steps of an episode give."""
    import numpy as np

    from odonata.decide.dynamic_programming import finite_horizon
    from odonata.decide.gridworld import GridRules, grid_mdp
    from odonata.decide.monte_carlo import mc_basic

    mdp = grid_mdp(rules=GridRules(r_forbidden=-10))
    for length in (1, 14, 15, 30, 100):
        q = np.zeros((mdp.states, mdp.actions))
        for _ in range(60):
            q = mc_basic(mdp, q, episodes=1, length=length, rng=np.random.default_rng(0))
        error = float(np.abs(q.max(1) - finite_horizon(mdp, length)).max())
        yield f"MC Basic, episodes of {length}: row 5, column 1 is {q.max(1)[20]:.2f}", error, 1e-9


def samples(quick: bool) -> Iterator[Row]:
    """Q-learning as in figure 7.4, and other learners from samples; root mean squares over the states."""
    import numpy as np

    from odonata.decide import temporal_difference as td
    from odonata.decide.dynamic_programming import evaluate_exactly, optimal, soft, uniform
    from odonata.decide.gridworld import grid_mdp
    from odonata.decide.stochastic_approximation import StepSize

    mdp, walk, rng, done = grid_mdp(), None, np.random.default_rng(0), 0
    best = optimal(mdp)
    assert best is not None
    for count in (1000, 10_000, 30_000, 100_000):
        block = td.Block(count - done, StepSize(0.1, power=0), epsilon=1.0)
        walk, done = td.q_learning(mdp, walk or td.begin(mdp), block, rng), count
        error = float(np.sqrt(((walk.q.max(1) - best) ** 2).mean()))
        yield (
            f"figure 7.4: Q-learning off the policy, {count:,} steps",
            error,
            0.01 if count == 100_000 else float("inf"),
        )
    transitions, falling = (200_000 if quick else 2_000_000), StepSize(power=0.7)
    block = td.Block(transitions, falling, 0.5, length=100)
    goal = optimal(mdp, 0.5)
    assert goal is not None
    for learn in (td.sarsa, td.expected_sarsa):
        q = learn(mdp, td.begin(mdp), block, np.random.default_rng(0)).q
        error = float(np.sqrt((((soft(q, 0.5) * q).sum(1) - goal) ** 2).mean()))
        yield f"{learn.__name__}, ε 0.5, {transitions:,} steps", error, 0.3
    v = td.td0(mdp, td.begin(mdp, 1), uniform(mdp), block, np.random.default_rng(0)).q[:, 0]
    error = float(np.sqrt(((v - evaluate_exactly(mdp, uniform(mdp))) ** 2).mean()))
    yield f"TD(0), uniform policy, {transitions:,} steps", error, 0.3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    quick = parser.parse_args().quick
    begun = time.perf_counter()
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "tables of the book": tables,
        "iterations": iterations,
        "models of Gymnasium": models,
        "Monte Carlo": episodes,
        "temporal differences": lambda: samples(quick),
    }
    wrong: list[str] = []
    for title, part in parts.items():
        start = time.perf_counter()
        rows = list(part())
        print(f"{title}: {time.perf_counter() - start:.2f} s")
        for what, error, allowed in rows:
            print(f"  {what:<62}{error:>12.3g}{'' if allowed == float('inf') else f'   of {allowed:.3g}'}")
            if error > allowed:
                wrong.append(what)
    total = time.perf_counter() - begun
    print(f"all: {total:.2f} s of {GOAL:g}")
    if wrong:
        raise SystemExit(f"off by more than allowed: {'; '.join(wrong)}")
    if total > GOAL and not quick:
        raise SystemExit(f"{total:.1f} s, and the goal is {GOAL:g}")


if __name__ == "__main__":
    main()
