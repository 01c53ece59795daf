"""MAE: a picture from a quarter of its patches.

Three patches in four are dropped at random. The encoder sees only those that are left, so that a step costs a fraction
of a supervised one; a narrow decoder gets its output with a mask token in each gap and predicts the missing pixels.
Pictures are so redundant that a low share of dropped patches can be filled in from the neighbours, without
understanding; at 75 % it cannot.

Reference: He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv:2111.06377. Details from
facebookresearch/mae `models_mae.py`: positions are added before patches are dropped; the class token has a zero
position; the decoder has fixed positions of its own; the target's variance is the unbiased one, plus 1e-6.

Differences: the last norm and the projection to pixels are computed where a patch is missing only, because nothing
else enters the loss. Class token and mask token are vectors here, and so do not decay; the original's have three
dimensions, and do. For pictures of another size than the tower's both kinds of positions are resized as maps;
transformers resizes the decoder's along the flattened rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from odonata.backbones.interface import Backbone
from odonata.backbones.vit import ViT, ViTConfig
from odonata.backbones.vit_init import INITIALISERS
from odonata.data.pictures import View, ViewBatch
from odonata.data.preprocess import Preprocess
from odonata.errors import RecipeError
from odonata.nn.patches import patchify
from odonata.nn.positions import PositionConvention, resize_positions, sincos_2d
from odonata.nn.transformer import Transformer
from odonata.represent.augmentations import crop_and_flip
from odonata.represent.representation import Representation, TowerOptions
from odonata.weights.mae import decoder_of
from odonata.weights.maps import depth_of


@dataclass(frozen=True)
class MAEConfig(TowerOptions):
    """Masked autoencoding; the paper's decoder is 512 wide, 8 deep, with 16 heads."""

    backbone: str = "vit-tiny4:positions=sincos_2d,pool=patches,init=mae"
    """Vision Transformer by name, with options; the published ones are mae-b16, mae-l16 and mae-h14."""
    mask_ratio: float = 0.75
    """Share of patches that is dropped."""
    norm_pix: bool = True
    """Whether a patch is predicted in units of its own mean and deviation (better features, table 1d)."""
    decoder_width: int = 96
    """Width of the decoder's tokens (the paper: 512)."""
    decoder_depth: int = 1
    """Blocks of the decoder (the paper: 8)."""
    decoder_heads: int = 3
    """Its attention heads (the paper: 16)."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and most share of a picture's area that a crop keeps."""


@dataclass(frozen=True)
class Masking:
    """Which patches of each picture stay; numbers count row by row."""

    kept: Int[Tensor, "batch kept"]
    """Those that stay, in the order in which the encoder sees them."""
    dropped: Int[Tensor, "batch dropped"]
    """The others."""
    restore: Int[Tensor, "batch patches"]
    """For each patch its place in `kept` followed by `dropped`."""

    @property
    def mask(self) -> Bool[Tensor, "batch patches"]:
        """True where a patch is dropped."""
        return self.restore >= self.kept.shape[1]


def random_masking(noise: Float[Tensor, "batch patches"], mask_ratio: float) -> Masking:
    """Return the patches of least noise as those that stay, `int(patches * (1 - mask_ratio))` of each picture.

    Args:
        noise: uniform, one number a patch.
        mask_ratio: share that is dropped.
    """
    order = noise.argsort(1)
    count = int(noise.shape[1] * (1 - mask_ratio))
    return Masking(order[:, :count], order[:, count:], order.argsort(1))


