"""Losses of reward models: Bradley–Terry on pairs of answers, and labels of single steps (process rewards).

Notable: no mean is taken here, as in every loss of this room. The reward of an answer is the head's output at its last
real token, the end of sequence, which the caller picks. Ties count half in `pair_accuracy`: a model that cannot tell
the answers apart scores ½. TRL asks for a strictly greater reward, so its accuracy is 0 before the first step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odonata.errors import RecipeError

IGNORED = -100
"""The label of a token that ends no step."""


class StepTerms(NamedTuple):
    """What a loss on steps returns; 0 and False where no step ends."""

    losses: Float[Tensor, "batch time"]
    hits: Bool[Tensor, "batch time"]
    """Whether the step was judged as it is labelled."""
    mask: Bool[Tensor, "batch time"]
    """Where steps end: what losses and hits are counted over."""


def bradley_terry(
    chosen: Float[Tensor, "pairs"],
    rejected: Float[Tensor, "pairs"],
    *,
    margin: Float[Tensor, "pairs"] | None = None,
    centering: float = 0.0,
) -> Float[Tensor, "pairs"]:
    """Return the loss of each pair: −ln σ(r_chosen − r_rejected − margin) + centering (r_chosen + r_rejected)².

    Args:
        chosen: rewards of the answers that people preferred.
        rejected: rewards of the others.
        margin: by how much each is preferred; None for 0.
        centering: pulls rewards towards 0, which pairs alone leave open; 0.01 in the paper.

    Raises:
        RecipeError: centering is negative.

    Source: Stiennon et al. 2020, arXiv:2009.01325, section 3.4; the margin: Touvron et al. 2023 (Llama 2),
    arXiv:2307.09288, equation 2; centering: Eisenstein et al. 2023, arXiv:2312.09244.

    >>> bradley_terry(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.6931])
    """
    if centering < 0:
        raise RecipeError(f"centering must be at least 0, not {centering:g}")
    gap = chosen - rejected if margin is None else chosen - rejected - margin
    losses = -F.logsigmoid(gap)
    return losses + centering * (chosen + rejected).square() if centering else losses


@torch.no_grad()
def pair_accuracy(chosen: Float[Tensor, "pairs"], rejected: Float[Tensor, "pairs"]) -> Float[Tensor, "pairs"]:
    """Return for each pair 1 where the chosen answer has the higher reward, ½ where they tie, 0 otherwise.

    >>> pair_accuracy(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    return (torch.sign(chosen - rejected) + 1) / 2


def step_labels(
    prompt_length: int, step_lengths: Sequence[int], labels: Sequence[int | bool], *, last_only: bool = False
) -> list[int]:
    """Return a label for each token: a step's on its last token, `IGNORED` elsewhere.

    Args:
        prompt_length: tokens of the prompt.
        step_lengths: tokens of each step, its separator included.
        labels: 1 for a good step, 0 for a bad one.
        last_only: keep the last step's label alone: an outcome reward.

    Raises:
        RecipeError: there are not as many labels as steps, a step has no token, or a label is neither 0 nor 1.

    Source: Lightman et al. 2023, arXiv:2305.20050; `PRMTrainer.tokenize_row` of TRL 1.12.

    >>> step_labels(2, [3, 1], [True, False])
    [-100, -100, -100, -100, 1, 0]
    """
    if len(step_lengths) != len(labels) or any(length < 1 for length in step_lengths):
        raise RecipeError(
            f"every step needs a label and at least one token; there are {len(labels)} labels for steps of "
            f"{list(step_lengths)} tokens"
        )
    if any(int(label) not in (0, 1) for label in labels):
        raise RecipeError(f"a step's label is 0 or 1, not one of {list(labels)}")
    kept = [IGNORED] * (len(labels) - 1) + [int(labels[-1])] if last_only and labels else [int(x) for x in labels]
    steps = [[IGNORED] * (length - 1) + [label] for length, label in zip(step_lengths, kept, strict=True)]
    return [IGNORED] * prompt_length + [label for step in steps for label in step]


def step_cross_entropy(
    logits: Float[Tensor, "batch time 2"], labels: Int[Tensor, "batch time"]
) -> StepTerms:  # fmt: skip
    """Return the cross-entropy of each labelled step, for a head of two classes (bad, good).

    Args:
        logits: of every token.
        labels: as `step_labels` makes them, padded by `IGNORED`.

    Source: a token classification over the last tokens of steps, as TRL 1.12's `PRMTrainer` trains it.
    """
    mask = labels != IGNORED
    # Filled before the arithmetic: what stands at other tokens may be NaN.
    known = logits.masked_fill(~mask[..., None], 0)
    losses = F.cross_entropy(known.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return StepTerms(losses.view_as(labels), (known.argmax(-1) == labels) & mask, mask)


def step_binary_cross_entropy(
    logits: Float[Tensor, "batch time"], labels: Int[Tensor, "batch time"]
) -> StepTerms:  # fmt: skip
    """Return the cross-entropy of each labelled step, for a head of one output: the log-odds that the step is good.

    Args:
        logits: of every token.
        labels: as `step_labels` makes them, padded by `IGNORED`.
    """
    mask = labels != IGNORED
    known = logits.masked_fill(~mask, 0)
    losses = F.binary_cross_entropy_with_logits(known, labels.clamp(min=0).to(known.dtype), reduction="none")
    return StepTerms(losses.masked_fill(~mask, 0), ((known > 0) == (labels == 1)) & mask, mask)
