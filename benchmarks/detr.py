"""DETR-R50 forward, from prepared pictures to classes and boxes, against transformers.

    python benchmarks/detr.py            # some minutes
    python benchmarks/detr.py --quick    # one round at 240 × 320

One and two pictures of 480 × 640 and of 800 × 1066 pixels; of two, the second is smaller and padded. Both read one
directory in transformers' layout, with weights by chance, and their classes and boxes must agree to a relative 1e-4.
"ours, bf16" is ours with `--precision bf16`, held to 5e-2. With one thread the time is that of the CPU.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import turns
from turns import PEERS, Contestant

SIZES = ((480, 640), (800, 1066))
QUICK = ((240, 320),)
PICTURES = (1, 2)
SMALLER = 7 / 8
"""Share of the frame's sides that the second picture has."""
NAMES = ("ours", "ours, bf16", "transformers")
BOUNDS = {"transformers": 1e-4, "ours, bf16": 5e-2}


def write_model(folder: Path) -> None:
    """Write a DETR-R50 as transformers has it."""
    from dataclasses import replace

    import torch

    from odonata.data.objects import Category
    from odonata.detect.assets import DetectorAssets
    from odonata.detect.detector import with_preset
    from odonata.detect.detr import DETRConfig
    from odonata.detect.predictor import DetectorPredictor

    torch.manual_seed(0)
    config = with_preset(replace(DETRConfig(), preset="r50"))
    assets = DetectorAssets("detr", config, tuple(Category(i, f"class {i}") for i in range(91)))
    detector = assets.build().eval()
    for name, value in detector.state_dict().items():
        if name.endswith("norm3.weight") and name.startswith("backbone."):
            value.fill_(0.3)  # frozen statistics by chance let the residual sums grow without bound
    DetectorPredictor(detector, assets, torch.device("cpu")).convert(folder / "model", "hf")


def inputs(pictures: int, size: tuple[int, int]) -> tuple[Any, Any]:
    """Return prepared pictures, zero where they are padded, and where they are: the same for everybody."""
    import torch

    height, width = size
    pixels = torch.randn(pictures, 3, height, width, generator=torch.Generator().manual_seed(height + pictures))
    inside = torch.ones(pictures, height, width, dtype=torch.bool)
    if pictures > 1:
        inside[1, round(SMALLER * height) :], inside[1, :, round(SMALLER * width) :] = False, False
    return pixels * inside[:, None], inside


def prepare(name: str, folder: Path, threads: int, quick: bool) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version and what it does in a round."""
    import torch

    torch.set_num_threads(threads)
    version, forward = _transformers(folder) if name == "transformers" else _ours(folder, name.endswith("bf16"))
    given = {case: inputs(*case) for case in cases(quick)}
    clock = time.process_time if threads == 1 else time.perf_counter

    def round_() -> dict[str, Any]:
        seconds, saved = dict[str, float](), dict[str, str]()
        for case, (pixels, inside) in given.items():
            start = clock()
            with torch.inference_mode():
                answer = forward(pixels, inside)
            seconds[label(case)] = clock() - start
            file = folder / f"{name} {label(case)}.pt"
            torch.save([part.float().clone() for part in answer], file)
            saved[label(case)] = str(file)
        return {"seconds": sum(seconds.values()), "cases": seconds, "files": saved}

    return {"version": version}, round_


def _ours(folder: Path, bf16: bool) -> tuple[str, Callable[[Any, Any], Any]]:
    import torch

    import odonata
    from odonata.backbones.interface import channels_last
    from odonata.detect.predictor import load

    detector: Any = load(folder / "model", None, torch.device("cpu")).detector

    def forward(pixels: Any, inside: Any) -> Any:
        padding = None if inside.all() else ~inside
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = detector.forward_head(channels_last(pixels), padding)
        return out.logits[-1], out.boxes[-1]

    return odonata.__version__, forward


def _transformers(folder: Path) -> tuple[str, Callable[[Any, Any], Any]]:
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # its wheel does not load beside torch for CPUs
    import transformers

    model = transformers.DetrForObjectDetection.from_pretrained(folder / "model").eval()

    def forward(pixels: Any, inside: Any) -> Any:
        out = model(pixels, pixel_mask=inside.long())
        return out.logits, out.pred_boxes

    return transformers.__version__, forward


def cases(quick: bool) -> list[tuple[int, tuple[int, int]]]:
    """Return the cases of a run: pictures and their size."""
    return [(pictures, size) for size in (QUICK if quick else SIZES) for pictures in PICTURES]


def label(case: tuple[int, tuple[int, int]]) -> str:
    """Return what the table calls a case."""
    return f"{case[0]} of {case[1][0]} × {case[1][1]}"


def compare(name: str, case: str, file: str, expected: str) -> float:
    """Return the relative difference of classes and boxes.

    Raises:
        SystemExit: it is too large.
    """
    import torch

    pairs = zip(torch.load(file), torch.load(expected), strict=True)
    error = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    if not error < BOUNDS[name]:
        raise SystemExit(f"{name} disagrees with ours at {case}: {error:.1e}")
    return error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round at 240 × 320")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, threads = arguments.child
        turns.serve(lambda: prepare(name, Path(folder), int(threads), arguments.quick))
        return
    turns.require_peers()
    rounds, quick = (1, ["--quick"]) if arguments.quick else (arguments.rounds, list[str]())
    best: dict[tuple[str, str], float] = {}
    errors: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as made:
        write_model(Path(made))
        contestants = [
            Contestant(
                name, PEERS if name == "transformers" else sys.executable,
                [__file__, *quick, "--child", name, made, str(arguments.threads)], arguments.threads,
            )
            for name in NAMES
        ]  # fmt: skip
        for _ in range(rounds + 1):  # the first warms up and is compared
            found = {contestant.name: contestant.round() for contestant in contestants}
            for name, answer in found.items():
                for case, seconds in answer["cases"].items():
                    best[name, case] = min(seconds, best.get((name, case), float("inf")))
                    if name != "ours" and (name, case) not in errors:
                        errors[name, case] = compare(name, case, answer["files"][case], found["ours"]["files"][case])
        for contestant in contestants:
            contestant.leave()
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    version = contestants[-1].about["version"]
    print(f"DETR-R50, {arguments.threads} threads, best of {rounds + 1} rounds, {load}; transformers {version}")
    print(f"{'':20}{'':14}{'seconds':>9}{'time / ours':>13}{'difference':>12}")
    for case in map(label, cases(arguments.quick)):
        for name in NAMES:
            error = f"{errors[name, case]:.1e}" if name != "ours" else ""
            print(f"{case:20}{name:14}{best[name, case]:9.3f}{best[name, case] / best['ours', case]:13.2f}{error:>12}")


if __name__ == "__main__":
    main()
