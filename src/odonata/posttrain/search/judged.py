"""Reward models as scorers of a search.

A model of steps is one of `odonata train prm`: it splits a text into steps as those that it learned from. A model of
whole answers is one of `odonata train reward`, or one of the first kind for which an answer is one step.

Notable: the judge reads text, encoded by its own tokenizer, so any model's answers can be judged. An answer that was
cut is read without an end token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from odonata.data.dialogues import Prompt
from odonata.posttrain.judge import Judge
from odonata.posttrain.rows import Encoder
from odonata.posttrain.search.scorers import Scorer


@dataclass(frozen=True)
class JudgedAnswers:
    """A reward model of whole answers."""

    judge: Judge

    def scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool]
    ) -> Sequence[float]:
        """Return the model's score of each answer."""
        encoder = _encoder(self.judge)
        ids: list[list[int]] = []
        for prompt, text, ended in zip(prompts, completions, finished, strict=True):
            said = [] if ended else encoder.tokenizer.encode(text)
            # What was cut has no end; of a text without a token the end is all that there is to judge.
            ids.append(said or encoder.completion(prompt, text))
        return self.judge.scores_of([encoder.prompt(prompt) for prompt in prompts], ids)


@dataclass(frozen=True)
class JudgedWhole:
    """A process reward model for which an answer is one step: its log-odds are the score."""

    judge: Judge

    def scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool]
    ) -> Sequence[float]:
        """Return the log-odds that each answer is good; of an answer without text, −∞."""
        return [_log_odds(*steps) for steps in JudgedSteps(self.judge).step_scores(prompts, completions, finished)]


@dataclass(frozen=True)
class JudgedSteps:
    """A process reward model."""

    judge: Judge

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[str], finished: Sequence[bool]
    ) -> Sequence[Sequence[float]]:
        """Return the probability that each step is good; steps have no end token, so `finished` changes nothing."""
        encoder = _encoder(self.judge)
        steps = [self.judge.split(text) for text in completions]
        asked = [(encoder.prompt(prompt), parts) for prompt, parts in zip(prompts, steps, strict=True) if parts]
        found = iter(self.judge.step_scores_of(asked))
        return [next(found) if parts else [] for parts in steps]


def open_reward_model(path: str | Path, device: torch.device | None = None) -> Scorer:
    """Return the reward model of a run, or of a directory, as a scorer.

    Raises:
        WeightsError: nothing there that scores.
    """
    return scorer_of(Judge.load(path, device))


def scorer_of(judge: Judge) -> Scorer:
    """Return a judge as a scorer of steps, or of answers."""
    if judge.assets.kind == "reward":
        return JudgedAnswers(judge)
    return JudgedWhole(judge) if judge.assets.steps == "whole" else JudgedSteps(judge)


def _encoder(judge: Judge) -> Encoder:
    return Encoder(judge.tokenizer, judge.assets.decoder.template)


def _log_odds(probability: float = 0.0) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)
