"""A small method, a two-network one, and their data: what the engine's tests train, here or as ranks of torchrun."""

import argparse
import dataclasses
import hashlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from odonata.engine.distributed import join_world, leave_world
from odonata.engine.fit import train
from odonata.engine.method import Method
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.engine.task import Task
from odonata.errors import OdonataError


@dataclass(frozen=True)
class ToyConfig:
    """The toy's own options."""

    width: int = 16
    """Hidden units."""
    dropout: float = 0.1
    """Draws from the global generator: a resumed run must find it where it was."""


@dataclass
class Pairs:
    x: torch.Tensor
    y: torch.Tensor


class Stream:
    """Batches that are a pure function of the step, cut into equal slices by rank."""

    def __init__(self, size: int = 16, die_at: int = -1, poison_at: int = -1):
        self.size, self.die_at, self.poison_at = size, die_at, poison_at

    def start(self, step=0, rank=0, world=1):
        while True:
            g = torch.Generator().manual_seed(step)
            x = torch.randn(self.size, 8, generator=g)
            y = (x.sum(1) > 0).long()
            if step == self.poison_at:
                x[0] = float("nan")
            if step == self.die_at and rank == world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            part = slice(rank * self.size // world, (rank + 1) * self.size // world)
            yield Pairs(x[part], y[part])
            step += 1


class Toy(Method):
    """A classifier with everything that makes exact resume hard: dropout, and BatchNorm's buffers."""

    def __init__(self, config: ToyConfig, batch_norm: bool = True):
        super().__init__()
        self.embed = nn.Linear(8, config.width)
        norm = nn.BatchNorm1d if batch_norm else nn.LayerNorm
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(config.width, config.width), norm(config.width)) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, 2)
        self.scale = nn.Parameter(torch.zeros(()))

    def loss(self, batch):
        x = self.embed(batch.x)
        for layer in self.layers:
            x = x + F.relu(layer(x))
        logits = self.head(self.dropout(x)) * self.scale.exp()
        return {"loss": F.cross_entropy(logits, batch.y)}


class TinyGAN(Method):
    """Two networks, two optimisers, a step of its own: a GAN on the line y = 2x + 1."""

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(2, config.width), nn.ReLU(), nn.Linear(config.width, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, config.width), nn.ReLU(), nn.Linear(config.width, 1))

    def loss(self, batch):
        return {"loss": self.generator(batch.x[:, :2]).square().mean()}

    def networks(self):
        return (self.generator, self.discriminator)

    def optimizers(self, build):
        return {"generator": build(self.generator), "discriminator": build(self.discriminator)}

    def step(self, batch, engine):
        generate, judge = engine.wrapped(self.generator), engine.wrapped(self.discriminator)
        real = torch.stack([batch.x[:, 0], 2 * batch.x[:, 0] + 1], 1)
        noise = torch.randn(len(real), 2)
        with torch.no_grad():
            fake = self.generator(noise)
        scores = judge(torch.cat([real, fake]))
        d_loss = F.softplus(-scores[: len(real)]).mean() + F.softplus(scores[len(real) :]).mean()
        engine.backward(d_loss)
        engine.update("discriminator")
        self.discriminator.requires_grad_(False)
        g_loss = F.softplus(-self.discriminator(generate(noise))).mean()
        engine.backward(g_loss)
        engine.update("generator")
        self.discriminator.requires_grad_(True)
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}


METHODS = {
    "toy": Toy,
    "toy-plain": lambda c: Toy(dataclasses.replace(c, dropout=0.0), batch_norm=False),
    "gan": TinyGAN,
}


def recipe(name: str = "toy", **changes) -> Recipe:
    base = Recipe(
        name=name, method=ToyConfig(), data=None, evaluation=None, optim=AdamW(lr=1e-2), schedule=Schedule(),
        clip=Clip("norm", 1.0), steps=30, save_every=10, log_every=1, device="cpu",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def task(r: Recipe, stream: Stream | None = None, **fields) -> Task:
    torch.manual_seed(r.seed)
    return Task(METHODS[r.name](r.method), stream or Stream(), 16, "toy-data", **fields)


def digest(module: nn.Module) -> str:
    h = hashlib.sha256()
    for _, value in sorted(module.state_dict().items()):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        h.update(value.detach().contiguous().numpy().tobytes())
    return h.hexdigest()


def digest_of_parameters(module: nn.Module) -> str:
    """Without buffers: BatchNorm's change in a forward pass, whether or not an update follows."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def main() -> None:
    a = argparse.ArgumentParser()
    a.add_argument("folder", type=Path)
    a.add_argument("--name", default="toy")
    a.add_argument("--steps", type=int, default=30)
    a.add_argument("--die-at", type=int, default=-1)
    a.add_argument("--poison-at", type=int, default=-1)
    a.add_argument("--parallel", default="ddp")
    a.add_argument("--ema", type=float, default=0.0)
    a.add_argument("--resume", action="store_true")
    a = a.parse_args()
    world = join_world("cpu")
    r = recipe(a.name, steps=a.steps, parallel=a.parallel, ema=a.ema)
    t = task(r, Stream(die_at=a.die_at, poison_at=a.poison_at))
    try:
        train(r, t, a.folder, world, resume=a.resume)
    except OdonataError as error:
        print("ERROR", error, flush=True)
        raise SystemExit(2) from error
    result = digest(t.method)
    if world.leads:
        print("DIGEST", result, flush=True)
    leave_world()
    if world.size > 1:  # as the command line does: torch aborts a sharded rank now and then as Python leaves
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
