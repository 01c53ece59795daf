"""What a Vision Transformer can be made of. Every option is off by default and then costs nothing."""

from dataclasses import dataclass
from typing import Literal

from odonata.nn.activations import ActivationName
from odonata.nn.attention import QKVBias
from odonata.nn.positions import PositionConvention


@dataclass(frozen=True)
class ViTConfig:
    """What a Vision Transformer is made of; see `VARIANTS` for the published sizes."""

    image_size: int = 224
    """Side of the square image, in pixels, that the positions are made for."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    width: int = 768
    """Width of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads."""
    mlp_width: int = 3072
    """Hidden width of the MLPs."""
    activation: ActivationName = "gelu"
    """Activation of the MLPs: quick_gelu for CLIP's released models, gelu_tanh for models from Flax."""
    channels: int = 3
    """Channels of the image."""
    class_token: bool = True
    """Whether a learned class token is put before the patches."""
    distilled: bool = False
    """Whether a distillation token with a classifier of its own follows the class token (DeiT)."""
    registers: int = 0
    """Learned tokens after the class token that have no position and are not pooled (DINOv2; DINOv3's storage
    tokens)."""
    pre_norm: bool = False
    """Whether a LayerNorm stands before the blocks (CLIP's ln_pre)."""
    patch_bias: bool = True
    """Whether the patch projection has a bias (CLIP's has none)."""
    frozen_patch_embed: bool = False
    """Whether the patch projection stays as it was drawn (MoCo v3)."""
    pool: Literal["class", "mean", "patches", "map", "class_mean", "none"] = "class"
    """Pooling: class token, mean of all tokens, mean of the patches alone (MAE's fine-tuning), attention pooling, class
    token beside the mean of the patches (DINOv2's classifiers), or all tokens as they are."""
    fc_norm: bool = False
    """Whether the final norm stands after the pooling (MAE's fine-tuning) and not before it."""
    positions: Literal["learned", "sincos_2d", "sincos_2d_y", "naflex", "rope"] = "learned"
    """Positions: learned; fixed sines and cosines, columns first (MAE) or rows first (MoCo v3); NaFlex's, which also
    takes flat patches of any grid; or rotary ones in every block (DINOv3)."""
    class_position: bool = True
    """Whether class and distillation token have a position; timm's DINOv2 with registers has folded it into the
    token."""
    rope_base: float = 100.0
    """Ratio between the longest and the shortest rotary period."""
    rope_shift: float | None = None
    """Rotary coordinates move by up to this at random while training."""
    rope_jitter: float | None = None
    """Rotary axes are stretched by up to this factor at random, each by itself, while training."""
    rope_rescale: float | None = None
    """Rotary axes are stretched by up to this factor at random, both alike, while training (DINOv3: 2)."""
    position_convention: PositionConvention = "open_clip"
    """How learned positions are resized for images of another size."""
    norm_eps: float = 1e-6
    """Epsilon of the LayerNorms: 1e-5 for CLIP, 1e-6 for most others."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block."""
    patch_dropout: float = 0.0
    """Share of patches dropped at random while training (FLIP)."""
    merge_tokens: int = 0
    """Pairs of similar tokens that each block merges outside training (ToMe)."""
    layer_scale: float | None = None
    """Start value of a layer scale, or none."""
    qkv_bias: QKVBias = "all"
    """Which of query, key and value have a bias: DINOv3's keys have none."""
    qk_norm: bool = False
    """Whether queries and keys are normed in each head (ViT-22B)."""
    mlp: Literal["mlp", "swiglu"] = "mlp"
    """Kind of the MLPs; `swiglu` has a gate (with activation silu), and `mlp_width` is its width."""
    init: Literal["clip", "siglip", "jax", "mae", "timm", "moco_v3"] = "jax"
    """Whose initialisation."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    def __post_init__(self) -> None:
        def refuse(wrong: bool, why: str) -> None:
            if wrong:
                raise ValueError(why)

        size, patch = self.image_size, self.patch_size
        refuse(size < patch, f"image_size {size} is smaller than patch_size {patch}")
        refuse(self.width % self.num_heads > 0, f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        refuse(self.pool == "class" and not self.class_token, "pool 'class' needs class_token=True")
        refuse(self.pool == "class_mean" and not self.class_token, "pool 'class_mean' needs class_token=True")
        refuse(
            self.positions == "naflex"
            and (self.class_token or self.patch_dropout > 0 or self.pool not in ("map", "none") or self.registers > 0),
            "positions 'naflex' goes with pool 'map' or 'none', no class token and no patch_dropout",
        )
        refuse(self.distilled and self.pool != "class", "distilled=True goes with pool 'class'")
        refuse(self.fc_norm and self.pool in ("map", "none"), f"fc_norm=True does not go with pool {self.pool!r}")
        refuse(
            self.merge_tokens > 0 and self.positions in ("naflex", "rope"),
            f"merge_tokens does not go with positions {self.positions!r}: a merged token has no single place",
        )
        refuse(
            self.positions == "rope" and self.width // self.num_heads % 4 > 0,
            f"positions 'rope' needs heads of a width divisible by 4, not {self.width // self.num_heads}",
        )

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.distilled) + self.registers

    @property
    def placed_prefix_tokens(self) -> int:
        """Those of them that have a position."""
        return (int(self.class_token) + int(self.distilled)) * int(self.class_position)

    @property
    def num_features(self) -> int:
        """Width of the pooled features."""
        return self.width * (2 if self.pool == "class_mean" else 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of whole patches of an image of `image_size` (SigLIP So400m/14 has 384 // 14 = 27)."""
        side = self.image_size // self.patch_size
        return side, side
