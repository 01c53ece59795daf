"""The small worlds of the representation claims: pictures of one handwritten digit, views in batches, yardsticks.

Notable:
- Real handwriting (UCI, 1,797 exemplars), no download. The class is the digit; colour, place and ground say nothing.
  Splits share no handwriting.
- Supervised claims see `scenes-digits` at 32 pixels: a digit at any place and size on a textured ground with dashes.
  The pictures are painted once, in `prepare`.
- Claims about features see `cells`, 16 × 16 pixels that a digit nearly fills: where most of a picture is ground, two
  crops of it are told from others by the ground, and nothing is learned of digits. A seed paints its own.
- Views are made on whole batches: a hundred times faster on a CPU than picture by picture. Nothing is mirrored, because
  a mirrored digit is none.
- The yardsticks for features are nearest neighbours (k = 20, T = 0.07, as DINO has it) and the `lbfgs` probe of
  `odonata.represent.protocols`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.backbones.resnet import ResNetConfig
from odonata.claims.align_toy import CELL, PHRASES, paint_cells, set_rate, shuffled_batches
from odonata.claims.claim import Trial
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import HALF, Preprocess
from odonata.data.scene_captions import COLOURS
from odonata.data.scenes import Split, digit_set
from odonata.metrics.knn import knn_scores
from odonata.represent.protocols import PROBES, probe_scores
from odonata.represent.representation import Representation

SIDE = 32
CLASSES = 10
POOL: dict[Split, int] = {"train": 6000, "val": 1500, "test": 3000}
"""Pictures that are painted."""
SEEN: dict[Split, int] = {"train": 4000, "val": 1000, "test": 1500}
"""How many of them a trial takes."""
PREPROCESS = Preprocess(SIDE, resize="squash", mean=HALF, std=HALF)
NOISE = 30.0
CELL_PREPROCESS = Preprocess(CELL, resize="squash", mean=HALF, std=HALF)
TOWER = ResNetConfig("basic", (1, 1, 1), (16, 32, 64), stem="cifar", stem_width=16)
"""ResNet-8 of the CIFAR family, with convolutions in its shortcuts: a step of 64 cells takes 25 ms of one thread."""

CELLS_DATA = (
    "Pictures of 16 × 16 pixels: one real handwritten digit (UCI) in {colours} at a random place, size and slant on a "
    "grainy ground; 10 classes. 4,000 training pictures, 1,500 of handwriting never seen to test on."
)
_GREY = (0.299, 0.587, 0.114)
_SPLIT_SEEDS: dict[str, int] = {"train": 0, "val": 1, "test": 2}

Images = UInt8[Tensor, "batch 3 height width"]
Look = Callable[[Images], Images]
"""Makes a view of each picture of a batch; what is random comes from torch's global generator."""


@dataclass
class Pictures:
    """Pictures and their digits."""

    images: UInt8[Tensor, "pictures 3 side side"]
    labels: Int[Tensor, " pictures"]

    def __len__(self) -> int:
        return len(self.labels)


def prepare_pictures(folder: Path, budget: float) -> None:
    """Paint the pool; kept where it is there."""
    file = _file(folder, budget)
    if file.is_file():
        return
    kept: dict[str, Tensor] = {}
    for split, count in POOL.items():
        source = digit_set(max(400, round(count * min(1.0, budget))), split, seed=0, size=SIDE)
        kept[split] = torch.stack([sample.image.tensor() for sample in source])
        kept[f"{split}-labels"] = torch.tensor([sample.label or 0 for sample in source])
    partial = file.with_suffix(".partial")
    save_file(kept, partial)
    partial.replace(file)


def pictures(trial: Trial, split: Split, most: int | None = None) -> Pictures:
    """Return a trial's share of the pool: the same for the same seed, whatever the variant.

    Args:
        trial: gives folder and seed.
        split: whose handwriting.
        most: how many; None for `SEEN`.
    """
    pool = _pool(_file(trial.folder, trial.budget))
    generator = torch.Generator().manual_seed(1000 * trial.seed + _SPLIT_SEEDS[split])
    rows = torch.randperm(len(pool[split]), generator=generator)[: SEEN[split] if most is None else most]
    return Pictures(pool[split][rows], pool[f"{split}-labels"][rows])


