"""What is measured of a tower in training: accuracy, nearest neighbours, and the health of its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.backbones.interface import Backbone
from odonata.data.pictures import chosen_indices
from odonata.data.sample import ImageText, ImageTextSource
from odonata.engine.method import Method
from odonata.errors import DataError
from odonata.metrics.knn import knn_scores
from odonata.metrics.spectrum import effective_rank
from odonata.represent.assets import TowerAssets
from odonata.represent.classify import Classify
from odonata.represent.representation import Representation, embedding_spread


@dataclass(frozen=True)
class RepresentEvaluation:
    """What is measured on pictures that training does not see."""

    pictures: int = 1000
    """Held-back pictures used (0 = nothing is measured)."""
    neighbours: int = 2000
    """Training pictures among which neighbours are looked for."""
    k: int = 20
    """Neighbours that vote."""
    batch_size: int = 128
    """Pictures encoded at a time."""


@torch.no_grad()
def pooled_features(
    encoder: Backbone, samples: Sequence[ImageText], assets: TowerAssets, batch_size: int, device: torch.device
) -> Float[Tensor, "pictures dim"]:
    """Return the pooled features of pictures, in their order."""
    rows: list[Tensor] = []
    was_training = encoder.training
    encoder.eval()
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = torch.stack([assets.preprocess(sample.image.tensor()) for sample in part]).to(device)
        rows.append(encoder.forward_head(encoder.forward_features(images), pre_logits=True).float().cpu())
    encoder.train(was_training)
    return torch.cat(rows)


def labels_tensor(samples: Sequence[ImageText]) -> Int[Tensor, " pictures"]:
    """Return the classes of samples, -1 where there is none."""
    return torch.tensor([-1 if sample.label is None else sample.label for sample in samples])


def readable(sample: ImageText) -> bool:
    """Return whether the picture can be decoded."""
    try:
        sample.image.tensor()
    except DataError:
        return False
    return True


def spread_over(source: ImageTextSource, most: int) -> Sequence[ImageText]:
    """Return at most so many samples, always the same choice."""
    return [source[i] for i in chosen_indices(len(source), most)]


@dataclass
class Evaluator:
    """Measures a tower in training; made once, with its pictures and labels."""

    assets: TowerAssets
    train: ImageTextSource
    heldout: ImageTextSource | None
    options: RepresentEvaluation
    skips: bool = False
    """Whether pictures that cannot be read are left out."""
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.test = spread_over(self.heldout, self.options.pictures) if self.heldout else []
        self.bank = spread_over(self.train, self.options.neighbours)
        if self.skips:
            self.test = [sample for sample in self.test if readable(sample)]
            self.bank = [sample for sample in self.bank if readable(sample)]
        labelled = self.train.classes is not None and self.heldout is not None and self.heldout.classes is not None
        self.votes = bool(labelled and len(self.train.classes or ()) > 1)
        if self.measures and not self.votes:
            self.notes.append("no classes to measure by: only the spread and rank of the features are watched")

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self.options.pictures and self.test)

    def goal(self, method: Representation) -> str:
        """The figure that decides which checkpoint is best."""
        if not self.measures or not self.votes:
            return ""
        return "accuracy" if method.classifies else "knn"

    def measure(self, method: Method) -> dict[str, float]:
        """Return figures by name: `knn` top-1, `feature_rank`, `feature_spread`; `accuracy` of a classifier."""
        assert isinstance(method, Representation)
        device, size = method.mean.device, self.options.batch_size
        test = pooled_features(method.encoder, self.test, self.assets, size, device)
        figures: dict[str, float] = {}
        if method.classifies:
            scores = classify_pooled(method, test.to(device)).cpu()
            figures["accuracy"] = _share(scores.argmax(1) == labels_tensor(self.test))
        elif self.votes:
            bank = pooled_features(method.encoder, self.bank, self.assets, size, device)
            scores = knn_scores(bank, labels_tensor(self.bank), test, k=self.options.k)
            figures["knn"] = _share(scores.argmax(1) == labels_tensor(self.test))
        figures["feature_rank"] = effective_rank(test)
        figures["feature_spread"] = float(embedding_spread(test))
        return figures


def classify_pooled(method: Representation, pooled: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
    """Return a classifier's scores of pooled features."""
    norm = method.norm if isinstance(method, Classify) else torch.nn.Identity()
    return method.backbone.head(norm(pooled))


def _share(right: Tensor) -> float:
    return float(right.double().mean())
