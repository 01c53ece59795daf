"""The Swin Transformer: attention in windows that shift from block to block, and maps that halve from stage to stage.

Notable:
- The bias of two cells of a window depends on the offset between them. The table of biases is learned; the numbers that
  look it up are a buffer that is not saved.
- Any picture is taken: it is padded to whole patches, each map to whole windows, odd maps before they are merged.
- Where a map is no whole number of windows, or no larger than one, implementations differ; `convention` says whose
  numbers these are. At the published sizes all agree.
- What belongs to different pictures' edges after a shift is hidden with -inf. The original adds -100, which in float32
  is the same.
- Maps are kept as (batch, height, width, channels) inside; what is returned is a view of them in the order of
  convolutional towers. A stage begins with the merging of patches, as in timm; the original merges at a stage's end.
- Left out: absolute positions, which no published weights have, and dropout, which all published recipes set to 0.

Sources: Liu et al. 2021 (2103.14030), sec. 3, appendix A1 (sizes); microsoft/Swin-Transformer
`models/swin_transformer.py`; torchvision and timm `swin_transformer.py` (their conventions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odonata.backbones.interface import Backbone, Format, Tap, map_in_format
from odonata.backbones.swin_windows import (
    Convention,
    Grid,
    from_windows,
    grid_of,
    into_windows,
    shifted_mask,
)
from odonata.nn.positions import relative_position_index
from odonata.nn.transformer import MLP, DropPath, wanted_layers

NORM_EPS = 1e-5
"""Epsilon of every LayerNorm, in all published weights."""


@dataclass(frozen=True)
class SwinConfig:
    """What a Swin Transformer is made of; see `VARIANTS` for the published ones."""

    embed_dim: int = 96
    """Width of the first stage; each further stage doubles it."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage; every second one shifts its windows."""
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    windows: tuple[int, ...] = (7, 7, 7, 7)
    """Cells on a window's side in each stage."""
    patch_size: int = 4
    """Pixels on a patch's side."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLPs relative to the width."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; grows linearly from 0 over all blocks. The paper has 0.2, 0.3 and 0.5
    for T, S and B; MoBY 0.2 for its online network."""
    convention: Convention = "official"
    """Whose numbers at odd sizes; see `Convention`."""
    channels: int = 3
    """Channels of the image."""

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.num_heads) == len(self.windows):
            raise ValueError(
                f"{len(self.depths)} depths, {len(self.num_heads)} num_heads and {len(self.windows)} windows: "
                "want as many of each"
            )
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(
                    f"width {self.embed_dim * 2**stage} of stage {stage} is not a multiple of {heads} heads"
                )
        if min(self.windows) < 1:
            raise ValueError(f"windows {self.windows} must be positive")