def cells(trial: Trial, split: Split, coloured: bool = True) -> Pictures:
    """Return a trial's own pictures of 16 × 16 pixels: the same for the same seed, whatever the variant.

    Args:
        trial: gives seed and budget.
        split: whose handwriting.
        coloured: digits in one of 8 colours, or all white.
    """
    found = paint(_scaled(SEEN[split], trial.budget), split, trial.seed, coloured)
    return Pictures(found.images, found.labels % CLASSES)


def phrase_cells(split: Split, seed: int, budget: float) -> Pictures:
    """Return pictures of 16 × 16 pixels whose class is colour and digit: 10 · colour + digit of 80."""
    return paint(_scaled(SEEN[split], budget), split, seed)


def paint(count: int, split: Split, seed: int, coloured: bool = True) -> Pictures:
    """Return so many pictures of 16 × 16 pixels, with the number of their phrase; see `align_toy.paint_cells`."""
    generator = torch.Generator().manual_seed(1000 * seed + 700 + _SPLIT_SEEDS[split])
    phrases = torch.randint(PHRASES if coloured else CLASSES, (count,), generator=generator)
    if not coloured:
        phrases += 10 * COLOURS.index("white")
    return Pictures(_bytes((paint_cells(phrases, split, generator, NOISE) + 1) * 127.5), phrases)


def _scaled(count: int, budget: float) -> int:
    return max(200, round(count * min(1.0, budget)))


def _file(folder: Path, budget: float) -> Path:
    return folder / f"pictures-{budget:g}.safetensors"


@functools.lru_cache(maxsize=2)
def _pool(file: Path) -> dict[str, Tensor]:
    return load_file(file)


def crops(images: Images, scale: tuple[float, float], side: int = 0) -> Images:
    """Return a random crop of each picture, stretched: Inception's crop, bilinear.

    Args:
        images: bytes.
        scale: least and most share of the area; sides stand 3:4 to 4:3 before they are clipped.
        side: of the crop in pixels; 0 for that of the pictures.
    """
    count = len(images)
    area = torch.empty(count).uniform_(*scale)
    ratio = torch.empty(count).uniform_(-math.log(4 / 3), math.log(4 / 3)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (torch.empty(count).uniform_(-1, 1) * (1 - length) for length in (width, height))
    none = torch.zeros(count)
    affine = torch.stack([torch.stack([width, none, x], 1), torch.stack([none, height, y], 1)], 1)
    size = [count, 3, side, side] if side else list(images.shape)
    grid = F.affine_grid(affine, size, align_corners=False)
    return _bytes(F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False))


def shifts(images: Images, most: int = 4) -> Images:
    """Return each picture moved by up to so many pixels, its margins zero (CIFAR's padded crop)."""
    count, _, height, width = images.shape
    padded = F.pad(images, (most, most, most, most))
    y, x = torch.randint(0, 2 * most + 1, (2, count, 1, 1)).unbind(0)
    rows, columns = y + torch.arange(height)[None, :, None], x + torch.arange(width)[None, None]
    return padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns].permute(0, 3, 1, 2)


