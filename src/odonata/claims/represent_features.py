"""The claim behind all label-free learning: its features tell classes apart that it was never told of."""

from __future__ import annotations

import torch

from odonata.backbones.resnet import ResNet
from odonata.backbones.vit import ViT, ViTConfig
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.claims.represent_toy import (
    CELL,
    CELL_PREPROCESS,
    CELLS_DATA,
    TOWER,
    Images,
    Pictures,
    cells,
    crops,
    flat_pixels,
    learning,
    measure,
    moco_view,
    pooled,
    train,
)
from odonata.represent.mae import MAE, MAEConfig
from odonata.represent.moco import MoCo, MoCoConfig

BATCH = 64
STEPS = {"moco-v2": 800, "mae": 800}
WHERE = "white digits"
VARIANTS = ("moco-v2", "random ResNet", "mae", "random ViT", "pixels")
VIT = ViTConfig(
    image_size=CELL, patch_size=2, width=96, depth=3, num_heads=3, mlp_width=384, pool="patches",
    positions="sincos_2d",
)  # fmt: skip


def mae_view(images: Images) -> Images:
    """A crop, which is all that MAE asks for."""
    return crops(images, (0.5, 1.0))


def learn(variant: str, tower: ResNet | ViT, seen: Pictures, trial: Trial) -> None:
    """Train a tower without labels."""
    factor = trial.setting["lr_factor"]
    if isinstance(tower, ResNet):
        config = MoCoConfig(dim=64, queue=1024, momentum=0.99, temperature=0.2, mlp=True, augmentation="v2")
        method, looks = MoCo(config, tower, CELL_PREPROCESS), [moco_view, moco_view]
        optimizer = torch.optim.SGD(learning(method), lr=0.06 * factor, momentum=0.9, weight_decay=1e-4)
    else:
        config = MAEConfig(decoder_width=48, decoder_depth=1, decoder_heads=3)
        method, looks = MAE(config, tower, CELL_PREPROCESS), [mae_view]
        optimizer = torch.optim.AdamW(learning(method), lr=1e-3 * factor, betas=(0.9, 0.95), weight_decay=0.05)
    steps = trial.steps(STEPS[variant])
    train(method, looks, seen, steps=steps, batch=BATCH, optimizer=optimizer, seed=trial.seed)


def trial(trial: Trial) -> Figures:
    """Train a tower without labels or not at all, and measure it; or measure the pixels."""
    seen, measured = cells(trial, "train", coloured=False), cells(trial, trial.split, coloured=False)
    if trial.variant == "pixels":
        return measure(flat_pixels, seen, measured, trial.seed)
    torch.manual_seed(trial.seed)
    tower = ViT(VIT) if trial.variant in ("mae", "random ViT") else ResNet(TOWER)
    if trial.variant in STEPS:
        learn(trial.variant, tower, seen, trial)
    return measure(lambda images: pooled(tower, images), seen, measured, trial.seed)


def _against(treatment: str, control: str, quantity: str, primary: bool = True) -> Comparison:
    name = f"{treatment} against {control}, by {quantity}"
    return Comparison(name, f"{treatment}@{WHERE}", f"{control}@{WHERE}", quantity, ">", primary=primary)


CLAIM = Claim(
    name="label-free-features",
    room="represent",
    methods=("moco-v2", "mae"),
    source="Chen et al. 2020, arXiv:2003.04297, table 1; He et al. 2021, arXiv:2111.06377, figure 7 and table 1 "
    "(linear probes of features that were learned without labels)",
    hypothesis="Towers trained by MoCo v2 and by MAE tell digits better than the same towers at random, by a linear "
    "probe and by nearest neighbours, and better than pixels by a linear probe.",
    data=CELLS_DATA.format(colours="white"),
    scaled_down="ResNet-8 and a ViT of three blocks with 64 patches instead of ResNet-50 and ViT-L on ImageNet; 800 "
    "steps of 64 pictures. Two rates are tried for each. Pixels are strong under nearest neighbours here, "
    "since a digit nearly fills its picture: that comparison is printed and decides nothing.",
    trial=trial,
    conditions=(WHERE,),
    variants=VARIANTS,
    comparisons=(
        *(_against(method, tower, name) for method, tower in (("moco-v2", "random ResNet"), ("mae", "random ViT"))
          for name in ("probe", "knn")),
        *(_against(method, "pixels", "probe") for method in ("moco-v2", "mae")),
        *(_against(method, "pixels", "knn", primary=False) for method in ("moco-v2", "mae")),
    ),
    plots=(Plot("probe", "linear probe, %"), Plot("knn", "nearest neighbours, %")),
    grid=dict.fromkeys(VARIANTS, ({"lr_factor": 1.0}, {"lr_factor": 3.0})),
    tune_by="probe",
    seeds=(1, 2, 3),
)  # fmt: skip
