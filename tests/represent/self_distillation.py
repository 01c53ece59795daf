"""What the tests of SwAV and DINO share: pictures and weights from names, gradients against the record, short runs."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fixtures.named_numbers import numbers
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET, Preprocess
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.represent.build import build

ORACLE = np.load(Path(__file__).parents[1] / "fixtures/swav_dino.npz")
SHAPES = json.loads(str(ORACLE["shapes"]))
WORLD = World(0, 1, torch.device("cpu"))
PREPROCESS = Preprocess.from_dict(IMAGENET.to_dict() | {"size": 16})
BATCH = 6


def batch(case: str, step: int) -> ViewBatch:
    """Two large pictures and three small ones of each of a batch."""
    found = []
    for number, size in enumerate((16, 16, 8, 8, 8)):
        noise = numbers(f"{case}/{step}/{number}", (BATCH, 3, size, size)) * (3 * size * size) ** 0.5
        found.append((128 + 64 * noise).clamp(0, 255).to(torch.uint8))
    return ViewBatch(found, torch.full((BATCH,), -1), torch.arange(BATCH))


def published(case: str) -> dict[str, Tensor]:
    """The weights that the record was made with, under their authors' names."""
    return {name: numbers(name, tuple(shape)) for name, shape in SHAPES[case].items()}


def expected(name: str) -> Tensor:
    return torch.from_numpy(ORACLE[name])


def assert_close(ours: Tensor, reference: Tensor, bound: float, what: str = "") -> None:
    error = float((ours.double() - reference.double()).norm() / reference.double().norm())
    assert error < bound, f"{what}: relative error {error:.1e}"


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def built(recipe: Recipe, **changes) -> Task:
    """A task of a recipe, with other options of the method."""
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **changes))
    torch.manual_seed(recipe.seed)
    task = build(recipe)
    task.recipe = dataclasses.replace(task.recipe, device="cpu")
    return task


def resumed_and_whole(recipe: Recipe, folder: Path, stop_at: int, **changes) -> tuple[dict, dict]:
    """States of a run that was broken off and resumed, and of one that was not."""

    class Killed(Exception):
        pass

    class Stopping:
        def __init__(self, batches):
            self.batches = batches

        def start(self, step=0, rank=0, world=1):
            for number, found in enumerate(self.batches.start(step, rank, world), step):
                if number == stop_at:
                    raise Killed
                yield found

    whole = built(recipe, **changes)
    train(whole.recipe, whole, folder / "a", WORLD)
    broken = built(recipe, **changes)
    broken.batches = Stopping(broken.batches)
    with contextlib.suppress(Killed):
        train(broken.recipe, broken, folder / "b", WORLD)
    torch.manual_seed(99)
    resumed = built(recipe, **changes)
    train(resumed.recipe, resumed, folder / "b", WORLD, resume=True)
    return resumed.method.state_dict(), whole.method.state_dict()


def write_digits(folder: Path) -> Path:
    """The embedded handwritten digits as class folders of pictures of 16 pixels."""
    from importlib.resources import files

    from PIL import Image

    with files("odonata.data").joinpath("embedded/digits.npz").open("rb") as stream:
        stored = np.load(stream)
        images, labels = stored["images"], stored["labels"]
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        grey = (image.astype(int) * 255 // 16).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).resize((16, 16), Image.Resampling.BICUBIC).save(folder / str(label) / f"{index:04}.png")
    return folder


def short_run(recipe: Recipe, folder: Path, seed: int, **options) -> tuple[dict, dict, list[str]]:
    """Figures of the random tower and after 120 steps on the digits, and what the collapse watch warned of."""
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, path=str(folder), batch_size=64), steps=120, seed=seed
    )
    small = {"backbone": "resnet8", "image_size": 16, "small_size": 8}
    task = built(recipe, **small, **options)
    before = task.evaluate(task.method)
    after = train(task.recipe, task, None, WORLD)
    return before, after, sorted(task.watch.said)
