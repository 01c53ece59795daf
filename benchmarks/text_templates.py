"""Class embeddings from prompts: 80 templates × 100 ImageNet classes, texts in, one vector a class out.

    python benchmarks/text_templates.py            # some 10 minutes: open_clip encodes 77 tokens for every prompt
    python benchmarks/text_templates.py --quick    # 8 templates × 10 classes

The text tower is CLIP ViT-B/16's at random weights, the same in all; templates, class names and merges are those that
open_clip brings. Every contestant tokenises, encodes and averages, in a process of its own held to the same cores:

- ours: `embed_classes`, as evaluation and prediction call it.
- open_clip: `build_zero_shot_classifier`, its function for this very purpose, with its defaults.
- transformers: `get_text_features` with `padding=True`, as its documentation shows, so that a batch (one class) is as
  long as its longest prompt. With `padding="max_length"` it takes as long as open_clip.

All must agree: the largest difference, over the largest entry, below 1e-5. How far apart the closest two classes are is
printed as well, for a bound says nothing where all vectors are equal.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import turns
from turns import PEERS, Contestant

NAMES = ("ours", "open_clip", "transformers")


def prepare(name: str, folder: Path, threads: int) -> tuple[dict[str, Any], Any]:
    """Load one contestant's model; return its version and what it does in a round."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    if name != "ours":
        import torchvision_on_cpu

        torchvision_on_cpu.preload()
    prompts = json.loads((folder / "prompts.json").read_text())
    version, embed = {"ours": _ours, "open_clip": _open_clip, "transformers": _transformers}[name](folder, prompts)
    embed(prompts["classes"][:2])  # threads and libraries wake up

    def round_() -> dict[str, Any]:
        start = time.perf_counter()
        found = embed(prompts["classes"])
        seconds = time.perf_counter() - start
        np.save(folder / f"{name}.npy", found.numpy())
        return {"seconds": seconds}

    return {"version": version}, round_


def _ours(folder: Path, prompts: dict[str, list[str]]) -> tuple[str, Any]:
    import torch

    import odonata
    from odonata.align.predictor import load

    model = load(folder / "odonata", None, torch.device("cpu"))
    return odonata.__version__, lambda classes: model.embed_classes(classes, prompts["templates"])


def _open_clip(folder: Path, prompts: dict[str, list[str]]) -> tuple[str, Any]:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder / 'open_clip'}").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    templates = [template.format for template in prompts["templates"]]
    build = open_clip.build_zero_shot_classifier
    return open_clip.__version__, lambda classes: build(model, tokenizer, classes, templates).T


def _transformers(folder: Path, prompts: dict[str, list[str]]) -> tuple[str, Any]:
    import torch
    import torch.nn.functional as F
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")

    @torch.no_grad()
    def embed(classes: list[str]) -> torch.Tensor:
        rows = []
        for label in classes:
            texts = [template.format(label) for template in prompts["templates"]]
            found = model.get_text_features(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
            found = found if isinstance(found, torch.Tensor) else found.pooler_output
            rows.append(F.normalize(F.normalize(found, dim=-1).mean(0), dim=-1))
        return torch.stack(rows)

    return transformers.__version__, embed


def published_prompts(templates: int, classes: int) -> dict[str, list[str]]:
    """Return the templates and class names that open_clip brings."""
    code = (
        "import json, torchvision_on_cpu as t; t.preload(); import open_clip as o; "
        "print(json.dumps([[f('{}') for f in o.OPENAI_IMAGENET_TEMPLATES], list(o.IMAGENET_CLASSNAMES)]))"
    )
    here = Path(__file__).resolve().parent
    found = subprocess.run([str(PEERS), "-c", code], capture_output=True, text=True, check=True, cwd=here)
    all_templates, names = json.loads(found.stdout.splitlines()[-1])
    return {"templates": all_templates[:templates], "classes": names[:classes]}


def compare(folder: Path) -> tuple[dict[str, str], float]:
    """Return each peer's difference from ours, and the smallest distance between two classes.

    Raises:
        SystemExit: a peer differs.
    """
    import numpy as np

    ours = np.load(folder / "ours.npy")
    agreement = dict[str, str]()
    for name in NAMES[1:]:
        error = float(np.abs(np.load(folder / f"{name}.npy") - ours).max() / np.abs(ours).max())
        if error > 1e-5:
            raise SystemExit(f"{name} disagrees with ours: largest relative difference {error:.1e}")
        agreement[name] = f"largest relative difference {error:.1e}"
    distances = np.linalg.norm(ours[:, None] - ours, axis=-1) + 10 * np.eye(len(ours))
    return agreement, float(distances.min())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 templates × 10 classes")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--merges", type=Path, help="bpe_simple_vocab_16e6.txt.gz; open_clip's own copy if not given")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, threads = arguments.child
        turns.serve(lambda: prepare(name, Path(folder), int(threads)))
        return
    turns.require_peers()
    prompts = published_prompts(8 if arguments.quick else 80, 10 if arguments.quick else arguments.classes)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        turns.clip_folders(folder, arguments.merges or turns.open_clip_merges())
        (folder / "prompts.json").write_text(json.dumps(prompts))
        contestants = [
            Contestant(
                name, sys.executable if name == "ours" else PEERS,
                [__file__, "--child", name, str(folder), str(arguments.threads)], arguments.threads,
            )
            for name in NAMES
        ]  # fmt: skip
        for _ in range(arguments.rounds):
            for contestant in contestants:
                contestant.round()
        agreement, closest = compare(folder)
        for contestant in contestants:
            contestant.name += f" {contestant.about['version']}"
            contestant.leave()
        count = len(prompts["templates"]) * len(prompts["classes"])
        print(
            f"{len(prompts['templates'])} templates × {len(prompts['classes'])} classes, CLIP ViT-B/16's text tower, "
            f"float32, {arguments.threads} threads, best of {arguments.rounds}; closest classes {closest:.1e} apart"
        )
        named = {c.name: agreement.get(name, "") for name, c in zip(NAMES, contestants, strict=True)}
        turns.print_table(contestants, "prompts", count, named)


if __name__ == "__main__":
    main()
