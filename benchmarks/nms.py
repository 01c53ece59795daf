"""Exact suppression of overlapping boxes, alone and by class, against torchvision's C++.

    python benchmarks/nms.py            # half a minute
    python benchmarks/nms.py --quick    # one round of the smaller cases

Boxes as a detector gives them: about fifteen around each object, of its class, with scores by chance; the threshold is
0.5. One process and one thread each; a round runs every case for a while, the best time of a call counts.

The run fails where the kept indices differ, or stand in another order; boxes of equal score may change places.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import turns
from turns import PEERS, Contestant

# Boxes and classes; one class goes through the function for all boxes, more through the one by class.
CASES = ((300, 1), (1000, 1), (3000, 1), (3000, 80), (10_000, 80))
NAMES = ("ours", "torchvision")
THRESHOLD = 0.5


def detections(count: int, classes: int) -> tuple[Any, Any, Any]:
    """Return boxes, scores and classes: the same for everybody."""
    import numpy as np
    import torch

    random = np.random.RandomState(0)
    objects = count // 15
    owner = random.randint(0, objects, count)
    size = np.exp(random.normal(4, 0.6, (objects, 2)))[owner]
    centre = random.uniform(0, 1000, (objects, 2))[owner] + size * random.normal(0, 0.1, (count, 2))
    half = size * np.exp(random.normal(0, 0.15, (count, 2))) / 2
    boxes = torch.from_numpy(np.concatenate([centre - half, centre + half], 1)).float()
    labels = torch.from_numpy(random.randint(0, classes, objects)[owner])
    return boxes, torch.from_numpy(random.uniform(size=count)).float(), labels


def prepare(name: str, quick: bool) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version and what it does in a round."""
    import torch

    torch.set_num_threads(1)
    version, alone, by_class = _ours() if name == "ours" else _torchvision()
    inputs = {case: detections(*case) for case in cases(quick)}

    def call(case: tuple[int, int]) -> Any:
        boxes, scores, labels = inputs[case]
        return alone(boxes, scores, THRESHOLD) if case[1] == 1 else by_class(boxes, scores, labels, THRESHOLD)

    def round_() -> dict[str, Any]:
        seconds, kept = dict[str, float](), dict[str, list[int]]()
        for case in inputs:
            kept[label(case)] = call(case).tolist()
            seconds[label(case)] = best_time(lambda case=case: call(case), 0.02 if quick else 0.4)
        return {"seconds": sum(seconds.values()), "cases": seconds, "kept": kept}

    return {"version": version}, round_


def _ours() -> tuple[str, Callable[..., Any], Callable[..., Any]]:
    import odonata
    from odonata.ops.nms import batched_nms, nms

    return odonata.__version__, nms, batched_nms


def _torchvision() -> tuple[str, Callable[..., Any], Callable[..., Any]]:
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import torchvision
    from torchvision.ops import batched_nms, nms

    return torchvision.__version__, nms, batched_nms


def best_time(run: Callable[[], Any], seconds: float) -> float:
    """Return the shortest time of one call among as many as fit into some seconds."""
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def cases(quick: bool) -> tuple[tuple[int, int], ...]:
    """Return the cases of a run."""
    return tuple(case for case in CASES if case[0] <= 1000 or not quick or case == (3000, 80))


def label(case: tuple[int, int]) -> str:
    """Return what the table calls a case."""
    return f"{case[0]:,} boxes" if case[1] == 1 else f"{case[0]:,} boxes, {case[1]} classes"


def compare(case: tuple[int, int], found: list[int], expected: list[int]) -> None:
    """Stop where the indices differ by more than the order of boxes of equal score.

    Raises:
        SystemExit: in which case, and how many each keeps.
    """
    scores = detections(*case)[1]
    if sorted(found) != sorted(expected) or scores[found].tolist() != scores[expected].tolist():
        raise SystemExit(f"{label(case)}: torchvision keeps {len(found)}, we keep {len(expected)}, not the same ones")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smaller cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        turns.serve(lambda: prepare(arguments.child, arguments.quick))
        return
    turns.require_peers()
    quick = ["--quick"] if arguments.quick else []
    contestants = [
        Contestant(name, sys.executable if name == "ours" else PEERS, [__file__, "--child", name, *quick], 1)
        for name in NAMES
    ]
    best: dict[tuple[str, str], float] = {}
    kept: dict[str, dict[str, list[int]]] = {}
    rounds = 1 if arguments.quick else arguments.rounds
    for _ in range(rounds):
        for contestant in contestants:
            found = contestant.round()
            kept[contestant.name] = found["kept"]
            for case, seconds in found["cases"].items():
                best[contestant.name, case] = min(seconds, best.get((contestant.name, case), float("inf")))
    for contestant in contestants:
        contestant.leave()
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(f"threshold {THRESHOLD}, 1 thread, best of {rounds} rounds, {load}; {contestants[1].about['version']}")
    print(f"{'':28}{'kept':>8}{'ours, ms':>12}{'torchvision, ms':>18}{'time / ours':>13}")
    for case in cases(arguments.quick):
        name = label(case)
        compare(case, kept["torchvision"][name], kept["ours"][name])
        ours, peer = best["ours", name], best["torchvision", name]
        print(f"{name:28}{len(kept['ours'][name]):8}{1e3 * ours:12.3f}{1e3 * peer:18.3f}{peer / ours:13.1f}")


if __name__ == "__main__":
    main()
