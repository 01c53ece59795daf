"""One run of `train decoder` in a process of its own, which can be killed at a step, on one rank or several."""

import argparse
import dataclasses
import hashlib
import os
import signal
import sys
from pathlib import Path

import torch

from odonata.app.api import recipe
from odonata.data.loader import Batches
from odonata.engine.distributed import join_world, leave_world
from odonata.engine.fit import train
from odonata.language.build import build

SMALL = {
    "variant": "nano",
    "data__batch_size": 16,
    "evaluation__sequences": 32,
    "log_every": 5,
    "save_every": 10,
    "device": "cpu",
}


class Mortal(Batches):
    """Batches that end the process at a step, as a power cut does."""

    die_at = -1

    def start(self, step=0, rank=0, world=1):
        for number, batch in enumerate(super().start(step, rank, world), step):
            if number == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def digest(module: torch.nn.Module) -> str:
    values = (value.detach().contiguous().numpy().tobytes() for _, value in sorted(module.state_dict().items()))
    return hashlib.sha256(b"".join(values)).hexdigest()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--accumulate", type=int, default=1)
    options.add_argument("--die-at", type=int, default=-1)
    options.add_argument("--resume", action="store_true")
    options.add_argument("--double", action="store_true")
    options.add_argument("--parallel", default="ddp")
    a = options.parse_args()
    world = join_world("cpu")
    chosen = recipe("decoder", steps=a.steps, accumulate=a.accumulate, parallel=a.parallel, **SMALL)
    torch.manual_seed(chosen.seed)
    task = build(chosen, a.folder / "assets" if a.resume else None)
    if a.double:
        task.method.double()
    task.batches = Mortal(**{f.name: getattr(task.batches, f.name) for f in dataclasses.fields(task.batches)})
    task.batches.die_at = a.die_at
    train(chosen, task, a.folder, world, resume=a.resume)
    if world.leads and a.parallel == "ddp":  # shards have no bits of the whole
        print("DIGEST", digest(task.method), flush=True)
    leave_world()
    if world.size > 1:
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
