"""MAE's two ways to judge a tower: fine-tuning all of it, and a linear probe, as recipes of `classify`.

Notable: for ViT-B the authors' code has a layer decay of 0.65 and a base rate of 5e-4, not the paper's 0.75 and 1e-3
(table 9), which the issues of the repository show people tripping over. The mean of the patches is pooled, normed
afterwards by a new norm, because the class token alone diverged for ViT-H in half precision. Positions are trained.

Differences: RandAugment is this library's, of magnitude 9 without noise; there is no random erasing, whose effect the
authors call smaller than random variance; the classifier begins at N(0, 0.01²), theirs at N(0, 2e-5²) in fine-tuning.

Sources: facebookresearch/mae `FINETUNE.md`, `main_finetune.py`, `main_linprobe.py`, `util/lr_decay.py`; He et al. 2021,
app. A.1, tables 9 and 10.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from odonata.backbones.vit import ViT, ViTConfig
from odonata.data.pictures import PictureData
from odonata.engine.recipe import LARS, AdamW, Clip, Recipe, Schedule
from odonata.nn.positions import resize_positions
from odonata.represent.classify import ClassifyConfig
from odonata.represent.evaluation import RepresentEvaluation

Size = Literal["b", "l", "h"]


@dataclass(frozen=True)
class _Finetuning:
    backbone: str
    lr: float
    layer_decay: float
    drop_path: float
    epochs: int


# FINETUNE.md of the authors.
_FINETUNING: dict[Size, _Finetuning] = {
    "b": _Finetuning("mae-b16", 5e-4, 0.65, 0.1, 100),
    "l": _Finetuning("mae-l16", 1e-3, 0.75, 0.2, 50),
    "h": _Finetuning("mae-h14", 1e-3, 0.75, 0.3, 50),
}
_FORM = "positions=learned,pool=patches,fc_norm=true"


def mae_finetune(size: Size = "b", init: str = "", backbone: str = "", image_size: int = 224) -> Recipe:
    """Return the recipe that fine-tunes a tower on labelled pictures.

    Source: `FINETUNE.md`; He et al. 2021, table 9:

    | | B | L | H |
    | --- | --- | --- | --- |
    | base rate, for 256 pictures | 5e-4 | 1e-3 | 1e-3 |
    | layer decay | 0.65 | 0.75 | 0.75 |
    | drop path | 0.1 | 0.2 | 0.3 |
    | epochs | 100 | 50 | 50 |

    and for all: AdamW (0.9, 0.999), weight decay 0.05, batches of 1,024, 5 epochs of warm-up, cosine, mixup 0.8,
    CutMix 1, label smoothing 0.1, RandAugment, crops of 0.08 … 1. ImageNet top-1: 83.6, 85.9, 86.9 (table 3).

    Args:
        size: whose values.
        init: the pre-trained run or weights.
        backbone: the tower's name where it is not the paper's; it gets trainable positions and a norm after pooling.
        image_size: side of the pictures in pixels.
    """
    values = _FINETUNING[size]
    name = backbone or values.backbone
    return Recipe(
        name="classify",
        method=ClassifyConfig(
            backbone=f"{name}{',' if ':' in name else ':'}{_FORM}",
            image_size=image_size,
            init=init,
            head_warmup=0.0,
            backbone_lr=1.0,
            epochs=values.epochs,
            label_smoothing=0.1,
            mixup=0.8,
            cutmix=1.0,
            drop_path=values.drop_path,
            augmentation="strong",
            crop_scale=(0.08, 1.0),
        ),
        data=PictureData(batch_size=1024),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=values.lr, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=values.layer_decay),
        schedule=Schedule(warmup=5 / values.epochs),
        clip=Clip("none"),
    )


def mae_linear_probe(size: Size = "b", init: str = "", backbone: str = "", image_size: int = 224) -> Recipe:
    """Return the recipe that trains a linear classifier on the frozen tower, behind a batch normalisation.

    Source: `main_linprobe.py`; He et al. 2021, table 10: LARS with a base rate of 0.1 for 256 pictures, momentum 0.9,
    no weight decay, batches of 16,384, 90 epochs (50 for L and H) of which 10 warm up, cosine, crops and mirroring,
    the class token's features. The normalisation has no affine parameters, so it can be folded into the classifier.
    ImageNet top-1: 67.8, 76.0, 77.2.

    Args:
        size, init, backbone, image_size: as in `mae_finetune`; the tower is taken as it is.
    """
    epochs = 90 if size == "b" else 50
    return Recipe(
        name="classify",
        method=ClassifyConfig(
            backbone=backbone or _FINETUNING[size].backbone,
            image_size=image_size,
            init=init,
            head_warmup=0.0,
            backbone_lr=1.0,
            epochs=epochs,
            freeze=True,
            norm_head=True,
            augmentation="crop",
            crop_scale=(0.08, 1.0),
        ),
        data=PictureData(batch_size=16384),
        evaluation=RepresentEvaluation(),
        optim=LARS(lr=0.1, weight_decay=0.0, momentum=0.9),
        schedule=Schedule(warmup=10 / epochs),
        clip=Clip("none"),
    )


def finetuning_form(tower: ViT, config: ViTConfig | None = None) -> ViT:
    """Return a pre-trained tower as fine-tuning begins with it: trainable positions, and a new norm after the pooling.

    Args:
        tower: as it was pre-trained; it is left as it is.
        config: what it becomes, such as with stochastic depth; None: its own, in the form of `mae_finetune`. For
            another `image_size` positions are resized.
    """
    old = tower.config
    new: ViTConfig = config or replace(old, positions="learned", pool="patches", fc_norm=True)
    form = ViT(new)
    state = {k: v for k, v in tower.state_dict().items() if not k.startswith(("head", "norm.", "fc_norm."))}
    if tower.positions is not None and new.positions == "learned":
        state["positions"] = resize_positions(
            tower.positions, old.grid, new.grid, convention=old.position_convention
        ).detach()
    if not new.fc_norm and isinstance(tower.norm, nn.LayerNorm):
        state |= {f"norm.{k}": v for k, v in tower.norm.state_dict().items()}
    fresh = {k: v for k, v in form.state_dict().items() if k.startswith("fc_norm.")}
    form.load_state_dict({k: v.clone() for k, v in (fresh | state).items()})
    return form.to(next(tower.parameters()))
