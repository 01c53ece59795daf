"""What is measured of a two-tower model in training: retrieval and zero-shot; and pictures for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from odonata.align.assets import Assets
from odonata.align.dual_encoder import DualEncoder
from odonata.align.predictor import TwoTowerPredictor
from odonata.data.image_text import ImageTextData
from odonata.data.sample import ImageTextSource
from odonata.data.scenes import TEMPLATES
from odonata.data.sources import open_image_text
from odonata.metrics.retrieval import Retrieval, retrieval
from odonata.metrics.templates import read_templates, templates
from odonata.metrics.zeroshot import zeroshot


@dataclass(frozen=True)
class AlignEvaluation:
    """What is measured on data that training does not see."""

    pairs: int = 1000
    """Held-back pictures for retrieval, each with all its captions (0 = none)."""
    zeroshot: str = ""
    """Folder of classes for zero-shot classification; empty: the embedded scenes' own classes on scenes; or `none`."""
    templates: str = ""
    """File with one prompt template a line, `{}` for the class name; empty: a small built-in set."""
    batch_size: int = 128
    """Pictures or captions encoded at a time."""


def prompts(path: str, embedded: bool) -> tuple[str, ...]:
    """Return the prompt templates of a file, or the built-in ones."""
    if path:
        return read_templates(path)
    return TEMPLATES if embedded else templates("simple")


def retrieval_of(
    predictor: TwoTowerPredictor, source: ImageTextSource, most: int, batch_size: int = 128
) -> tuple[Retrieval, Float[Tensor, "images dim"], Float[Tensor, "texts dim"], Int[Tensor, " texts"]]:
    """Return retrieval both ways among the first `most` pictures and all their captions, and the embeddings."""
    samples = source[:most]
    images = predictor.embed_image([sample.image for sample in samples], batch_size)
    captions = [caption for sample in samples for caption in sample.captions]
    owner = torch.tensor([row for row, sample in enumerate(samples) for _ in sample.captions])
    texts = predictor.embed_text(captions, batch_size)
    return retrieval(images, texts, owner), images, texts, owner


@dataclass
class Evaluator:
    """Measures a model in training; made once, with its pictures and labels."""

    assets: Assets
    heldout: ImageTextSource | None
    options: AlignEvaluation
    data: ImageTextData
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        embedded = self.data.path.split(":")[0] == "scenes"
        where = self.options.zeroshot or ("scenes-classes:n=400" if embedded else "none")
        self.classes: ImageTextSource | None = None
        if where != "none":
            found = open_image_text(where)
            held = next((name for name in ("test", "val") if found.has_split(name)), None)
            # Without a split of its own, a folder of classes is taken whole: it is not what is trained on.
            self.classes = found.split(held) if held else found
        self.prompts = prompts(self.options.templates, where.startswith("scenes"))
        self.retrieves = bool(self.options.pairs and self.heldout)

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return self.retrieves or self.classes is not None

    @property
    def goal(self) -> str:
        """The figure that decides which checkpoint is best."""
        return "recall@1" if self.retrieves else "zeroshot/top1" if self.classes else ""

    def measure(self, model: DualEncoder) -> dict[str, float]:
        """Return figures by name: `recall@1` is the mean of both directions."""
        device = model.logit_scale.device
        predictor = TwoTowerPredictor(model, self.assets, "", device)
        figures: dict[str, float] = {}
        if self.retrieves and self.heldout:
            found, *_ = retrieval_of(predictor, self.heldout, self.options.pairs, self.options.batch_size)
            both = (found.image_to_text.recall[1] + found.text_to_image.recall[1]) / 2
            figures = {"recall@1": both, **found.flat()}
        if self.classes is not None:
            assert self.classes.classes is not None
            embeddings = predictor.embed_classes(self.classes.classes, self.prompts)
            images = predictor.embed_image([sample.image for sample in self.classes], self.options.batch_size)
            labels = torch.tensor([sample.label for sample in self.classes])
            top = zeroshot(images, embeddings, labels, (1, 5) if len(self.classes.classes) > 5 else (1,)).top
            figures |= {f"zeroshot/top{k}": value for k, value in top.items()}
        return figures


def exhibits(recipe: Any, run: Path, count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield held-back pictures with what the trained model says of them, for a run's report."""
    from odonata.align.predictor import load
    from odonata.data.image_text import train_and_heldout

    _, heldout = train_and_heldout(recipe.data)
    model = load(run, recipe.name, torch.device("cpu"))
    if heldout is None:
        return
    samples = heldout[:count]
    captions = list(dict.fromkeys(caption for sample in heldout[: 20 * count] for caption in sample.captions))
    if isinstance(model, TwoTowerPredictor):
        best = (model.embed_image([s.image for s in samples]) @ model.embed_text(captions).T).max(1)
        said = [
            f"“{captions[i]}” {cosine:.2f}"
            for i, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    else:
        said = [", ".join(f"{k} {v:.0%}" for k, v in p.ranked()[:3]) for p in model.predict([s.image for s in samples])]
    for sample, text in zip(samples, said, strict=True):
        yield _as_address(sample.image.open()), [f"model: {text}", f"caption: “{sample.captions[0]}”"]


def _as_address(picture: Image.Image, side: int = 128) -> str:
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
