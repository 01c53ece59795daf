"""Test-time scaling: votes gain from samples, so does the model's own word; a learned judge gains, and then loses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.posttrain_toy import save_base, trained
from odonata.data.dialogues import Prompt, Question
from odonata.language.language_model import load
from odonata.posttrain import recipes
from odonata.posttrain.judge import Judge
from odonata.posttrain.scorer import Scorer as ScoringNetwork
from odonata.posttrain.search.judged import scorer_of
from odonata.posttrain.search.scorers import Scorer
from odonata.posttrain.search.solve import solve
from odonata.posttrain.tasks import task_named

TASK = "digits-sum"
BUDGETS = ("1", "8", "64")
PROMPTS = 256
VOTE, LOGPROB, REWARD, OUTCOMES, STEPS, WEIGHTED = (
    "majority vote", "best by log p", "best by reward model", "best by outcome model", "best by step model",
    "vote by reward model",
)  # fmt: skip
ROWS = {
    VOTE: ("vote", "vote"), LOGPROB: ("best-of-n", "best-of-n (log p)"), REWARD: ("best-of-n", "best-of-n (reward)"),
    OUTCOMES: ("prm", "prm (last)"), STEPS: ("prm", "prm (min)"), WEIGHTED: ("vote", "vote (reward)"),
}  # fmt: skip
"""Variant → the way to search, and the row of its table."""
UPDATES = {"reward": 56, "prm": 480}
"""Of 64 pairs, eight or nine times over them; of 128 answers, seventeen times over 3,584."""


def prepare(folder: Path, budget: float) -> None:
    """Make the base."""
    save_base(folder / "base", budget, TASK)


def trial(trial: Trial) -> Figures:
    """Train the judge that the variant needs, draw 64 answers to each prompt, and choose among N of them."""
    model = load(trial.folder / "base", None, torch.device("cpu"))
    texts = task_named(TASK).texts
    count = trial.steps(PROMPTS)
    questions = [
        Question(Prompt(text=texts.prompt(trial.split, i)), texts.row(trial.split, i), f"prompt {i}")
        for i in range(count)
    ]
    way, row = ROWS[trial.variant]
    options: dict[str, Any] = {"by": (way,), "budget": 64, "max_new_tokens": texts.longest + 8, "batch_rows": 4096}
    found = solve(
        model, questions, reward=task_named(TASK).built_in.truth, scorer=judge_of(trial), seed=trial.seed, **options
    )
    by_row = {(each.method, each.budget): each.accuracy for each in found.rows}
    budget = int(trial.condition)
    return {"right": 100 * by_row[row, budget], "pass@k": 100 * by_row["pass@k", budget]}


def judge_of(trial: Trial) -> Scorer | None:
    """Return the variant's judge, trained on 8 answers of the base to each of 512 prompts; None where it needs none."""
    if trial.variant in (VOTE, LOGPROB):
        return None
    name = "prm" if trial.variant in (OUTCOMES, STEPS) else "reward"
    plain = recipes.by_name(name)
    changes: dict[str, Any] = {"labels": "outcome"} if trial.variant == OUTCOMES else {}
    recipe = dataclasses.replace(
        plain,
        method=dataclasses.replace(plain.method, model=str(trial.folder / "base"), task=TASK, **changes),
        evaluation=dataclasses.replace(plain.evaluation, rows=0),
        steps=trial.steps(UPDATES[name]),
        seed=trial.seed,
        eval_every=0,
    )
    torch.manual_seed(trial.seed)
    task = trained(recipe)
    network = task.method.scorer
    assert isinstance(network, ScoringNetwork)
    return scorer_of(Judge(network.eval(), task.assets, torch.device("cpu"), name))


def _gap(name: str, variant: str, more: str, fewer: str, margin: float, primary: bool = True) -> Comparison:
    gap = f"{variant}@{more} - {variant}@{fewer}"
    return Comparison(f"{variant}: {name}, by", gap, 0.0, "right", ">", margin, primary=primary)


CLAIM = Claim(
    name="test-time-scaling",
    room="posttrain",
    methods=("reward", "prm"),
    source="Wang et al. 2022, arXiv:2203.11171, figure 2 (votes gain from samples); Cobbe et al. 2021, "
    "arXiv:2110.14168, under test time compute (best of N by a verifier gains up to 400 samples and then loses); Gao "
    "et al. 2022, arXiv:2210.10760 (over-optimisation by best of N); Lightman et al. 2023, arXiv:2305.20050 (steps "
    "over outcomes)",
    hypothesis="From 1 to 64 samples the majority's answer, and the answer that the model itself finds likeliest, come "
    "to be right more often by 34 points or more. The answer that a learned model of outcomes scores highest, of "
    "pairs or of single answers, is right more often with 8 samples than with 1, and less often with 64 than with 8, "
    "by 20 points or more each.",
    data=f"Sums of six digits modulo 10. The base answers {PROMPTS} prompts that nothing was trained on 64 times each; "
    "N of them are chosen from in all ways. Judges are the base with a head, and learn from 8 of its answers to each "
    "of 512 other prompts: `reward` from pairs, `prm` from outcomes alone or from all steps.",
    scaled_down="A base of 96 thousand weights and answers of at most 9 tokens. The margins are half of what a pilot "
    "of two seeds found: votes .31 to .99, log-probability .31 to 1.0, a model of outcomes .31, .70 and .28 with 1, 8 "
    "and 64 samples. What decides nothing: whether a judge of steps is better than one of outcomes, as the paper finds "
    "at its scale. The pilot saw no difference: two answers in three show no steps, and of those both are told the "
    "same. And whether votes weighted by the judge go on rising where its favourites fall (pilot: .84 to .99).",
    trial=trial,
    conditions=BUDGETS,
    variants=tuple(ROWS),
    comparisons=(
        _gap("64 samples are right more often than 1", VOTE, "64", "1", 34.0),
        _gap("64 samples are right more often than 1", LOGPROB, "64", "1", 34.0),
        *(_gap("8 samples are right more often than 1", variant, "8", "1", 20.0, primary=variant != STEPS)
          for variant in (REWARD, OUTCOMES, STEPS)),
        *(_gap("8 samples are right more often than 64", variant, "8", "64", 20.0, primary=variant != STEPS)
          for variant in (REWARD, OUTCOMES, STEPS)),
        *(Comparison(f"with {n} samples, steps judge better than outcomes", f"{STEPS}@{n}", f"{OUTCOMES}@{n}", "right",
                     ">", primary=False) for n in ("8", "64")),
        _gap("64 samples are right more often than 8", WEIGHTED, "64", "8", 7.0, primary=False),
    ),
    plots=(Plot("right", "right answers, %"), Plot("pass@k", "any of N right, %")),
    axis="samples to each prompt",
    prepare=prepare,
)  # fmt: skip
