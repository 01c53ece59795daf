"""R1's line of stages, each an ordinary run: how a model learns to think before it answers.

1. cold start   a few long, right answers teach the form                       (SFT)
2. rl           rewards alone make it reliable                                 (GRPO)
3. samples      its answers to many prompts, of which the right ones are kept  (rejection sampling)
4. sft          the base learns from those                                     (SFT)
5. rl           and is rewarded once more                                      (GRPO)
6. distil       a smaller model learns from what this one gets right           (SFT)

The run's folder holds a folder for each stage: a run that can be resumed, evaluated, looked at with `odonata doctor`,
and begun from. A pipeline that was killed goes on within the stage where it stopped. `model/` and `student/` hold the
results as directories that transformers reads.

Differences from the paper, on purpose: stage 4 has no general data beside the reasoning, stage 5 no preference rewards
and no reward for keeping to one language, for the tasks here have neither. Held-back prompts that stages choose by are
not those that the table is measured on.

Reference: DeepSeek-AI 2025, arXiv:2501.12948, section 2.3 (the line), 2.4 (distillation).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from odonata.data.text_sets import TextSet
from odonata.engine.checkpoint import latest_step
from odonata.engine.distributed import World, barrier
from odonata.engine.fit import train as train_task
from odonata.engine.recipe import Recipe
from odonata.engine.run import Run, write_atomically
from odonata.errors import RecipeError, RunError
from odonata.language.assets import DecoderAssets
from odonata.language.decoder import VARIANTS, Decoder
from odonata.language.language_model import open_model, published_files, read_run
from odonata.language.sampling import Sampling
from odonata.posttrain.build import build
from odonata.posttrain.evaluation import PolicyEvaluator
from odonata.posttrain.questions import PromptItem, SetQuestions
from odonata.posttrain.rewards.interface import Answered, Reward
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rollout import Asking
from odonata.posttrain.start import make_base
from odonata.posttrain.tasks import Task, task_named
from odonata.weights.published import write_folder

STAGES = ("1-cold-start", "2-rl", "3-samples", "4-sft", "5-rl", "6-distil")


@dataclass(frozen=True)
class R1Options:
    """The stages' lengths."""

    task: str = "countdown"
    """A built-in task: countdown or digits-sum, with options after a colon."""
    model: str = ""
    """The base: a directory or a run that knows the task's characters. Empty: the task's own is made."""
    student: str = "nano"
    """Size of the model that is distilled into: nano, micro, mini, small."""
    cold_texts: int = 512
    """Long, right texts of the cold start."""
    cold_steps: int = 60
    rl_steps: int = 100
    """Of the first reinforcement."""
    sample_prompts: int = 2048
    """Prompts that are answered for the samples."""
    sample_group: int = 4
    """Answers to each."""
    sft_steps: int = 150
    final_steps: int = 60
    """Of the second reinforcement."""
    distil_prompts: int = 24_000
    """Prompts whose right answers the student learns."""
    distil_steps: int = 600
    sft_lr: float = 1e-3
    rl_lr: float = 3e-4

    def check(self) -> None:
        """Refuse what no stage can use.

        Raises:
            RecipeError: names the option and its range.
        """
        task_named(self.task)
        if self.student not in VARIANTS:
            raise RecipeError(f"--student {self.student!r} is unknown; there are {', '.join(VARIANTS)}")
        for name in ("cold_texts", "sample_prompts", "distil_prompts"):
            if getattr(self, name) < 64:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; a batch needs 64 at least")
        for name in ("cold_steps", "rl_steps", "sample_group", "sft_steps", "final_steps", "distil_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 1")


def run(recipe: Recipe, folder: Path, world: World, *, resume: bool = False) -> list[str]:
    """Run the stages that are not finished; return the lines that say what came out.

    Args:
        recipe: of r1.
        folder: the run.
        world: this process among the ranks.
        resume: whether the folder holds the run already.

    Raises:
        OdonataError: an option cannot be used, or a stage had to stop.
    """
    options: R1Options = recipe.method
    options.check()
    _refuse_unused(recipe)
    opened = Run(folder, resume=resume) if world.leads else Run.joined(folder)
    try:
        pipeline = Pipeline(recipe, folder, world)
        if world.leads and not resume:
            opened.describe(recipe, pipeline.task.texts.name)
        barrier()
        return pipeline.run()
    finally:
        opened.close()


