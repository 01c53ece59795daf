"""The default recipes of this room: each trains on the embedded digits within minutes on a laptop.

Learning rates are those for 256 pictures a step, and scaled to the batch; the papers' own stand in the comments.
"""

from __future__ import annotations

from odonata.data.pictures import PictureData
from odonata.engine.recipe import SGD, AdamW, Clip, Recipe, Schedule
from odonata.represent.classify import ClassifyConfig
from odonata.represent.cpc import CPCConfig
from odonata.represent.dino import DINOConfig
from odonata.represent.evaluation import RepresentEvaluation
from odonata.represent.jigsaw import JigsawConfig
from odonata.represent.mae import MAEConfig
from odonata.represent.moby import MoBYConfig
from odonata.represent.moco import MoCoConfig
from odonata.represent.moco_v3 import MoCoV3Config
from odonata.represent.rotation import RotationConfig
from odonata.represent.swav import SwAVConfig


def classify() -> Recipe:
    """A classifier at laptop size on the embedded digits."""
    return Recipe(
        name="classify",
        method=ClassifyConfig(),
        data=PictureData(),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=2e-3, weight_decay=0.05, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.1),
        steps=400,
    )


def rotation() -> Recipe:
    """RotNet at laptop size, without mirroring: digits mean something left and right. The paper: SGD with momentum 0.9.

    Half of the digits look nearly the same upside down (0, 1, 8, and 2 and 5 often), and a 6 is a 9: the loss rests at
    ln 2 = 0.69, upright or not, before it falls, and its accuracy stays below 1. The page has what kNN gains by it.
    """
    return Recipe(
        name="rotation",
        method=RotationConfig(mirror=0.0),
        data=PictureData(batch_size=64),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=0.012, weight_decay=0.05, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.1),
        steps=600,
    )


def jigsaw() -> Recipe:
    """Jigsaw at laptop size: tiles of 8 px. Tiles so small show strokes; the page has what kNN gains.

    The paper: 225 px, tiles of 64, SGD with momentum, 0.01.
    """
    return Recipe(
        name="jigsaw",
        method=JigsawConfig(),
        data=PictureData(batch_size=128),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=4e-3, weight_decay=0.05, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.1),
        steps=400,
    )


def cpc() -> Recipe:
    """CPC at laptop size: an eighth of the paper's 256 px in all lengths. The paper: Adam 2e-4, 32 groups of 16.

    The page has what kNN gains by a short run.
    """
    return Recipe(
        name="cpc",
        method=CPCConfig(),
        data=PictureData(batch_size=32),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=4e-3, weight_decay=1e-4, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.1),
        steps=400,
    )


def mae() -> Recipe:
    """MAE at laptop size.

    The paper (table 8): ViT-B/16 or larger, decoder of 512 × 8, AdamW 1.5e-4 for 256 pictures (0.9, 0.95), weight decay
    0.05, batches of 4,096, 40 epochs of warm-up in 800 or 1,600, crops of 0.2 … 1 and mirroring, no clipping:
    `--backbone mae-b16 --image-size 224 --decoder-width 512 --decoder-depth 8 --decoder-heads 16 --optim.lr 1.5e-4
    --data.batch-size 4096 --epochs 800 --schedule.warmup 0.05 --precision bf16`. In fp16 others saw it diverge.
    """
    return Recipe(
        name="mae",
        method=MAEConfig(),
        data=PictureData(),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=3e-3, weight_decay=0.05, betas=(0.9, 0.95)),
        schedule=Schedule(warmup=0.1),
        clip=Clip("none"),
        steps=600,
    )


def moco_v1() -> Recipe:
    """MoCo v1 at laptop size. The paper: ResNet-50, SGD 0.03 for 256, steps at 60 % and 80 % of 200 epochs."""
    return Recipe(
        name="moco-v1",
        method=MoCoConfig(),
        data=PictureData(batch_size=64),
        evaluation=RepresentEvaluation(),
        optim=SGD(lr=0.24, weight_decay=1e-4),
        schedule=Schedule(kind="steps", warmup=0.0, milestones=(0.6, 0.8)),
        clip=Clip("none"),
        steps=600,
    )


