"""Towers forward and in training, and a step of MAE, on a GPU: pictures a second and the share of its peak.

    python benchmarks/gpu.py                                    # ViT-B, ViT-L, ResNet-50, EfficientNet-B0; MAE ViT-L
    python benchmarks/gpu.py --models vit-b16 --batch 512       # one of them
    python benchmarks/gpu.py --no-compile                       # eager: starts sooner
    python benchmarks/gpu.py --device cpu --quick               # shows that the script runs; its figures mean nothing

bf16 autocast, fused AdamW, random pictures that already lie on the device, median of 20 steps after 5. The share (MFU)
is 2 · MACs · pictures/s, three times that in training, over the dense bf16 peak that the maker states for this device;
recomputation does not count as work. Without a GPU it says so and ends well.

The step of MAE is the whole method: bytes in, three quarters of the patches dropped, decoder of 512 × 8, loss, update.
Its ratio is to the supervised step of the same tower.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from odonata.backbones.create import create
from odonata.backbones.measure import count
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET
from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import AdamW
from odonata.represent.mae import MAE, MAEConfig

CLASSES, SIZE = 1000, 224
BATCHES = {"vit-b16": 256, "vit-l16": 128, "resnet50": 256, "efficientnet-b0": 256}
PEAKS = (
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)
"""Dense bf16 with float32 sums, FLOP/s, from the makers' data sheets; the first name found in the device's counts."""


def peak_of(name: str) -> float | None:
    """Return the peak of a device, None where it is not known."""
    return next((peak for part, peak in PEAKS if part.lower() in name.lower()), None)


def seconds(step: Callable[[], object], device: torch.device, quick: bool) -> float:
    """Return the median time of a step."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    taken: list[float] = []
    before, counted = (1, 1) if quick else (5, 20)
    for number in range(before + counted):
        wait()
        start = time.perf_counter()
        step()
        wait()
        if number >= before:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def tower_steps(name: str, batch: int, device: torch.device, compiles: bool) -> dict[str, Callable[[], Tensor]]:
    """Return a forward pass and a training step of a classifier."""
    tower = create(name)
    tower.reset_head(CLASSES)
    tower.to(device)
    network = torch.compile(tower) if compiles else tower
    optimizer = build_optimizer(tower, AdamW(lr=1e-4))
    images, labels = torch.randn(batch, 3, SIZE, SIZE, device=device), torch.randint(CLASSES, (batch,), device=device)

    def run() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return network(images)

    def forward() -> Tensor:
        tower.eval()
        with torch.no_grad():
            return run()

    def train() -> Tensor:
        tower.train()
        loss = F.cross_entropy(run().float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return {"forward": forward, "training": train}


def mae_step(name: str, batch: int, device: torch.device, compiles: bool) -> Callable[[], Tensor]:
    """Return a step of MAE on this tower."""
    config = MAEConfig(image_size=SIZE, decoder_width=512, decoder_depth=8, decoder_heads=16)
    method = MAE(config, create(name, positions="sincos_2d", image_size=SIZE), IMAGENET).to(device).train()
    optimizer = build_optimizer(method, AdamW(lr=1e-4))
    pictures = torch.randint(256, (batch, 3, SIZE, SIZE), dtype=torch.uint8, device=device)
    views = ViewBatch([pictures], torch.full((batch,), -1, device=device), torch.arange(batch, device=device))
    network = torch.compile(method.loss) if compiles else method.loss

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(views)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def line(name: str, kind: str, batch: int, taken: float, work: float | None, peak: float | None, more: str = "") -> str:
    """Return a row of the table."""
    share = f"{work / taken / peak:8.1%}" if work and peak else f"{'':8}"
    return f"{name:18}{kind:12}{batch:6}{1e3 * taken:10.1f}{batch / taken:13.1f}{share}  {more}".rstrip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one tower, two pictures, one step, nothing compiled")
    parser.add_argument("--models", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--mae", default="vit-l16", help="tower of MAE's step; empty for none")
    parser.add_argument("--batch", type=int, help="pictures; each tower's own number if not given")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    device = torch.device(arguments.device)
    compiles = arguments.compile and not arguments.quick
    models, mae = (["resnet50"], "vit-ti16") if arguments.quick else (arguments.models, arguments.mae)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = peak_of(name)
    stated = f"peak {peak / 1e12:.0f} TFLOP/s" if peak else "peak not known: no MFU"
    print(f"{name}, {stated}, torch {torch.__version__}, bf16, {'compiled' if compiles else 'eager'}, {SIZE} pixels")
    print(f"{'':30}{'batch':>6}{'ms / step':>10}{'pictures/s':>13}{'MFU':>8}")
    supervised: dict[str, float] = {}
    for model in models:
        batch = 2 if arguments.quick else arguments.batch or BATCHES[model]
        tower = create(model)
        tower.reset_head(CLASSES)
        work = 2 * count(tower, SIZE).macs * batch
        for kind, step in tower_steps(model, batch, device, compiles).items():
            taken = seconds(step, device, arguments.quick)
            print(line(model, kind, batch, taken, work * (3 if kind == "training" else 1), peak), flush=True)
            if kind == "training":
                supervised[model] = taken / batch
    if mae:
        batch = 2 if arguments.quick else arguments.batch or BATCHES.get(mae, 128)
        taken = seconds(mae_step(mae, batch, device, compiles), device, arguments.quick)
        ratio = f"{supervised[mae] * batch / taken:.2f} times the supervised step" if mae in supervised else ""
        print(line(mae, "MAE", batch, taken, None, peak, ratio))


if __name__ == "__main__":
    main()