def _refuse_unused(recipe: Recipe) -> None:
    """Stages have recipes of their own: what this one says of rates or steps would change nothing."""
    from odonata.posttrain.recipes import r1

    plain, passed_on = (
        r1(),
        ("name", "method", "evaluation", "seed", "precision", "device", "devices", "parallel", "out"),
    )
    for field in dataclasses.fields(recipe):
        if field.name not in passed_on and getattr(recipe, field.name) != getattr(plain, field.name):
            raise RecipeError(
                f"--{field.name.replace('_', '-')} does nothing for r1, whose stages have their own; see --rl-steps, "
                "--sft-steps, --rl-lr and the like"
            )


class Pipeline:
    """The stages of one run.

    Args:
        recipe: of r1.
        folder: the run.
        world: this process among the ranks.
    """

    def __init__(self, recipe: Recipe, folder: Path, world: World) -> None:
        self.recipe, self.folder, self.world = recipe, folder, world
        self.options: R1Options = recipe.method
        self.task: Task = task_named(self.options.task)
        self.steps = 0
        self.table: dict[str, dict[str, float]] = self._read_table()

    def run(self) -> list[str]:
        """Run what is not finished and return the table's lines."""
        options, base = self.options, self._base()
        self._measured("base", base)
        cold = self._write("1-cold-start.jsonl", lambda: right_texts(self.task, options.cold_texts))
        started = self._sft("1-cold-start", base, cold, options.cold_steps)
        reasoner = self._rl("2-rl", started, options.rl_steps)
        samples = self._samples("3-samples.jsonl", reasoner, options.sample_prompts, options.sample_group)
        tuned = self._sft("4-sft", base, samples, options.sft_steps)
        final = self._rl("5-rl", tuned, options.final_steps)
        lessons = self._samples("6-lessons.jsonl", final, options.distil_prompts, 1)
        small = self._base(options.student)
        self._measured("student before", small)
        student = self._sft("6-distil", small, lessons, options.distil_steps)
        for name, source in (("model", final), ("student", student)):
            self._publish(name, source)
        return self._lines()

    # ---- the stages ----------------------------------------------------------------------------------------------

    def _base(self, variant: str = "") -> Path:
        """Return the directory of a base, made where there is none: the pipeline's own, or a student's."""
        if self.options.model and not variant:
            return Path(self.options.model)
        folder = self.folder / (f"0-{variant}" if variant else "0-base")
        if not folder.is_dir() and self.world.leads:
            built_in = dataclasses.replace(self.task.built_in, variant=variant or self.task.built_in.variant)
            self._say(f"{folder.name}: {built_in.steps} steps on {self.task.texts.name}")
            decoder, assets, _ = make_base(Task(self.task.texts, built_in), self.recipe.seed)
            write_folder(folder, published_files(decoder.state_dict(), assets))
        barrier()
        return folder

    def _sft(self, stage: str, model: Path, rows: Path, steps: int) -> Path:
        recipe = self._recipe("sft", steps, self.options.sft_lr)
        method = dataclasses.replace(recipe.method, model=str(model))
        data = dataclasses.replace(recipe.data, path=str(rows), heldout=0.05)
        return self._train(stage, dataclasses.replace(recipe, method=method, data=data))

    def _rl(self, stage: str, model: Path, steps: int) -> Path:
        recipe = self._recipe("grpo", steps, self.options.rl_lr)
        method = dataclasses.replace(recipe.method, model=str(model), task=self.options.task)
        return self._train(stage, dataclasses.replace(recipe, method=method))

    def _recipe(self, name: str, steps: int, lr: float) -> Recipe:
        from odonata.posttrain import recipes

        plain, own = recipes.by_name(name), self.recipe
        return dataclasses.replace(
            plain, steps=steps, seed=own.seed, optim=dataclasses.replace(plain.optim, lr=lr), precision=own.precision,
            device=own.device, devices=own.devices, parallel=own.parallel, eval_every=0,
        )  # fmt: skip

    def _train(self, stage: str, recipe: Recipe) -> Path:
        """Train a stage from its start, or from where it was stopped; return its folder."""
        folder = self.folder / stage
        self.steps += recipe.steps
        done = latest_step(folder / "checkpoints")
        if done != recipe.steps:
            self._say(f"{stage}: {recipe.name}, {recipe.steps} steps")
            task = build(recipe, folder / "assets" if done is not None else None)
            train_task(recipe, task, folder, self.world, resume=(folder / "config.yaml").is_file())
        self._measured(stage, folder)
        return folder

    def _samples(self, name: str, model: Path, prompts: int, group: int) -> Path:
        """Write the right answers of a model to prompts that no stage is measured on."""

        def sample() -> list[dict[str, str]]:
            decoder, assets = self._open(model)
            asking = self._asking(assets, group)
            source = SetQuestions(self.task.texts, "train", assets.tokenizer)
            kept: list[dict[str, str]] = []
            for start in range(0, prompts, 64):
                # A far epoch: prompts of reinforcement come from the first ones.
                items = [source[1000, i] for i in range(start, min(start + 64, prompts))]
                said = asking.ask(decoder, items)
                right = [value == 1.0 for value in said.judged.parts[self.task.built_in.truth]]
                kept += [
                    {"prompt": items[i // group].text, "completion": text}
                    for i, (text, keep) in enumerate(zip(said.texts, right, strict=True))
                    if keep
                ]
            self._say(f"{name}: {len(kept)} right of {prompts * group} answers")
            if len(kept) < 64:
                raise RunError(
                    f"{self.folder / name}: only {len(kept)} right answers: the stage before has not learned"
                )
            return kept

        return self._write(name, sample)

    def _write(self, name: str, make: Any) -> Path:
        """Return a file of rows, written where it is not there yet; never a part of it."""
        path = self.folder / name
        if not path.is_file() and self.world.leads:
            rows: Sequence[dict[str, str]] = make()
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        barrier()
        return path

    # ---- what came out -------------------------------------------------------------------------------------------

    def _measured(self, stage: str, model: Path) -> None:
        """Add a stage's model to the table: what it answers to prompts that nothing was chosen by."""
        if stage in self.table or not self.world.leads:
            return
        decoder, assets = self._open(model)
        source = SetQuestions(self.task.texts, "val", assets.tokenizer)
        items: list[PromptItem] = [source[0, i] for i in range(self.recipe.evaluation.prompts)]
        evaluator = PolicyEvaluator(items, self._asking(assets, 1), 256, self.task.built_in.truth)
        sampled, greedy = (evaluator.figures(decoder, Sampling(t)) for t in (1.0, 0.0))
        figures = {"right": sampled["right"], "greedy": greedy["right"], "length": sampled["length"]}
        self.table[stage] = figures
        write_atomically(self.folder / "stages.json", json.dumps(self.table, indent=1))
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": self.steps, **figures}) + "\n")

    def _asking(self, assets: DecoderAssets, group: int) -> Asking:
        truth: Reward = reward_named(self.task.built_in.truth)
        limit = self.task.texts.longest + 8
        return Asking(assets.tokenizer, [truth], [1.0], group, limit, Sampling(), self.recipe.seed + 7)

    def _open(self, model: Path) -> tuple[Decoder, DecoderAssets]:
        if (model / "config.yaml").is_file():
            decoder, assets = read_run(model, "last")
        else:
            decoder, assets, _ = open_model(model)
        return decoder.to(self.world.device), assets

    def _publish(self, name: str, model: Path) -> None:
        if self.world.leads and not (self.folder / name).is_dir():
            decoder, assets = self._open(model)
            write_folder(self.folder / name, published_files(decoder.cpu().state_dict(), assets))
        barrier()

    def _read_table(self) -> dict[str, dict[str, float]]:
        file = self.folder / "stages.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def _lines(self) -> list[str]:
        rows = [f"{'stage':<16}{'right':>8}{'greedy':>8}{'tokens':>8}"]
        for stage, figures in self.table.items():
            rows.append(f"{stage:<16}{figures['right']:>8.3f}{figures['greedy']:>8.3f}{figures['length']:>8.1f}")
        return rows

    def _say(self, line: str) -> None:
        if self.world.leads:
            Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


@torch.no_grad()
def right_texts(task: Task, count: int) -> list[dict[str, str]]:
    """Return texts of a task that think first and end right: what a cold start is taught by.

    Args:
        task: a built-in one.
        count: of texts.
    """
    texts: TextSet = dataclasses.replace(task.texts, worked=1.0, slips=0.0)  # pyright: ignore[reportArgumentType, reportAssignmentType]
    truth = reward_named(task.built_in.truth)
    kept: list[dict[str, str]] = []
    index = 0
    while len(kept) < count:
        prompt, completion = texts.text("train", 2_000_000_000 + index)
        answer = Answered(prompt, completion, texts.row("train", 2_000_000_000 + index), True)
        if truth([answer]) == [1.0]:
            kept.append({"prompt": prompt, "completion": completion})
        index += 1
    return kept
