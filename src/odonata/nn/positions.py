"""Position embeddings of grids: fixed sines and cosines, and resizing learned ones.

Notable: every code base resizes in its own way, and the difference reaches several per cent of the embedding. The
conventions stand here by name, so that a converted checkpoint answers as its own code would.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

PositionConvention = Literal[
    "open_clip", "hf", "big_vision", "naflex", "vilt", "blip", "moonvit", "dino", "torchvision"
]


@dataclass(frozen=True)
class _Resize:
    mode: str
    antialias: bool
    align_corners: bool
    source: str
    offset: float | None = None
    """Where it is given, not the new size is asked for but a scale, (new + offset) / old: the samples then lie
    elsewhere."""


# OpenAI's own CLIP code has no resizing: it refuses images of another size. Its checkpoints use `open_clip` here.
_CONVENTIONS: dict[str, _Resize] = {
    "open_clip": _Resize("bicubic", True, False, "open_clip model.py resize_pos_embed"),
    "hf": _Resize(
        "bicubic", False, False, "transformers modeling_clip.py, modeling_siglip.py interpolate_pos_encoding"
    ),
    # scipy.ndimage.zoom(order=1) maps the first and last sample of both grids onto each other: align_corners.
    "big_vision": _Resize("bilinear", False, True, "big_vision models/vit.py resample_posemb"),
    "naflex": _Resize("bilinear", True, False, "transformers modeling_siglip2.py resize_positional_embeddings"),
    "vilt": _Resize("bilinear", False, True, "dandelin/ViLT vision_transformer.py visual_embed"),
    "blip": _Resize("bicubic", False, False, "salesforce/BLIP models/vit.py interpolate_pos_embed"),
    "moonvit": _Resize("bicubic", False, False, "Kimi-VL modeling_kimi_vl.py Learnable2DInterpPosEmb"),
    "dino": _Resize(
        "bicubic", False, False, "facebookresearch/dino vision_transformer.py interpolate_pos_encoding", 0.1
    ),
    "torchvision": _Resize("bicubic", False, True, "torchvision vision_transformer.py interpolate_embeddings"),
}


def sincos_1d(
    dim: int, positions: Float[Tensor, "points"] | Int[Tensor, "points"], base: float = 1e4
) -> Float[Tensor, "points dim"]:
    """Sines, then cosines, of positions at `dim / 2` geometric frequencies.

    Args:
        dim: width, even.
        positions: coordinates.
        base: ratio between the shortest and the longest wavelength.

    Returns:
        Float32 embeddings, computed in float64 as MAE does.

    Source: facebookresearch/mae `util/pos_embed.py` (He et al. 2021).
    """
    if dim % 2:
        raise ValueError(f"sine-cosine positions need an even width, not {dim}")
    omega = base ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def sincos_2d(
    dim: int, grid: tuple[int, int], prefix_tokens: int = 0, first: Literal["x", "y"] = "x"
) -> Float[Tensor, "tokens dim"]:
    """Sine-cosine embedding of a grid: one half of the width encodes the column, the other half the row.

    Args:
        dim: width, divisible by 4.
        grid: rows and columns.
        prefix_tokens: rows of zeros that are put first (class token).
        first: what the first half encodes: the column (`x`; MAE, whose meshgrid does so, and FLIP) or the row (`y`;
        MoCo
            v3, which names its axes the other way round).

    Returns:
        Float32 embeddings, row by row.

    Source: facebookresearch/mae `util/pos_embed.py` (He et al. 2021); facebookresearch/moco-v3 `vits.py` (Chen et al.
    2021).
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width divisible by 4, not {dim}")
    rows, columns = grid
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [sincos_1d(dim // 2, x.flatten()), sincos_1d(dim // 2, y.flatten())]
    patches = torch.cat(halves if first == "x" else halves[::-1], 1)
    return torch.cat([torch.zeros(prefix_tokens, dim), patches])


def sines_of_mask(
    inside: Bool[Tensor, "batch rows columns"], dim: int, base: float = 1e4, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch cells dim"]:
    """Sine-cosine embedding of the cells of padded maps, counted within each picture and scaled to 2π at its far edge.

    Sines and cosines alternate, unlike in `sincos_2d`. A cell's place is the sum of the mask up to it, so that the same
    place of a picture has the same embedding whatever the picture is padded to.

    Args:
        inside: True where a cell belongs to the picture.
        dim: width, divisible by 4: the first half encodes the row, the second the column.
        base: ratio between the shortest and the longest wavelength.
        dtype: of the result, and of the computation.

    Returns:
        Embeddings, row by row.

    Source: Carion et al. 2020 (2005.12872), appendix A.4; facebookresearch/detr `models/position_encoding.py`.
    """
    if dim % 4:
        raise ValueError(f"2-D sine-cosine positions need a width divisible by 4, not {dim}")
    steps = torch.arange(dim // 2, device=inside.device)
    wavelengths = base ** (2 * (steps // 2).to(dtype) / (dim // 2))
    halves: list[Tensor] = []
    for axis in (1, 2):
        place = inside.cumsum(axis, dtype=dtype)
        # A column of nothing but padding has no far edge; 1e-6 is the original's.
        last = place.narrow(axis, -1, 1)
        angles = (place / (last + 1e-6) * (2 * math.pi))[..., None] / wavelengths
        halves.append(torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], 4).flatten(3))
    return torch.cat(halves, 3).flatten(1, 2)


def resize_positions(
    positions: Float[Tensor, "tokens dim"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    convention: PositionConvention,
) -> Float[Tensor, "new_tokens dim"]:
    """Resizes a learned grid of position embeddings; leading tokens beyond the grid are kept as they are.

    Args:
        positions: prefix tokens first, then the grid row by row.
        old_grid: rows and columns of `positions`.
        new_grid: rows and columns wanted.
        convention: whose interpolation: `open_clip` (bicubic, antialias), `hf` and `blip` and `moonvit` (bicubic, no
            antialias), `big_vision` and `vilt` (bilinear, corners aligned), `naflex` (bilinear, antialias), `dino`
            (bicubic, by a scale that is 0.1 cell too large: DINO, and DINOv2 without registers), `torchvision`
            (bicubic, corners aligned).

    Returns:
        Prefix and new grid. The very same tensor if the grids are equal.

    Raises:
        ValueError: the convention is unknown, or `positions` is smaller than `old_grid`.
    """
    if convention not in _CONVENTIONS:
        raise ValueError(f"position convention {convention!r} is unknown: {', '.join(get_args(PositionConvention))}")
    prefix = positions.shape[0] - old_grid[0] * old_grid[1]
    if prefix < 0:
        raise ValueError(f"{positions.shape[0]} positions cannot hold a grid of {old_grid[0]}x{old_grid[1]}")
    if old_grid == new_grid:
        return positions
    how = _CONVENTIONS[convention]
    image = positions[prefix:].unflatten(0, old_grid).permute(2, 0, 1)[None]
    # Antialiased interpolation has no half-precision kernel on CPU, and rounding there would be coarse anyway.
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    if how.offset is None:
        resized = F.interpolate(
            image, new_grid, mode=how.mode, antialias=how.antialias, align_corners=how.align_corners
        )
    else:
        scale = [(new + how.offset) / old for new, old in zip(new_grid, old_grid, strict=True)]
        resized = F.interpolate(image, scale_factor=scale, mode=how.mode)
    grid = resized[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)
    return torch.cat([positions[:prefix], grid])


def resize_positions_per_image(
    positions: Float[Tensor, "tokens dim"], old_grid: tuple[int, int], grids: Int[Tensor, "batch 2"], length: int
) -> Float[Tensor, "batch length dim"]:
    """Positions for a padded batch of images with different grids (NaFlex).

    Args:
        positions: learned grid, row by row, without prefix.
        old_grid: rows and columns of `positions`.
        grids: rows and columns of each image.
        length: padded number of tokens.

    Returns:
        Resized positions; padding rows repeat the image's first position, as the original does.

    Raises:
        ValueError: a grid has more cells than `length`.
    """
    made: dict[tuple[int, int], Tensor] = {}
    rows: list[Tensor] = []
    for height, width in grids.tolist():
        if height * width > length or height < 1 or width < 1:
            raise ValueError(f"a grid of {height}x{width} patches does not fit a row of {length} tokens")
        if (height, width) not in made:
            grid = resize_positions(positions, old_grid, (height, width), convention="naflex")
            padding = grid[:1].expand(length - grid.shape[0], -1)
            made[height, width] = torch.cat([grid, padding])
        rows.append(made[height, width])
    return torch.stack(rows)


def relative_position_index(window: int) -> Int[Tensor, "tokens tokens"]:
    """Returns the row of the bias table for each pair of a window's cells: (Δrow, Δcolumn), row by row.

    Swin's windows use it (Liu et al. 2021, sec. 3.2), and some of its published files store it.

    Args:
        window: cells on a window's side; the table has `(2 * window - 1)²` rows.
    """
    cells = torch.arange(window)
    rows, columns = cells.repeat_interleave(window), cells.repeat(window)
    offset_rows = rows[:, None] - rows + window - 1
    offset_columns = columns[:, None] - columns + window - 1
    return offset_rows * (2 * window - 1) + offset_columns
