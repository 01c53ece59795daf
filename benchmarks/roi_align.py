"""RoIAlign forward, and with its backward, against torchvision's C++.

    python benchmarks/roi_align.py                  # half a minute; one thread
    python benchmarks/roi_align.py --threads 4
    python benchmarks/roi_align.py --sampling 0     # as many samples as a bin has cells (Detectron2's default)
    python benchmarks/roi_align.py --quick          # 100 regions, one round

100 and 512 regions of two maps of 50 × 50 cells, and 1,000 of two of 100 × 100; 256 channels, stride 16, 7 × 7 bins,
two samples per bin and direction, aligned, float32. The sides of the regions are log-normal around 90 pixels.

torchvision gets maps with channels first, the only layout that it has. We run three ways: "channels first" begins with
such maps and copies them; "channels first in and out" copies the result as well (ours has its channels last in memory);
"channels last" begins with maps that already lie so, as they do in a network that runs in that format. Copies are part
of the time. Pooled values and gradients must agree to a relative 1e-5, or the run fails. With one thread the time is
that of the CPU, with more that on the wall.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import turns
from turns import PEERS, Contestant

CASES = ((100, 50), (512, 50), (1000, 100))
"""Regions, and cells along the side of the maps."""
WAYS = ("channels first", "channels first in and out", "channels last")
CHANNELS, BINS, SCALE = 256, 7, 1 / 16


def inputs(count: int, side: int) -> tuple[Any, Any, Any]:
    """Return maps, regions, and the gradient that comes from above: the same for everybody."""
    import torch

    generator = torch.Generator().manual_seed(count)
    maps = torch.randn(2, CHANNELS, side, side, generator=generator)
    middle = torch.rand(count, 2, generator=generator) * side / SCALE
    size = torch.exp(torch.randn(count, 2, generator=generator) * 0.6 + 4.5)
    picture = torch.randint(2, (count, 1), generator=generator).float()
    rois = torch.cat([picture, middle - size / 2, middle + size / 2], 1)
    return maps, rois, torch.randn(count, CHANNELS, BINS, BINS, generator=generator)


def prepare(name: str, threads: int, sampling: int, quick: bool) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version, what it computes, and what it does in a round."""
    import torch

    torch.set_num_threads(threads)
    version, pool = (_ours if name == "ours" else _torchvision)(sampling)
    clock = time.process_time if threads == 1 else time.perf_counter
    found: dict[str, Any] = {}
    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for count, side in CASES[: 1 if quick else None]:
        for way in WAYS if name == "ours" else WAYS[:1]:
            forward, both = _steps(pool, *inputs(count, side), way)
            pooled, gradient = forward(), both()
            cases[f"{count} {way}"] = forward, both
            found[f"{count} {way}"] = [_sample(pooled), _sample(gradient)]

    def round_() -> dict[str, Any]:
        seconds: dict[str, list[float]] = {}
        for case, functions in cases.items():
            seconds[case] = []
            for do in functions:
                start = clock()
                do()
                seconds[case].append(clock() - start)
        return {"seconds": sum(map(sum, seconds.values())), "cases": seconds}

    return {"version": version, "found": found}, round_


def _sample(tensor: Any) -> list[float]:
    flat = tensor.detach().reshape(-1)
    return [*flat[:: max(1, len(flat) // 2000)].tolist(), float(flat.double().norm())]


def _steps(pool: Any, maps: Any, rois: Any, upstream: Any, way: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch

    if way == "channels last":
        maps, upstream = (x.contiguous(memory_format=torch.channels_last) for x in (maps, upstream))
    leaf = maps.clone(memory_format=torch.preserve_format).requires_grad_()

    def run(x: Any) -> Any:
        pooled = pool(x, rois)
        return pooled.contiguous() if way.endswith("out") else pooled

    def both() -> Any:
        leaf.grad = None
        run(leaf).backward(upstream)
        return leaf.grad

    return lambda: run(maps), both


def _ours(sampling: int) -> tuple[str, Any]:
    import odonata
    from odonata.ops.roi_align import roi_align

    return odonata.__version__, lambda maps, rois: roi_align(
        maps, rois, BINS, spatial_scale=SCALE, sampling_ratio=sampling, aligned=True
    )


def _torchvision(sampling: int) -> tuple[str, Any]:
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import torchvision

    align = torchvision.ops.roi_align
    return torchvision.__version__, lambda maps, rois: align(maps, rois, BINS, SCALE, sampling, True)


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest relative difference of pooled values and gradients.

    Raises:
        SystemExit: it is above 1e-5.
    """
    largest = 0.0
    for case, samples in ours.items():
        expected = theirs[f"{case.split()[0]} {WAYS[0]}"]
        for what, one, other in zip(("values", "gradients"), samples, expected, strict=True):
            *some, norm = zip(one, other, strict=True)
            error = (sum((a - b) ** 2 for a, b in some) / sum(b * b for _, b in some)) ** 0.5
            error = max(error, abs(norm[0] / norm[1] - 1))
            if error > 1e-5:
                raise SystemExit(f"{case}: the {what} differ from torchvision's by a relative {error:.1e}")
            largest = max(largest, error)
    return largest


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 regions, one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sampling", type=int, default=2, help="samples per bin and direction; 0: adaptive")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, *numbers = arguments.child
        threads, sampling, quick = map(int, numbers)
        turns.serve(lambda: prepare(name, threads, sampling, bool(quick)))
        return
    turns.require_peers()
    rounds = 1 if arguments.quick else arguments.rounds
    numbers = [str(int(x)) for x in (arguments.threads, arguments.sampling, arguments.quick)]
    ours, theirs = (
        Contestant(name, python, [__file__, "--child", name, *numbers], arguments.threads)
        for name, python in (("ours", sys.executable), ("torchvision", PEERS))
    )
    error = compare(ours.about["found"], theirs.about["found"])
    best: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for contestant in (ours, theirs):
            for case, seconds in contestant.round()["cases"].items():
                key = contestant.name, case
                best[key] = [min(pair) for pair in zip(seconds, best.get(key, seconds), strict=True)]
    for contestant in (ours, theirs):
        contestant.leave()
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{CHANNELS} channels, {BINS} × {BINS} bins, sampling {arguments.sampling}, {arguments.threads} threads, "
        f"best of {rounds}, {load}; torchvision {theirs.about['version']}; largest relative difference {error:.1e}"
    )
    print(f"{'ms':40}{'forward':>10}{'and back':>10}{'torchvision / ours':>22}")
    for count, _ in CASES[: 1 if arguments.quick else None]:
        peer = best["torchvision", f"{count} {WAYS[0]}"]
        print(f"{count:5} {'torchvision':34}{1e3 * peer[0]:10.1f}{1e3 * peer[1]:10.1f}")
        for way in WAYS:
            own = best["ours", f"{count} {way}"]
            ratios = f"{peer[0] / own[0]:.1f} and {peer[1] / own[1]:.1f}"
            print(f"{count:5} {'ours, ' + way:34}{1e3 * own[0]:10.1f}{1e3 * own[1]:10.1f}{ratios:>22}")


if __name__ == "__main__":
    main()
