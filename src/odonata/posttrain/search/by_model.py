"""How a decoder answers: greedily, by chance, by beam search, and from the middle of an answer on.

Notable:
- Tokens go on as they were sampled; text decoded from them is for rewards and people, and is never read in again.
- What is drawn depends on the seed, the question's number and the place of the answer alone, not on the batch.
- Log-probabilities are the model's own, at temperature 1, whatever the temperature of sampling is.
- A beam search reads each prompt once and keeps its keys and values for all beams; where beams go on from others, the
  cache is reordered. Scores and the end of a search are transformers' (see `beam`), prompts of a batch in step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odonata.data.keys import mix
from odonata.errors import DataError
from odonata.language.cache import Cache
from odonata.language.decoder import Decoder
from odonata.language.generate import generate, read_prompts
from odonata.language.language_model import LanguageModel
from odonata.language.sampling import Sampling
from odonata.language.sequences import Sequences, pad_sequences, token_logprobs
from odonata.posttrain.search.asked import Answer, Asked
from odonata.posttrain.search.beam import BeamAnswers, BeamConfig, BeamSearch

Stop = Callable[[Sequence[int]], bool]
Prefix = tuple[int, ...]
"""The tokens of an answer so far."""


@dataclass(frozen=True)
class Speaker:
    """A model with the limits that it answers within.

    Args:
        model: the model.
        max_new_tokens: of an answer at most, the end token included.
        temperature: of sampling, above 0.
        seed: of all chance.
        batch_rows: answers made at a time.
    """

    model: LanguageModel
    max_new_tokens: int
    temperature: float = 1.0
    seed: int = 0
    batch_rows: int = 256

    def greedy(self, asked: Sequence[Asked]) -> list[Answer]:
        """Return the answer to each question that takes the likeliest token each time."""
        return [only[0] for only in self._said(asked, [()] * len(asked), 1, Sampling(0.0), [0] * len(asked), None)]

    def sample(self, asked: Sequence[Asked], count: int) -> list[list[Answer]]:
        """Return so many answers to each question, drawn by chance."""
        sampling = Sampling(self.temperature)
        found = self._said(asked, [()] * len(asked), count, sampling, [0] * len(asked), None)
        if self.temperature == 1:
            return found
        flat = [(question, answer) for question, answers in zip(asked, found, strict=True) for answer in answers]
        sums = iter(self._logprobs([(question.ids, answer.ids) for question, answer in flat]))
        return [[Answer(a.ids, a.text, next(sums), a.finished) for a in answers] for answers in found]

    def go_on(
        self, asked: Sequence[Asked], prefixes: Sequence[Prefix], count: int, turns: Sequence[int],
        stop: Stop | None = None,
    ) -> list[list[Answer]]:  # fmt: skip
        """Return so many continuations of each beginning of an answer, drawn by chance, as answers from the start.

        Args:
            asked: the question of each beginning; one may come several times.
            prefixes: the beginnings, none of them finished or as long as an answer may be.
            count: continuations of each.
            turns: tell the visits of one question apart, for chance.
            stop: ends a continuation before the answer is at its end; is given the continuation's tokens.

        Returns:
            answers whose `logprob` is that of the continuation, under the distribution it was drawn from.
        """
        return self._said(asked, prefixes, count, Sampling(self.temperature), turns, stop)

    def beam(
        self, asked: Sequence[Asked], width: int, length_penalty: float = 1.0
    ) -> tuple[list[Answer], list[float], list[int]]:
        """Return the best answer of a beam search to each question, its score, and the tokens that all beams took.

        Args:
            asked: questions.
            width: beams; 1 is greedy.
            length_penalty: exponent of the length that scores are divided by.
        """
        tokenizer = self.model.tokenizer
        config = BeamConfig(width, self.max_new_tokens, self.model.eos_ids, tokenizer.pad_id, length_penalty)
        answers = [Answer((), "", 0.0, False)] * len(asked)
        scores, costs = [0.0] * len(asked), [0] * len(asked)
        for places in self._parts([len(question.ids) for question in asked], width):
            prompts = [asked[place].ids for place in places]
            found, steps = decoder_beam_search(self.model.decoder, prompts, config)
            for row, place in enumerate(places):
                length, score = int(found.lengths[row, 0]), float(found.scores[row, 0])
                ids = tuple(found.tokens[row, 0, :length].tolist())
                logprob = score * length**length_penalty if length else 0.0
                answers[place] = self._answer(ids, logprob, bool(ids) and ids[-1] in self.model.eos_ids)
                scores[place], costs[place] = score, width * steps
        return answers, scores, costs

    def _said(
        self, asked: Sequence[Asked], prefixes: Sequence[Prefix], count: int, sampling: Sampling,
        turns: Sequence[int], stop: Stop | None,
    ) -> list[list[Answer]]:  # fmt: skip
        if not asked:
            return []
        rooms = [self.max_new_tokens - len(prefix) for prefix in prefixes]
        if min(rooms) < 1:
            raise DataError(f"an answer of {self.max_new_tokens} tokens, the most there may be, cannot go on")
        seeds = [
            mix(self.seed, question.number, turn, place)
            for question, turn in zip(asked, turns, strict=True) for place in range(count)
        ]  # fmt: skip
        found = generate(
            self.model.decoder, [[*question.ids, *prefix] for question, prefix in zip(asked, prefixes, strict=True)],
            max_new_tokens=max(rooms), eos_ids=self.model.eos_ids, sampling=sampling, group=count, seeds=seeds,
            pad_id=self.model.tokenizer.pad_id, batch_rows=max(count, self.batch_rows), stop=stop,
        )  # fmt: skip
        answers: list[Answer] = []
        for row, ids in enumerate(found.lists()):
            prefix, room = prefixes[row // count], rooms[row // count]
            kept = tuple(ids[:room])
            ended = bool(kept) and kept[-1] in self.model.eos_ids
            answers.append(self._answer((*prefix, *kept), float(found.logprobs[row, : len(kept)].sum()), ended))
        return [answers[start : start + count] for start in range(0, len(answers), count)]

    def _answer(self, ids: Prefix, logprob: float, finished: bool) -> Answer:
        return Answer(ids, self.model.tokenizer.decode(ids), logprob, finished)

    @torch.no_grad()
    def _logprobs(self, pairs: Sequence[tuple[Prefix, Prefix]]) -> list[float]:
        """Return the log-probability of each completion, at temperature 1."""
        sums = [0.0] * len(pairs)
        for places in self._parts([len(prompt) + len(said) for prompt, said in pairs], 1):
            part = [pairs[place] for place in places]
            prompts, said = [prompt for prompt, _ in part], [said for _, said in part]
            batch = pad_sequences(prompts, said, self.model.tokenizer.pad_id)
            moved = Sequences(batch.ids.to(self.model.device), batch.scored.to(self.model.device))
            for place, total in zip(places, token_logprobs(self.model.decoder, moved)[0].sum(1).tolist(), strict=True):
                sums[place] = total
        return sums

    def _parts(self, lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
        """Yield places in batches of like lengths, each place taking so many rows."""
        order = sorted(range(len(lengths)), key=lambda place: lengths[place])
        size = max(1, self.batch_rows // rows)
        for start in range(0, len(order), size):
            yield order[start : start + size]


def decoder_beam_search(
    decoder: Decoder, prompts: Sequence[Sequence[int]], config: BeamConfig
) -> tuple[BeamAnswers, int]:
    """Search with a decoder's own log-probabilities, its cache following the beams.

    Args:
        decoder: the network, in evaluation mode.
        prompts: ids of each, all in one batch.
        config: of the search; its `num_return` answers come back.

    Returns:
        answers, and how many tokens each beam took.

    Raises:
        DataError: a prompt has no token.
    """
    if not all(prompts) or not prompts:
        raise DataError("a beam search goes on from prompts of one token or more")
    device = decoder.embed_tokens.weight.device
    search = BeamSearch(len(prompts), config, device)
    with torch.inference_mode():
        hidden, cache, mask = read_prompts(decoder, prompts, config.num_beams, config.max_new_tokens, config.pad_id)
        search.update(decoder.logits(hidden).float().log_softmax(-1))
        while not search.done:
            # The rows of one prompt share its mask, so only the cache goes with the beams.
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1) if mask is not None else None
            search.update(_next_logprobs(decoder, search, cache, mask))
    return search.answers(), search.length


def _next_logprobs(
    decoder: Decoder, search: BeamSearch, cache: Cache, mask: Tensor | None
) -> Float[Tensor, "rows vocab"]:
    cache.keep(search.parents)
    hidden = decoder.hidden(search.tokens[:, -1:], mask, cache)[:, -1]
    return decoder.logits(hidden).float().log_softmax(-1)
