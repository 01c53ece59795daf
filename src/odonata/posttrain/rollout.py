"""Answers of the policy to prompts, with what they earned: what reinforcement learns from.

Notable:
- Tokens are kept as they were sampled. Text decoded from them is for rewards and people; it is never read in again.
- Each answer's stream of chance depends on the run's seed, its prompt's visit and its place in the group: neither the
  number of ranks nor the batch around it changes it.
- What a reward could not judge is NaN, not 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from odonata.data.keys import mix
from odonata.language.decoder import Decoder
from odonata.language.generate import generate
from odonata.language.sampling import Sampling
from odonata.language.sequences import Sequences, like_lengths, pad_sequences
from odonata.nn.ranks import place_among_ranks, sum_over_ranks
from odonata.posttrain.kl import kl_estimate
from odonata.posttrain.questions import PromptItem
from odonata.posttrain.reference import Reference
from odonata.posttrain.rewards.interface import Answered, Judged, Reward, judge
from odonata.text.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class Rollout:
    """Answers, those to one prompt side by side, as tensors over the tokens that may be scored."""

    sequences: Sequences
    """Of `steps` + 1 tokens."""
    old_logprobs: Float[Tensor, "rows steps"]
    """Under the policy as it sampled."""
    mask: Bool[Tensor, "rows steps"]
    """Tokens of answers that count."""
    advantages: Float[Tensor, "rows _"]
    """Of each answer, or of each of its tokens."""
    ref_logprobs: Float[Tensor, "rows steps"] | None = None
    values: Float[Tensor, "rows steps"] | None = None
    """Before each token, of a value network."""
    returns: Float[Tensor, "rows steps"] | None = None
    places: Int[Tensor, " rows"] | None = None
    """Of each answer among those of all ranks; None: one rank's after the other's."""

    def rows(self, chosen: Int[Tensor, " chosen"]) -> Rollout:
        """Return some answers, without the padding that none of them needs."""
        sequences = self.sequences.rows(chosen)
        steps = sequences.ids.shape[1] - 1

        def cut(part: Tensor | None) -> Tensor | None:
            return part if part is None else part[chosen] if part.shape[1] == 1 else part[chosen][:, :steps]

        names = ("old_logprobs", "mask", "advantages", "ref_logprobs", "values", "returns")
        places = self.places[chosen] if self.places is not None else None
        return replace(self, sequences=sequences, places=places, **{name: cut(getattr(self, name)) for name in names})

    def nothing(self) -> Rollout:
        """Return one answer of which no token counts: what a rank learns from that has nothing to learn from."""
        row = torch.zeros(1, dtype=torch.long, device=self.mask.device)
        first = self.rows(row)
        return replace(first, mask=torch.zeros_like(first.mask), places=row - 1)

    def by_length(self, parts: int) -> list[Rollout]:
        """Return the answers in parts of like lengths: at least so many where there are as many answers."""
        return [self.rows(rows) for rows in like_lengths(self.sequences.lengths, parts)]


def minibatches(rollout: Rollout, count: int, generator: torch.Generator) -> Iterator[Rollout]:
    """Yield this rank's share of each update of a pass: as many on every rank, whatever answers it has.

    Which answers share an update is drawn over those of all ranks together: their number does not change it.

    Args:
        rollout: of this rank; all ranks must call.
        count: updates of a pass.
        generator: in the same state on all ranks.
    """
    if count == 1:
        yield rollout
        return
    places = torch.arange(len(rollout.mask), device=rollout.mask.device) if rollout.places is None else rollout.places
    before, total = place_among_ranks(int((places >= 0).sum()), places)
    if rollout.places is None:
        places = places + before
    for chosen in torch.randperm(total, generator=generator).to(places.device).tensor_split(count):
        mine = torch.isin(places, chosen).nonzero()[:, 0]
        yield rollout.rows(mine) if len(mine) else rollout.nothing()


@dataclass(frozen=True)
class Answers:
    """What the policy said to prompts, before anything is learned from it."""

    items: Sequence[PromptItem]
    group: int
    texts: list[str]
    """Without the end token; those to one prompt side by side."""
    judged: Judged
    finished: Bool[Tensor, " rows"]
    lengths: Int[Tensor, " rows"]
    sequences: Sequences
    old_logprobs: Float[Tensor, "rows steps"]

    @property
    def rewards(self) -> Float[Tensor, "groups group"]:
        """The weighted totals, NaN where unknown."""
        known = [float("nan") if value is None else value for value in self.judged.total]
        return torch.tensor(known, device=self.lengths.device).view(-1, self.group)

    @property
    def live(self) -> Bool[Tensor, " groups"]:
        """Whether answers to the same prompt earned differently."""
        return self.rewards.nan_to_num(-torch.inf).amax(1) > self.rewards.nan_to_num(torch.inf).amin(1)


@dataclass(frozen=True)
class Asking:
    """How prompts are answered and answers judged.

    Args:
        tokenizer: ids to text.
        rewards: what is earned.
        weights: of the rewards.
        group: answers to a prompt.
        max_new_tokens: of an answer at most.
        sampling: how tokens are drawn: a temperature, no filter.
        seed: of the run.
    """

    tokenizer: TextTokenizer
    rewards: Sequence[Reward]
    weights: Sequence[float]
    group: int
    max_new_tokens: int
    sampling: Sampling
    seed: int

    def ask(self, decoder: Decoder, items: Sequence[PromptItem]) -> Answers:
        """Return the policy's answers to prompts, judged."""
        seeds = [mix(self.seed, item.key, place) for item in items for place in range(self.group)]
        found = generate(
            decoder, [item.ids for item in items], max_new_tokens=self.max_new_tokens,
            eos_ids=self.tokenizer.eos_ids, sampling=self.sampling, group=self.group, seeds=seeds,
            pad_id=self.tokenizer.pad_id,
        )  # fmt: skip
        said = found.lists()
        texts = [self._text(ids, bool(ended)) for ids, ended in zip(said, found.finished, strict=True)]
        prompts = [item for item in items for _ in range(self.group)]
        answered = [
            Answered(item.text, text, item.row, bool(ended), item.ids, tuple(ids))
            for item, text, ended, ids in zip(prompts, texts, found.finished, said, strict=True)
        ]
        device = found.tokens.device
        sequences = pad_sequences([item.ids for item in prompts], said, self.tokenizer.pad_id)
        sequences = Sequences(sequences.ids.to(device), sequences.scored.to(device))
        return Answers(
            items, self.group, texts, judge(self.rewards, self.weights, answered), found.finished, found.lengths,
            sequences, _beside(sequences.scored[:, 1:], found.logprobs, found.mask),
        )  # fmt: skip

    def _text(self, ids: Sequence[int], ended: bool) -> str:
        return self.tokenizer.decode(ids[:-1] if ended and ids[-1] in self.tokenizer.eos_ids else ids)


