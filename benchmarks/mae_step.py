"""A pre-training step of MAE: against transformers', and against seeing every patch.

    python benchmarks/mae_step.py            # some minutes
    python benchmarks/mae_step.py --quick    # two rounds

ViT-S/16 at 224 pixels, decoder of 256 × 4 with 8 heads, batch 8, AdamW: noise, forward, backward, update. One process,
the contestants in turn, the best time of each. Before that ours and transformers' get the same weights and the same
noise, and must agree in the loss to 1e-5 (bf16: 1e-2). "All patches" is our own step with all patches but one seen and
a loss on the one, which is what masking saves.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odonata.backbones.create import create
from odonata.data.preprocess import IMAGENET
from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import AdamW
from odonata.represent.mae import MAE, MAEConfig
from odonata.represent.mae_published import save_mae

BATCH, SIZE, PATCHES = 8, 224, 196
ALMOST_NONE = 1e-9
"""A share of patches that drops one."""


def ours(mask_ratio: float) -> MAE:
    """Return our method, the same weights at every call."""
    torch.manual_seed(0)
    config = MAEConfig(image_size=SIZE, mask_ratio=mask_ratio, decoder_width=256, decoder_depth=4, decoder_heads=8)
    return MAE(config, create("vit-s16", positions="sincos_2d", image_size=SIZE), IMAGENET)


def theirs() -> Any:
    """Return transformers' model with our weights."""
    from transformers import ViTMAEForPreTraining

    with tempfile.TemporaryDirectory() as folder:
        save_mae(Path(folder) / "hf", ours(0.75), "hf")
        return ViTMAEForPreTraining.from_pretrained(Path(folder) / "hf").train()


def step_of(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    """Return a function that makes one update and returns the loss."""

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return float(value.detach())

    return step


def contestants(images: Tensor, noise: Tensor | None) -> dict[str, Callable[[], float]]:
    """Return a step of each; with noise all mask alike, else each draws its own."""
    made: dict[str, Callable[[], float]] = {}
    for name, ratio, precision in (
        ("ours, fp32", 0.75, None),
        ("ours, bf16", 0.75, torch.bfloat16),
        ("ours, fp32, all patches", ALMOST_NONE, None),
    ):
        method = ours(ratio).train()

        def loss(method: MAE = method, precision: torch.dtype | None = precision) -> Tensor:
            with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
                return method.reconstruction_loss(images, noise)

        made[name] = step_of(loss, build_optimizer(method, AdamW(lr=1e-5)))
    model = theirs()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, betas=(0.9, 0.95))
    made["transformers, fp32"] = step_of(lambda: model(images, noise=noise).loss, optimizer)
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    torch.set_num_threads(arguments.threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    import transformers

    torch.manual_seed(1)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    first = {name: step() for name, step in contestants(images, torch.rand(BATCH, PATCHES)).items()}
    for name, limit in (("ours, fp32", 1e-5), ("ours, bf16", 1e-2)):
        if abs(first[name] / first["transformers, fp32"] - 1) > limit:
            raise SystemExit(f"{name} disagrees with transformers in the loss: {first}")
    steps = contestants(images, None)
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - start)
    print(
        f"ViT-S/16, {SIZE} pixels, decoder 256 × 4, batch {BATCH}, 75 % dropped, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {arguments.threads} threads, best of {rounds + 1}"
    )
    print(f"{'':26}{'ms / step':>10}{'time / ours, fp32':>19}{'time / ours, bf16':>19}")
    for name, seconds in best.items():
        ratios = seconds / best["ours, fp32"], seconds / best["ours, bf16"]
        print(f"{name:26}{1e3 * seconds:10.1f}{ratios[0]:19.2f}{ratios[1]:19.2f}")


if __name__ == "__main__":
    main()
