"""Backbones from published weights, and back into published layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from odonata.backbones.create import build, from_plain, to_plain
from odonata.backbones.interface import Backbone
from odonata.data.preprocess import IMAGENET, Preprocess
from odonata.weights.layout import Files
from odonata.weights.maps import check_fit
from odonata.weights.towers import Hints, PublishedTower, read_tower, write_tower


@dataclass
class Pretrained:
    """A published backbone, built."""

    backbone: Backbone
    """In evaluation mode and float32."""
    preprocess: Preprocess
    """What it expects."""
    published: PublishedTower
    """What was read."""


def load_backbone(path: str | Path, hints: Hints | None = None) -> Pretrained:
    """Builds a backbone from a published checkpoint.

    Args:
        path: file or folder.
        hints: what the file may leave open.

    Raises:
        WeightsError: the checkpoint cannot be read, or does not fit what it says of itself.
    """
    published = read_tower(path, hints)
    backbone = build(from_plain(published.config))
    if published.classes:
        backbone.reset_head(published.classes)
    wanted = backbone.state_dict()
    # Old files do not count batches; the counter starts at 0, which changes no answer.
    state = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | published.state
    check_fit(state, wanted, str(path))
    backbone.load_state_dict(state)
    preprocess = IMAGENET
    if published.preprocess is not None:
        preprocess = Preprocess.from_dict(IMAGENET.to_dict() | published.preprocess)
    else:
        published.notes.append("preprocessing: not known from the file; ImageNet's is taken")
    return Pretrained(backbone.eval(), preprocess, published)


def published_files(backbone: Backbone, layout: str, preprocess: Preprocess | None = None) -> Files:
    """Returns the files of a backbone in a published layout; with its classifier, where it has one.

    Raises:
        WeightsError: no such layout for this family, or it cannot say what this tower is.
    """
    weight = getattr(backbone.head, "weight", None)
    classes = 0 if weight is None else int(weight.shape[0])
    config = to_plain(backbone.config)
    return write_tower(backbone.state_dict(), config, classes, layout, preprocess.to_dict() if preprocess else None)
