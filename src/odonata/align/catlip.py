"""CatLIP: pre-training on the nouns of captions, as classification.

The nouns of each caption are its labels, several at once; an image tower learns them with a binary cross-entropy for
each noun of the vocabulary. There is no text tower and no comparison between pictures, which makes pre-training 2.7
times faster than CLIP's at like accuracy (2404.15653, abstract). The classifier's rows carry over: a downstream class
starts from the row of its own noun ("transfer initialisation", sec. 3.3).

Reference: Mehta et al., CatLIP: CLIP-level Visual Recognition Accuracy with 2.7x Faster Pre-training on Web-scale
Image-Text Data, arXiv:2404.15653, and its code in corenet. As there, the loss is summed over classes and divided by the
batch, and the vocabulary is the most frequent 24,320 nouns.

Difference: nouns are found by `odonata.text.nouns`, rules instead of a tagger and WordNet; `--nouns FILE` brings
another vocabulary, with as many words to a target as a synset has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.vit import VARIANTS, ViT, ViTConfig
from odonata.engine.method import Method
from odonata.errors import DataError, RecipeError
from odonata.text.nouns import NounFinder, find_nouns


@dataclass(frozen=True)
class CatLIPConfig:
    """CatLIP: classify the nouns of captions."""

    variant: str = "vit-tiny16"
    """Image tower by name: vit-b16, vit-l16, vit-h14, …, or vit-tiny16 for a laptop."""
    image_size: int = 0
    """Side of the input in pixels (0 = the variant's)."""
    init: str = ""
    """A CatLIP run, or a ViT in transformers' layout, to start from."""
    nouns: str = ""
    """Vocabulary file: a target a line, and after tabs the words that stand for it. Empty: the captions' own nouns."""
    targets: int = 24_320
    """Targets at most, the most frequent ones."""
    min_count: int = 5
    """Captions that must name a noun for it to become a target."""

    def tower(self) -> ViTConfig:
        """Return the image tower's configuration.

        Raises:
            RecipeError: no such variant.
        """
        if self.variant not in VARIANTS:
            raise RecipeError(f"--variant {self.variant!r} is unknown; there are {', '.join(VARIANTS)}")
        from dataclasses import replace

        found = VARIANTS[self.variant]
        return replace(found, image_size=self.image_size) if self.image_size else found


@dataclass
class NounBatch:
    """Pictures and which nouns their captions name."""

    images: Float[Tensor, "batch channels height width"]
    targets: Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class NounTargets:
    """The vocabulary: what a caption's nouns are as a vector of zeros and ones.

    Args:
        names: of the targets.
        words: word → index of its target.
        find: what finds the nouns of a caption.
    """

    names: tuple[str, ...]
    words: dict[str, int]
    find: NounFinder = find_nouns

    def indices(self, caption: str) -> list[int]:
        """Return the targets that a caption names, ascending."""
        return sorted({self.words[noun] for noun in self.find(caption) if noun in self.words})

    def encode(self, captions: Sequence[str]) -> Float[Tensor, "batch classes"]:
        """Return one row a caption: 1 at the targets that it names."""
        rows = torch.zeros(len(captions), len(self.names))
        for row, caption in enumerate(captions):
            rows[row, self.indices(caption)] = 1
        return rows


def noun_loss(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy, summed over the classes and averaged over the batch (corenet's `batch_mean`)."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / len(logits)


class CatLIP(Method):
    """An image tower with one logit a noun.

    Args:
        config: the method's options.
        tower: the architecture.
        num_targets: size of the vocabulary.
    """

    def __init__(self, config: CatLIPConfig, tower: ViTConfig, num_targets: int) -> None:
        super().__init__()
        self.config = config
        self.visual = ViT(tower)
        self.visual.reset_head(num_targets)

    def loss(self, batch: NounBatch) -> dict[str, Tensor]:
        """Return the loss of a batch, and how much of the named nouns' probability is found."""
        logits = self.visual(batch.images)
        named = batch.targets.sum().clamp(min=1)
        recall = (logits.detach().sigmoid() * batch.targets).sum() / named
        return {"loss": noun_loss(logits, batch.targets), "recall": recall}


@torch.no_grad()
def transfer_head(method: CatLIP, nouns: NounTargets, classes: Sequence[str]) -> nn.Linear:
    """Return a classifier for other classes, each row that of the class's own noun, or the mean of its nouns' rows.

    Args:
        method: a trained model.
        nouns: its vocabulary.
        classes: names of the new classes.

    Raises:
        DataError: a class names no noun of the vocabulary.

    Source: arXiv:2404.15653, sec. 3.3.
    """
    old = method.visual.head
    assert isinstance(old, nn.Linear)
    new = nn.Linear(old.in_features, len(classes))
    for row, name in enumerate(classes):
        indices = nouns.indices(name)
        if not indices:
            raise DataError(f"class {name!r} names no noun of the vocabulary ({len(nouns.names)} nouns)")
        new.weight[row] = old.weight[indices].mean(0)
        new.bias[row] = old.bias[indices].mean()
    return new
