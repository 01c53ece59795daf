"""DFN: a small model trained on clean pairs chooses what a larger one is trained on.

A filtering network, a CLIP trained on few but good pairs, scores every pair of a noisy pool by the cosine of picture
and caption; the best-scored part is kept and trains the model ("induced" by that data). Filtering so beats both random
choice and larger unfiltered pools: ViT-H trained on DFN-5B reaches 84.4 % zero-shot ImageNet (2309.17425, abstract),
and a better classifier is not by itself a better filter (fig. 3).

What is trained is CLIP itself (`odonata.align.clip.CLIP`): what makes it DFN happens before, in the choice of data.

Reference: Fang et al., Data Filtering Networks, arXiv:2309.17425. The objective of both networks is CLIP's. The paper
keeps about the best 15–20 % of its pool; `--keep` is that share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from odonata.align.two_tower import TwoTowerConfig
from odonata.data.sample import ImageRef, ImageText
from odonata.errors import DataError, RecipeError


@dataclass(frozen=True)
class DFNConfig(TwoTowerConfig):
    """DFN: filter the pairs, then train CLIP on the best."""

    filter_by: str = ""
    """Run or published weights that score the pairs; empty: a network trained on --clean first."""
    clean: str = "scenes:n=1000,seed=1"
    """Clean pairs that the filtering network is trained on, where --filter-by names none."""
    filter_steps: int = 600
    """Steps of the filtering network's training."""
    keep: float = 0.2
    """Share of the pairs that is kept, the best-scored ones."""

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            RecipeError: names the option.
        """
        super().check()
        check_share(self.keep)
        if not self.filter_by and self.filter_steps < 1:
            raise RecipeError(f"--filter-steps is {self.filter_steps}; it must be at least 1")


def check_share(keep: float) -> None:
    """Refuse a share outside (0, 1].

    Raises:
        RecipeError: says so.
    """
    if not 0 < keep <= 1:
        raise RecipeError(f"--keep is {keep}; a share lies in (0, 1]")


class Scorer(Protocol):
    """What scoring asks of a predictor."""

    def embed_image(self, images: Iterable[ImageRef], batch_size: int = 64) -> Tensor: ...
    def embed_text(self, texts: Iterable[str], batch_size: int = 256) -> Tensor: ...


def score_pairs(
    scorer: Scorer, samples: Iterable[ImageText], batch_size: int = 64, progress: Callable[[int], None] | None = None
) -> Float[np.ndarray, " pairs"]:
    """Return the cosine of each picture with its captions, the best caption counting (2309.17425, sec. 3).

    Args:
        scorer: embeds to unit length.
        samples: pictures with captions.
        batch_size: pictures encoded at a time.
        progress: told the number of pairs done.
    """
    samples = list(samples)
    scores: list[float] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = scorer.embed_image([sample.image for sample in part], batch_size)
        texts = scorer.embed_text([caption for sample in part for caption in sample.captions])
        first = 0
        for row, sample in enumerate(part):
            scores.append(float((texts[first : first + len(sample.captions)] @ images[row]).max()))
            first += len(sample.captions)
        if progress:
            progress(len(part))
    return np.array(scores)


def best_share(scores: Float[np.ndarray, " pairs"], keep: float) -> Int[np.ndarray, " kept"]:
    """Return the indices of the best-scored share, in their own order; ties by order.

    Raises:
        DataError: a score is not a number, or nothing is kept.

    >>> best_share(np.array([0.1, 0.9, 0.5, 0.7]), 0.5).tolist()
    [1, 3]
    """
    check_share(keep)
    if not np.isfinite(scores).all():
        raise DataError(f"pair {int(np.flatnonzero(~np.isfinite(scores))[0])} has the score nan: the filter is broken")
    count = round(keep * len(scores))
    if count == 0:
        raise DataError(f"--keep {keep} of {len(scores)} pairs is none")
    return np.sort(np.argsort(-scores, kind="stable")[:count])
