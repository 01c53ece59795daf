"""Picture files → CLIP ViT-B/16 embeddings on the CPU, end to end: reading, decoding, resizing, encoding.

    python benchmarks/embed_files.py --pictures FOLDER    # the first 96 pictures of a folder
    python benchmarks/embed_files.py                      # without one: the embedded scenes, written as JPEG files
    python benchmarks/embed_files.py --quick              # 8 pictures

The weights are random and the same in all. Every contestant is a process of its own held to the same cores, decoding
threads included:

- ours: `odonata.app.vectors.embed_files`, what `odonata embed` calls, in float32 and in bfloat16, batches of 32.
- open_clip one by one: the loop of its README, in float32: `preprocess(Image.open(file))`, `encode_image`, normalise.
- open_clip in batches: the same, 32 pictures stacked at a time.
- open_clip in batches, bfloat16: the same under `torch.autocast`, as its README does on a GPU.

Pictures go through Pillow's resize in all, so float32 must agree to 1e-4 and bfloat16 to a cosine above 0.999.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import turns
from turns import PEERS, Contestant

BATCH = 32
NAMES = (
    "ours, bfloat16",
    "ours, float32",
    "open_clip, one by one",
    "open_clip, batches",
    "open_clip, batches, bfloat16",
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPEG")


def pictures_of(folder: Path, count: int) -> list[Path]:
    """Return the first pictures of a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)[:count]


def write_scenes(folder: Path, count: int) -> None:
    """Write some of the embedded scenes as JPEG files of 480 × 480 pixels."""
    from PIL import Image

    from odonata.data.sources import open_image_text

    source = open_image_text("scenes")
    folder.mkdir()
    for index in range(count):
        image = source[index].image.open().resize((480, 480), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:03}.jpg", quality=90)


def prepare(name: str, folder: Path, pictures: Path, count: int, threads: int) -> tuple[dict[str, Any], Any]:
    """Load one contestant's model; return its version and what it does in a round."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    files = pictures_of(pictures, count)
    version, embed = (_ours if name.startswith("ours") else _open_clip)(name, folder)
    embed(files[: BATCH + 1])  # threads and libraries wake up

    def round_() -> dict[str, Any]:
        start = time.perf_counter()
        found = embed(files)
        seconds = time.perf_counter() - start
        np.save(folder / f"{name}.npy", found.float().numpy())
        return {"seconds": seconds}

    return {"version": version}, round_


def _ours(name: str, folder: Path) -> tuple[str, Any]:
    import torch

    import odonata
    from odonata.align.predictor import load
    from odonata.app.vectors import embed_files

    model = load(folder / "odonata", None, torch.device("cpu"))
    precision = "bf16" if name.endswith("bfloat16") else "fp32"

    def embed(files: list[Path]) -> torch.Tensor:
        return torch.cat([part for _, part in embed_files(model, files, BATCH, precision=precision)])

    return odonata.__version__, embed


def _open_clip(name: str, folder: Path) -> tuple[str, Any]:
    import torch
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import open_clip
    from PIL import Image

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'open_clip'}")
    model.eval()
    size = 1 if name.endswith("one by one") else BATCH

    def embed(files: list[Path]) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=name.endswith("bfloat16")):
            for start in range(0, len(files), size):
                images = torch.stack([preprocess(Image.open(file)) for file in files[start : start + size]])
                features = model.encode_image(images)
                features /= features.norm(dim=-1, keepdim=True)
                rows.append(features)
        return torch.cat(rows)

    return open_clip.__version__, embed


def compare(folder: Path) -> dict[str, str]:
    """Return how each agrees with our float32.

    Raises:
        SystemExit: one does not.
    """
    import numpy as np

    ours = np.load(folder / "ours, float32.npy")
    agreement = dict[str, str]()
    for name in NAMES:
        found = np.load(folder / f"{name}.npy")
        cosine = ((found * ours).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(ours, axis=1)).min()
        error = np.abs(found - ours).max() / np.abs(ours).max()
        if cosine < 0.999 or (error > 1e-4 and not name.endswith("bfloat16")):
            raise SystemExit(f"{name} disagrees: smallest cosine {cosine:.5f}, largest relative difference {error:.1e}")
        agreement[name] = f"smallest cosine {cosine:.6f}, largest relative difference {error:.1e}"
    agreement["ours, float32"] = "what the others are compared with"
    return agreement


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 pictures, one round")
    parser.add_argument("--pictures", type=Path, help="folder of pictures; the embedded scenes if not given")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, pictures, count, threads = arguments.child
        turns.serve(lambda: prepare(name, Path(folder), Path(pictures), int(count), int(threads)))
        return
    turns.require_peers()
    rounds, count = (1, 8) if arguments.quick else (arguments.rounds, arguments.count)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        turns.clip_folders(folder, turns.open_clip_merges())
        if arguments.pictures is None:
            write_scenes(folder / "scenes", count)
        pictures = arguments.pictures or folder / "scenes"
        found = len(pictures_of(pictures, count))
        if not found:
            raise SystemExit(f"{pictures} holds no picture")
        contestants = [
            Contestant(
                name, sys.executable if name.startswith("ours") else PEERS,
                [__file__, "--child", name, str(folder), str(pictures), str(count), str(arguments.threads)],
                arguments.threads,
            )
            for name in NAMES
        ]  # fmt: skip
        for _ in range(rounds):
            for contestant in contestants:
                contestant.round()
        agreement = compare(folder)
        for contestant in contestants:
            contestant.leave()
        versions = f"odonata {contestants[0].about['version']}, open_clip {contestants[-1].about['version']}"
        print(f"{found} pictures, CLIP ViT-B/16 at 224 pixels, {arguments.threads} cores, best of {rounds}; {versions}")
        turns.print_table(contestants, "pictures", found, agreement)


if __name__ == "__main__":
    main()
