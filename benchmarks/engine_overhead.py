"""What the engine adds to a training step, and how soon the command line answers.

    python benchmarks/engine_overhead.py            # about a minute
    python benchmarks/engine_overhead.py --quick    # fewer steps and repetitions

A step of Linear(8, 8) on a batch of 8 is next to nothing, so what is left is the loop around it. Two bare loops are
measured in turn with the engine, on the same batches, in CPU time of the process, the best of several repetitions:

- "bare": forward, backward, AdamW, zero_grad. Checks nothing, clips nothing, reports nothing.
- "bare, checked": the same, and what the engine does besides in every step, written inline: the scheduled learning
  rate, a check of the loss and of the gradient's norm for NaN, and clipping by that norm.

The limit of the norm is so high that clipping never acts, and all three must end at the same weights. The engine then
leaves the gradients alone, where `clip_grad_norm_` multiplies them by 1.
"""

import argparse
import dataclasses
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from odonata.engine.distributed import World
from odonata.engine.fit import Engine
from odonata.engine.method import Method
from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.engine.task import Task

COMMANDS = (("--help",), ("list",), ("train", "--help"))


@dataclasses.dataclass
class Pairs:
    """A batch."""

    x: Tensor
    y: Tensor


class Stream:
    """The same batch for ever."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batch = Pairs(torch.randn(8, 8, generator=generator), torch.randn(8, 8, generator=generator))

    def start(self, step: int = 0, rank: int = 0, world: int = 1) -> Iterator[Pairs]:
        """Return the batches."""
        while True:
            yield self.batch


class Regression(Method):
    """Linear(8, 8) and a squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def loss(self, batch: Pairs) -> dict[str, Tensor]:
        """Return the mean squared error."""
        return {"loss": nn.functional.mse_loss(self.linear(batch.x), batch.y)}


def recipe_of(steps: int) -> Recipe:
    """Return the recipe that all follow."""
    return Recipe(
        name="overhead", method=None, data=None, evaluation=None, optim=AdamW(lr=1e-3),
        schedule=Schedule("constant", warmup=0), clip=Clip("norm", 1e6), steps=steps,
    )  # fmt: skip


def bare(steps: int) -> Regression:
    """Train without the engine."""
    torch.manual_seed(0)
    method, batches = Regression(), Stream().start()
    optimizer = build_optimizer(method, recipe_of(steps).optim)
    for _ in range(steps):
        method(next(batches))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return method


def checked(steps: int) -> Regression:
    """Train without the engine, with its checks."""
    torch.manual_seed(0)
    method, batches, recipe = Regression(), Stream().start(), recipe_of(steps)
    optimizer = build_optimizer(method, recipe.optim)
    parameters = list(method.parameters())
    for step in range(steps):
        loss = method(next(batches))["loss"]
        if not math.isfinite(float(loss.detach())):
            raise RuntimeError("the loss is not finite")
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = recipe.schedule.factor(step, steps) * recipe.optim.lr * group["scale"]
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip.limit)
        if not math.isfinite(float(norm)):
            raise RuntimeError("the gradient is not finite")
        optimizer.step()
        optimizer.zero_grad()
    return method


def engine(steps: int) -> Regression:
    """Train with the engine, without a run folder."""
    torch.manual_seed(0)
    method = Regression()
    task = Task(method, Stream(), 8, "overhead")
    Engine(recipe_of(steps), task, None, World(0, 1, torch.device("cpu"))).fit()
    return method


def measure(loops: dict[str, Callable[[int], Any]], steps: int, repeats: int) -> dict[str, float]:
    """Return the microseconds of CPU time of a step, the best of some repetitions taken in turn."""
    best = dict.fromkeys(loops, float("inf"))
    for _ in range(repeats):
        for name, loop in loops.items():
            start = time.process_time()
            loop(steps)
            best[name] = min(best[name], (time.process_time() - start) / steps * 1e6)
    return best


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 steps, 3 repetitions")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, repeats = (300, 3) if arguments.quick else (3000, 15)
    loops = {"bare": bare, "bare, checked": checked, "engine": engine}
    ends = {name: loop(50).linear.weight for name, loop in loops.items()}
    for name, weight in ends.items():
        if not torch.allclose(weight, ends["engine"], rtol=1e-6, atol=1e-7):
            raise SystemExit(f"{name} ends at other weights than the engine")
    best = measure(loops, steps, repeats)
    print(f"Linear(8, 8), batch 8, torch {torch.__version__}, 1 thread, best of {repeats} × {steps} steps")
    print(f"{'':16}{'µs / step':>10}{'above bare':>12}{'/ bare':>9}")
    for name, value in best.items():
        print(f"{name:16}{value:10.1f}{value - best['bare']:12.1f}{value / best['bare']:9.2f}")
    print(f"\n{'':24}{'seconds':>9}  (wall time, best of {repeats // 3})")
    for command in COMMANDS:
        times: list[float] = []
        for _ in range(repeats // 3):
            start = time.perf_counter()
            child = [sys.executable, "-m", "odonata.app.cli", *command]
            subprocess.run(child, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "COLUMNS": "100"})
            times.append(time.perf_counter() - start)
        print(f"{'odonata ' + ' '.join(command):24}{min(times):9.2f}")


if __name__ == "__main__":
    main()
