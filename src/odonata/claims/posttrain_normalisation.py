"""What losses are divided by decides which tokens and which prompts learn: exact gradients, no training."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.posttrain.advantages import group_advantages, leave_one_out
from odonata.posttrain.policy_losses import aggregate, denominators, policy_terms
from odonata.posttrain.presets import PRESETS

GROUP = 8
LONGER = 4
"""How many times as long the long wrong answer is."""
ROWS, LEAST, MOST = 64, 4, 256
"""Answers of an optimiser batch, and their lengths in tokens, spread evenly on a log scale."""
SIZE, BUDGET = 8, 1024
"""Of a micro-batch: rows where all have as many, tokens (padding included) where as many rows are taken as fit."""
EXACT = 1e-9
WHERE = "exact gradients"
VARIANTS = ("grpo", "dr-grpo", "dapo", "rloo")


def settings(variant: str) -> dict[str, Any]:
    """Return a preset's own settings."""
    return {name: option.ours for name, option in PRESETS[variant].items()}


def advantages(variant: str, rewards: Tensor) -> Tensor:
    """Return a preset's advantages of groups of answers, in one row."""
    options = settings(variant)
    if options["baseline"] == "leave-one-out":
        return leave_one_out(rewards).advantages.flatten()
    return group_advantages(rewards, scale=options["scale"]).advantages.flatten()


def count(variant: str, mask: Tensor) -> float:
    """Return a preset's denominator."""
    how = settings(variant)["aggregation"]
    return denominators(mask, how, MOST if how == "constant" else None)


def share(variant: str, logprobs: Tensor, gains: Tensor, mask: Tensor, denominator: float) -> Tensor:
    """Return a preset's loss of some answers, on the policy's own samples."""
    options = settings(variant)
    terms = policy_terms(
        logprobs, logprobs.detach(), gains, mask, kind=options["kind"], clip_low=options["clip_low"],
        clip_high=options["clip_high"],
    )  # fmt: skip
    return aggregate(terms.losses, mask, options["aggregation"], denominator=denominator)