class Swin(Backbone):
    """A Swin Transformer; its layers are its stages.

    Args:
        config: what it is made of.

    The map of a stage is tapped before the next one merges it. `native` is `nchw`.
    """

    family = "swin"

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.embed_dim * 2 ** (len(config.depths) - 1)
        self.patch_embed = nn.Conv2d(config.channels, config.embed_dim, config.patch_size, config.patch_size)
        self.patch_norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        last = max(sum(config.depths) - 1, 1)
        rates = iter([config.drop_path * i / last for i in range(sum(config.depths))])
        self.stages = nn.ModuleList(
            Stage(config, number, [next(rates) for _ in range(depth)]) for number, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(self.num_features, eps=NORM_EPS)
        self.head: nn.Module = nn.Identity()
        self._init_weights()

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What each stage gives."""
        config = self.config
        return tuple(Tap(config.embed_dim * 2**i, config.patch_size * 2**i) for i in range(len(config.depths)))

    def forward_features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map after the last stage and the final norm."""
        x = self.features(images, [-1])[0].permute(0, 2, 3, 1)
        return self.norm(x).permute(0, 3, 1, 2)

    def forward_head(
        self, features: Float[Tensor, "batch dim height width"], pre_logits: bool = False
    ) -> Float[Tensor, "batch out_dim"]:
        """The mean over the map, and the classifier."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int], format: Format = "native"
    ) -> list[Tensor]:
        """Maps after the named stages, not normed; see `Backbone.features`.

        Raises:
            ValueError: a stage does not exist, or the images have other channels.
        """
        wanted = wanted_layers(layers, len(self.stages))
        x = self._embed(images)
        maps: list[Tensor] = []
        for stage in self.stages[: max(wanted, default=-1) + 1]:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2))
        return [map_in_format(maps[i], format) for i in wanted]

    def _embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch map_height map_width dim"]:
        if images.ndim != 4 or images.shape[1] != self.config.channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: want [batch, {self.config.channels}, height, width]"
            )
        bottom, right = (-side % self.config.patch_size for side in images.shape[2:])
        x = self.patch_embed(F.pad(images, (0, right, 0, bottom)) if bottom or right else images)
        return self.patch_norm(x.permute(0, 2, 3, 1))

    @torch.no_grad()
    def _init_weights(self) -> None:
        """The original's: truncated normal of 0.02 for Linears and tables; the convolution keeps PyTorch's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


class Stage(nn.Module):
    """Merging, where there is a stage before it, and blocks of one width whose windows shift in turn."""

    def __init__(self, config: SwinConfig, number: int, rates: list[float]) -> None:
        super().__init__()
        dim, heads, window = config.embed_dim * 2**number, config.num_heads[number], config.windows[number]
        self.window, self.checkpointing = window, False
        self.convention: Convention = config.convention
        self.merge = PatchMerging(dim // 2) if number else nn.Identity()
        self.layers = nn.ModuleList(
            Block(dim, heads, window, int(dim * config.mlp_ratio), rate, i % 2 == 1) for i, rate in enumerate(rates)
        )
        self._masks: dict[tuple[Grid, torch.device], Tensor] = {}

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height2 width2 dim2"]:
        """Returns the map after the last block."""
        x = self.merge(x)
        grid = grid_of(x.shape[1], x.shape[2], self.window, self.convention)
        mask = self._mask(grid, x.device) if any(grid.shift) else None
        for layer in self.layers:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, grid, mask, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
            else:
                x = layer(x, grid, mask)
        return x

    def _mask(self, grid: Grid, device: torch.device) -> Bool[Tensor, "windows tokens tokens"]:
        """Returns the mask of shifted windows, from the cache where it is there."""
        if torch.compiler.is_compiling():
            return shifted_mask(grid, device)
        key = (grid, device)
        if key not in self._masks:
            with torch.inference_mode(False):  # a tensor made in inference mode could not be used for training later
                mask = shifted_mask(grid, device)
            if type(mask) is not Tensor:  # a tracer's stand-in, which must not outlive the tracing
                return mask
            if len(self._masks) >= 16:
                self._masks.clear()
            self._masks[key] = mask
        return self._masks[key]


class PatchMerging(nn.Module):
    """Four neighbours become one cell of twice the width (sec. 3.1); odd maps are padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "batch height width dim"]) -> Float[Tensor, "batch height2 width2 dim2"]:
        """Returns the map of half the size; neighbours are ordered column by column, as the original's."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Block(nn.Module):
    """Attention in windows, shifted or not, and an MLP, each with a residual (eq. 3)."""

    def __init__(self, dim: int, num_heads: int, window: int, mlp_width: int, rate: float, shifts: bool) -> None:
        super().__init__()
        self.shifts = shifts
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim, mlp_width)
        self.drop_path = DropPath(rate)

    def forward(
        self, x: Float[Tensor, "batch height width dim"], grid: Grid, mask: Bool[Tensor, "windows tokens tokens"] | None
    ) -> Float[Tensor, "batch height width dim"]:
        """Returns the next map.

        Args:
            x: the map.
            grid: its windows.
            mask: True where cells of a shifted window may see each other; None where none shifts.
        """
        if not self.shifts:
            grid, mask = grid._replace(shift=(0, 0)), None
        y = self.attn(into_windows(self.norm1(x), grid), grid.window, mask)
        x = x + self.drop_path(from_windows(y, grid, x.shape[1], x.shape[2]))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Multi-head attention within each window, with a learned bias per offset (eq. 4)."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "batch windows tokens dim"],
        window: tuple[int, int],
        mask: Bool[Tensor, "windows tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch windows tokens dim"]:
        """Attends.

        Args:
            x: windows, their cells row by row.
            window: rows and columns of a window, at most those that it was built with.
            mask: True where a cell may see another.
        """
        batch, windows = x.shape[:2]
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)).transpose(2, 3) for part in (self.q, self.k, self.v))
        bias = self._bias(window).to(q.dtype)
        # Windows go with the batch where all have one bias, with the heads where each has its own mask: so neither is
        # repeated over the batch.
        if mask is None:
            start, bias = 0, bias[None]
        else:
            start = 1
            bias = bias[None].masked_fill(~mask[:, None], -torch.inf).flatten(0, 1)[None]
        q, k, v = (part.flatten(start, start + 1) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.view(batch, windows, self.num_heads, *out.shape[-2:]).transpose(2, 3).flatten(3)
        return self.proj(out)

    def _bias(self, window: tuple[int, int]) -> Float[Tensor, "heads tokens tokens"]:
        """The bias of each pair of cells; of a smaller window, that of the same offsets."""
        index, (rows, columns) = self.relative_position_index, window
        if window != (self.window, self.window):
            index = index.unflatten(0, (self.window, -1)).unflatten(2, (self.window, -1))
            index = index[:rows, :columns, :rows, :columns].flatten(2).flatten(0, 1)
        cells = rows * columns
        return self.relative_position_bias_table[index.flatten()].T.reshape(self.num_heads, cells, cells)


def build(config: SwinConfig) -> Swin:
    """Returns a tower of this configuration."""
    return Swin(config)


def _sized(embed_dim: int, third: int, heads: int, window: int = 7) -> SwinConfig:
    num_heads = (heads, 2 * heads, 4 * heads, 8 * heads)
    return SwinConfig(embed_dim, (2, 2, third, 2), num_heads, (window,) * 4)


VARIANTS: dict[str, SwinConfig] = {
    "swin-t": _sized(96, 6, 3),
    "swin-s": _sized(96, 18, 3),
    "swin-b": _sized(128, 18, 4),
    "swin-l": _sized(192, 18, 6),
    "swin-b-384": _sized(128, 18, 4, 12),
    "swin-l-384": _sized(192, 18, 6, 12),
    # For laptops: maps of 16, 8 and 4 cells of a picture of 32 pixels.
    "swin-tiny32": SwinConfig(48, (2, 4, 2), (3, 6, 12), (4, 4, 4), patch_size=2),
}
"""The published towers by name (for 224 pixels unless it says 384), and `swin-tiny32` for small pictures."""
