"""The optimiser that follows from a recipe."""

import copy

import torch
from torch import nn

from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import AdamW


def test_the_fused_update_is_the_plain_one():
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    plain = copy.deepcopy(ours)
    optim = AdamW(lr=0.01, weight_decay=0.1)
    first = build_optimizer(ours, optim)
    decayed, other = [p for p in plain.parameters() if p.ndim > 1], [p for p in plain.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}]
    second = torch.optim.AdamW(groups, lr=0.01, betas=optim.betas, eps=optim.eps, foreach=False, fused=False)
    for _ in range(20):
        x = torch.randn(4, 5)
        for model, optimizer in ((ours, first), (plain, second)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert all(group["fused"] for group in first.param_groups)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
