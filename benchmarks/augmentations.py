"""Picture files → augmented views, against torchvision's transforms on tensors and on Pillow's pictures.

    python benchmarks/augmentations.py            # about a minute
    python benchmarks/augmentations.py --quick    # one round of four pictures

Three pipelines: MoCo v2's two views of 224 pixels and DINO's 2 × 224 + 8 × 96 from JPEGs of 500 × 375, and MoCo v2's
of 32 pixels from PNGs of that size. The pictures are smooth noise, the same files for everybody. Decoding is part of it
(ours by simplejpeg where that is installed, the peers by Pillow), the end is bytes [3, height, width]. Both peers are
torchvision's transforms.v2 with the same sizes, ranges and probabilities: "tensors" works on uint8 tensors, as its
documentation advises; "Pillow" works on Pillow's pictures and blurs by Pillow's filter, as MoCo's and DINO's own code
does. One process and one thread each, the time is that of the CPU.

Chance differs, so that pixels cannot be compared; the mean and the deviation of all views of a contestant must be
within 10 grey levels of ours.
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

PIPELINES = ("moco_v2, 2 × 224", "dino, 2 × 224 + 8 × 96", "moco_v2, 2 × 32")
NAMES = ("ours", "torchvision, tensors", "torchvision, Pillow")


def write_pictures(folder: Path, count: int) -> None:
    """Write smooth noise as JPEGs of 500 × 375 and PNGs of 32 × 32."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        small.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def prepare(name: str, folder: Path) -> tuple[dict[str, Any], Any]:
    """Load one contestant's pipelines; return its version and what it does in a round."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    version, pipelines = _ours() if name == "ours" else _torchvision(name.endswith("tensors"))
    files = {pipeline: sorted(folder.glob("*.png" if pipeline.endswith("× 32") else "*.jpg")) for pipeline in PIPELINES}

    def round_() -> dict[str, Any]:
        seconds, figures = dict[str, float](), dict[str, tuple[float, float]]()
        for pipeline, views_of in pipelines.items():
            views_of(files[pipeline][0], 0)
            start = time.process_time()
            views = [view for number, file in enumerate(files[pipeline]) for view in views_of(file, number)]
            seconds[pipeline] = (time.process_time() - start) / len(files[pipeline])
            pixels = torch.cat([view.flatten()[::7] for view in views]).float()
            figures[pipeline] = (float(pixels.mean()), float(pixels.std()))
        return {"seconds": sum(seconds.values()), "pipelines": seconds, "figures": figures}

    return {"version": version}, round_


def _ours() -> tuple[str, dict[str, Callable[[Path, int], list[Any]]]]:
    import odonata
    from odonata.data.images import to_tensor
    from odonata.data.item import Item
    from odonata.data.keys import keyed_generator
    from odonata.data.pictures import View
    from odonata.represent.augmentations import byol, moco_v2

    def views_of(*views: View) -> Callable[[Path, int], list[Any]]:
        def run(file: Path, number: int) -> list[Any]:
            item, generator = Item(to_tensor(file)), keyed_generator(0, 0, number)
            return [view.transform(item, generator).image for view in views for _ in range(view.count)]

        return run

    large, small = (0.25, 1.0), (0.05, 0.25)
    dino = (View(byol(224, large, 1.0, 0.0)), View(byol(224, large, 0.1, 0.2)), View(byol(96, small, 0.5, 0.0), 8))
    pipelines = (views_of(View(moco_v2(224), 2)), views_of(*dino), views_of(View(moco_v2(32), 2)))
    return odonata.__version__, dict(zip(PIPELINES, pipelines, strict=True))


def _torchvision(tensors: bool) -> tuple[str, dict[str, Callable[[Path, int], list[Any]]]]:
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import random

    import torch
    import torchvision
    from PIL import Image, ImageFilter
    from torchvision.transforms import InterpolationMode, v2

    def pillow_blur(sigma: tuple[float, float]) -> Callable[[Any], Any]:
        return lambda picture: picture.filter(ImageFilter.GaussianBlur(random.uniform(*sigma)))

    def blur(size: int, p: float) -> Any:
        scale = size / 224
        sigma = (0.1 * scale, 2.0 * scale)
        width = 2 * round(6.0 * scale) + 1  # three standard deviations to each side
        return v2.RandomApply([v2.GaussianBlur(width, sigma) if tensors else v2.Lambda(pillow_blur(sigma))], p)

    def chain(size: int, scale: tuple[float, float], cubic: bool, colour: tuple[float, ...], *rest: Any) -> Any:
        mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
        steps = [
            v2.RandomResizedCrop(size, scale, interpolation=mode, antialias=True), v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*colour)], 0.8), v2.RandomGrayscale(0.2), *rest,
        ]  # fmt: skip
        return v2.Compose(steps if tensors else [*steps, v2.PILToTensor()])

    def byol(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float) -> Any:
        rest = [blur(size, blur_p), *([v2.RandomSolarize(128, solarize_p)] if solarize_p else [])]
        return chain(size, scale, True, (0.4, 0.4, 0.2, 0.1), *rest)

    def views_of(*views: Any) -> Callable[[Path, int], list[Any]]:
        def run(file: Path, number: int) -> list[Any]:
            picture: Any = Image.open(file).convert("RGB")
            if tensors:
                picture = v2.functional.pil_to_tensor(picture)
            return [view(picture) for view in views]

        return run

    torch.manual_seed(0)
    jitter = (0.4, 0.4, 0.4, 0.1)
    moco = chain(224, (0.2, 1.0), False, jitter, blur(224, 0.5))
    tiny = chain(32, (0.2, 1.0), False, jitter)
    large, small = (0.25, 1.0), byol(96, (0.05, 0.25), 0.5, 0.0)
    dino = (byol(224, large, 1.0, 0.0), byol(224, large, 0.1, 0.2), *[small] * 8)
    pipelines = (views_of(moco, moco), views_of(*dino), views_of(tiny, tiny))
    return torchvision.__version__, dict(zip(PIPELINES, pipelines, strict=True))


def compare(figures: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Stop where somebody's views are brighter or flatter than ours.

    Raises:
        SystemExit: whose, and in which pipeline.
    """
    for name, found in figures.items():
        for pipeline, (mean, deviation) in found.items():
            expected = figures["ours"][pipeline]
            if abs(mean - expected[0]) > 10 or abs(deviation - expected[1]) > 10:
                raise SystemExit(f"{name}, {pipeline}: mean and deviation {mean:.0f}, {deviation:.0f}; ours {expected}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of four pictures")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder = arguments.child
        turns.serve(lambda: prepare(name, Path(folder)))
        return
    turns.require_peers()
    count, rounds = (4, 1) if arguments.quick else (arguments.pictures, arguments.rounds)
    with tempfile.TemporaryDirectory() as made:
        write_pictures(Path(made), count)
        contestants = [
            Contestant(name, sys.executable if name == "ours" else PEERS, [__file__, "--child", name, made], 1)
            for name in NAMES
        ]
        best: dict[tuple[str, str], float] = {}
        figures: dict[str, dict[str, tuple[float, float]]] = {}
        for _ in range(rounds):
            for contestant in contestants:
                found = contestant.round()
                figures[contestant.name] = found["figures"]
                for pipeline, seconds in found["pipelines"].items():
                    best[contestant.name, pipeline] = min(seconds, best.get((contestant.name, pipeline), float("inf")))
        for contestant in contestants:
            contestant.leave()
    if not arguments.quick:  # so few pictures differ by chance
        compare(figures)
    versions = ", ".join(f"{c.name} {c.about['version']}" for c in contestants[1:])
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(f"{count} pictures, 1 thread, best of {rounds}, {load}; {versions}")
    print(f"{'':26}{'':24}{'ms / picture':>14}{'pictures/s':>12}{'time / ours':>13}")
    for pipeline in PIPELINES:
        for name in NAMES:
            seconds = best[name, pipeline]
            ratio = seconds / best["ours", pipeline]
            print(f"{pipeline:26}{name:24}{1e3 * seconds:14.2f}{1 / seconds:12.1f}{ratio:13.2f}")


if __name__ == "__main__":
    main()