def _beside(
    where: Bool[Tensor, "rows steps"], values: Float[Tensor, "rows time"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows steps"]:
    """Return values of completions, which stand on the left, at the places of the completions in whole sequences."""
    return torch.zeros(where.shape, device=where.device).masked_scatter(where, values[mask])


def reference_logprobs(
    reference: Reference | None, sequences: Sequences, temperature: float, parts: int = 1
) -> Float[Tensor, "rows steps"] | None:
    """Return what the reference finds of each token, computed in parts of like lengths; None without a reference."""
    if reference is None:
        return None
    rows, steps = sequences.ids.shape[0], sequences.ids.shape[1] - 1
    order = like_lengths(sequences.lengths, parts)
    found = [reference.logprobs(sequences.rows(chosen), temperature) for chosen in order]
    whole = found[0].new_zeros(rows, steps)
    for chosen, part in zip(order, found, strict=True):
        whole[chosen, : part.shape[1]] = part
    return whole


def figures_of(answers: Answers, ref_logprobs: Float[Tensor, "rows steps"] | None = None) -> dict[str, Tensor]:
    """Return what a log should say of answers: means over those of all ranks, which must all call.

    A mean over nothing, such as the reward where no answer could be judged, is left out.

    Args:
        answers: of this rank.
        ref_logprobs: what the reference finds of their tokens, if there is one.
    """
    rewards, rows, where = answers.rewards, len(answers.texts), answers.sequences.scored[:, 1:]
    known, tokens = ~rewards.isnan(), where.sum()
    sums: dict[str, tuple[Tensor | float, Tensor | int]] = {
        "reward": (rewards[known].sum(), known.sum()),
        "live_groups": (answers.live.sum(), len(rewards)),
        "length": (answers.lengths.sum(), rows),
        "truncated": ((~answers.finished).sum(), rows),
        # The mean of −log p over what was sampled is an unbiased estimate of the entropy it was sampled from.
        "entropy": (-answers.old_logprobs.sum(), tokens),
        "unscored": ((~known).sum(), rows),
    }
    if ref_logprobs is not None:
        sums["kl"] = (kl_estimate(answers.old_logprobs, ref_logprobs, "k3")[where].sum(), tokens)
    for name, part in answers.judged.parts.items():
        said = [value for value in part if value is not None]
        sums[f"reward/{name}"] = (sum(said), len(said))
    return means_over_ranks(sums, answers.lengths)


def means_over_ranks(sums: Mapping[str, tuple[Tensor | float, Tensor | int]], like: Tensor) -> dict[str, Tensor]:
    """Return means from the sums and counts of each rank; one over nothing is left out.

    Args:
        sums: name → sum and count; the same names on all ranks.
        like: gives the device.
    """
    table = torch.tensor([(float(total), float(count)) for total, count in sums.values()], dtype=torch.float64)
    totals = sum_over_ranks(table.to(like.device))
    return {name: total / count for name, (total, count) in zip(sums, totals, strict=True) if count > 0}