def answers(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of answers of so many tokens, with a gradient, and their mask."""
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.full(mask.shape, -1.0, dtype=torch.float64, requires_grad=True), mask


def push_on_length(variant: str, generator: torch.Generator) -> float:
    """Return how hard a token of a long wrong answer is pushed, over a token of a short one in the same group."""
    short = int(torch.randint(LEAST, MOST // LONGER, (), generator=generator))
    lengths = torch.randint(LEAST, MOST, (GROUP,), generator=generator)
    lengths[:2] = torch.tensor([short, LONGER * short])
    rewards = torch.ones(1, GROUP, dtype=torch.float64)
    rewards[0, :2] = 0
    logprobs, mask = answers(lengths)
    loss = share(variant, logprobs, advantages(variant, rewards), mask, count(variant, mask))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return (gradient[1, 0] / gradient[0, 0]).item()


def weight_of_prompt(variant: str, chance: float) -> float:
    """Return the expected gradient on a prompt solved with some chance, over that of the chance itself.

    The policy is one logit, an answer one token, and the expectation goes over all numbers of right answers of a group.
    """
    logit = torch.tensor(math.log(chance / (1 - chance)), dtype=torch.float64, requires_grad=True)
    right, wrong = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
    mask = torch.ones(GROUP, 1, dtype=torch.bool)
    expected = 0.0
    for solved in range(GROUP + 1):
        logprobs = torch.stack([right] * solved + [wrong] * (GROUP - solved))[:, None]
        rewards = torch.tensor([[1.0] * solved + [0.0] * (GROUP - solved)], dtype=torch.float64)
        loss = share(variant, logprobs, advantages(variant, rewards), mask, count(variant, mask))
        often = math.comb(GROUP, solved) * chance**solved * (1 - chance) ** (GROUP - solved)
        expected -= often * torch.autograd.grad(loss, logit, retain_graph=True)[0].item()
    return expected / (chance * (1 - chance))


def micro_batches(lengths: Tensor, by: str) -> list[Tensor]:
    """Return the rows of each micro-batch, sorted by length: equally many, or as many as the budget of tokens holds."""
    parts: list[list[int]] = [[]]
    for row in lengths.argsort().tolist():
        count = len(parts[-1]) + 1
        if count > SIZE if by == "rows" else count * int(lengths[row]) > BUDGET:
            parts.append([])
        parts[-1].append(row)
    return [torch.tensor(part) for part in parts]


def accumulated(variant: str, generator: torch.Generator) -> Figures:
    """Return the error of added shares, and how far a mean over micro-batches inflates a token's gradient."""
    spread = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    lengths = (LEAST * (MOST / LEAST) ** spread).long()
    rewards = torch.randn(ROWS // GROUP, GROUP, generator=generator, dtype=torch.float64)
    gains = advantages(variant, rewards)
    logprobs, mask = answers(lengths)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logprobs)[0]

    truth = gradient(share(variant, logprobs, gains, mask, count(variant, mask)))
    figures = {"error": 0.0}
    for by in ("rows", "tokens"):
        parts = micro_batches(lengths, by)
        losses = [share(variant, logprobs[p], gains[p], mask[p], count(variant, mask)) for p in parts]
        own = [share(variant, logprobs[p], gains[p], mask[p], count(variant, mask[p])) for p in parts]
        added, averaged = gradient(torch.stack(losses).sum()), gradient(torch.stack(own).mean())
        figures["error"] = max(figures["error"], ((added - truth).norm() / truth.norm()).item())
        figures[f"inflation, equal {by}"] = (averaged[mask] / truth[mask]).max().item()
    return figures


def trial(trial: Trial) -> Figures:
    """Take all figures of one preset; nothing is trained, so a short run is a whole one."""
    generator = torch.Generator().manual_seed(trial.seed)
    push = push_on_length(trial.variant, generator)
    hard = 0.02 + 0.08 * float(torch.rand((), generator=generator, dtype=torch.float64))
    even = weight_of_prompt(trial.variant, 0.5)
    weights = {name: weight_of_prompt(trial.variant, p) / even for name, p in (("hard", hard), ("easy", 1 - hard))}
    return {
        "push": push, "uneven push": abs(push - 1),
        **{f"{name} prompt": weight for name, weight in weights.items()},
        "uneven prompts": max(abs(weight - 1) for weight in weights.values()),
        **accumulated(trial.variant, generator),
    }  # fmt: skip


def _ask(name: str, variant: str, limit: float, quantity: str, relation: str, primary: bool = True) -> Comparison:
    return Comparison(f"{variant}: {name}", f"{variant}@{WHERE}", limit, quantity, cast(Any, relation), primary=primary)


CLAIM = Claim(
    name="loss-normalisation",
    room="posttrain",
    methods=VARIANTS,
    source="Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783, section 3.1 (length and difficulty); Yu et al. 2025 (DAPO), "
    "arXiv:2503.14476, section 3.3 (length)",
    hypothesis=f"GRPO's mean over each answer pushes a token of a wrong answer that is {LONGER} times as long less "
    "than half as hard, where DAPO, Dr. GRPO and RLOO push all alike. Dividing by the group's deviation (GRPO, DAPO) "
    "gives prompts that are solved in 2 to 10 % or in 90 to 98 % of answers at least 1.25 times the weight of those "
    "solved in half, relative to the gradient of the expected reward, which Dr. GRPO and RLOO follow exactly. A mean "
    "over micro-batches inflates tokens of one of them at least twofold: DAPO's where micro-batches have equally many "
    "rows, the others' where they have equally many tokens. Shares over one denominator add up to the exact gradient.",
    data=f"Groups of {GROUP} answers of {LEAST} to {MOST} tokens with random rewards; a policy of one logit for "
    f"prompts, where the expectation goes over all outcomes of a group; {ROWS} answers, sorted by length, in micro-"
    f"batches of {SIZE} rows or {BUDGET:,} tokens.",
    scaled_down="Nothing is trained: these are gradients of the losses themselves, in float64, and 1e-9 is allowed for "
    "rounding. 1.25 and 2 are half of what pilots had (1.5, among groups that are alive, and 4). Dead groups stay in "
    "here, also where DAPO would draw again.",
    trial=trial,
    conditions=(WHERE,),
    variants=VARIANTS,
    comparisons=(
        _ask("push on a token of a long wrong answer", "grpo", 0.5, "push", "<"),
        *(_ask("tokens of wrong answers are pushed unevenly by", variant, EXACT, "uneven push", "<")
          for variant in ("dr-grpo", "dapo", "rloo")),
        *(_ask(f"weight of {which} prompts", variant, 1.25, f"{which} prompt", ">")
          for variant in ("grpo", "dapo") for which in ("hard", "easy")),
        *(_ask("prompts are weighted unevenly by", variant, EXACT, "uneven prompts", "<")
          for variant in ("dr-grpo", "rloo")),
        *(_ask("error of added shares", variant, EXACT, "error", "<") for variant in VARIANTS),
        *(_ask(f"a mean over micro-batches of equal {by} inflates a token by", variant, 2.0,
               f"inflation, equal {by}", ">", primary=(variant == "dapo") == (by == "rows"))
          for variant in VARIANTS for by in ("rows", "tokens")),
    ),
    plots=(Plot("push", f"push on a token, {LONGER} times the length"), Plot("hard prompt", "weight of hard prompts"),
           Plot("inflation, equal rows", "inflation by a mean"),
           Plot("inflation, equal tokens", "inflation by a mean")),
)  # fmt: skip
