"""R1's claim on small models: learning from a strong model's answers beats rewards of one's own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.posttrain_toy import DATA, figures_of, opened, policy_of, recipe_of, save_base, trained
from odonata.engine.recipe import Recipe
from odonata.language.language_model import published_files
from odonata.language.sampling import Sampling
from odonata.posttrain import recipes
from odonata.posttrain.questions import SetQuestions
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Asking
from odonata.posttrain.tasks import task_named
from odonata.weights.published import write_folder

TASK = "digits-sum"
STUDENT_STEPS = 1500
TEACHER_STEPS = 100
DIRECT_STEPS = 200
LESSONS = 60_000
LESSON_BATCH = 64
LR = 1e-3
WHERE = "24 thousand weights"


def prepare(folder: Path, budget: float) -> None:
    """Make base, teacher, student, and the teacher's right answers."""
    save_base(folder / "base", budget, TASK)
    save_base(folder / "student", budget, TASK, variant="nano", steps=STUDENT_STEPS)
    if not (folder / "teacher" / "config.json").is_file():
        steps = max(2, round(TEACHER_STEPS * budget))
        decoder, assets = policy_of(trained(recipe_of("grpo", folder / "base", task=TASK, steps=steps, seed=0)))
        write_folder(folder / "teacher", published_files(decoder.state_dict(), assets))
    if not (folder / "lessons.jsonl").is_file():
        write_lessons(folder, max(2048, round(LESSONS * budget)))


def write_lessons(folder: Path, count: int) -> None:
    """Write the teacher's answers to so many prompts, those that are right."""
    decoder, assets = opened(folder / "teacher")
    task = task_named(TASK)
    truth = reward_named(task.built_in.truth)
    asking = Asking(assets.tokenizer, [truth], [1.0], 1, task.texts.longest + 8, Sampling(), 0)
    source, lines = SetQuestions(task.texts, "train", assets.tokenizer), list[str]()
    for start in range(0, count, 512):
        items = [source[2000, i] for i in range(start, min(start + 512, count))]
        said = asking.ask(decoder, items)
        for item, text, right in zip(items, said.texts, said.judged.total, strict=True):
            if right == 1.0:
                lines.append(json.dumps({"prompt": item.text, "completion": text}))
    (folder / "lessons.jsonl").write_text("\n".join(lines) + "\n")


def trial(trial: Trial) -> Figures:
    """Measure the student, or what rewards or lessons make of it."""
    student = trial.folder / "student"
    if trial.variant == "student":
        decoder, assets = opened(student)
    elif trial.variant == "rewards":
        steps = trial.steps(DIRECT_STEPS)
        decoder, assets = policy_of(trained(recipe_of("grpo", student, task=TASK, steps=steps, seed=trial.seed)))
    else:
        decoder, assets = policy_of(trained(lessons_recipe(trial, student)))
    return figures_of(decoder, assets, TASK, trial.split, trial.seed)


def lessons_recipe(trial: Trial, student: Path) -> Recipe:
    """Return the recipe by which the student learns the teacher's answers, each once."""
    plain = recipes.sft()
    lines = sum(1 for _ in (trial.folder / "lessons.jsonl").open())
    return dataclasses.replace(
        plain,
        method=dataclasses.replace(plain.method, model=str(student)),
        data=dataclasses.replace(
            plain.data, path=str(trial.folder / "lessons.jsonl"), heldout=0.0, batch_size=LESSON_BATCH
        ),
        optim=dataclasses.replace(plain.optim, lr=LR),
        steps=max(2, round(lines / LESSON_BATCH * trial.budget)),
        seed=trial.seed,
        eval_every=0,
    )


CLAIM = Claim(
    name="distillation-beats-rl",
    room="posttrain",
    methods=("grpo", "sft", "r1"),
    source="DeepSeek-AI 2025, arXiv:2501.12948, section 4.1 and table 6 (Qwen-32B distilled 72.6 on AIME 2024, by "
    "rewards of its own 47.0)",
    hypothesis="A student of 24 thousand weights that learns a larger model's right answers is right far more "
    "often, "
    "by more than 30 points greedily, than the same student rewarded for its own answers.",
    data=DATA + " The student has read the same texts for 1,500 steps; its teacher is the base after 100 steps of "
    "GRPO. "
    "The lessons are the teacher's right answers to 60,000 prompts, each seen once.",
    scaled_down="The paper distils 800 thousand samples of R1 into models of 1.5 to 70 billion weights, and rewards a "
    "32-billion model for 10 thousand steps; here 200 steps of GRPO with 16 prompts of 8 answers. The margin is "
    "under half "
    "of what a pilot with other code measured for greedy answers (83 to 88 % against 10 %).",
    trial=trial,
    conditions=(WHERE,),
    variants=("student", "rewards", "lessons"),
    comparisons=(
        Comparison("lessons against rewards, greedy", f"lessons@{WHERE}", f"rewards@{WHERE}", "greedy", ">", 30.0),
        Comparison("lessons against rewards, by chance", f"lessons@{WHERE}", f"rewards@{WHERE}", "right", ">", 30.0,
                   primary=False),
        Comparison("rewards against the student as it was", f"rewards@{WHERE}", f"student@{WHERE}", "right", ">",
                   primary=False),
    ),
    plots=(Plot("greedy", "right greedy answers, %"), Plot("right", "right answers at temperature 1, %")),
    seeds=(1, 2, 3),
    prepare=prepare,
)  # fmt: skip
