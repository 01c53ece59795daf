"""Jigsaw: nine tiles of a picture in disorder; say which of a set of permutations put them so.

Each tile goes through the tower alone; only a perceptron on the nine features sees them side by side, so what a tile
shows must be in its feature. The set of permutations is chosen far apart, lest two of them differ in a pair of tiles
that look alike.

Notable: what a network could cheat by is taken away, on the device.
- Tiles are cut at random inside their cells, so that edges and lines do not run on from one to the next.
- Each tile is normalised by itself, so that neighbours cannot be told by brightness and contrast.
- Colour planes of a tile are shifted against one another, and some pictures are grey: a lens bends colours differently
  towards its rim, and that would tell where a tile was.

Reference: Noroozi and Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles,
arXiv:1603.09246; sec. 3 (network), sec. 4.2 (shortcuts), algorithm 1 (permutations).

Differences: any tower in the place of AlexNet, pooled, with a linear layer as `fc6`; no dropout. Algorithm 1 takes the
permutation with the largest sum of distances; here the distance to the nearest one counts first and the sum second.
The mean distance stays the same (8.08 of 9 for a set of 100, 8.01 for 1000), the least grows from 2 to 6, and to 5. A
tile's colour planes stay within its cell.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.represent.augmentations import supervised
from odonata.represent.representation import Representation, TowerOptions, embedding_spread

GRID = 3
TILES = GRID * GRID
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class JigsawConfig(TowerOptions):
    """The context-free network: a tower a tile, and a perceptron on all nine."""

    permutations: int = 100
    """Size of the set, which is the number of classes (the paper: 100 to 1000)."""
    permutation_seed: int = 0
    """Decides the first permutation, and with it the set."""
    tile_size: int = 0
    """Side of a tile in pixels (0: 64 of 75 of a cell, the paper's)."""
    grey: float = 0.3
    """Share of the pictures that are grey."""
    channel_shift: int = -1
    """Most pixels by which a colour plane is shifted (-1: the paper's 2 for tiles of 64 px, in proportion)."""
    tile_dim: int = 128
    """Width of a tile's feature, `fc6` (the paper: 512)."""
    hidden: int = 512
    """Width of the perceptron, `fc7` (the paper: 4096)."""
    crop_scale: tuple[float, float] = (0.6, 1.0)
    """Least and most share of the picture's area that is cut into tiles."""


@functools.lru_cache(maxsize=4)
def permutation_set(count: int, seed: int) -> Int[Tensor, "count tiles"]:
    """Return permutations of nine tiles that are far from one another, by the paper's greedy algorithm 1.

    The first is drawn by the seed. Each further one is as far as can be, in Hamming distance, from the nearest of those
    before it, and among these has the largest sum of distances to all of them.

    Args:
        count: how many, 1 to 9! = 362,880.
        seed: of the first.

    Raises:
        ValueError: the count is out of range.
    """
    if not 1 <= count <= math.factorial(TILES):
        raise ValueError(f"want 1 to {math.factorial(TILES)} permutations, got {count}")
    every = _every_permutation()
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(every), (), generator=generator))]
    total = torch.zeros(len(every), dtype=torch.int32)
    least = torch.full((len(every),), TILES, dtype=torch.int32)
    while len(chosen) < count:
        distance = (every != every[chosen[-1]]).sum(1, dtype=torch.int32)
        total += distance
        least = torch.minimum(least, distance)  # 0 for those that are chosen: never again
        chosen.append(int((least * (TILES * count + 1) + total).argmax()))
    return every[chosen].long()


@functools.cache
def _every_permutation() -> UInt8[Tensor, "all tiles"]:
    return torch.tensor(list(itertools.permutations(range(TILES))), dtype=torch.uint8)


def hamming_distances(permutations: Int[Tensor, "count tiles"]) -> Int[Tensor, " pairs"]:
    """Return in how many places each pair of permutations differs."""
    first, second = torch.triu_indices(len(permutations), len(permutations), 1)
    return (permutations[first] != permutations[second]).sum(1)


@dataclass(frozen=True)
class TileGeometry:
    """Where tiles may lie in a square picture.

    Args:
        side: of the picture in pixels.
        tile: side of a tile; 0 takes 64 of 75 of a cell.
        shift: most pixels between colour planes; negative takes 2 of 64 of a tile.
    """

    side: int
    tile: int
    shift: int

    @property
    def cell(self) -> int:
        """Side of a cell."""
        return self.side // GRID

    @staticmethod
    def of(config: JigsawConfig) -> TileGeometry:
        """The geometry of a configuration.

        Raises:
            RecipeError: tiles that are not in their cells, or too small to show anything.
        """
        cell = config.image_size // GRID
        tile = config.tile_size or cell * 64 // 75
        if not 4 <= tile <= cell:
            raise RecipeError(f"--tile-size {tile}: want 4 to {cell}, a third of --image-size {config.image_size}")
        shift = config.channel_shift if config.channel_shift >= 0 else round(2 * tile / 64)
        if 2 * shift > cell - tile:
            raise RecipeError(
                f"--channel-shift {shift}: planes of a tile of {tile} px leave their cell of {cell} px; want at most "
                f"{(cell - tile) // 2}"
            )
        return TileGeometry(config.image_size, tile, shift)


