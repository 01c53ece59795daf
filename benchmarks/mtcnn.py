"""Faces in photographs: MTCNN's cascade with the published weights, against facenet-pytorch.

    python benchmarks/mtcnn.py --pictures FOLDER            # a minute
    python benchmarks/mtcnn.py --pictures FOLDER --quick    # one round of one picture

The photographs of a folder, the first few in order of name that are asked for, are enlarged to a longer side of 1,200
pixels and then given to both as arrays. The weights are those that facenet-pytorch brings; faces of 20 pixels and
more. One thread each, unless --threads says otherwise; a round runs every picture for a while, and the best time of a
call counts.

The run fails where a box or a landmark differs by 0.01 pixels, or a score by 1e-4, or the number of faces at all.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import turns
from nms import best_time
from turns import PEERS, Contestant

NAMES = ("ours", "facenet-pytorch")
SUFFIXES = (".jpg", ".jpeg", ".png")


def photographs(folder: Path, names: list[str], side: int) -> dict[str, Any]:
    """Return the pictures by name as arrays [height, width, 3], uint8: the same for everybody."""
    import numpy as np
    from PIL import Image

    found: dict[str, Any] = {}
    for name in names:
        picture = Image.open(folder / name).convert("RGB")
        scale = side / max(picture.size)
        size = (round(picture.width * scale), round(picture.height * scale))
        found[name] = np.array(picture.resize(size, Image.Resampling.BILINEAR))
    return found


def prepare(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version and what it does in a round."""
    import torch

    torch.set_num_threads(options.threads)
    version, find = _ours() if options.child == "ours" else _facenet()
    inputs = photographs(options.pictures, options.names, options.side)

    def round_() -> dict[str, Any]:
        seconds, faces = dict[str, float](), dict[str, Any]()
        for name, picture in inputs.items():
            faces[name] = find(picture)
            seconds[name] = best_time(lambda picture=picture: find(picture), 0.1 if options.quick else 2.0)
        return {"seconds": sum(seconds.values()), "cases": seconds, "faces": faces}

    return {"version": version}, round_


def _ours() -> tuple[str, Any]:
    import torch

    import odonata
    from odonata.app.api import load

    model = load(weights(), device="cpu").detector

    @torch.inference_mode()
    def find(picture: Any) -> Any:
        faces = model.cascade(torch.from_numpy(picture).permute(2, 0, 1))
        assert faces.points is not None
        return [faces.boxes.tolist(), faces.scores.tolist(), faces.points.tolist()]

    return odonata.__version__, find


def _facenet() -> tuple[str, Any]:
    from importlib.metadata import version

    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import facenet_pytorch

    # Without gradients by itself; nothing but its detection is called.
    model = facenet_pytorch.MTCNN(keep_all=True)

    def find(picture: Any) -> Any:
        answers = model.detect(picture, landmarks=True)
        return [[] if part is None else [values.tolist() for values in part] for part in map(_rows, answers)]

    return version("facenet-pytorch"), find


def _rows(part: Any) -> Any:
    import numpy as np

    return None if part is None or part[0] is None else np.array(part.tolist(), dtype=np.float32)


def weights() -> Path:
    """Return the folder of the weights that facenet-pytorch brings."""
    found = list(PEERS.parent.parent.glob("lib/python*/site-packages/facenet_pytorch/data"))
    if not found:
        raise SystemExit("facenet-pytorch is not installed among the peers: run `sh benchmarks/peers.sh`")
    return found[0]


def compare(name: str, ours: Any, theirs: Any) -> int:
    """Stop where faces differ; return their number.

    Raises:
        SystemExit: in which picture, and by how much.
    """
    import numpy as np

    if len(ours[0]) != len(theirs[0]):
        raise SystemExit(f"{name}: facenet-pytorch finds {len(theirs[0])} faces, we find {len(ours[0])}")
    if not ours[0]:
        return 0
    boxes = np.array(ours[0])
    closest = [int(np.abs(boxes - box).max(1).argmin()) for box in theirs[0]]
    limits = (("box", 0.01), ("score", 1e-4), ("landmark", 0.01))
    for number, (what, limit) in enumerate(limits):
        apart = np.abs(np.array(ours[number])[closest] - np.array(theirs[number])).max()
        if len(set(closest)) != len(closest) or apart >= limit:
            raise SystemExit(f"{name}: a {what} differs by {apart:g}")
    return len(closest)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--names", nargs="*", default=[], help="names in the folder (default: the first --count)")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--side", type=int, default=1200, help="longer side in pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round of one picture")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        turns.serve(lambda: prepare(options))
        return
    turns.require_peers()
    weights()
    names = options.names or sorted(p.name for p in options.pictures.iterdir() if p.suffix.lower() in SUFFIXES)
    names = names[: 1 if options.quick else max(options.count, len(options.names))]
    if not names:
        raise SystemExit(f"{options.pictures}: no photographs")
    handed = ["--pictures", str(options.pictures.resolve()), "--side", str(options.side), "--names", *names]
    handed += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    contestants = [
        Contestant(
            name, sys.executable if name == "ours" else PEERS, [__file__, "--child", name, *handed], options.threads
        )
        for name in NAMES
    ]
    best: dict[tuple[str, str], float] = {}
    faces: dict[str, Any] = {}
    rounds = 1 if options.quick else options.rounds
    for _ in range(rounds):
        for contestant in contestants:
            found = contestant.round()
            faces[contestant.name] = found["faces"]
            for case, seconds in found["cases"].items():
                best[contestant.name, case] = min(seconds, best.get((contestant.name, case), float("inf")))
    for contestant in contestants:
        contestant.leave()
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(f"longer side {options.side} px, threads: {options.threads}, best of {rounds} rounds, {load}")
    print(f"{'':28}{'faces':>8}{'ours, ms':>12}{'facenet-pytorch ' + contestants[1].about['version']:>24}, ms"
          f"{'time / ours':>13}")  # fmt: skip
    for name in names:
        count = compare(name, faces["ours"][name], faces["facenet-pytorch"][name])
        ours, peer = best["ours", name], best["facenet-pytorch", name]
        print(f"{name:28}{count:8}{1e3 * ours:12.1f}{1e3 * peer:28.1f}{peer / ours:13.2f}")
    total = {name: sum(best[name, case] for case in names) for name in NAMES}
    print(f"{'all':28}{'':8}{1e3 * total['ours']:12.1f}{1e3 * total['facenet-pytorch']:28.1f}"
          f"{total['facenet-pytorch'] / total['ours']:13.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
