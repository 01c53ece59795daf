"""Towers forward and in a training step, against timm and transformers.

    python benchmarks/backbones.py                                       # all four towers: some 6 minutes
    python benchmarks/backbones.py --models resnet50                     # one of them: 1 to 2 minutes
    python benchmarks/backbones.py --models efficientnet-b0 --compile    # torch.compile as well
    python benchmarks/backbones.py --quick                               # two towers, one round

Everybody has the same weights, written by us in their own layouts, and gets the same images; there is no dropout. A
training step is forward, cross-entropy over 1,000 classes, backward, and an update by AdamW: torch's default by the
peers, as their documentation has it, and that of our engine by us. Peers run as they come: float32, eager. We run so
too, and with `--precision bf16` (autocast), and with `--compile` compiled as well.

In float32, logits and loss must agree to 1e-4 and the norm of the gradient to 1 % (batch statistics of so few images
magnify rounding); in bf16 the loss to 2 %. With one thread the time is that of the CPU, which a busy machine disturbs
less than the clock on the wall; with more it is the latter.

`efficientnet-b0` has TensorFlow's padding, as the authors' weights (timm's `tf_efficientnet_b0`), and
`efficientnet-b0-torch` timm's own symmetrical one, which is faster.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import turns
from turns import PEERS, Contestant

MODELS = {
    # name: (our tower, layout for timm, timm's name, whether transformers has it, batch)
    "vit-s16": ("vit-s16", "timm", "vit_small_patch16_224", True, 4),
    "vit-b16": ("vit-b16", "timm", "vit_base_patch16_224", True, 2),
    "resnet50": ("resnet50", "torchvision", "resnet50", True, 4),
    "efficientnet-b0": ("efficientnet-b0", "timm", "tf_efficientnet_b0", True, 8),
    "efficientnet-b0-torch": ("efficientnet-b0", "timm", "efficientnet_b0", False, 8),
}
DEFAULT = ("vit-s16", "vit-b16", "resnet50", "efficientnet-b0")
CLASSES, SIZE = 1000, 224
WAYS = {"fp32": (False, False), "bf16": (True, False), "fp32, compiled": (False, True), "bf16, compiled": (True, True)}
"""How we run: (autocast to bf16, torch.compile)."""


def write_weights(model: str, folder: Path, batch: int) -> None:
    """Write one randomly initialised tower for everybody, and the images with their classes."""
    import torch

    from odonata.backbones.create import create, to_plain
    from odonata.backbones.efficientnet import in_convention
    from odonata.backbones.pretrained import published_files
    from odonata.weights.published import write_files

    ours, layout, _, in_transformers, _ = MODELS[model]
    torch.manual_seed(0)
    tower = create(ours, dropout=0.0, drop_connect=0.0) if ours.startswith("efficientnet") else create(ours)
    if model.endswith("-torch"):
        tower.config = in_convention(tower.config, "torch")
    tower.reset_head(CLASSES)
    torch.save({"config": to_plain(tower.config), "state": tower.state_dict()}, folder / "ours.pt")
    for name in (layout, "hf") if in_transformers else (layout,):
        (folder / name).mkdir()
        write_files(folder / name, published_files(tower, name), {})
    images = torch.randn(batch, 3, SIZE, SIZE)
    torch.save({"images": images, "labels": torch.randint(CLASSES, (batch,))}, folder / "batch.pt")


def prepare(name: str, model: str, folder: Path, threads: int, compiled: bool) -> tuple[dict[str, Any], Any]:
    """Load one contestant's tower; return its version, what it computes, and what it does in a round."""
    import torch

    torch.set_num_threads(threads)
    batch = torch.load(folder / "batch.pt")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if compiled and cores:  # compilers may use every core; what they make may not
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    version, load, optimizer_of = {"ours": _ours, "timm": _timm, "transformers": _transformers}[name](model, folder)
    ways = [way for way, (_, compiles) in WAYS.items() if name == "ours" and (compiled or not compiles)] or ["fp32"]
    cases: dict[str, Callable[[], Any]] = {}
    found: dict[str, Any] = {}
    for way in ways:
        tower = load()
        forward, train = _steps(tower, optimizer_of(tower), batch, *WAYS[way])
        logits = forward()
        loss, norm = train()
        found[way] = {"logits": logits.float().flatten()[:2000].tolist(), "loss": loss, "norm": norm}
        cases[f"forward {way}"], cases[f"training {way}"] = forward, train
    if compiled and cores:
        os.sched_setaffinity(0, cores)
    clock = time.process_time if threads == 1 else time.perf_counter

    def round_() -> dict[str, Any]:
        seconds: dict[str, float] = {}
        for case, do in cases.items():
            start = clock()
            do()
            seconds[case] = clock() - start
        return {"seconds": sum(seconds.values()), "cases": seconds}

    return {"version": version, "found": found}, round_


