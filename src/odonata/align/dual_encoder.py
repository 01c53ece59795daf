"""The two towers that CLIP, SigLIP, LiT, FLIP and DFN share: an image tower, a text tower, a common space.

Notable:
- `logit_scale` holds the logarithm of the scale, as all published checkpoints do; `logit_bias` exists for SigLIP only.
- CLIP projects both towers without bias; SigLIP projects the text only, with bias; CLIP's ResNets project inside
  their attention pooling.

Sources: Radford et al. 2021 (CLIP), fig. 3; Zhai et al. 2023 (SigLIP), alg. 1.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from odonata.align.text_tower import TextConfig, TextTransformer
from odonata.backbones.modified_resnet import ModifiedResNet, ModifiedResNetConfig
from odonata.backbones.vit import ViT, ViTConfig
from odonata.backbones.vit_init import lecun_normal_


@dataclass(frozen=True)
class DualEncoderConfig:
    """What a two-tower model is made of; published ones stand in `odonata.align.dual_encoder_variants`."""

    visual: ViTConfig | ModifiedResNetConfig = field(default_factory=ViTConfig)
    """Image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text tower."""
    embed_dim: int = 512
    """Width of the common space."""
    visual_projection: bool = True
    """Whether the image feature is projected (CLIP's ViTs) or already has the width of the common space."""
    text_projection: Literal["none", "linear", "linear_bias"] = "linear"
    """How the text feature is projected: linear for CLIP, linear_bias for SigLIP."""
    logit_scale_init: float = math.log(1 / 0.07)
    """Start value of the logarithm of the logit scale: ln(1/0.07) for CLIP, ln(10) for SigLIP."""
    logit_bias_init: float | None = None
    """Start value of the logit bias, none for CLIP, -10 for SigLIP."""

    def __post_init__(self) -> None:
        width = self.visual.width if isinstance(self.visual, ViTConfig) else self.visual.embed_dim
        if not self.visual_projection and width != self.embed_dim:
            raise ValueError(
                f"without visual_projection the image tower's {width} must equal embed_dim {self.embed_dim}"
            )
        if isinstance(self.visual, ViTConfig) and self.visual.pool == "none":
            raise ValueError("the image tower must pool: visual.pool is 'none'")
        if self.text_projection == "none" and self.text.width != self.embed_dim:
            raise ValueError(
                f"without text_projection the text tower's {self.text.width} must equal embed_dim {self.embed_dim}"
            )


class DualEncoder(nn.Module):
    """An image tower and a text tower with a learned similarity.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        visual = config.visual
        self.visual = ViT(visual) if isinstance(visual, ViTConfig) else ModifiedResNet(visual)
        self.visual_projection = (
            nn.Linear(self.visual.num_features, config.embed_dim, bias=False)
            if config.visual_projection
            else nn.Identity()
        )
        self.text = TextTransformer(config.text)
        self.text_projection = (
            nn.Identity()
            if config.text_projection == "none"
            else nn.Linear(config.text.width, config.embed_dim, bias=config.text_projection == "linear_bias")
        )
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init))
        self.logit_bias = None if config.logit_bias_init is None else nn.Parameter(torch.tensor(config.logit_bias_init))
        self._init_projections()

    def encode_image(
        self,
        images: Float[Tensor, "batch channels height width"] | Float[Tensor, "batch patches pixels"],
        normalize: bool = True,
        *,
        mask: Bool[Tensor, "batch patches"] | None = None,
        grids: Int[Tensor, "batch 2"] | None = None,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Returns image embeddings.

        Args:
            images: preprocessed images, or flat patches for a NaFlex tower.
            normalize: scale embeddings to length 1.
            mask: True at real patches (NaFlex).
            grids: rows and columns of each image's patches (NaFlex).
        """
        features = self.visual(images) if mask is None and grids is None else self.visual(images, mask, grids)
        embeddings = self.visual_projection(features)
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def encode_text(
        self,
        tokens: Int[Tensor, "batch length"],
        normalize: bool = True,
        *,
        trim: bool = True,
        share_prefixes: bool = False,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Returns text embeddings.

        Args:
            tokens: token ids; see `TextTransformer.forward` for the length and `trim`.
            normalize: scale embeddings to length 1.
            trim: cut a causal batch after its longest text.
            share_prefixes: compute common beginnings of a causal batch once.
        """
        embeddings = self.text_projection(self.text(tokens, trim=trim, share_prefixes=share_prefixes))
        return F.normalize(embeddings, dim=-1) if normalize else embeddings

    def logits(
        self, image_embeddings: Float[Tensor, "images dim"], text_embeddings: Float[Tensor, "texts dim"]
    ) -> Float[Tensor, "images texts"]:
        """Returns exp(logit_scale) times the cosines, plus the bias if there is one.

        Args:
            image_embeddings: normalised.
            text_embeddings: normalised.
        """
        scores = self.logit_scale.exp() * image_embeddings @ text_embeddings.T
        return scores if self.logit_bias is None else scores + self.logit_bias

    def forward(
        self, images: Float[Tensor, "batch channels height width"], tokens: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
        """Returns normalised image and text embeddings."""
        return self.encode_image(images), self.encode_text(tokens)

    @torch.no_grad()
    def _init_projections(self) -> None:
        """CLIP: N(0, 1/width), openai/CLIP `model.py`. SigLIP: LeCun-normal and zero bias, Flax's Dense."""
        if isinstance(self.visual_projection, nn.Linear):
            nn.init.normal_(self.visual_projection.weight, std=self.visual.num_features**-0.5)
        if isinstance(self.text_projection, nn.Linear):
            if self.config.text.init == "siglip":
                lecun_normal_(self.text_projection.weight)
            else:
                nn.init.normal_(self.text_projection.weight, std=self.config.text.width**-0.5)
            if self.config.text_projection == "linear_bias":
                nn.init.zeros_(self.text_projection.bias)


def config_to_dict(config: DualEncoderConfig) -> dict[str, Any]:
    """Returns the configuration as plain values; `visual` gets a `kind`, `vit` or `modified_resnet`."""
    plain = dataclasses.asdict(config)
    plain["visual"]["kind"] = "vit" if isinstance(config.visual, ViTConfig) else "modified_resnet"
    return plain


def config_from_dict(plain: dict[str, Any]) -> DualEncoderConfig:
    """Builds a configuration from plain values, the reverse of `config_to_dict`; absent fields take their defaults.

    Raises:
        ValueError: a field is unknown, or `visual.kind` is.
    """
    visual = dict(plain["visual"])
    kind = visual.pop("kind", "vit")
    if kind not in ("vit", "modified_resnet"):
        raise ValueError(f"visual.kind {kind!r} is unknown: vit or modified_resnet")
    if "layers" in visual:
        visual["layers"] = tuple(visual["layers"])
    try:
        tower = ViTConfig(**visual) if kind == "vit" else ModifiedResNetConfig(**visual)
        rest = {key: value for key, value in plain.items() if key not in ("visual", "text")}
        return DualEncoderConfig(visual=tower, text=TextConfig(**plain["text"]), **rest)
    except TypeError as error:
        raise ValueError(f"the two-tower configuration does not fit: {error}") from error
