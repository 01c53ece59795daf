"""PPO's claim: several passes over one rollout pay where the ratio is clipped, and ruin the policy where it is not."""

from __future__ import annotations

import dataclasses
import statistics

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Published, Trial
from odonata.decide.build import build
from odonata.decide.recipes import ppo_control
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.engine.recipe import Recipe, Schedule

ROLLOUTS = 50
COPIES, STEPS = 4, 512
"""2,048 steps of the environment in a rollout, as in the paper's table 3."""
MINIBATCHES = 32
LR = 3e-4
CLIPPED, UNCLIPPED = "clipped", "unclipped"
EPSILON = {CLIPPED: 0.2, UNCLIPPED: 0.0}
PASSES = ("1", "10")


def recipe_of(trial: Trial) -> Recipe:
    """Return the recipe of a trial: the paper's table 3, on CartPole."""
    base = ppo_control()
    return dataclasses.replace(
        base,
        method=dataclasses.replace(
            base.method,
            update_epochs=int(trial.condition),
            num_minibatches=MINIBATCHES,
            clip_range=EPSILON[trial.variant],
            value_clip_range=0.0,
            entropy_coef=0.0,
        ),
        data=dataclasses.replace(base.data, num_envs=COPIES, num_steps=STEPS),
        evaluation=dataclasses.replace(base.evaluation, episodes=0),
        optim=dataclasses.replace(base.optim, lr=LR),
        schedule=Schedule(kind="constant", warmup=0.0),
        steps=trial.steps(ROLLOUTS),
        seed=trial.seed,
        log_every=1,
        device="cpu",
    )


def trial(trial: Trial) -> Figures:
    """Train on CartPole and return the return over all of training, and over its last hundred episodes."""
    torch.manual_seed(trial.seed)
    task = build(recipe_of(trial))
    rows: list[dict[str, float]] = []
    task.watch = lambda step, figures: rows.append(figures)
    last = train(task.recipe, task, None, World(0, 1, torch.device("cpu")))
    updates = [row for row in rows if "approx_kl" in row]
    return {
        "return_in_training": statistics.fmean(row["return"] for row in updates if "return" in row),
        "return_last_100": last["return_last_100"],
        "largest_kl": max(row["approx_kl"] for row in updates),
        "entropy": updates[-1]["entropy"],
    }


CLAIM = Claim(
    name="ppo-clip",
    room="decide",
    methods=("ppo-control",),
    source="Schulman et al. 2017, arXiv:1707.06347, table 1 (no clipping or penalty −0.39, clipping with ε = 0.2 0.82; "
    "settings: table 3)",
    hypothesis="With ten passes over each rollout the clipped objective (ε = 0.2) learns better than the same "
    "surrogate unclipped: the return is higher over the whole of training.",
    data="CartPole-v1, 102,400 steps: 50 rollouts of 4 × 512. A perfect policy gets 500, a random one about 22.",
    scaled_down="The paper averages seven continuous tasks of a million steps and gives a normalised score of the last "
    "100 episodes; here it is CartPole and returns as they are. Horizon 2,048, minibatches of 64, ten passes, Adam at "
    "3e-4, γ = 0.99 and λ = 0.95 are its own (table 3), and, as there, nothing is tuned for either variant. One pass "
    "is added to show that the passes are what clipping is for.",
    trial=trial,
    conditions=PASSES,
    variants=(CLIPPED, UNCLIPPED),
    comparisons=(
        Comparison("ten passes: clipped against unclipped, over all of training", f"{CLIPPED}@10", f"{UNCLIPPED}@10",
                   "return_in_training", ">"),
        Comparison("ten passes: clipped against unclipped, last 100 episodes", f"{CLIPPED}@10", f"{UNCLIPPED}@10",
                   "return_last_100", ">", primary=False),
        Comparison("the gap is wider with ten passes than with one", f"{CLIPPED}@10 - {UNCLIPPED}@10",
                   f"{CLIPPED}@1 - {UNCLIPPED}@1", "return_in_training", ">", primary=False),
        Comparison("clipped: ten passes against one", f"{CLIPPED}@10", f"{CLIPPED}@1", "return_in_training", ">",
                   primary=False),
    ),
    plots=(Plot("return_in_training", "mean return over training"), Plot("return_last_100", "return, last 100")),
    axis="passes over each rollout",
    seeds=(1, 2, 3, 4, 5, 6, 7, 8),
    published=Published(
        "return_last_100",
        "Schulman et al. 2017, table 1: mean of seven tasks, scaled so that a random policy has 0 and the best 1",
        {f"{CLIPPED}@10": 0.82, f"{UNCLIPPED}@10": -0.39},
    ),
)  # fmt: skip
