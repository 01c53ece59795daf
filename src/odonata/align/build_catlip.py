"""From a CatLIP recipe to what the engine trains."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from odonata.align.catlip import CatLIP, CatLIPConfig, NounBatch, NounTargets
from odonata.backbones.vit import ViTConfig
from odonata.data.image_text import (
    ImageTextData,
    ImageTextDataset,
    ImageTextItem,
    augmentation,
    make_sampler,
    train_and_heldout,
)
from odonata.data.loader import Batches
from odonata.data.preprocess import CLIP as CLIP_PREPROCESS
from odonata.data.preprocess import Preprocess
from odonata.data.sample import ImageTextSource
from odonata.engine.method import Method
from odonata.engine.recipe import Recipe
from odonata.engine.run import write_atomically
from odonata.engine.task import Task
from odonata.errors import RecipeError, WeightsError
from odonata.metrics.multilabel import mean_average_precision
from odonata.text.nouns import noun_vocabulary, read_vocabulary
from odonata.weights import hf_vit
from odonata.weights.read import read_state


@dataclass(frozen=True)
class NounAssets:
    """What belongs to a CatLIP model besides its weights."""

    tower: ViTConfig
    preprocess: Preprocess
    nouns: NounTargets

    def save(self, folder: Path) -> None:
        """Write `model.json`."""
        plain = {
            "nouns": {"names": self.nouns.names, "words": self.nouns.words},
            "architecture": dataclasses.asdict(self.tower),
            "preprocess": self.preprocess.to_dict(),
        }
        write_atomically(folder / "model.json", json.dumps(plain, indent=1))

    @classmethod
    def load(cls, folder: Path) -> NounAssets:
        """Read what `save` wrote.

        Raises:
            WeightsError: it is missing or not what it should be.
        """
        path = folder / "model.json"
        try:
            plain = json.loads(path.read_text())
            nouns = NounTargets(tuple(plain["nouns"]["names"]), plain["nouns"]["words"])
            return cls(ViTConfig(**plain["architecture"]), Preprocess.from_dict(plain["preprocess"]), nouns)
        except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path}: cannot read the model's description: {error}") from error


def build_catlip(recipe: Recipe, folder: Path | None, describe: Callable[..., list[str]]) -> Task:
    """Return the task of a CatLIP recipe.

    Args:
        recipe: the recipe.
        folder: the `assets/` of a run that is resumed.
        describe: notes on the data.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    config: CatLIPConfig = recipe.method
    data: ImageTextData = recipe.data
    source, heldout = train_and_heldout(data)
    notes = describe(source, heldout)
    assets = NounAssets.load(folder) if folder else _assets(config, source, notes)
    method = CatLIP(config, assets.tower, len(assets.nouns.names))
    if config.init and folder is None:
        notes.append(start_from(method, Path(config.init)))
    dataset = ImageTextDataset(
        source,
        augmentation(assets.preprocess.height_width, data.augment, data.crop_scale),
        recipe.seed,
        captions=data.captions,
        on_error=data.on_error,
    )
    measured = heldout if heldout and recipe.evaluation.pairs else None
    return Task(
        method=method,
        batches=Batches(
            dataset, make_sampler(source, data, recipe.seed), NounCollate(assets), data.workers, recipe.seed
        ),
        batch_size=data.batch_size,
        fingerprint=source.fingerprint(),
        evaluate=NounEvaluator(assets, measured, recipe.evaluation.pairs, recipe.evaluation.batch_size)
        if measured
        else None,
        goal="map" if measured else "",
        save_assets=assets.save,
        assets=assets,
        notes=notes,
    )


def _assets(config: CatLIPConfig, source: ImageTextSource, notes: list[str]) -> NounAssets:
    if config.nouns:
        names, words = read_vocabulary(Path(config.nouns))
        nouns = NounTargets(names, words)
    else:
        captions = [caption for sample in source for caption in sample.captions]
        names = noun_vocabulary(captions, config.targets, config.min_count)
        nouns = NounTargets(names, {name: index for index, name in enumerate(names)})
    few = ", ".join(nouns.names[:8])
    notes.append(f"targets: {len(nouns.names)} nouns, the most frequent: {few}")
    tower = config.tower()
    return NounAssets(tower, dataclasses.replace(CLIP_PREPROCESS, size=tower.image_size), nouns)


def start_from(method: CatLIP, path: Path) -> str:
    """Fill the tower with the weights of another model, its classifier left out; return a note.

    Raises:
        WeightsError: the weights cannot be read.
        RecipeError: they are of another architecture.
    """
    from odonata.engine.checkpoint import weights_file

    file = weights_file(path) if (path / "config.yaml").is_file() else path
    raw = read_state(file)
    found = hf_vit.read(raw)[1] if hf_vit.recognises(raw) else raw.state
    state = {k.removeprefix("model.").removeprefix("visual."): v for k, v in found.items() if "visual." in k}
    own = {k: v for k, v in method.visual.state_dict().items() if not k.startswith("head.")}
    wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        seen = list(state[wrong[0]].shape) if wrong[0] in state else "nothing"
        raise RecipeError(
            f"--init {path}: {len(wrong)} tensors do not fit --variant {method.config.variant}, such as {wrong[0]}: "
            f"want {list(own[wrong[0]].shape)}, found {seen}"
        )
    method.visual.load_state_dict({k: state[k] for k in own}, strict=False)
    return f"init: image tower of {path}; the classifier starts anew"


@dataclass
class NounCollate:
    """Makes a batch of items."""

    assets: NounAssets

    def __call__(self, items: list[ImageTextItem]) -> NounBatch:
        """Return normalised pictures and the targets of their captions."""
        images = self.assets.preprocess.normalize(torch.stack([item.image for item in items]))
        return NounBatch(images, self.assets.nouns.encode([item.caption for item in items]))


@dataclass
class NounEvaluator:
    """Mean average precision of the nouns of held-back captions."""

    assets: NounAssets
    source: ImageTextSource
    most: int
    batch_size: int

    def __call__(self, method: Method) -> dict[str, float]:
        """Return `map`, over the targets that occur among the held-back captions."""
        assert isinstance(method, CatLIP)
        samples = self.source[: self.most]
        device = next(method.parameters()).device
        scores: list[torch.Tensor] = []
        for start in range(0, len(samples), self.batch_size):
            part = samples[start : start + self.batch_size]
            images = torch.stack([self.assets.preprocess(sample.image.tensor()) for sample in part])
            scores.append(method.visual(images.to(device)).cpu())
        targets = self.assets.nouns.encode([" . ".join(sample.captions) for sample in samples])
        present = targets.sum(0) > 0
        return {"map": float(mean_average_precision(torch.cat(scores)[:, present], targets[:, present]))}
