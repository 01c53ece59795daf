"""What a reward model says of answers: `run:FOLDER`, of a run of `reward` or `prm`, or a directory of transformers.

Notable:
- The weights are read when an answer is first scored.
- Answers are scored as the tokens that were sampled. Text is encoded only where there are no tokens.
- A reward model is right about the answers that it has learned from. A policy that is rewarded by it goes where it is
  wrong: hold the policy near its reference, and watch a reward that cannot be fooled beside it.
- Of a process reward model, an answer earns what its worst step does; one without a step earns 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from odonata.posttrain.judge import Judge
from odonata.posttrain.rewards.interface import Answered
from odonata.posttrain.scorer import check_scores, check_vocabulary
from odonata.text.text_tokenizer import TextTokenizer


class ModelReward:
    """The score of a reward model.

    Args:
        path: of a run, or of a directory as transformers writes it.

    Raises:
        WeightsError: nothing there that scores.
    """

    def __init__(self, path: str) -> None:
        self.name, self.path = f"run:{path}", check_scores(path)

    @cached_property
    def judge(self) -> Judge:
        """The model, read when it is first asked."""
        on_gpu = torch.cuda.is_available()
        return Judge.load(self.path, torch.device("cuda", torch.cuda.current_device()) if on_gpu else None)

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return the score of each answer."""
        prompts = [self._prompt(answer) for answer in answers]
        if self.judge.assets.kind == "steps":
            steps = [self.judge.split(answer.completion) for answer in answers]
            found = self.judge.step_scores_of([row for row in zip(prompts, steps, strict=True) if row[1]])
            scored = iter(found)
            return [min(next(scored)) if parts else 0.0 for parts in steps]
        return list(self.judge.scores_of(prompts, [self._completion(answer) for answer in answers]))

    def check_reads(self, tokenizer: TextTokenizer) -> None:
        """Refuse a policy that writes other tokens than this model reads.

        Raises:
            RecipeError: names what differs.
        """
        check_vocabulary(tokenizer, self._tokenizer, f"the reward {self.name}")

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return self.judge.assets.decoder.tokenizer

    def _prompt(self, answer: Answered) -> Sequence[int]:
        return answer.prompt_ids or self._tokenizer.encode(answer.prompt, special=True)

    def _completion(self, answer: Answered) -> Sequence[int]:
        if answer.ids:
            return answer.ids
        return [*self._tokenizer.encode(answer.completion), *([self._tokenizer.end()] if answer.finished else [])]