def pixel_targets(
    patches: Float[Tensor, "batch patches pixels"], norm_pix: bool
) -> tuple[Float[Tensor, "batch patches pixels"], Tensor, Tensor]:
    """Return what the decoder should say of patches, and the mean and deviation of each that were taken out.

    Args:
        patches: normalised pixels.
        norm_pix: take each patch's mean away and divide by its deviation, √(unbiased variance + 1e-6).
    """
    if not norm_pix:
        return patches, patches.new_zeros(()), patches.new_ones(())
    mean = patches.mean(2, keepdim=True)
    deviation = (patches.var(2, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / deviation, mean, deviation


def take(tokens: Float[Tensor, "batch tokens dim"], numbers: Int[Tensor, "batch taken"]) -> Tensor:
    """Return the tokens with these numbers, picture by picture."""
    return tokens.gather(1, numbers[..., None].expand(-1, -1, tokens.shape[2]))


class Decoder(nn.Module):
    """Fills the gaps with mask tokens and predicts pixels.

    Args:
        tower: the encoder's configuration.
        config: width, depth and heads.
    """

    positions: Tensor

    def __init__(self, tower: ViTConfig, config: MAEConfig) -> None:
        super().__init__()
        width, eps = config.decoder_width, tower.norm_eps
        self.grid, self.prefix_tokens = tower.grid, tower.prefix_tokens
        self.convention: PositionConvention = tower.position_convention
        self.embed = nn.Linear(tower.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos_2d(width, tower.grid, tower.prefix_tokens), persistent=False)
        self.transformer = Transformer(
            width,
            config.decoder_depth,
            config.decoder_heads,
            act=tower.activation,
            norm_eps=eps,
            checkpointing=tower.checkpointing,
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pred = nn.Linear(width, tower.patch_size**2 * tower.channels)
        INITIALISERS["mae"](self, self.embed, self.positions, self.mask_token)

    def forward(
        self,
        tokens: Float[Tensor, "batch kept dim"],
        restore: Int[Tensor, "batch patches"],
        grid: tuple[int, int],
        wanted: Int[Tensor, "batch wanted"] | None = None,
    ) -> Float[Tensor, "batch wanted pixels"]:
        """Return the predicted pixels of patches.

        Args:
            tokens: the encoder's output, prefix tokens first.
            restore: the place of each patch; see `Masking`.
            grid: rows and columns of the picture's patches.
            wanted: numbers of those that are asked for; None: all, row by row.
        """
        tokens = self.embed(tokens)
        prefix, kept = tokens[:, : self.prefix_tokens], tokens[:, self.prefix_tokens :]
        gaps = self.mask_token.to(kept.dtype).expand(len(kept), restore.shape[1] - kept.shape[1], -1)
        patches = take(torch.cat([kept, gaps], 1), restore)
        positions = resize_positions(self.positions, self.grid, grid, convention=self.convention)
        hidden = self.transformer(torch.cat([prefix, patches], 1) + positions.to(tokens.dtype))
        hidden = hidden[:, self.prefix_tokens :]
        return self.pred(self.norm(hidden if wanted is None else take(hidden, wanted)))


class MAE(Representation):
    """Encoder and decoder.

    Args:
        config: the method's options.
        backbone: a Vision Transformer; the encoder.
        preprocess: of the pictures.

    Raises:
        RecipeError: another kind of tower, or options that leave nothing to see or nothing to predict.
    """

    def __init__(self, config: MAEConfig, backbone: Backbone, preprocess: Preprocess) -> None:
        super().__init__(config, backbone, preprocess)
        self.config = config
        self.tower = _checked(config, backbone).config
        self.decoder = Decoder(self.tower, config)

    @staticmethod
    def views(config: TowerOptions) -> Sequence[View]:
        """One view: a crop, mirrored at random."""
        assert isinstance(config, MAEConfig)
        return (View(crop_and_flip(config.image_size, config.crop_scale)),)

    def loss(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the mean squared error of the dropped patches."""
        return {"loss": self.reconstruction_loss(self.pixels(batch.views[0]))}

    def masking(
        self, images: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch patches"] | None = None
    ) -> Masking:
        """Return which patches stay; by `noise` where it is given, else by torch's global generator."""
        rows, columns = self._grid(images)
        if noise is None:
            noise = torch.rand(len(images), rows * columns, device=images.device)
        return random_masking(noise, self.config.mask_ratio)

    def reconstruction_loss(
        self, images: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch patches"] | None = None
    ) -> Float[Tensor, ""]:
        """Return the squared error of each dropped patch, averaged over its pixels, then over dropped patches (sec. 3).

        Args:
            images: normalised pictures.
            noise: see `random_masking`.
        """
        masking = self.masking(images, noise)
        patches = take(patchify(images, self.tower.patch_size), masking.dropped)
        targets, _, _ = pixel_targets(patches, self.config.norm_pix)
        tokens = self.encode(images, masking)
        predicted = self.decoder(tokens, masking.restore, self._grid(images), masking.dropped)
        return (predicted.to(targets.dtype) - targets).square().mean()

    def encode(
        self, images: Float[Tensor, "batch 3 height width"], masking: Masking
    ) -> Float[Tensor, "batch kept dim"]:
        """Return the encoder's tokens of the patches that stay, prefix tokens first; it computes no others."""
        tower = cast(ViT, self.backbone)
        tokens = tower.embed(images)
        kept = take(tokens[:, tower.prefix_tokens :], masking.kept)
        tokens = torch.cat([tokens[:, : tower.prefix_tokens], kept], 1)
        return tower.norm(tower.transformer(tower.norm_pre(tokens)))

    def predict_patches(
        self, images: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch patches"] | None = None
    ) -> tuple[Float[Tensor, "batch patches pixels"], Bool[Tensor, "batch patches"]]:
        """Return the predicted pixels of all patches, and True where one was dropped.

        Args:
            images: normalised pictures.
            noise: see `random_masking`.
        """
        masking = self.masking(images, noise)
        return self.decoder(self.encode(images, masking), masking.restore, self._grid(images)), masking.mask

    @torch.no_grad()
    def reconstruct(
        self, images: UInt8[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch patches"] | None = None
    ) -> tuple[UInt8[Tensor, "batch 3 height width"], Bool[Tensor, "batch patches"]]:
        """Return pictures whose dropped patches are the decoder's, and True where one was dropped.

        With `norm_pix` the decoder knows no mean and deviation; a patch gets the true ones, as in the authors' demo.

        Args:
            images: bytes, of the tower's size.
            noise: see `random_masking`.
        """
        pixels = self.pixels(images)
        predicted, mask = self.predict_patches(pixels, noise)
        _, mean, deviation = pixel_targets(patchify(pixels, self.tower.patch_size), self.config.norm_pix)
        drawn = unpatchify(predicted.to(pixels.dtype) * deviation + mean, self.tower.patch_size, self._grid(images))
        drawn = ((drawn * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return torch.where(mask_pixels(mask, self.tower.patch_size, self._grid(images)), drawn, images), mask

    def load_published_rest(self, rest: dict[str, Tensor]) -> list[str]:
        """Take the decoder of a published checkpoint where it is of this shape; see `Representation`."""
        found = decoder_of(rest)
        if found is None:
            return ["no decoder in the file: it starts anew"]
        state = {name.removeprefix("decoder."): value for name, value in found.items()}
        own = self.decoder.state_dict()
        wrong = [k for k in own | state if k not in own or k not in state or own[k].shape != state[k].shape]
        if wrong:
            width, depth = state["embed.weight"].shape[0], depth_of(state, "transformer.layers.")
            return [
                f"the file's decoder is {width} wide and {depth} deep, and does not fit: it starts anew; "
                f"--decoder-width {width} --decoder-depth {depth} takes it"
            ]
        self.decoder.load_state_dict(state)
        return ["decoder: the file's"]

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[2] // self.tower.patch_size, images.shape[3] // self.tower.patch_size


def unpatchify(
    patches: Float[Tensor, "batch patches pixels"], patch_size: int, grid: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """Put flat patches together again; the inverse of `patchify`."""
    cut = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, grid)
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def mask_pixels(
    mask: Bool[Tensor, "batch patches"], patch_size: int, grid: tuple[int, int]
) -> Bool[Tensor, "batch 1 height width"]:
    """Return the mask of patches as one of pixels."""
    cells = mask.unflatten(1, grid)[:, None]
    return cells.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


def _checked(config: MAEConfig, backbone: Backbone) -> ViT:
    if not isinstance(backbone, ViT):
        raise RecipeError(f"--backbone {config.backbone}: MAE drops tokens, so its tower is a Vision Transformer")
    tower = backbone.config
    if tower.positions in ("naflex", "rope") or tower.fc_norm or tower.pool == "map" or tower.patch_dropout:
        raise RecipeError(
            f"--backbone {config.backbone}: MAE's encoder has positions that are added (sincos_2d or learned), its "
            "last norm before the pooling, no attention pooling and no patch_dropout"
        )
    if tower.image_size % tower.patch_size:
        raise RecipeError(f"--image-size {tower.image_size} does not divide into patches of {tower.patch_size} pixels")
    patches = tower.grid[0] * tower.grid[1]
    kept = int(patches * (1 - config.mask_ratio))
    if not 0 < kept < patches:
        raise RecipeError(
            f"--mask-ratio {config.mask_ratio} keeps {kept} of {patches} patches; at least one must stay and one be "
            "dropped"
        )
    if config.decoder_width % config.decoder_heads or config.decoder_width % 4:
        raise RecipeError(
            f"--decoder-width {config.decoder_width} must be divisible by 4 and by --decoder-heads "
            f"{config.decoder_heads}"
        )
    return backbone