def _steps(
    tower: Any, optimizer: Any, batch: dict[str, Any], bf16: bool, compiles: bool
) -> tuple[Callable[[], Any], Callable[[], tuple[float, float]]]:
    """Return a forward pass in evaluation, and a training step that returns the loss and the norm of its gradient."""
    import torch
    import torch.nn.functional as F

    network = torch.compile(tower) if compiles else tower

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            out = network(batch["images"])
        return getattr(out, "logits", out)

    def forward() -> Any:
        tower.eval()
        with torch.no_grad():
            return run()

    def train() -> tuple[float, float]:
        tower.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(run().float(), batch["labels"])
        loss.backward()
        if not counted:  # the norm is for the comparison before the rounds, and no part of a step
            grads = [p.grad.norm() for p in tower.parameters() if p.grad is not None]
            counted.append(float(torch.stack(grads).norm()))
        optimizer.step()
        return float(loss.detach()), counted[0]

    counted: list[float] = []
    return forward, train


def _ours(model: str, folder: Path) -> tuple[str, Callable[[], Any], Callable[[Any], Any]]:
    import torch

    import odonata
    from odonata.backbones.create import build, from_plain
    from odonata.engine.param_groups import build_optimizer
    from odonata.engine.recipe import AdamW

    def load() -> Any:
        saved = torch.load(folder / "ours.pt")
        tower = build(from_plain(saved["config"]))
        tower.reset_head(CLASSES)
        tower.load_state_dict(saved["state"])
        return tower

    return odonata.__version__, load, lambda tower: build_optimizer(tower, AdamW(lr=1e-5))


def _timm(model: str, folder: Path) -> tuple[str, Callable[[], Any], Callable[[Any], Any]]:
    import torch
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import timm
    from safetensors.torch import load_file

    _, layout, name, _, _ = MODELS[model]
    file = next(f for f in (folder / layout).iterdir() if f.suffix != ".json")

    def load() -> Any:
        tower = timm.create_model(name, num_classes=CLASSES)
        tower.load_state_dict(load_file(file) if file.suffix == ".safetensors" else torch.load(file))
        return tower

    return timm.__version__, load, lambda tower: torch.optim.AdamW(tower.parameters(), lr=1e-5)


def _transformers(model: str, folder: Path) -> tuple[str, Callable[[], Any], Callable[[Any], Any]]:
    import torch
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import transformers

    def load() -> Any:
        return transformers.AutoModelForImageClassification.from_pretrained(folder / "hf", dtype=torch.float32)

    return transformers.__version__, load, lambda tower: torch.optim.AdamW(tower.parameters(), lr=1e-5)


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Stop where somebody computes something else.

    Raises:
        SystemExit: who, and in what.
    """
    import numpy as np

    ours = found["ours"]["fp32"]
    for name, ways in found.items():
        for way, other in ways.items():
            bounds = {"loss": 0.02} if "bf16" in way else {"logits": 1e-4, "loss": 1e-4, "norm": 1e-2}
            for key, bound in bounds.items():
                a, b = np.asarray(other[key]), np.asarray(ours[key])
                error = float(np.abs(a - b).max() / np.abs(b).max())
                if not error < bound:
                    raise SystemExit(f"{name}, {way}, disagrees with ours in {key}: relative difference {error:.1e}")


def measure(model: str, rounds: int, threads: int, compiled: bool, batch: int | None) -> None:
    """Print the table of one tower."""
    batch = batch or MODELS[model][4]
    names = ["ours", "timm", *(["transformers"] if MODELS[model][3] else [])]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_weights(model, folder, batch)
        contestants = [
            Contestant(
                name, sys.executable if name == "ours" else PEERS,
                [__file__, "--child", name, model, made, str(threads), str(int(compiled))], threads,
            )
            for name in names
        ]  # fmt: skip
        compare({c.name: c.about["found"] for c in contestants})
        best: dict[tuple[str, str], float] = {}
        for _ in range(rounds):
            for contestant in contestants:
                for case, seconds in contestant.round()["cases"].items():
                    best[contestant.name, case] = min(seconds, best.get((contestant.name, case), float("inf")))
        for contestant in contestants:
            contestant.leave()
    peers = ", ".join(f"{c.name} {c.about['version']}" for c in contestants[1:])
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(f"\n{model}, {SIZE} pixels, batch {batch}, {threads} threads, best of {rounds}, {load}; {peers}")
    print(f"{'':10}{'':18}{'ms':>8}" + "".join(f"{name + ' fp32 / it':>24}" for name in names[1:]))
    for (name, case), seconds in best.items():
        kind, way = case.split(" ", 1)
        ratios = [best[peer, f"{kind} fp32"] / seconds for peer in names[1:]]
        print(f"{kind:10}{name + ', ' + way:24}{1e3 * seconds:8.1f}" + "".join(f"{ratio:24.2f}" for ratio in ratios))


def main() -> None:
    """Print a table for each tower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two towers, one round, two images")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(DEFAULT))
    parser.add_argument("--compile", action="store_true", help="compile ours as well: a minute or two for each tower")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, help="images; each tower's own number if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, model, folder, threads, compiled = arguments.child
        turns.serve(lambda: prepare(name, model, Path(folder), int(threads), bool(int(compiled))))
        return
    turns.require_peers()
    models = ["vit-s16", "efficientnet-b0"] if arguments.quick else arguments.models
    batch = 2 if arguments.quick else arguments.batch
    for model in models:
        measure(model, 1 if arguments.quick else arguments.rounds, arguments.threads, arguments.compile, batch)


if __name__ == "__main__":
    main()
