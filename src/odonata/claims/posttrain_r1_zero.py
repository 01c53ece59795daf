"""R1-Zero's claim in minutes: rewards alone bring out thinking, where there is any to bring out."""

from __future__ import annotations

from pathlib import Path

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.posttrain_toy import DATA, figures_of, opened, policy_of, recipe_of, save_base, trained

KNOWN, UNKNOWN = "steps known", "steps never learned"
TASKS = {KNOWN: "digits-sum", UNKNOWN: "digits-sum:digits=8,worked=0.15"}
UNKNOWN_STEPS = 1500
STEPS = 100
METHODS = ("grpo", "dr-grpo", "dapo", "rloo")


def prepare(folder: Path, budget: float) -> None:
    """Make the two bases."""
    save_base(folder / "known", budget, TASKS[KNOWN])
    save_base(folder / "unknown", budget, TASKS[UNKNOWN], steps=UNKNOWN_STEPS)


def trial(trial: Trial) -> Figures:
    """Measure a base, or what a method makes of it."""
    base = trial.folder / ("known" if trial.condition == KNOWN else "unknown")
    task = TASKS[trial.condition]
    if trial.variant == "base":
        decoder, assets = opened(base)
    else:
        recipe = recipe_of(trial.variant, base, task=task, steps=trial.steps(STEPS), seed=trial.seed)
        decoder, assets = policy_of(trained(recipe))
    return figures_of(decoder, assets, task, trial.split, trial.seed)


CLAIM = Claim(
    name="r1-zero",
    room="posttrain",
    methods=METHODS,
    source="DeepSeek-AI 2025, arXiv:2501.12948, section 2.2 and figures 2 and 3 (accuracy and length of R1-Zero rise "
    "with no reward for either step or length); Shao et al. 2024, arXiv:2402.03300 (GRPO); Liu et al. 2025, "
    "arXiv:2503.20783, section 2 (the behaviour is in the base already)",
    hypothesis="Rewarded for right answers alone, a model that sometimes writes its steps comes to write them nearly "
    "always: right answers rise by more than 30 points and answers grow by more than two tokens, with no reward for "
    "length. A base that never learned the steps stays at chance.",
    data=DATA + " The control's rows have eight digits, 15 % with running sums, and its base 1,500 steps: it has the "
    "form of steps without the sums.",
    scaled_down="The paper trains DeepSeek-V3 for thousands of steps on mathematics and code; here 100 steps of 16 "
    "prompts with 8 answers (4 of RLOO). Rewards select a behaviour that the base has; nothing here is discovered. "
    "Thresholds are half of what a pilot with other code measured (33 to 97 %, 4.9 to 9.0 tokens). Seeds decide "
    "what is "
    "sampled; the bases are the same.",
    trial=trial,
    conditions=(KNOWN, UNKNOWN),
    variants=("base", *METHODS),
    comparisons=(
        Comparison("GRPO's right answers rise", f"grpo@{KNOWN}", f"base@{KNOWN}", "right", ">", 30.0),
        Comparison("GRPO's greedy answers rise", f"grpo@{KNOWN}", f"base@{KNOWN}", "greedy", ">", 30.0),
        Comparison("answers grow, in tokens", f"grpo@{KNOWN}", f"base@{KNOWN}", "length", ">", 2.0),
        Comparison("without the steps GRPO stays below 20 %", f"grpo@{UNKNOWN}", 20.0, "right", "<"),
        *(Comparison(f"{name}'s right answers rise", f"{name}@{KNOWN}", f"base@{KNOWN}", "right", ">", 30.0,
                     primary=False) for name in METHODS[1:]),
        *(Comparison(f"without the steps {name} stays below 20 %", f"{name}@{UNKNOWN}", 20.0, "right", "<",
                     primary=False) for name in METHODS[1:]),
        Comparison("GRPO's division by deviations is worth five points", f"grpo@{KNOWN}", f"dr-grpo@{KNOWN}", "right",
                   ">", 5.0, primary=False),
    ),
    plots=(Plot("right", "right answers at temperature 1, %"), Plot("length", "tokens of an answer")),
    axis="base",
    seeds=(1, 2, 3),
    prepare=prepare,
)  # fmt: skip
