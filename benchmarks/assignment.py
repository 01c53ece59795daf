"""Which point or anchor learns which object: FCOS's rule and RetinaNet's, against torchvision's.

    python benchmarks/assignment.py            # a minute
    python benchmarks/assignment.py --quick    # one round of a small frame

One picture of 800 × 1333 pixels, which is padded to 800 × 1344, with 100 objects: 22,400 points on the five levels of
FCOS, and nine anchors at each of them for RetinaNet. Both do all that lies between boxes and matches: FCOS's distances,
centre sampling and smallest area; the overlaps of all objects and anchors, and who exceeds what, low-quality matches
included. One thread each, CPU time; a round runs every case for a while, the best time of a call counts.

The run fails where a point or an anchor learns another object. Corners have fractions, so no distance lies exactly on
the border of two levels, where torchvision trains neither.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import turns
from turns import PEERS, Contestant

NAMES = ("ours", "torchvision")
CASES = ("FCOS", "RetinaNet")
FRAME, QUICK_FRAME = (800, 1344), (256, 320)
STRIDES = (8, 16, 32, 64, 128)
OBJECTS = 100
RADIUS = 1.5


def scene(quick: bool) -> dict[str, Any]:
    """Return objects, the points of each level and the anchors on them: the same for everybody."""
    import torch

    generator = torch.Generator().manual_seed(0)
    height, width = QUICK_FRAME if quick else FRAME
    size = torch.exp(torch.randn(OBJECTS, 2, generator=generator) * 0.8 + 4.2).clamp(8, 0.8 * height)
    corner = torch.rand(OBJECTS, 2, generator=generator) * (torch.tensor([width, height]) - size)
    points: list[Any] = []
    for stride in STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        points.append(torch.stack([x, y], -1).reshape(-1, 2) * float(stride))
    anchors: list[Any] = []
    for stride, level in zip(STRIDES, points, strict=True):
        sides = 4 * stride * 2 ** (torch.arange(3) / 3)
        tall = torch.tensor([0.5, 1.0, 2.0]).sqrt()
        half = torch.stack([(1 / tall)[:, None] * sides, tall[:, None] * sides], -1).reshape(-1, 2) / 2
        anchors.append(torch.cat([level[:, None] - half, level[:, None] + half], 2).reshape(-1, 4))
    return {"boxes": torch.cat([corner, corner + size], 1), "points": points, "anchors": torch.cat(anchors)}


def prepare(name: str, quick: bool) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version and what it does in a round."""
    import torch

    torch.set_num_threads(1)
    version, functions = (_ours if name == "ours" else _torchvision)(scene(quick))

    def round_() -> dict[str, Any]:
        seconds, matches = dict[str, float](), dict[str, list[int]]()
        with torch.no_grad():
            for case, assign in functions.items():
                matches[case] = assign().tolist()
                seconds[case] = best_time(assign, 0.05 if quick else 2.0)
        return {"seconds": sum(seconds.values()), "cases": seconds, "matches": matches}

    return {"version": version}, round_


def _ours(given: dict[str, Any]) -> tuple[str, dict[str, Callable[[], Any]]]:
    import torch

    import odonata
    from odonata.data.object_batches import ObjectBatch
    from odonata.detect.retinanet import RetinaNet, RetinaNetConfig
    from odonata.ops.matching import centre_sampling

    boxes, points = given["boxes"], torch.cat(given["points"])
    counts = [len(level) for level in given["points"]]
    strides = torch.cat([torch.full((n,), float(s)) for n, s in zip(counts, STRIDES, strict=True)])
    lowest = torch.where(strides == STRIDES[0], -1.0, 4 * strides)
    highest = torch.where(strides == STRIDES[-1], 1e8, 8 * strides)
    ranges = torch.stack([lowest, highest], 1)
    # An object's class is its number here, so that the labels tell the matches.
    number, one = torch.arange(len(boxes)), torch.ones(1, dtype=torch.int64)
    batch = ObjectBatch(
        torch.zeros(1, 3, 1, 1), torch.ones(1, 2, dtype=torch.int64), [boxes], [number],
        [torch.zeros(len(boxes), dtype=torch.bool)], torch.ones(1), 0 * one,
    )  # fmt: skip
    detector: Any = SimpleNamespace(config=RetinaNetConfig())
    return odonata.__version__, {
        "FCOS": lambda: centre_sampling(points, strides, ranges, boxes, RADIUS)[0],
        "RetinaNet": lambda: RetinaNet.assign(detector, given["anchors"], batch)[0][0],
    }


def _torchvision(given: dict[str, Any]) -> tuple[str, dict[str, Callable[[], Any]]]:
    import torch
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import torchvision
    from torchvision.models.detection import FCOS, RetinaNet
    from torchvision.models.detection._utils import Matcher

    # Its detectors match within `compute_loss` and hand the matches on to the head, which hands them back here.
    head = SimpleNamespace(compute_loss=lambda _targets, _outputs, _anchors, matches: matches[0])
    fcos: Any = SimpleNamespace(head=head, center_sampling_radius=RADIUS)
    retinanet: Any = SimpleNamespace(head=head, proposal_matcher=Matcher(0.5, 0.4, allow_low_quality_matches=True))
    targets, counts = [{"boxes": given["boxes"]}], [len(level) for level in given["points"]]
    cells = torch.cat([torch.cat([p - s / 2, p + s / 2], 1) for p, s in zip(given["points"], STRIDES, strict=True)])
    return torchvision.__version__, {
        "FCOS": lambda: FCOS.compute_loss(fcos, targets, {}, [cells], counts),
        "RetinaNet": lambda: RetinaNet.compute_loss(retinanet, targets, {}, [given["anchors"]]),
    }


def best_time(run: Callable[[], Any], seconds: float) -> float:
    """Return the shortest CPU time of one call among as many as fit into some seconds."""
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        start = time.process_time()
        run()
        best = min(best, time.process_time() - start)
    return best


def compare(case: str, ours: list[int], theirs: list[int]) -> int:
    """Return how many learn an object.

    Raises:
        SystemExit: someone learns another object than with torchvision, or nobody learns one.
    """
    apart = sum(a != b for a, b in zip(ours, theirs, strict=True))
    if apart:
        raise SystemExit(f"{case}: {apart} of {len(ours)} learn another object than with torchvision")
    learning = sum(match >= 0 for match in ours)
    if not learning:
        raise SystemExit(f"{case}: nobody learns an object; there is nothing to compare")
    return learning


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a small frame")
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
    matches: dict[str, dict[str, list[int]]] = {}
    rounds = 1 if arguments.quick else arguments.rounds
    for _ in range(rounds):
        for contestant in contestants:
            found = contestant.round()
            matches[contestant.name] = found["matches"]
            for case, seconds in found["cases"].items():
                best[contestant.name, case] = min(seconds, best.get((contestant.name, case), float("inf")))
    for contestant in contestants:
        contestant.leave()
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(
        f"{OBJECTS} objects, 1 thread, best of {rounds} rounds, {load}; torchvision {contestants[1].about['version']}"
    )
    print(f"{'':12}{'candidates':>12}{'learning':>10}{'ours, ms':>10}{'torchvision, ms':>17}{'time / ours':>13}")
    for case in CASES:
        learning = compare(case, matches["ours"][case], matches["torchvision"][case])
        ours, peer, count = best["ours", case], best["torchvision", case], len(matches["ours"][case])
        print(f"{case:12}{count:12,}{learning:10,}{1e3 * ours:10.1f}{1e3 * peer:17.1f}{peer / ours:13.2f}")


if __name__ == "__main__":
    main()