def moco_v2() -> Recipe:
    """MoCo v2 at laptop size. The paper: ResNet-50, SGD 0.03 for 256, cosine over 200 or 800 epochs."""
    return Recipe(
        name="moco-v2",
        method=MoCoConfig(mlp=True, temperature=0.2, augmentation="v2"),
        data=PictureData(batch_size=64),
        evaluation=RepresentEvaluation(),
        optim=SGD(lr=0.24, weight_decay=1e-4),
        schedule=Schedule(warmup=0.0),
        clip=Clip("none"),
        steps=600,
    )


def moco_v3() -> Recipe:
    """MoCo v3 at laptop size.

    The paper, batch 4096: ResNet-50 by LARS 0.3 for 256, decay 1e-6 over 300 epochs or 1.5e-6 and momentum 0.996 over
    1000, warm-up of 10; Vision Transformers by AdamW 1.5e-4 for 256, decay 0.1, 300 epochs, warm-up of 40.
    """
    return Recipe(
        name="moco-v3",
        method=MoCoV3Config(),
        data=PictureData(),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.1),
        clip=Clip("none"),
        steps=600,
    )


def moby() -> Recipe:
    """MoBY at laptop size.

    The paper: Swin-T (stochastic depth 0.2 online, 0 target) and DeiT-S, AdamW 1e-3 for 512, decay 0.05, warm-up of 5
    of 300 epochs, gradients clipped to a norm of 5.
    """
    return Recipe(
        name="moby",
        method=MoBYConfig(),
        data=PictureData(),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=2e-3, weight_decay=0.05, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.1),
        clip=Clip("norm", 5.0),
        steps=600,
    )


def swav() -> Recipe:
    """SwAV at laptop size. The paper: ResNet-50, LARS 4.8 for 4096 with trust 1e-3, cosine over 800 epochs, ε 0.05.

    A short run needs sharper codes, larger small crops and fewer prototypes, or it stays at ln K. Even so its
    features gain little: in 120 steps on plain digits (ResNet-8, 16 px) kNN went from 0.854 to 0.889 with seed 0 and
    from 0.877 to 0.836 with seed 1, without a collapse in either.
    """
    return Recipe(
        name="swav",
        method=SwAVConfig(
            small_crops=2,
            large_scale=(0.5, 1.0),
            small_scale=(0.25, 0.6),
            hidden=128,
            dim=64,
            prototypes=64,
            epsilon=0.01,
        ),
        data=PictureData(batch_size=64),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=4e-3, weight_decay=1e-4, betas=(0.9, 0.999)),
        schedule=Schedule(warmup=0.05),
        clip=Clip("none"),
        steps=600,
    )


def dino() -> Recipe:
    """DINO at laptop size. The paper: ViT-S/16, AdamW 5e-4 for 256, decay 0.04 to 0.4, momentum 0.996, 2 + 10 crops.

    A short run needs a colder teacher, larger small crops and a normalised head, or its answers stay flat; and a small
    convolutional tower: with a small transformer kNN fell in 300 steps from 0.25 to 0.19. With this one it rose from
    0.24 untrained to 0.34, clear of both collapses (seed 0).
    """
    return Recipe(
        name="dino",
        method=DINOConfig(
            backbone="resnet8",
            small_crops=2,
            large_scale=(0.5, 1.0),
            small_scale=(0.25, 0.6),
            prototypes=256,
            head_hidden=256,
            head_dim=64,
            head_norm=True,
            teacher_temperature_start=0.02,
            teacher_temperature=0.03,
            momentum=0.98,
        ),
        data=PictureData(batch_size=64),
        evaluation=RepresentEvaluation(),
        optim=AdamW(lr=4e-3, weight_decay=0.04, betas=(0.9, 0.999), final_weight_decay=0.4),
        schedule=Schedule(warmup=0.1),
        clip=Clip("tensor", 3.0),
        steps=400,
    )


def by_name(name: str) -> Recipe:
    """Return the default recipe of a method of this room."""
    return globals()[name.replace("-", "_")]()
