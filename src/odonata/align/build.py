"""From a recipe of this room to what the engine trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from odonata.align.assets import Assets
from odonata.align.batch import ImageTextBatch, content_groups
from odonata.align.build_catlip import build_catlip
from odonata.align.catlip import CatLIPConfig
from odonata.align.clip import CLIP
from odonata.align.dfn import DFNConfig
from odonata.align.dfn_filter import choose_pairs, read_kept, write_choice
from odonata.align.dual_encoder import DualEncoder, DualEncoderConfig
from odonata.align.dual_encoder_variants import VARIANTS
from odonata.align.evaluation import Evaluator
from odonata.align.flip import FLIP
from odonata.align.inputs import image_inputs
from odonata.align.lit import LiT, LiTConfig
from odonata.align.lit_tower import PretrainedTower, locked_image_tower, put_in, with_tower
from odonata.align.naflex import native_augmentation
from odonata.align.predictor import TwoTowerPredictor, load
from odonata.align.siglip import SigLIP
from odonata.align.two_tower import TwoTowerConfig
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
from odonata.data.preprocess import SIGLIP as SIGLIP_PREPROCESS
from odonata.data.sample import ImageTextSource
from odonata.engine.config_file import read_recipe_name
from odonata.engine.method import Method
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import RecipeError
from odonata.nn.lora import add_lora
from odonata.text.bpe import train_bpe
from odonata.text.open import open_tokenizer
from odonata.text.tokenizer import Tokenizer

METHODS: dict[str, Callable[[Any, DualEncoder], Method]] = {
    "clip": CLIP,
    "siglip": SigLIP,
    "lit": LiT,
    "flip": FLIP,
    "dfn": CLIP,
}
"""The two-tower methods: made of their options and a pair of towers."""


def build(recipe: Recipe, assets: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of one of this room's methods.
        assets: the `assets/` of a run that is resumed: its tokenizer and preprocessing are taken as they are.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    if isinstance(recipe.method, CatLIPConfig):
        return build_catlip(recipe, assets, describe)
    config: TwoTowerConfig = recipe.method
    config.check()
    data: ImageTextData = recipe.data
    source, heldout = train_and_heldout(data)
    notes = describe(source, heldout)
    chosen: tuple[list[int], TwoTowerPredictor] | None = None
    if isinstance(config, DFNConfig):
        chosen = None if assets else choose_pairs(recipe, source, build, notes)
        source = source.subset(chosen[0] if chosen else read_kept(assets or Path()))
    start = _starting_point(config, source, recipe.seed, assets, notes)
    model = start.model
    if config.lora_rank:
        model.requires_grad_(False)
        add_lora(model, config.lora_rank, config.lora_alpha)
        for scalar in (model.logit_scale, model.logit_bias):
            if scalar is not None:
                scalar.requires_grad_(True)
    method = METHODS[recipe.name](config, model)

    def save_assets(folder: Path) -> None:
        start.assets.save(folder)
        if chosen:
            write_choice(folder, *chosen)

    evaluator = Evaluator(start.assets, heldout, recipe.evaluation, data)
    return Task(
        method=method,
        batches=stream(source, data, start.assets, recipe.seed),
        batch_size=data.batch_size,
        fingerprint=source.fingerprint(),
        evaluate=(lambda trained: evaluator.measure(trained.model)) if evaluator.measures else None,  # pyright: ignore[reportArgumentType]
        goal=evaluator.goal,
        save_assets=save_assets,
        assets=start.assets,
        notes=[*notes, *evaluator.notes],
    )


def describe(source: ImageTextSource, heldout: ImageTextSource | None) -> list[str]:
    """Return what the person should know of the data before training starts."""
    held = f"{len(heldout)} held back" if heldout else "none held back"
    notes = [f"data: {source.origin} ({source.kind}): {len(source)} pictures to train on, {held}"]
    if source.problems:
        first = "; ".join(str(problem) for problem in source.problems[:3])
        notes.append(f"skipped {len(source.problems)} bad rows: {first}{' …' if len(source.problems) > 3 else ''}")
    return notes


@dataclass
class StartingPoint:
    """A pair of towers before training, and what belongs to them."""

    model: DualEncoder
    assets: Assets


def _starting_point(
    config: TwoTowerConfig, source: ImageTextSource, seed: int, assets: Path | None, notes: list[str]
) -> StartingPoint:
    if assets is not None:
        kept = Assets.load(assets)
        return StartingPoint(DualEncoder(kept.config), kept)
    if config.init:
        return _pretrained(config, notes)
    architecture = config.model or variant(config.variant)
    tokenizer = _tokenizer(config, architecture, source, notes)
    architecture = fit_to_tokenizer(architecture, tokenizer)
    visual = architecture.visual
    if config.image_size:
        architecture = dataclasses.replace(
            architecture, visual=dataclasses.replace(visual, image_size=config.image_size)
        )
    max_patches = config.max_patches
    if isinstance(visual, ViTConfig) and visual.positions == "naflex":
        max_patches = max_patches or 256
    elif max_patches:
        raise RecipeError(f"--max-patches needs a NaFlex tower such as ViT-B-16-SigLIP2-NaFlex, not {config.variant}")
    # SigLIP's towers were trained on squashed pictures in [-1, 1], CLIP's on centre crops with its own statistics.
    preset = SIGLIP_PREPROCESS if architecture.logit_bias_init is not None else CLIP_PREPROCESS
    preprocess = dataclasses.replace(preset, size=architecture.visual.image_size)
    tower: PretrainedTower | None = None
    if isinstance(config, LiTConfig) and config.lock == "image":
        tower = locked_image_tower(config, visual, preprocess, source, seed, notes)
        architecture, preprocess = with_tower(architecture, tower), tower.preprocess
    model = DualEncoder(architecture)
    if tower:
        put_in(model, tower)
    found = Assets(architecture, preprocess, tokenizer, max_patches, config.lora_rank, config.lora_alpha)
    return StartingPoint(model, found)


def _pretrained(config: TwoTowerConfig, notes: list[str]) -> StartingPoint:
    if config.tokenizer:
        raise RecipeError("--tokenizer does not go together with --init: the weights know their own tokens")
    path = Path(config.init)
    method = read_recipe_name(path / "config.yaml")[0] if (path / "config.yaml").is_file() else None
    predictor = load(path, method, torch.device("cpu"))
    if not isinstance(predictor, TwoTowerPredictor):
        raise RecipeError(f"--init {config.init} holds no pair of towers")
    notes += [f"init: {note}" for note in predictor.notes]
    kept = dataclasses.replace(predictor.assets, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha)
    return StartingPoint(predictor.model.train(), kept)


def variant(name: str) -> DualEncoderConfig:
    """Return an architecture by name.

    Raises:
        RecipeError: no such name.
    """
    if name not in VARIANTS:
        import difflib

        near = difflib.get_close_matches(name, VARIANTS, 3) or list(VARIANTS)
        raise RecipeError(f"--variant {name!r} is unknown; there are {', '.join(near)}")
    return VARIANTS[name]


def _tokenizer(
    config: TwoTowerConfig, architecture: DualEncoderConfig, source: ImageTextSource, notes: list[str]
) -> Tokenizer:
    length = config.context_length or architecture.text.context_length
    if config.tokenizer:
        return open_tokenizer(Path(config.tokenizer), context_length=length)
    captions = [caption for sample in source for caption in sample.captions]
    tokenizer = train_bpe(captions, vocab_size=config.vocab_size, context_length=length)
    notes.append(f"tokenizer: a BPE of {tokenizer.vocab_size} entries, trained on {len(captions)} captions")
    return tokenizer


def fit_to_tokenizer(architecture: DualEncoderConfig, tokenizer: Tokenizer) -> DualEncoderConfig:
    """Return the architecture with the tokenizer's vocabulary, length and special ids."""
    text = dataclasses.replace(
        architecture.text,
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        eot_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    return dataclasses.replace(architecture, text=text)


def stream(source: ImageTextSource, data: ImageTextData, assets: Assets, seed: int) -> Batches[ImageTextBatch]:
    """Return the endless stream of training batches."""
    size = assets.preprocess.height_width
    dataset = ImageTextDataset(
        source,
        native_augmentation(data)
        if assets.max_patches
        else augmentation(size, data.augment, data.crop_scale, assets.preprocess.interpolation),
        seed,
        captions=data.captions,
        on_error=data.on_error,
    )
    sampler = make_sampler(source, data, seed)
    return Batches(dataset, sampler, Collate(assets), workers=data.workers, seed=seed)


@dataclass
class Collate:
    """Makes a batch of items: normalised pictures or patches, tokens, groups."""

    assets: Assets

    def __call__(self, items: list[ImageTextItem]) -> ImageTextBatch:
        """Return the batch."""
        captions = [item.caption for item in items]
        tokens = self.assets.tokenize(captions)
        groups = content_groups(captions, [item.group for item in items])
        return ImageTextBatch(**image_inputs([item.image for item in items], self.assets), tokens=tokens, groups=groups)
