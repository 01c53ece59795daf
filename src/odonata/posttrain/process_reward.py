"""A process reward model: whether each step of a solution is right, judged at the step's last token.

A decoder with a head of two outputs, bad and good, reads problem and solution. Each step ends with a separator, and is
judged at its last token; all other tokens have no label. An outcome reward model is the same with one label, at the end
of the last step (`--labels outcome`).

Notable:
- The label of a step says whether the solution is right *so far*: nothing after a mistake is called right in the data
  that are read here.
- Steps are encoded one by one, so that a step's last token never depends on what follows, as TRL does. A separator
  belongs to the step that it ends.
- The denominator counts the labelled steps of the whole batch, over all micro-batches and ranks.
- Few steps are wrong, so `balanced` is the mean of the shares of good and of bad steps that are judged rightly; a model
  that calls everything good has 0.5. `first_mistake` asks for whole solutions: the first step that is judged bad is
  the first bad one, or there is none on either side.

References: Uesato et al. 2022, arXiv:2211.14275; Lightman et al. 2023, arXiv:2305.20050 (neutral steps, appendix F);
`PRMTrainer` of TRL 1.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from odonata.data.dialogues import NEUTRAL, RIGHT, Steps
from odonata.data.digit_sums import steps_of
from odonata.engine import tensors
from odonata.engine.method import Method
from odonata.errors import DataError, RecipeError
from odonata.language.sequences import Sequences, pad_sequences
from odonata.nn.ranks import mean_over_ranks
from odonata.posttrain.options import PolicyOptions
from odonata.posttrain.reward_losses import IGNORED, step_cross_entropy, step_labels
from odonata.posttrain.rows import Encoder
from odonata.posttrain.sampled import Judged, Row, Sampled
from odonata.posttrain.scorer import Scorer

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


@dataclass(frozen=True)
class PRMOptions(PolicyOptions):
    """How a process reward model learns from judged steps."""

    labels: Literal["steps", "outcome"] = "steps"
    """Learn whether each step is right, or only whether the last one is."""
    separator: str = "\n"
    """Ends each step of a file's rows."""
    neutral: Literal["good", "bad", "skip"] = "good"
    """What a neutral step counts as; skip: it has no label."""
    zero: Literal["", "neutral", "wrong"] = ""
    """What the label 0 means, where a file's labels are 0 and 1 and do not tell."""
    sampled: Sampled = field(default_factory=Sampled)
    """Solutions of a built-in task."""

    def check(self, path: str) -> None:
        """Refuse options that contradict each other.

        Raises:
            RecipeError: names them.
        """
        super().check(path)
        self.sampled.check(path)
        for name, default in (("separator", "\n"), ("neutral", "good"), ("zero", "")):
            if not path and getattr(self, name) != default:
                raise RecipeError(f"--{name} is about a file's rows; a built-in task brings its own steps")
        if not path and self.labels == "steps" and self.task.partition(":")[0] not in ("", "digits-sum"):
            raise RecipeError(f"--task {self.task} has no judged steps: set --labels outcome, or take digits-sum")


class StepRow(NamedTuple):
    """A problem with its solution, as ids, and a label for each."""

    prompt: tuple[int, ...]
    solution: tuple[int, ...]
    labels: tuple[int, ...]
    """Of prompt and solution: 1 or 0 where a step ends, `IGNORED` elsewhere."""

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.labels)

    def cut(self, most: int) -> StepRow | None:
        """Return the row up to a limit; None where no step ends before it."""
        kept = self.labels[:most]
        room = max(0, most - len(self.prompt))
        return StepRow(self.prompt, self.solution[:room], kept) if set(kept) != {IGNORED} else None


def step_ids(encoder: Encoder, steps: Sequence[str], separator: str) -> list[list[int]]:
    """Return the ids of each step with its separator.

    Raises:
        DataError: a step has no token.
    """
    ids = [[*encoder.tokenizer.encode(step), *encoder.tokenizer.encode(separator)] for step in steps]
    empty = next((number for number, step in enumerate(ids) if not step), None)
    if empty is not None:
        raise DataError(f"step {empty} has no token, so it cannot be judged")
    return ids


def encode_steps(item: Steps, encoder: Encoder, separator: str, neutral: Literal["good", "bad", "skip"]) -> StepRow:
    """Return judged steps as ids with labels.

    Args:
        item: problem, steps and labels.
        encoder: text to ids.
        separator: ends each step.
        neutral: what a neutral step counts as.

    Raises:
        DataError: a step has no token.
    """
    prompt, steps = encoder.prompt(item.prompt), step_ids(encoder, item.steps, separator)
    good = [label == RIGHT or (label == NEUTRAL and neutral == "good") for label in item.labels]
    labels = step_labels(len(prompt), [len(step) for step in steps], good)
    if neutral == "skip":
        last = len(prompt) - 1
        for step, label in zip(steps, item.labels, strict=True):
            last += len(step)
            labels[last] = IGNORED if label == NEUTRAL else labels[last]
    return StepRow(tuple(prompt), tuple(token for step in steps for token in step), tuple(labels))


def outcome_only(row: StepRow) -> StepRow:
    """Return the row with its last label alone."""
    last = max(place for place, label in enumerate(row.labels) if label != IGNORED)
    return row._replace(labels=tuple(label if i == last else IGNORED for i, label in enumerate(row.labels)))


