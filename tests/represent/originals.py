"""MoCo v1 to v3 and MoBY beside what their original code computed over five steps (`fixtures/make_moco.py`)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fixtures.named_numbers import numbers
from odonata.data.pictures import ViewBatch
from odonata.nn.positions import sincos_2d
from odonata.represent.representation import Representation

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/moco.npz")
STEPS, BATCH = 5, 8
_STARTS = ("encoder_q.", "encoder_k.", "encoder.", "base_encoder.", "momentum_encoder.")


def weight_name(key: str) -> str:
    for start in _STARTS:
        key = key.removeprefix(start)
    return key.replace("projector_k.", "projector.")


def official_state(name: str) -> dict[str, Tensor]:
    """A training checkpoint of the original's under its own names, with the weights that the record began with."""
    state = {}
    for key, text in zip(RECORDED[f"{name}/names"], RECORDED[f"{name}/shapes"], strict=True):
        shape = tuple(int(side) for side in text.split(",") if side)
        if key in ("queue", "queue1", "queue2"):
            state[str(key)] = F.normalize(numbers(str(key), shape), dim=0)
        elif key.endswith("pos_embed"):  # fixed in the original, and so in its file
            side = int((shape[1] - 1) ** 0.5)
            state[str(key)] = sincos_2d(shape[2], (side, side), 1, "y")[None]
        elif key == "queue_ptr":
            state[str(key)] = torch.zeros(1, dtype=torch.long)
        else:
            state[str(key)] = numbers(weight_name(str(key)), shape)
    return state


def relative(ours, theirs) -> float:
    ours, theirs = (torch.as_tensor(np.asarray(value), dtype=torch.float64) for value in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def batch_of(step: int, rows: slice = slice(None)) -> ViewBatch:
    """The views of a step, normalised already."""
    views = [(numbers(f"view{i}/{step}", (BATCH, 3, 32, 32)).double() * 30)[rows] for i in (1, 2)]
    return ViewBatch(views, torch.full((len(views[0]),), -1), torch.arange(len(views[0])))


def along(name: str, value: Tensor) -> float:
    return float((value.double() * numbers(f"probe/{name}", tuple(value.shape))).sum())


def follow_original(name: str, method: Representation, theirs, slow, queues: dict[str, nn.Module]) -> float:
    """Train as the record did and compare each step; return the largest relative error.

    Args:
        theirs: turns {our name: tensor} of all that learns into the original's names.
        slow: returns the slow network's state under the original's names.
        queues: the original's name of each queue → ours.
    """
    method.double().train()
    method.pixels = lambda view: view  # type: ignore[method-assign]
    for key, queue in queues.items():
        queue.rows.copy_(F.normalize(numbers(key, tuple(queue.rows.T.shape)).double(), dim=0).T)
    trained = {key: value for key, value in method.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05, momentum=0.9)
    names, slow_names = RECORDED[f"{name}/trained"].tolist(), RECORDED[f"{name}/slow_names"].tolist()
    worst = 0.0
    for step in range(STEPS):
        method.begin_step(step, STEPS)
        loss = method.loss(batch_of(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        gradients = theirs({key: value.grad for key, value in trained.items()})
        assert gradients.keys() == set(names)
        state = slow()
        found = {
            "losses": loss.item(),
            "norms": [float(gradients[key].norm()) for key in names],
            "probes": [along(key, gradients[key]) for key in names],
            "slow": [along(key, state[key]) for key in slow_names],
        }
        worst = max([worst, *(relative(value, RECORDED[f"{name}/{kind}"][step]) for kind, value in found.items())])
        for key, queue in queues.items():
            worst = max(worst, relative(queue.rows.T, RECORDED[f"{name}/{key}/{step}"]))
            assert queue.position == RECORDED[f"{name}/pointer/{step}"][0]
        optimizer.step()
        method.after_update()
    return worst
