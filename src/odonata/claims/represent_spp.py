"""SPPF's claim of being SPP, bit for bit, and what SPPNet's formula for windows really makes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from odonata.backbones.spp import SPP, SPPF, SpatialPyramidPooling, paper_windows
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial

SIZES = ((1, 1), (2, 5), (4, 4), (7, 20), (13, 13), (16, 10), (20, 20))
CHANNELS = 8
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEVELS = (1, 2, 3, 6)
MAPS = range(6, 40)
"""Sides of the maps for which windows are counted."""


def unequal_values(dtype: torch.dtype, generator: torch.Generator) -> int:
    """Return how many numbers of SPP's output differ in any bit from SPPF's, over all sizes."""
    count = 0
    for size in SIZES:
        x = torch.randn(2, CHANNELS, *size, generator=generator).to(dtype)
        count += int((SPP()(x) != SPPF()(x)).sum())
    return count


def gradient_error(dtype: torch.dtype, generator: torch.Generator) -> float:
    """Return the largest relative difference of the two gradients for the same random gradient of the output."""
    worst = 0.0
    for size in SIZES:
        x = torch.randn(2, CHANNELS, *size, generator=generator).to(dtype)
        above = torch.randn(2, 4 * CHANNELS, *size, generator=generator).to(dtype)
        ours, theirs = (_gradient(pool, x, above) for pool in (SPPF(), SPP()))
        worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
    return worst


def _gradient(pool: Callable[[Tensor], Tensor], x: Tensor, above: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(pool(x), x, above)[0].double()


def wrong_windows() -> list[tuple[int, int]]:
    """Return (side, n) for which the paper's window ⌈a/n⌉ and stride ⌊a/n⌋ do not make n bins."""
    return [(side, n) for side in MAPS for n in LEVELS if paper_windows(side, n)[2] != n]


def wrong_adaptive() -> int:
    """Return for how many of these pairs adaptive pooling does not make n × n bins."""
    shapes = {(side, n): SpatialPyramidPooling((n,))(torch.zeros(1, 1, side, side)) for side in MAPS for n in LEVELS}
    return sum(made.shape[1] != n * n for (_, n), made in shapes.items())


def cpu_seconds(pool: Callable[[Tensor], Tensor], dtype: torch.dtype, calls: int) -> float:
    """Return the CPU time of a call on maps of 20 × 20, the least of three rounds."""
    x = torch.randn(4, 64, 20, 20).to(dtype)
    rounds: list[float] = []
    for _ in range(3):
        start = time.process_time()
        for _ in range(calls):
            pool(x)
        rounds.append((time.process_time() - start) / calls)
    return min(rounds)


def trial(trial: Trial) -> Figures:
    """Compare the two poolings in one precision, and count windows."""
    dtype = DTYPES[trial.condition]
    generator = torch.Generator().manual_seed(trial.seed)
    pool = SPPF() if trial.variant == "SPPF" else SPP()
    return {
        "unequal_values": unequal_values(dtype, generator),
        "gradient_error": gradient_error(dtype, generator),
        "wrong_windows": len(wrong_windows()),
        "wrong_adaptive": wrong_adaptive(),
        "cpu_ms": 1000 * cpu_seconds(pool, dtype, trial.steps(5)),
    }


CLAIM = Claim(
    name="sppf-equals-spp",
    room="represent",
    methods=("classify",),
    source="Ultralytics YOLOv5, `SPPF` (equal to SPP with 5, 9 and 13, and faster); He et al. 2014, arXiv:1406.4729, "
    "section 2.3 (window ⌈a/n⌉, stride ⌊a/n⌋ make n bins)",
    hypothesis="Three poolings of 5 in a row give bit for bit what poolings of 5, 9 and 13 give, and the same gradient "
    "up to rounding; SPPNet's formula for windows makes the wrong number of bins for ten of the pairs of a side from 6 "
    "to 39 and n of 1, 2, 3 and 6, adaptive pooling for none.",
    data="Random maps of 1 × 1 to 20 × 20 cells, 8 channels, in four precisions.",
    scaled_down="Nothing is. Gradients are compared in float64 and float32: in half precision two cells of a window "
    "are often equal, and which of them gets the gradient then differs.",
    trial=trial,
    conditions=tuple(DTYPES),
    variants=("SPPF", "SPP"),
    comparisons=(
        *(Comparison(f"{name}: values that differ", f"SPPF@{name}", 0.0, "unequal_values", "<", 0.5)
          for name in DTYPES),
        Comparison("float64: error of the gradient", "SPPF@float64", 0.0, "gradient_error", "<", 1e-13),
        Comparison("float32: error of the gradient", "SPPF@float32", 0.0, "gradient_error", "<", 1e-5),
        Comparison("pairs that the paper's windows miscount", "SPPF@float32", 0.0, "wrong_windows", ">", 9.5),
        Comparison("and no more than ten", "SPPF@float32", 0.0, "wrong_windows", "<", 10.5),
        Comparison("pairs that adaptive pooling miscounts", "SPPF@float32", 0.0, "wrong_adaptive", "<", 0.5),
        Comparison("CPU time", "SPPF@float32", "SPP@float32", "cpu_ms", "<", 1.0, ratio=True, primary=False),
    ),
    plots=(Plot("cpu_ms", "CPU time of four maps of 64 × 20 × 20, ms", log=True),),
    axis="precision",
    seeds=(1, 2, 3),
)  # fmt: skip