def solution_rows(answers: Sequence[Sequence[Judged]], *, by_steps: bool) -> list[Row]:
    """Return answers to prompts of a built-in task as rows of judged steps.

    Args:
        answers: of the base, judged.
        by_steps: steps as `odonata.data.digit_sums` judges them; else a whole answer is one step.
    """
    rows: list[Row] = []
    for answer in (answer for said in answers for answer in said):
        judged = steps_of(answer.prompt, answer.text) if by_steps else [(answer.text, answer.right)]
        rows.append(
            {
                "prompt": answer.prompt,
                "completions": [text for text, _ in judged],
                "labels": [right for _, right in judged],
            }
        )
    return rows


@dataclass(frozen=True)
class StepBatch:
    """Solutions as tensors."""

    sequences: Sequences
    """Scored where a step with a label ends."""
    labels: Int[Tensor, "batch time"]

    def by_length(self, parts: int) -> list[StepBatch]:
        """Return the solutions in at most so many parts of like lengths."""
        if parts == 1:
            return [self]
        order = self.sequences.lengths.argsort(stable=True)
        return [self.rows(rows) for rows in torch.chunk(order, parts)]

    def rows(self, wanted: Int[Tensor, " wanted"]) -> StepBatch:
        """Return some solutions, without padding that they do not need."""
        sequences = self.sequences.rows(wanted)
        return StepBatch(sequences, self.labels[wanted][:, : sequences.ids.shape[1]])


@dataclass(frozen=True)
class PadSteps:
    """Makes a batch of solutions."""

    pad_id: int

    def __call__(self, rows: Sequence[StepRow]) -> StepBatch:
        """Return the batch."""
        whole = pad_sequences([row.prompt for row in rows], [row.solution for row in rows], self.pad_id)
        labels = torch.full_like(whole.ids, IGNORED)
        for place, row in enumerate(rows):
            labels[place, : row.length] = torch.tensor(row.labels)
        return StepBatch(Sequences(whole.ids, labels != IGNORED), labels)


class ProcessReward(Method):
    """A scorer that learns whether steps are right.

    Args:
        scorer: of two outputs: bad, good.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the share of a micro-batch: solutions, and the number of labelled steps that counts."""
        part, steps = batch
        terms = step_cross_entropy(self.scorer(part.sequences.ids), part.labels)
        good = (part.labels == 1).sum()
        return {"loss": terms.losses.sum() / steps, "accuracy": terms.hits.sum() / steps, "good": good / steps}

    def step(self, batch: StepBatch, engine: Engine) -> dict[str, Tensor]:
        """Do one update over the batch in micro-batches of like lengths."""
        steps = mean_over_ranks(batch.sequences.scored.sum(), batch.labels)
        return engine.minimise_parts(self, [(part, steps) for part in batch.by_length(engine.recipe.accumulate)])


@dataclass
class StepEvaluator:
    """Measures how well the steps of held-back solutions are judged, all of them whatever was learned.

    Args:
        rows: solutions with the labels of all steps.
        pad: makes batches.
        batch_size: solutions at a time.
    """

    rows: Sequence[StepRow]
    pad: PadSteps
    batch_size: int

    @torch.no_grad()
    def measure(self, method: Method) -> dict[str, float]:
        """Return `step_figures` of all held-back solutions, and the loss of a step."""
        assert isinstance(method, ProcessReward)
        device = next(method.parameters()).device
        judged: list[tuple[list[bool], list[bool]]] = []
        loss, steps = 0.0, 0
        for start in range(0, len(self.rows), self.batch_size):
            batch = tensors.move(self.pad(self.rows[start : start + self.batch_size]), device)
            logits = method.scorer(batch.sequences.ids)
            terms = step_cross_entropy(logits, batch.labels)
            loss, steps = loss + float(terms.losses.sum()), steps + int(terms.mask.sum())
            for mask, labels, said in zip(terms.mask, batch.labels == 1, logits.argmax(-1) == 1, strict=True):
                judged.append((labels[mask].tolist(), said[mask].tolist()))
        return {f"heldout/{name}": value for name, value in step_figures(judged).items()} | {
            "heldout/loss": loss / max(1, steps)
        }


def step_figures(judged: Sequence[tuple[Sequence[bool], Sequence[bool]]]) -> dict[str, float]:
    """Return the figures of judged solutions.

    Args:
        judged: of each solution, whether its steps are good, and whether they were judged good.

    Returns:
        `accuracy` and `balanced` of steps; `first_mistake` and `outcome` (the last step) of solutions.

    >>> step_figures([([True, False], [True, True])])
    {'accuracy': 0.5, 'balanced': 0.5, 'first_mistake': 0.0, 'outcome': 0.0}
    """
    pairs = [pair for labels, said in judged for pair in zip(labels, said, strict=True)]
    shares = [
        sum(label == said for label, said in pairs if label == kind) / count
        for kind in (True, False)
        if (count := sum(label == kind for label, _ in pairs))
    ]
    first = sum(_first_bad(labels) == _first_bad(said) for labels, said in judged)
    last = sum(labels[-1] == said[-1] for labels, said in judged)
    return {
        "accuracy": sum(label == said for label, said in pairs) / max(1, len(pairs)),
        "balanced": sum(shares) / max(1, len(shares)),
        "first_mistake": first / max(1, len(judged)),
        "outcome": last / max(1, len(judged)),
    }


def _first_bad(steps: Sequence[bool]) -> int:
    """Return the number of the first bad step; how many there are if none is."""
    return next((number for number, good in enumerate(steps) if not good), len(steps))
