"""The small world of the alignment claims: strips of coloured handwritten digits, sentences about them, frozen towers.

Notable:
- Real handwriting (`odonata.data.scenes`, 1,797 digits), generated colours, grounds and sentences; no download. A cell is
  16 × 16 pixels with one digit in one of 8 colours; a picture is a strip or a grid of cells; its caption names them in
  order, "a red 3, a white 7, …". With 80 kinds of cell captions are near unique: 512,000 for three, 3.3 · 10⁹ for five.
- Splits share no handwriting: training, validation (settings are chosen on it) and test.
- Claims that only train heads do so on features of a tower that saw cells of the training split, with labels, once.
- A phrase is one token: "a red 3" is number 10 · colour + digit of 80.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from odonata.claims.claim import Split
from odonata.data.scene_captions import COLOURS
from odonata.data.scenes import PALETTE, exemplars, load_digits
from odonata.nn.transformer import Transformer

PHRASES = 80
CELL = 16
NOISE = 60.0
TEST_PAIRS = 1000
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "val": 1, "test": 2}


@functools.cache
def _glyphs() -> Float[Tensor, "1797 1 8 8"]:
    return torch.from_numpy(load_digits()[0]).float()[:, None] / 16


@functools.cache
def _exemplars(split: Split | str) -> list[Tensor]:
    return [torch.tensor(numbers) for numbers in exemplars(split)]  # pyright: ignore[reportArgumentType]


def paint_cells(
    phrases: Int[Tensor, " cells"], split: str, generator: torch.Generator
) -> Float[Tensor, "cells 3 side side"]:
    """Return pictures of single cells in [-1, 1]: handwriting at a random place, size and slant, on a grainy ground."""
    count = len(phrases)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    chosen = torch.rand(count, generator=generator)
    sets = _exemplars(split)
    numbers = torch.stack([sets[d][int(u * len(sets[d]))] for d, u in zip((phrases % 10).tolist(), chosen.tolist(), strict=True)])
    angle, zoom = uniform(-0.3, 0.3), uniform(1.1, 2.2)
    shift = uniform(-1, 1, 2) * (zoom - 1)[:, None]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2)
    affine = torch.cat([turn * zoom[:, None, None], shift[:, :, None]], 2)
    grid = F.affine_grid(affine, [count, 1, CELL, CELL], align_corners=False)
    ink = F.grid_sample(_glyphs()[numbers], grid, align_corners=False)
    alpha = ((ink - 0.3) * 3).clamp(0, 1)
    colours = torch.tensor([PALETTE[name] for name in COLOURS]).float()[phrases // 10] + uniform(-60, 60, 3)
    ground = uniform(40, 110, 1, 1, 1) + F.interpolate(uniform(-30, 30, 3, 4, 4), CELL, mode="bilinear")
    cells = ground + (colours[:, :, None, None] - ground) * alpha + NOISE * torch.randn(count, 3, CELL, CELL, generator=generator)
    return cells.clamp(0, 255) / 127.5 - 1


@dataclass
class Pairs:
    """Pictures, as a tensor of cells or of features, and captions, as phrases."""

    images: Tensor
    captions: Int[Tensor, "pairs cells"]

    def __len__(self) -> int:
        return len(self.captions)

    def at(self, rows: Tensor) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.images[rows], self.captions[rows])


def paint_pairs(count: int, cells: int, split: str, seed: int) -> Pairs:
    """Return pictures [pairs, cells, 3, side, side] and their captions."""
    generator = torch.Generator().manual_seed(1000 * seed + _SPLIT_SEEDS[split])
    captions = torch.randint(PHRASES, (count, cells), generator=generator)
    return Pairs(paint_cells(captions.flatten(), split, generator).unflatten(0, (count, cells)), captions)


class CellTower(nn.Sequential):
    """A small convolutional tower: one feature vector for each cell."""

    def __init__(self, width: int = 16, dim: int = 64) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        super().__init__(*layers, nn.Flatten(), nn.Linear(16 * channels, dim), nn.BatchNorm1d(dim), nn.ReLU())
        self.dim = dim


class TextTower(nn.Module):
    """A transformer over the phrases of a caption, mean-pooled."""

    def __init__(self, length: int, dim: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(PHRASES, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.transformer = Transformer(width, 1, 4, mlp_width=2 * width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width * length, dim)

    def forward(self, captions: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Return text features, not normalised."""
        tokens = self.transformer(self.embedding(captions) + self.positions)
        return self.head(self.norm(tokens).flatten(1))


def train_cell_tower(file: Path, budget: float, steps: int = 1200, dim: int = 64) -> None:
    """Train a tower to name the phrase of single cells of the training split, and save it; kept where it is there."""
    if file.is_file():
        return
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(77)
    tower = CellTower(dim=dim)
    head = nn.Linear(dim, PHRASES)
    steps = max(20, round(steps * budget))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=3e-3, weight_decay=0.02, fused=True)
    for step in range(steps):
        set_rate(optimizer, step, steps)
        phrases = torch.randint(PHRASES, (128,), generator=generator)
        loss = F.cross_entropy(head(tower(paint_cells(phrases, "train", generator))), phrases)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    partial = file.with_suffix(".partial")
    save_file(tower.state_dict(), partial)
    partial.replace(file)


def load_cell_tower(file: Path, dim: int = 64) -> CellTower:
    """Return what `train_cell_tower` saved."""
    tower = CellTower(dim=dim)
    tower.load_state_dict(load_file(file))
    return tower.eval()


@functools.lru_cache(maxsize=4)
def frozen_pairs(file: Path, count: int, cells: int, split: str, seed: int) -> Pairs:
    """Return pairs whose images are frozen features [pairs, cells · dim], standardised."""
    painted = paint_pairs(count, cells, split, seed)
    tower = load_cell_tower(file)
    with torch.no_grad():
        parts = [tower(part.flatten(0, 1)) for part in painted.images.split(500)]
    features = torch.cat(parts)
    # The statistics of the training cells, near enough the same for every split.
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return Pairs(features.view(count, -1), painted.captions)


def set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, warmup: float = 0.1) -> None:
    """Set the rate of every group: linear warm-up, then a cosine to zero, times the group's `peak`."""
    share = min(1.0, (step + 1) / max(1.0, warmup * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * share


def shuffled_batches(pairs: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield row numbers: every pair once an epoch, in an order that only the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(pairs, generator=generator)])
        yield order[:batch]
        order = order[batch:]


def optimise(
    parameters: list[dict[str, object]], steps: int, batches: Iterator[Tensor], loss_of: Callable[[Tensor], Tensor],
    after: Callable[[], None] = lambda: None,
) -> list[float]:  # fmt: skip
    """Train by AdamW (β 0.9, 0.95), and return the loss of every step."""
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    losses: list[float] = []
    for step, rows in enumerate(batches):
        set_rate(optimizer, step, steps)
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


def recall_at_1(image: Float[Tensor, "pairs dim"], text: Float[Tensor, "pairs dim"]) -> float:
    """Return the mean over both directions of the share that find their partner first, in percent; ties count as found."""
    scores = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = scores.diagonal()
    rows = (scores > own[:, None]).any(1)
    columns = (scores > own[None]).any(0)
    return 100 - 50 * (rows.float().mean() + columns.float().mean()).item()
