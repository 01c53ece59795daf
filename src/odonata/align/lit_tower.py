"""The tower that LiT locks: from a run or published weights, or a classifier trained on the embedded scenes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from odonata.align.catlip_predictor import CatLIPPredictor
from odonata.align.dual_encoder import DualEncoder, DualEncoderConfig
from odonata.align.lit import LiTConfig
from odonata.align.predictor import load
from odonata.backbones.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from odonata.backbones.vit import ViT, ViTConfig
from odonata.data.image_text import ImageTextDataset, augmentation
from odonata.data.loader import Batches, Shuffled
from odonata.data.preprocess import Preprocess
from odonata.data.sample import ImageTextSource
from odonata.data.sources import open_image_text
from odonata.engine.config_file import read_recipe_name
from odonata.engine.recipe import AdamW, Schedule
from odonata.errors import RecipeError

_CLASSES = "scenes-classes:n=4000"


@dataclass
class PretrainedTower:
    """An image tower with what it expects of a picture."""

    config: ViTConfig | ModifiedResNetConfig
    module: nn.Module
    preprocess: Preprocess


def locked_image_tower(
    config: LiTConfig, visual: ViTConfig | ModifiedResNetConfig, preprocess: Preprocess, source: ImageTextSource,
    seed: int, notes: list[str],
) -> PretrainedTower:  # fmt: skip
    """Return the image tower to lock.

    Raises:
        RecipeError: there is nothing to lock: no --tower, and the data are not the embedded scenes.
    """
    if config.tower:
        path = Path(config.tower)
        method = read_recipe_name(path / "config.yaml")[0] if (path / "config.yaml").is_file() else None
        found = load(path, method, torch.device("cpu"))
        assets_preprocess: Preprocess = found.assets.preprocess
        tower = found.method.visual if isinstance(found, CatLIPPredictor) else found.model.visual
        if not isinstance(tower, (ViT, ModifiedResNet)):
            raise RecipeError(f"--tower {config.tower} holds no image tower")
        notes.append(f"tower: the image tower of {found.name}")
        return PretrainedTower(tower.config, tower, assets_preprocess)
    if not source.origin.startswith("scenes"):
        raise RecipeError("LiT locks a pretrained tower: give a run or published weights with --tower")
    if not isinstance(visual, ViTConfig):
        raise RecipeError("without --tower, LiT trains its own ViT; --variant names another kind of tower")
    tower, accuracy = train_classifier(visual, preprocess, config.tower_steps, seed)
    notes.append(
        f"tower: trained on the digits and colours of {_CLASSES} ({config.tower_steps} steps, {accuracy:.0%} held back)"
    )
    return PretrainedTower(visual, tower, preprocess)


def train_classifier(visual: ViTConfig, preprocess: Preprocess, steps: int, seed: int) -> tuple[ViT, float]:
    """Return an image tower trained to name digits and colours of the scenes, without its head, and its accuracy."""
    source = open_image_text(_CLASSES)
    train, test = source.split("train"), source.split("val")
    assert source.classes is not None
    torch.manual_seed(seed)
    tower = ViT(visual)
    tower.reset_head(len(source.classes))
    dataset = ImageTextDataset(train, augmentation(preprocess.height_width, "crop", (0.7, 1.0)), seed)

    def collate(items: list[object]) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.stack([item.image for item in items])  # pyright: ignore[reportAttributeAccessIssue]
        return preprocess.normalize(images), torch.tensor([item.label for item in items])  # pyright: ignore[reportAttributeAccessIssue]

    stream = Batches(dataset, Shuffled(len(train), 64, seed), collate).start()
    rate, shape = AdamW().lr, Schedule(warmup=0.1)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=rate, weight_decay=0.05)
    for step in range(steps):
        images, labels = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = rate * shape.factor(step, steps)
        loss = F.cross_entropy(tower(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    tower.eval()
    with torch.no_grad():
        pictures = torch.stack([preprocess(sample.image.tensor()) for sample in test])
        labels = torch.tensor([sample.label for sample in test])
        right = torch.cat([tower(part).argmax(1) for part in pictures.split(128)]) == labels
    tower.reset_head(0)
    return tower, right.float().mean().item()


def with_tower(architecture: DualEncoderConfig, tower: PretrainedTower) -> DualEncoderConfig:
    """Return the architecture with this image tower, unprojected, as in the paper: the text moves to its space."""
    width = tower.config.width if isinstance(tower.config, ViTConfig) else tower.config.embed_dim
    return dataclasses.replace(
        architecture, visual=tower.config, embed_dim=width, visual_projection=False,
        text_projection="linear" if architecture.text_projection == "none" else architecture.text_projection,
    )  # fmt: skip


def put_in(model: DualEncoder, tower: PretrainedTower) -> None:
    """Copy the tower's weights, without a classifier that it may have (CatLIP's)."""
    state = {name: value for name, value in tower.module.state_dict().items() if not name.startswith("head.")}
    model.visual.load_state_dict(state)
