"""Several processes give the loss and, after DDP's mean, the gradients of one process that holds the whole batch."""

import math
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from odonata.align.losses import sigmoid_loss, softmax_loss
from odonata.align.ring import form_ring

ROWS, WIDTH, DIM = 23, 10, 8
LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


class Towers(nn.Module):
    """Two linear towers and the scalars, so that every gradient takes the way it takes in training."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image = nn.Parameter(torch.randn(WIDTH, DIM, generator=generator))
        self.text = nn.Parameter(torch.randn(WIDTH, DIM, generator=generator))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(12.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, pixels, tokens, name, **arguments):
        """The loss, as DDP wants it: inside the forward pass of what it wraps."""
        embeddings = self.embed(pixels, tokens)
        return LOSSES[name](*embeddings[: 4 if name == "sigmoid" else 3], **arguments)

    def embed(self, pixels, tokens):
        return (
            F.normalize(pixels @ self.image, dim=-1),
            F.normalize(tokens @ self.text, dim=-1),
            self.logit_scale,
            self.logit_bias,
        )


def batch():
    generator = torch.Generator().manual_seed(2)
    pixels, tokens = (torch.randn(ROWS, WIDTH, generator=generator) for _ in range(2))
    return pixels, tokens, torch.randint(6, (ROWS,), generator=generator)


def written_out(name, embeddings, groups, duplicates):
    x, y, t, b = embeddings
    logits, eye = t.exp() * x @ y.T, torch.eye(len(x), dtype=torch.bool)
    alike = eye if groups is None else groups[:, None] == groups[None, :]
    ignored = alike & ~eye if duplicates == "ignore" else torch.zeros_like(eye)
    target = (alike & ~ignored).to(x.dtype)
    if name == "sigmoid":
        return F.softplus(-(2 * target - 1) * (logits + b)).masked_fill(ignored, 0).sum() / len(x)
    logits, target = logits.masked_fill(ignored, -1e9), target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def cases():
    for name in LOSSES:
        for duplicates in (None, "positive", "ignore"):
            for chunk in (None, 4):
                yield name, duplicates, chunk


def work(rank, cuts, store, results):
    """One rank: its uneven share of the batch through DDP, every case in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(cuts) - 1)
    mine = slice(cuts[rank], cuts[rank + 1])
    pixels, tokens, groups = (tensor[mine] for tensor in batch())
    found = []
    for name, duplicates, chunk in cases():
        model = DistributedDataParallel(Towers(), find_unused_parameters=name == "softmax")
        extra = {} if duplicates is None else {"groups": groups, "duplicates": duplicates}
        loss = model(pixels, tokens, name, chunk=chunk, **extra)
        loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.module.parameters()]
        found.append([loss.detach(), *grads])
    alone = softmax_loss(*Towers().embed(pixels, tokens)[:3], process_group="local").detach()
    torch.save({"cases": found, "alone": alone}, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(0, 23), (0, 9, 23), (0, 5, 11, 12, 23)], ids=["1 rank", "2 ranks", "4 ranks"])
def test_ranks_with_uneven_shares_agree_with_one_process(cuts, tmp_path):
    mp.spawn(work, args=(cuts, tmp_path / "store", tmp_path), nprocs=len(cuts) - 1)  # type: ignore[attr-defined]
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(cuts) - 1)]
    pixels, tokens, groups = batch()
    for index, (name, duplicates, _) in enumerate(cases()):
        model = Towers().double()
        embeddings = model.embed(pixels.double(), tokens.double())
        loss = written_out(name, embeddings, None if duplicates is None else groups, duplicates)
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for result in results:
            value, *found = result["cases"][index]
            assert abs(value.item() - loss.item()) / loss.item() < 1e-5
            for mine, truth in zip(found, grads, strict=True):
                truth = torch.zeros(()) if truth is None else truth
                assert (mine - truth).norm() <= 1e-5 * truth.norm(), (name, duplicates)
    for result, (start, stop) in zip(results, pairwise(cuts), strict=True):
        own = softmax_loss(*Towers().embed(pixels[start:stop], tokens[start:stop])[:3])
        torch.testing.assert_close(result["alone"], own.detach())


def test_without_a_process_group_the_ring_is_one_visit():
    ring = form_ring(5, torch.device("cpu"), None)
    seen = []

    def visit(owner, block, sums):
        seen.append(owner)
        sums[0] += block[0]

    (total,) = ring.travel([torch.ones(5)], [torch.zeros(5)], visit)
    assert (seen, ring.total, total.sum().item()) == ([0], 5, 5)
