"""From pixels to patch tokens, and dropping patches at random.

Notable: `PatchDropout` gathers the kept tokens before the first block, so that half the patches cost about half the
time (FLIP, Li et al. 2022, sec. 3); masking them later would save nothing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Non-overlapping patches of an image, each projected by one convolution (Dosovitskiy et al. 2020, eq. 1).

    Args:
        patch_size: side of a patch in pixels.
        dim: width of a token.
        channels: channels of the image.
        bias: whether the projection has a bias (CLIP's has none).
    """

    def __init__(self, patch_size: int, dim: int, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Returns the tokens row by row; pixels beyond the last whole patch are left out."""
        return self.proj(images).flatten(2).transpose(1, 2)


class FlatPatchEmbed(nn.Module):
    """Flattened patches projected by one Linear: the NaFlex embedding (SigLIP 2, Tschannen et al. 2025, sec. 2.4.2).

    Args:
        patch_size: side of a patch in pixels.
        dim: width of a token.
        channels: channels of the image.
        bias: whether the projection has a bias.
    """

    def __init__(self, patch_size: int, dim: int, channels: int = 3, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(patch_size * patch_size * channels, dim, bias=bias)

    def forward(self, patches: Float[Tensor, "batch tokens pixels"]) -> Float[Tensor, "batch tokens dim"]:
        """Projects patches whose pixels are ordered (row, column, channel); see `patchify`."""
        return self.proj(patches)


def patchify(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch tokens pixels"]:
    """Cuts images into flat patches, pixels ordered (row, column, channel) as big_vision and MAE order them.

    Args:
        images: height and width must be multiples of `patch_size`.
        patch_size: side of a patch in pixels.

    Raises:
        ValueError: the image does not divide into whole patches.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"an image of {height}x{width} pixels does not divide into patches of {patch_size}")
    cut = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class PatchDropout(nn.Module):
    """Keeps a random subset of the patch tokens of each sample while training (FLIP, Li et al. 2022, sec. 3).

    Args:
        ratio: share of patches that is dropped, 0 ≤ ratio < 1.
        prefix_tokens: leading tokens (class token) that always stay.
    """

    def __init__(self, ratio: float, prefix_tokens: int = 0) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise ValueError(f"patch-dropout ratio {ratio} is not in [0, 1)")
        self.ratio = ratio
        self.prefix_tokens = prefix_tokens

    def forward(
        self, tokens: Float[Tensor, "batch tokens dim"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch kept dim"], Int[Tensor, "batch patches"] | None]:
        """Returns the tokens that stay and the ascending numbers of the kept patches.

        Args:
            tokens: prefix tokens first, then patches.
            generator: source of the random numbers; torch's global one if not given.

        Returns:
            Prefix and kept patches, `int(patches * (1 - ratio))` but at least one of the latter; and their patch
            numbers (prefix not counted). In eval mode, or with ratio 0: `tokens` itself and None.
        """
        if not self.training or self.ratio == 0:
            return tokens, None
        prefix, patches = tokens[:, : self.prefix_tokens], tokens[:, self.prefix_tokens :]
        batch, count, dim = patches.shape
        keep = max(1, int(count * (1 - self.ratio)))
        device = tokens.device if generator is None else generator.device
        order = torch.rand(batch, count, generator=generator, device=device).argsort(1)[:, :keep]
        kept = order.sort(1).values.to(tokens.device)
        patches = patches.gather(1, kept[..., None].expand(-1, -1, dim))
        return torch.cat([prefix, patches], 1), kept

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, prefix_tokens={self.prefix_tokens}"