def draw_corners(geometry: TileGeometry, grey: Shaped[Tensor, " batch"]) -> Int[Tensor, "batch tiles 3 two"]:
    """Return the top-left corners (row, column) of all colour planes of all tiles, by torch's own generator.

    Args:
        geometry: of the tiles.
        grey: whether each picture is grey: then its planes lie on one another.
    """
    count, device = len(grey), grey.device
    cell, room = geometry.cell, geometry.cell - geometry.tile
    # The grid itself lies anywhere in the picture, as the paper crops 225 of 256 pixels.
    origin = torch.randint(geometry.side - GRID * cell + 1, (count, 1, 2), device=device)
    rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    cells = origin + cell * torch.stack([rows, columns], 2).view(1, TILES, 2).to(device)
    inside = torch.randint(room + 1, (count, TILES, 1, 2), device=device)
    shift = torch.randint(-geometry.shift, geometry.shift + 1, (count, TILES, 3, 2), device=device)
    shift = shift.masked_fill(grey[:, None, None, None], 0)
    return cells[:, :, None] + (inside + shift).clamp(0, room)


def cut_tiles(
    images: Shaped[Tensor, "batch 3 side side"], corners: Int[Tensor, "batch tiles 3 two"], size: int
) -> Shaped[Tensor, "batch tiles 3 size size"]:
    """Return square tiles, row by row of the grid.

    Args:
        images: of any type.
        corners: of each colour plane of each tile, (row, column).
        size: side of a tile.
    """
    span = torch.arange(size, device=images.device)
    rows, columns = (corners[..., axis, None] + span for axis in (0, 1))
    picture = torch.arange(len(images), device=images.device)[:, None, None, None, None]
    plane = torch.arange(3, device=images.device)[:, None, None]
    return images[picture, plane, rows[..., :, None], columns[..., None, :]]


def normalize_tiles(
    tiles: Float[Tensor, "*many channels height width"],
) -> Float[Tensor, "*many channels height width"]:
    """Return tiles of mean 0 and standard deviation 1 in each channel; a flat one becomes 0."""
    centred = tiles - tiles.mean((-2, -1), keepdim=True)
    return centred / centred.pow(2).mean((-2, -1), keepdim=True).sqrt().clamp_min(1e-3)


class Jigsaw(Representation):
    """A tower for tiles, and the head that orders them.

    Args:
        config: the method's options.
        backbone: the tower; takes tiles of any size.
        preprocess: of whole pictures.

    Raises:
        RecipeError: tiles or permutations that cannot be.
    """

    permutations: Tensor

    def __init__(self, config: JigsawConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        if not 2 <= config.permutations <= 10_000:
            raise RecipeError(f"--permutations is {config.permutations}; want 2 to 10000")
        self.config = config
        self.geometry = TileGeometry.of(config)
        self.chance = math.log(config.permutations)
        self.register_buffer("permutations", permutation_set(config.permutations, config.permutation_seed).clone())
        self.tile_head = nn.Sequential(nn.Linear(backbone.num_features, config.tile_dim), nn.ReLU(inplace=True))
        self.head = nn.Sequential(
            nn.Linear(TILES * config.tile_dim, config.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(config.hidden, config.permutations),
        )

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """One view, cropped and mirrored; it is cut on the device."""
        assert isinstance(config, JigsawConfig)
        return (View(supervised(config.image_size, config.crop_scale)),)

    def tiles(self, images: UInt8[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch tiles 3 tile tile"]:
        """Return the normalised tiles of pictures, in order; cut, greyed and shifted at random."""
        grey = torch.rand(len(images), device=images.device) < self.config.grey
        pixels = images.to(self.mean.dtype)
        luma = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True).expand_as(pixels)
        pixels = torch.where(grey[:, None, None, None], luma, pixels)
        return normalize_tiles(cut_tiles(pixels, draw_corners(self.geometry, grey), self.geometry.tile) / 255)

    def head_logits(self, features: Float[Tensor, "tiles_of_batch dim"]) -> Float[Tensor, "batch permutations"]:
        """Return the scores of the permutations for the features of tiles as they lie, nine after nine."""
        return self.head(self.tile_head(features).view(len(features) // TILES, -1)).float()

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the cross-entropy of the permutations, and how many puzzles are solved."""
        tiles = self.tiles(batch.views[0])
        wanted = torch.randint(len(self.permutations), (len(tiles),), device=tiles.device)
        places = torch.arange(len(tiles), device=tiles.device)[:, None]
        features = self.backbone(tiles[places, self.permutations[wanted]].flatten(0, 1))
        logits = self.head_logits(features)
        right = (logits.detach().argmax(1) == wanted).float().mean()
        return {"loss": F.cross_entropy(logits, wanted), "puzzle_top1": right, "spread": embedding_spread(features)}
