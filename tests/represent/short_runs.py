"""Short runs of methods on handwritten digits: what they learn, whether they resume, whether ranks agree."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.engine.recipe import Recipe
from odonata.represent import recipes
from odonata.represent.build import build

WORLD = World(0, 1, torch.device("cpu"))
SMALL = {"image_size": 16, "backbone": "resnet8"}
OWN = {
    "moco-v1": {"queue": 512, "bn_groups": 2},
    "moco-v2": {"queue": 512, "bn_groups": 2},
    "moco-v3": {"hidden": 256, "dim": 64},
    "moby": {"queue": 512, "hidden": 256, "dim": 64},
    "classify": {},
}


def short(name: str, path: Path | str, *, steps: int, batch: int = 64, method=None, data=None, **fields) -> Recipe:
    """The default recipe of a method on a small tower, small pictures and few steps."""
    base = recipes.by_name(name)
    config = dataclasses.replace(base.method, **(SMALL | OWN[name] | (method or {})))
    fed = dataclasses.replace(base.data, path=str(path), batch_size=batch, **(data or {}))
    return dataclasses.replace(base, method=config, data=fed, steps=steps, log_every=steps, device="cpu", **fields)


def bits(module: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for _, value in sorted(module.state_dict().items()))


class Stopped(Exception):
    """Ends a run between two checkpoints."""


def resumes_to_the_same_bits(name: str, folder: Path, **method) -> bool:
    """Whether a run that is stopped between two checkpoints and resumed ends as one that was not."""
    source = "scenes-digits:n=40,size=32"
    recipe = short(name, source, steps=6, batch=8, method={"backbone": "resnet8", **method}, save_every=2)
    recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, pictures=0))

    def begin(assets=None):
        torch.manual_seed(recipe.seed)
        return build(recipe, assets)

    whole, stopped = begin(), begin()
    train(whole.recipe, whole, folder / "whole", WORLD)
    stopped.batches = _Ending(stopped.batches, 5)
    try:
        train(stopped.recipe, stopped, folder / "part", WORLD)
    except Stopped:
        torch.manual_seed(99)  # whatever the process did in between must not matter
    resumed = begin(folder / "part/assets")
    train(resumed.recipe, resumed, folder / "part", WORLD, resume=True)
    return bits(resumed.method) == bits(whole.method)


class _Ending:
    def __init__(self, batches, at: int) -> None:
        self.batches, self.at = batches, at

    def start(self, step=0, rank=0, world=1):
        for number, batch in enumerate(self.batches.start(step, rank, world), step):
            if number == self.at:
                raise Stopped
            yield batch


def report_of_ranks(name: str, ranks: int, folder: Path) -> dict:
    """What one step of a method on so many gloo ranks leaves: loss, gradients, statistics, queues."""
    script = Path(__file__).with_name("ranks.py")
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    target = folder / f"{name}-{ranks}.pt"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, *launcher, str(script), name, str(target)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert target.is_file(), done.stdout + done.stderr
    return torch.load(target)


@torch.no_grad()
def own_view_found(method, stream, batches: int = 8) -> float:
    """How often a picture's embedding is nearest to that of its own other view, among the batch's."""
    judge, right = copy.deepcopy(method).train(), []
    for batch, _ in zip(stream, range(batches), strict=False):
        first, second = (
            F.normalize(judge.projector(judge.backbone(judge.pixels(view))), dim=1) for view in batch.views[:2]
        )
        right.append(((first @ second.T).argmax(1) == torch.arange(len(first))).float().mean())
    return float(torch.stack(right).mean())


def overfits_eight_pictures(name: str, seed: int, steps: int, **optim) -> tuple[float, float]:
    """`own_view_found` before and after training on eight pictures alone."""
    recipe = short(
        name, "scenes-digits:n=40,size=32,clutter=0", steps=steps, batch=8, seed=seed,
        method={"lr_per": 0} | ({"queue": 16} if "bn_groups" in OWN[name] else {}),
        data={"limit": 8},
    )  # fmt: skip
    recipe = dataclasses.replace(
        recipe,
        optim=dataclasses.replace(recipe.optim, **optim),
        evaluation=dataclasses.replace(recipe.evaluation, pictures=0),
    )
    torch.manual_seed(seed)
    task = build(recipe)
    before = own_view_found(task.method, task.batches.start(1000))
    train(task.recipe, task, None, WORLD)
    return before, own_view_found(task.method, task.batches.start(1000))
