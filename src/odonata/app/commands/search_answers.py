"""`odonata search MODEL …`: answers found with more compute, and what each way to search makes of a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from odonata.app.commands.arguments import parse, print_json
from odonata.errors import DataError, RecipeError

if TYPE_CHECKING:
    from odonata.posttrain.search.scorers import Scorer
    from odonata.posttrain.search.solve import Solved
    from odonata.posttrain.search.sources import Source

Way = Literal["greedy", "sample", "beam", "best-of-n", "vote", "prm", "mcts"]
OPTIONS = ("--by", "--budget", "--oracle", "--reward-model")
"""Options that tell this search from one among vectors, where nothing else does."""


@dataclass(frozen=True)
class SearchAnswersArguments:
    """Search for answers: `odonata search MODEL task.jsonl --by vote best-of-n --budget 64`.

    Prints how many questions are answered rightly with 1, 2, 4 … answers for each, with 95 % intervals over questions,
    and how many tokens that takes. pass@k, the share of questions that any of k samples answers, is the ceiling.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A language model: a directory as transformers writes it, or a run."""
    task: Annotated[str, tyro.conf.Positional]
    """Questions: a .jsonl file (gsm8k, svamp, countdown …), or a built-in task: digits-sum or countdown, with options
    after a colon."""
    by: tuple[Way, ...] = ("greedy", "sample", "best-of-n", "vote")
    """Ways to search: greedy; one sample; beam; best-of-n by log-probability, or by a reward model of answers; vote, by
    the majority, or weighted by a reward model; prm, by scores of steps; mcts, a tree of steps."""
    budget: int = 64
    """Answers for each question, at most."""
    prompts: int = 256
    """Questions, at most."""
    reward: str = ""
    """What says whether an answer is right, as in `odonata train grpo`: math, countdown, file.py:function (empty: the
    task's, or what the file's rows fit)."""
    reward_model: Path | None = None
    """A run of `odonata train reward` or `prm`, or a directory: scores answers, or their steps."""
    oracle: bool = False
    """mcts: the truth says what answers are worth, as a perfect judge would."""
    temperature: float = 1.0
    """By which scores are divided when sampling."""
    max_new_tokens: int | None = None
    """Of an answer at most (None: 512, or what the task's answers need)."""
    width: int | None = None
    """prm, mcts: next steps of each beam, answers from each leaf (None: 4)."""
    aggregate: Literal["min", "prod", "mean", "last"] | None = None
    """How scores of steps become one, in votes, beams and trees (None: min)."""
    step_end: str | None = None
    """prm, mcts: the text that ends a step (None: a line break, or what the task has); "" for --step-tokens alone."""
    step_tokens: int | None = None
    """prm, mcts: tokens of a step at most (None: 128, or what the task has)."""
    length_penalty: float | None = None
    """beam: exponent of the length that scores are divided by (None: 1)."""
    template: str = "auto"
    """How conversations are written: the model's own chat template, or chatml, llama3, plain."""
    prompt_form: Literal["auto", "chat", "text"] | None = None
    """Files: whether questions go through the chat template: as the row's form says (None), always, or never."""
    prompt_template: str = ""
    """Files: makes the prompt of the row's fields, such as "Question: {question} Answer:"."""
    on_error: Literal["stop", "skip"] = "stop"
    """Files: what to do about a row that cannot be used."""
    seed: int = 0
    """Of all chance."""
    batch_rows: int = 256
    """Answers made at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    draw: Path | None = None
    """Write the curve as a .png."""
    out: Path | None = None
    """Write the answers as .jsonl, a line for each question."""
    json: bool = False
    """For programs: a list of {method, budget, accuracy, low, high, problems, tokens}."""


def is_model(path: Path) -> bool:
    """Return whether a path holds a language model, or a run of one; imports no torch unless it is a directory."""
    if not path.is_dir():
        return False
    if (path / "assets" / "decoder.json").is_file():
        return True
    from odonata.language.language_model import recognises

    return recognises(path)


def search_answers(arguments: Sequence[str]) -> None:
    """Print the table of accuracies and tokens."""
    options = parse(SearchAnswersArguments, "search", arguments)
    for path, suffix in ((options.draw, ".png"), (options.out, ".jsonl")):
        _check_writable(path, suffix)
    found, source = run_search(options)
    if options.out is not None:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.records)
        options.out.write_text(text, encoding="utf-8")
    if options.draw is not None:
        from odonata.posttrain.search.table import draw_curve

        draw_curve(found.rows, options.draw, title=f"{options.model.resolve().name} on {Path(options.task).name}")
    if options.json:
        print_json(found.to_list())
        return
    for note in (*source.notes, *found.notes):
        print(note)
    print(f"\naccuracy in % [95 %], judged by {source.reward}; budget: answers for each question\n{found.table()}")
    for path in (options.draw, options.out):
        if path is not None:
            print(f"→ {path}")


def run_search(options: SearchAnswersArguments) -> tuple[Solved, Source]:
    """Return what was found, and the questions that were asked.

    Raises:
        OdonataError: the model, the reward model or the questions cannot be used, or options contradict each other.
    """
    from odonata.errors import WeightsError
    from odonata.posttrain.search.options import SearchOptions
    from odonata.posttrain.search.sources import open_source

    if not options.model.exists():
        raise WeightsError(f"{options.model}: no such run folder or language model")
    source = open_source(
        options.task, count=options.prompts, reward=options.reward, on_error=options.on_error,
        prompts=options.prompt_form, template=options.prompt_template,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "temperature": options.temperature, "width": options.width, "aggregate": options.aggregate,
        "length_penalty": options.length_penalty, "oracle": options.oracle, "template": options.template,
        "seed": options.seed, "batch_rows": options.batch_rows,
        "max_new_tokens": source.max_new_tokens if options.max_new_tokens is None else options.max_new_tokens,
    }  # fmt: skip
    if options.step_end is not None or options.step_tokens is not None:
        fields["step"] = _step(options, source)
    scorer = _scorer(options)
    SearchOptions(by=options.by, budget=options.budget, **fields).check(scorer)
    if {"prm", "mcts"} & set(options.by):
        fields["step"] = fields.get("step", source.step)
    from odonata.app.api import load
    from odonata.language.language_model import LanguageModel
    from odonata.posttrain.search.solve import solve

    model = load(options.model, device=options.device)
    if not isinstance(model, LanguageModel):
        raise WeightsError(f"{options.model} is a run of another kind: it holds no language model")
    found = solve(
        model, source.questions, by=options.by, budget=options.budget, reward=source.reward, scorer=scorer, **fields
    )
    return found, source


def _step(options: SearchAnswersArguments, source: Source):
    from odonata.posttrain.search.step_beam import StepEnd

    text = source.step.text if options.step_end is None else options.step_end
    return StepEnd(text, source.step.tokens if options.step_tokens is None else options.step_tokens)


def _scorer(options: SearchAnswersArguments) -> Scorer | None:
    if options.reward_model is None:
        return None
    import torch

    from odonata.posttrain.search.judged import open_reward_model

    place = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    return open_reward_model(options.reward_model, place)


def _check_writable(path: Path | None, suffix: str) -> None:
    """Refuse a file that could not be written, before anything is computed."""
    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise RecipeError(f"{path}: this file is written as {suffix}")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder to write {path.name} into")