def colours(images: Images, strength: float = 0.4, hue: float = 0.1, p: float = 0.8, grey: float = 0.2) -> Images:
    """Return pictures of other brightness, contrast, saturation and hue, a few of them grey (MoCo v2's figures).

    Args:
        images: bytes.
        strength: factors lie in 1 ± strength.
        hue: turns by up to this share of a circle, in the plane of YIQ's two colour axes.
        p: share of the pictures that are changed.
        grey: share that lose their colour.
    """
    count = len(images)
    x = images.float() / 255

    def factor() -> Tensor:
        return torch.empty(count, 1, 1, 1).uniform_(1 - strength, 1 + strength)

    weights = torch.tensor(_GREY)[:, None, None]
    changed = x * factor()
    mean = (changed * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    changed = mean + (changed - mean) * factor()
    luma = (changed * weights).sum(1, keepdim=True)
    changed = _turn_hue(luma + (changed - luma) * factor(), torch.empty(count).uniform_(-hue, hue) * 2 * math.pi)
    x = torch.where(torch.rand(count, 1, 1, 1) < p, changed.clamp(0, 1), x)
    luma = (x * weights).sum(1, keepdim=True).expand_as(x)
    return _bytes(torch.where(torch.rand(count, 1, 1, 1) < grey, luma, x) * 255)


def _turn_hue(x: Float[Tensor, "batch 3 height width"], angle: Float[Tensor, " batch"]) -> Tensor:
    to_yiq = torch.tensor([_GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    turn = torch.eye(3).repeat(len(x), 1, 1)
    turn[:, 1, 1], turn[:, 1, 2], turn[:, 2, 1], turn[:, 2, 2] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    return torch.einsum("bij,bjhw->bihw", to_yiq.inverse() @ turn @ to_yiq, x)


def _bytes(x: Tensor) -> Images:
    return x.round().clamp(0, 255).to(torch.uint8)


def moco_view(images: Images) -> Images:
    """MoCo v2's view, without blur (SimCLR has none on CIFAR) and mirroring; crops keep two fifths or more."""
    return colours(crops(images, (0.4, 1.0)))


def train(
    method: Representation, looks: Sequence[Look], seen: Pictures, *, steps: int, batch: int,
    optimizer: torch.optim.Optimizer, seed: int, watch: Callable[[dict[str, Tensor]], None] = lambda _: None,
) -> list[float]:  # fmt: skip
    """Train a method of the house, with the engine's hooks in their order, and return the loss of every step.

    Args:
        method: what learns.
        looks: one for each view, large ones first.
        seen: the pictures.
        steps: how many.
        batch: pictures a step.
        optimizer: over what learns; its rates are peaks of a warm-up and a cosine.
        seed: of the order of the pictures.
        watch: is told all that each step's loss returns.
    """
    method.train()
    losses: list[float] = []
    for step, rows in enumerate(shuffled_batches(len(seen), batch, steps, seed)):
        set_rate(optimizer, step, steps)
        method.begin_step(step, steps)
        images = seen.images[rows]
        returned = method.loss(ViewBatch([look(images) for look in looks], seen.labels[rows], rows))
        loss = returned["loss"]
        optimizer.zero_grad()
        loss.backward()
        watch(returned)
        method.after_backward()
        optimizer.step()
        method.after_update()
        losses.append(loss.item())
    return losses


def learning(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that take gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@torch.no_grad()
def pooled(tower: Backbone, images: Images, chunk: int = 250) -> Float[Tensor, "pictures dim"]:
    """Return a tower's pooled features of pictures as they are."""
    tower.eval()
    return torch.cat([
        tower.forward_head(tower.forward_features(part.float() / 127.5 - 1), pre_logits=True)
        for part in images.split(chunk)
    ])  # fmt: skip


def flat_pixels(images: Images) -> Float[Tensor, "pictures dim"]:
    """Return pixels as features, less a mid grey so that cosines tell pictures apart."""
    return images.flatten(1).float() / 127.5 - 1


PROBE_ROWS = 1000
"""Training pictures that the probe is fitted on: in float64, pixels would else take a minute."""


def measure(
    encode: Callable[[Images], Float[Tensor, "pictures dim"]], bank: Pictures, measured: Pictures, seed: int
) -> dict[str, float]:
    """Return `knn` and `probe`: top-1 in percent of digits, by nearest neighbours and by a linear probe."""
    known, new = encode(bank.images), encode(measured.images)
    neighbours = knn_scores(known, bank.labels, new, classes=CLASSES)
    few = slice(min(PROBE_ROWS, len(bank)))
    probe, _ = probe_scores(known[few], bank.labels[few], new, PROBES["lbfgs"], classes=CLASSES, seed=seed)
    return {"knn": accuracy(neighbours, measured), "probe": accuracy(probe, measured)}


def accuracy(scores: Float[Tensor, "pictures classes"], measured: Pictures) -> float:
    """Return the share of pictures whose highest score is their own, in percent."""
    return 100 * (scores.argmax(1) == measured.labels).double().mean().item()
