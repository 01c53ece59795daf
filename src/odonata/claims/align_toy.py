"""The small world of the alignment claims: strips of coloured handwritten digits, sentences about them, frozen towers.

Notable:
- Real handwriting (`odonata.data.scenes`, 1,797 digits), generated colours, grounds and sentences; no download. A
  cell is 16 × 16 pixels with one digit in one of 8 colours; a picture is a strip or a grid of cells; its caption names
  them in order, "a red 3, a white 7, …". With 80 kinds of cell, captions are near unique: 512,000 for three cells,
  41 million for four.
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

from odonata.claims.claim import Trial
from odonata.data.scene_captions import COLOURS
from odonata.data.scenes import PALETTE, Split, exemplars, load_digits
from odonata.nn.transformer import Transformer

PHRASES = 80
CELL = 16
TEST_PAIRS = 1000
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "val": 1, "test": 2}


@functools.cache
def _glyphs() -> Float[Tensor, "1797 1 8 8"]:
    return torch.from_numpy(load_digits()[0]).float()[:, None] / 16


@functools.cache
def _exemplars(split: Split) -> tuple[Int[Tensor, "10 most"], Int[Tensor, " 10"]]:
    """Return the numbers of the exemplars of each digit, filled up with zeros, and how many there are."""
    sets = exemplars(split)
    table = nn.utils.rnn.pad_sequence([torch.tensor(numbers) for numbers in sets], batch_first=True)
    return table, torch.tensor([len(numbers) for numbers in sets])


@functools.cache
def _palette() -> Float[Tensor, "8 3"]:
    return torch.tensor([PALETTE[name] for name in COLOURS]).float()


def paint_cells(
    phrases: Int[Tensor, " cells"], split: Split, generator: torch.Generator, noise: float
) -> Float[Tensor, "cells 3 side side"]:
    """Return pictures of single cells in [-1, 1]: handwriting at a random place, size and slant, on a grainy ground.

    Args:
        phrases: what each cell shows.
        split: whose handwriting.
        generator: of all that is random.
        noise: of the grain and of the tints, in grey levels of 255; how hard digits and colours are to tell apart.
    """
    count = len(phrases)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    table, sizes = _exemplars(split)
    digits = phrases % 10
    numbers = table[digits, (uniform(0, 1) * sizes[digits]).long()]
    angle, zoom = uniform(-0.3, 0.3), uniform(1.05, 2.0)
    shift = uniform(-1, 1, 2) * (zoom - 1)[:, None]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(count, 2, 2)
    affine = torch.cat([turn * zoom[:, None, None], shift[:, :, None]], 2)
    ink = F.grid_sample(_glyphs()[numbers], F.affine_grid(affine, [count, 1, CELL, CELL], False), align_corners=False)
    colours = _palette()[phrases // 10] + uniform(-1, 1, 3) * noise
    ground = uniform(40, 110, 1, 1, 1) + F.interpolate(uniform(-30, 30, 3, 4, 4), CELL, mode="bilinear")
    cells = ground + (colours[:, :, None, None] - ground) * ((ink - 0.3) * 3).clamp(0, 1)
    cells = cells + noise * torch.randn(cells.shape, generator=generator)
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


def paint_pairs(count: int, cells: int, split: Split, seed: int, noise: float) -> Pairs:
    """Return pictures [pairs, cells, 3, side, side] and their captions."""
    generator = torch.Generator().manual_seed(1000 * seed + _SPLIT_SEEDS[split])
    captions = torch.randint(PHRASES, (count, cells), generator=generator)
    return Pairs(paint_cells(captions.flatten(), split, generator, noise).unflatten(0, (count, cells)), captions)


def paint_grids(count: int, split: Split, seed: int, noise: float, side: int = 2) -> Pairs:
    """Return pictures [pairs, 3, 8 · side, 8 · side] of side × side digits as they were scanned, and their captions."""
    generator = torch.Generator().manual_seed(1000 * seed + 500 + _SPLIT_SEEDS[split])
    captions = torch.randint(PHRASES, (count, side * side), generator=generator)
    phrases = captions.flatten()
    table, sizes = _exemplars(split)
    chosen = (torch.rand(len(phrases), generator=generator) * sizes[phrases % 10]).long()
    ink = _glyphs()[table[phrases % 10, chosen]]
    ground = torch.rand(len(phrases), 1, 1, 1, generator=generator) * 70 + 40
    cells = ground + (_palette()[phrases // 10][:, :, None, None] - ground) * ink
    cells = (cells + noise * torch.randn(cells.shape, generator=generator)).clamp(0, 255) / 127.5 - 1
    rows = cells.view(count, side, side, 3, 8, 8).permute(0, 3, 1, 4, 2, 5)
    return Pairs(rows.reshape(count, 3, 8 * side, 8 * side), captions)


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


def train_cell_tower(dim: int, steps: int, noise: float) -> CellTower:
    """Return a tower that was trained to name the phrase of single cells of the training split."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(77)
    tower = CellTower(dim=dim)
    head = nn.Linear(dim, PHRASES)

    def loss_of(phrases: Tensor) -> Tensor:
        return F.cross_entropy(head(tower(paint_cells(phrases, "train", generator, noise))), phrases)

    draws = (torch.randint(PHRASES, (128,), generator=generator) for _ in range(steps))
    optimise([{"params": [*tower.parameters(), *head.parameters()], "lr": 3e-3}], steps, draws, loss_of)
    return tower.eval()


POOL: dict[Split, int] = {"train": 20000, "val": 4000, "test": 4000}
"""Cells of each split whose features are kept."""
FROZEN_DIM = 32
FROZEN_NOISE = 90.0


def prepare_features(folder: Path, budget: float) -> None:
    """Train the frozen tower and write the standardised features of the pool of cells; kept where they are there."""
    file = folder / f"cells-{budget:g}.safetensors"
    if file.is_file():
        return
    tower = train_cell_tower(FROZEN_DIM, max(20, round(500 * budget)), FROZEN_NOISE)
    kept: dict[str, Tensor] = {}
    for split, count in POOL.items():
        cells = paint_pairs(count, 1, split, 9, FROZEN_NOISE)
        with torch.no_grad():
            kept[split] = torch.cat([tower(part.flatten(0, 1)) for part in cells.images.split(1000)])
        kept[f"{split}-phrases"] = cells.captions.flatten()
    mean, deviation = kept["train"].mean(0), kept["train"].std(0) + 1e-6
    for split in POOL:
        kept[split] = (kept[split] - mean) / deviation
    partial = file.with_suffix(".partial")
    save_file(kept, partial)
    partial.replace(file)


@functools.lru_cache(maxsize=2)
def _pool(file: Path) -> dict[str, Tensor]:
    return load_file(file)


def frozen_pairs(trial: Trial, count: int, cells: int, split: Split) -> Pairs:
    """Return pairs whose images are frozen features [pairs, cells · dim]: cells of the pool, put together at random."""
    pool = _pool(trial.folder / f"cells-{trial.budget:g}.safetensors")
    generator = torch.Generator().manual_seed(1000 * trial.seed + _SPLIT_SEEDS[split])
    rows = torch.randint(POOL[split], (count, cells), generator=generator)
    return Pairs(pool[split][rows].flatten(1), pool[f"{split}-phrases"][rows])


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
    """Return the share that find their partner first, the mean of both directions, in percent; ties count."""
    scores = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = scores.diagonal()
    rows = (scores > own[:, None]).any(1)
    columns = (scores > own[None]).any(0)
    return 100 - 50 * (rows.float().mean() + columns.float().mean()).item()
