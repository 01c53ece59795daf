"""Three steps of a method on its rank's share of the recorded views; run by torchrun, or alone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from odonata.backbones.create import create
from odonata.data.preprocess import IMAGENET
from odonata.engine.distributed import average_gradients, join_world, leave_world
from odonata.represent import recipes
from odonata.represent.methods import METHOD_OF
from represent.originals import BATCH, batch_of
from represent.short_runs import OWN


def main(name: str, target: str) -> None:
    import dataclasses

    world = join_world("cpu")
    config = recipes.by_name(name).method
    config = dataclasses.replace(config, **OWN[name] | ({"queue": 20} if hasattr(config, "queue") else {}))
    torch.manual_seed(0)
    method = METHOD_OF[type(config)](config, create("resnet8"), IMAGENET).double().train()
    method.pixels = lambda view: view
    torch.manual_seed(world.rank)
    rows = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(3):
        method.begin_step(step, 3)
        loss = method.loss(batch_of(step, rows))["loss"]
        optimizer.zero_grad()
        loss.backward()
        average_gradients(method.parameters())
        mean = loss.detach().clone()
        if world.size > 1:
            dist.all_reduce(mean)
        losses.append(float(mean) / world.size)
        gradients = {k: p.grad.clone() for k, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_update()
    state = method.state_dict()
    queues = {k: v for k, v in state.items() if "queue" in k}
    everyone = [queues]
    if world.size > 1:
        everyone = [None] * world.size
        dist.all_gather_object(everyone, queues)
    if world.leads:
        statistics = {k: v for k, v in state.items() if "running" in k}
        torch.save({"loss": losses[-1], "losses": losses, "gradients": gradients, "statistics": statistics,
                    "queues": everyone}, target)  # fmt: skip
    leave_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
