"""A step of DINO, 2 crops of 224 pixels and 8 of 96, against lightly's loop.

    python benchmarks/dino_step.py            # a minute or two
    python benchmarks/dino_step.py --quick    # two rounds, 1,024 prototypes

ViT-S/16 of 4 blocks, head 2048-2048-256, 65,536 prototypes, batch 4: forward of student and teacher, backward, AdamW,
and the teacher's following. The peer is the loop of lightly's DINO example, crop by crop, with lightly's own head, loss
and momentum update around timm's tower. Both get the same weights and crops, and their losses of three steps must agree
to 1e-4. Ours gets bytes, as in training, and normalises them; the peer gets normalised pictures.

"ours, bf16" is ours with `--precision bf16`. With one thread the time is that of the CPU.
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

BATCH, LARGE, SMALL, CROPS, DEPTH, LR, STEPS = 4, 224, 96, 8, 4, 1e-5, 1000
MOMENTUM, TEMPERATURE, TEACHER_TEMPERATURE = 0.996, 0.1, 0.04


def our_method(prototypes: int) -> Any:
    """Return our method, the same weights at every call."""
    import torch

    from odonata.backbones.create import create
    from odonata.data.preprocess import IMAGENET
    from odonata.represent.dino import DINO, DINOConfig

    torch.manual_seed(0)
    config = DINOConfig(
        small_crops=CROPS, small_size=SMALL, image_size=LARGE, prototypes=prototypes, head_hidden=2048, head_dim=256,
        freeze_last_layer=0.0, teacher_warmup=0.0, teacher_temperature=TEACHER_TEMPERATURE, temperature=TEMPERATURE,
        momentum=MOMENTUM,
    )  # fmt: skip
    return DINO(config, create("vit-s16", depth=DEPTH), IMAGENET)


def write_inputs(folder: Path, prototypes: int) -> None:
    """Write the crops as bytes and normalised, and the weights in timm's and lightly's names."""
    import torch

    from odonata.backbones.pretrained import published_files

    method = our_method(prototypes)
    crops = [torch.randint(256, (BATCH, 3, side, side)).byte() for side in [LARGE] * 2 + [SMALL] * CROPS]
    head = {name.replace("mlp.", "layers."): value for name, value in method.head.state_dict().items()}
    torch.save(
        {
            "crops": crops,
            "normalised": [method.pixels(crop) for crop in crops],
            "tower": published_files(method.backbone, "timm").state,
            "head": head,
        },
        folder / "inputs.pt",
    )


def prepare(name: str, folder: Path, threads: int, prototypes: int) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version and first losses, and what it does in a round."""
    import torch

    torch.set_num_threads(threads)
    inputs = torch.load(folder / "inputs.pt")
    version, step = (
        _lightly(inputs, prototypes) if name == "lightly" else _ours(inputs, prototypes, name.endswith("bf16"))
    )
    losses = [step() for _ in range(3)]
    clock = time.process_time if threads == 1 else time.perf_counter

    def round_() -> dict[str, Any]:
        start = clock()
        step()
        return {"seconds": clock() - start}

    return {"version": version, "losses": losses}, round_


def _ours(inputs: dict[str, Any], prototypes: int, bf16: bool) -> tuple[str, Callable[[], float]]:
    import torch

    import odonata
    from odonata.data.pictures import ViewBatch
    from odonata.engine.param_groups import build_optimizer
    from odonata.engine.recipe import AdamW

    method = our_method(prototypes).train()
    optimizer = build_optimizer(method, AdamW(lr=LR, weight_decay=0.0))
    batch = ViewBatch(inputs["crops"], torch.full((BATCH,), -1), torch.arange(BATCH))
    done = [0]

    def step() -> float:
        method.begin_step(done[0], STEPS)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = method.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        method.after_backward()
        optimizer.step()
        method.after_update()
        done[0] += 1
        return float(loss.detach())

    return odonata.__version__, step


def _lightly(inputs: dict[str, Any], prototypes: int) -> tuple[str, Callable[[], float]]:
    import torchvision_on_cpu

    torchvision_on_cpu.preload()
    import copy
    import importlib.metadata

    import timm
    import torch
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum
    from lightly.utils.scheduler import cosine_schedule

    tower = timm.create_model("vit_small_patch16_224", depth=DEPTH, num_classes=0, dynamic_img_size=True)
    tower.load_state_dict(inputs["tower"])
    head, slow_head = (DINOProjectionHead(384, 2048, 256, prototypes) for _ in range(2))
    for network in (head, slow_head):
        network.load_state_dict(inputs["head"])
    slow_tower, slow_head = copy.deepcopy(tower).requires_grad_(False), slow_head.requires_grad_(False)
    criterion = DINOLoss(prototypes, TEACHER_TEMPERATURE, TEACHER_TEMPERATURE, student_temp=TEMPERATURE)
    wanted = [p for p in [*tower.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    crops, done = inputs["normalised"], [0]

    def step() -> float:
        with torch.no_grad():
            answers = [slow_head(slow_tower(crop)) for crop in crops[:2]]
        loss = criterion(answers, [head(tower(crop)) for crop in crops])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        momentum = cosine_schedule(done[0], STEPS + 1, MOMENTUM, 1)  # its schedule ends a step earlier than ours
        update_momentum(tower, slow_tower, momentum)
        update_momentum(head, slow_head, momentum)
        done[0] += 1
        return float(loss.detach())

    return f"{importlib.metadata.version('lightly')} with timm {timm.__version__}", step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, 1,024 prototypes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, folder, threads, prototypes = arguments.child
        turns.serve(lambda: prepare(name, Path(folder), int(threads), int(prototypes)))
        return
    turns.require_peers()
    rounds, prototypes = (2, 1024) if arguments.quick else (arguments.rounds, arguments.prototypes)
    with tempfile.TemporaryDirectory() as made:
        write_inputs(Path(made), prototypes)
        contestants = [
            Contestant(
                name, PEERS if name == "lightly" else sys.executable,
                [__file__, "--child", name, made, str(arguments.threads), str(prototypes)], arguments.threads,
            )
            for name in ("ours", "ours, bf16", "lightly")
        ]  # fmt: skip
        losses = {c.name: c.about["losses"] for c in contestants}
        for name, bound in (("lightly", 1e-4), ("ours, bf16", 1e-2)):
            error = max(abs(a / b - 1) for a, b in zip(losses[name], losses["ours"], strict=True))
            if error > bound:
                raise SystemExit(f"{name} disagrees with ours in the loss: {losses}")
        for _ in range(rounds):
            for contestant in contestants:
                contestant.round()
        for contestant in contestants:
            contestant.leave()
            contestant.name += f" {contestant.about['version']}"
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    print(
        f"ViT-S/16 of {DEPTH} blocks, 2 × {LARGE} + {CROPS} × {SMALL} pixels, batch {BATCH}, "
        f"{prototypes:,} prototypes, {arguments.threads} threads, best of {rounds}, {load}"
    )
    shown = {c.name: f"losses {[round(x, 5) for x in c.about['losses']]}" for c in contestants}
    turns.print_table(contestants, "pictures", BATCH, shown)


if __name__ == "__main__":
    main()
