"""Initialisations of transformer towers as published: CLIP's, SigLIP's, MAE's, timm's and MoCo v3's.

They differ by more than taste: with SigLIP's bias of -10 and CLIP's wide embeddings, a short run ends elsewhere.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from odonata.nn.attention import Attention
from odonata.nn.transformer import MLP


def lecun_normal_(weight: Tensor, fan_in: int | None = None) -> Tensor:
    """Truncated normal of variance 1 / fan_in, Flax's default for Dense and Conv (LeCun et al. 1998)."""
    fan_in = weight[0].numel() if fan_in is None else fan_in
    # Truncation at two standard deviations shrinks the deviation by this factor; Flax divides it out, so does this.
    std = math.sqrt(1 / fan_in) / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def _zero_biases(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)


@torch.no_grad()
def draw_packed_(module: nn.Module) -> None:
    """Queries, keys and values Xavier-uniform as one matrix of three times the rows, which lowers their bound."""
    for part in module.modules():
        if isinstance(part, Attention):
            for linear in (part.q, part.k, part.v):
                rows, columns = linear.weight.shape
                bound = math.sqrt(6 / (3 * rows + columns))
                nn.init.uniform_(linear.weight, -bound, bound)


@torch.no_grad()
def init_siglip_blocks_(module: nn.Module) -> None:
    """Xavier-uniform attention and MLP, MLP biases N(0, 1e-6): big_vision `models/vit.py`, `MlpBlock`."""
    for part in module.modules():
        if isinstance(part, Attention):
            for linear in (part.q, part.k, part.v, part.proj):
                nn.init.xavier_uniform_(linear.weight)
            _zero_biases(part)
        elif isinstance(part, MLP):
            for linear in (part.fc1, part.fc2):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.normal_(linear.bias, std=1e-6)


@torch.no_grad()
def init_siglip_(
    tower: nn.Module, projection: nn.Linear | nn.Conv2d, positions: Tensor | None, class_token: Tensor | None
) -> None:
    """SigLIP's vision tower: big_vision `models/vit.py`; positions N(0, 1/width)."""
    lecun_normal_(projection.weight)
    _zero_biases(projection)
    if isinstance(positions, nn.Parameter):
        nn.init.normal_(positions, std=positions.shape[1] ** -0.5)
    if class_token is not None:
        nn.init.zeros_(class_token)
    init_siglip_blocks_(tower)


@torch.no_grad()
def init_clip_(
    tower: nn.Module, projection: nn.Linear | nn.Conv2d, positions: Tensor | None, class_token: Tensor | None
) -> None:
    """CLIP's vision tower: openai/CLIP `model.py` scales embeddings by width^-.5 and leaves the rest to PyTorch.

    The patch projection therefore keeps PyTorch's default. PyTorch's MultiheadAttention draws its packed projection of
    3·width rows Xavier-uniform; the same bound is used for the three separate projections here.
    """
    width = projection.weight.shape[0]
    for embedding in (positions, class_token):
        if isinstance(embedding, nn.Parameter):
            nn.init.normal_(embedding, std=width**-0.5)
    draw_packed_(tower)
    for part in tower.modules():
        if isinstance(part, Attention):
            _zero_biases(part)


@torch.no_grad()
def init_jax_(
    tower: nn.Module, projection: nn.Linear | nn.Conv2d, positions: Tensor | None, class_token: Tensor | None
) -> None:
    """The JAX codes' (the first ViT, FLIP): Xavier-uniform, query, key and value each a matrix of its own."""
    for part in tower.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    _zero_biases(tower)
    if isinstance(positions, nn.Parameter):
        nn.init.trunc_normal_(positions, std=0.02)
    if class_token is not None:
        nn.init.normal_(class_token, std=0.02)


@torch.no_grad()
def init_mae_(
    tower: nn.Module, projection: nn.Linear | nn.Conv2d, positions: Tensor | None, class_token: Tensor | None
) -> None:
    """MAE's: as `init_jax_`, but query, key and value were one matrix of 3·width rows there, which lowers their bound.

    Source: facebookresearch/mae `models_mae.py`, `initialize_weights`.
    """
    init_jax_(tower, projection, positions, class_token)
    draw_packed_(tower)


@torch.no_grad()
def init_timm_(
    tower: nn.Module, projection: nn.Linear | nn.Conv2d, positions: Tensor | None, class_token: Tensor | None
) -> None:
    """timm's, DeiT's and DINO's: normal of deviation 0.02 everywhere, zero biases; the patch projection keeps
    PyTorch's.

    Source: facebookresearch/dino `vision_transformer.py`, `_init_weights` (Caron et al. 2021).
    """
    for part in tower.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            _zero_biases(part)
    for embedding in (positions, class_token):
        if isinstance(embedding, nn.Parameter):
            nn.init.trunc_normal_(embedding, std=0.02)


@torch.no_grad()
def init_moco_v3_(
    tower: nn.Module, projection: nn.Linear | nn.Conv2d, positions: Tensor | None, class_token: Tensor | None
) -> None:
    """MoCo v3's: as `init_jax_`, with a class token of deviation 1e-6.

    Source: facebookresearch/moco-v3 `vits.py` (Chen et al. 2021, appendix).
    """
    init_jax_(tower, projection, positions, class_token)
    if class_token is not None:
        nn.init.normal_(class_token, std=1e-6)


INITIALISERS: dict[str, Callable[[nn.Module, nn.Linear | nn.Conv2d, Tensor | None, Tensor | None], None]] = {
    "clip": init_clip_,
    "siglip": init_siglip_,
    "jax": init_jax_,
    "mae": init_mae_,
    "timm": init_timm_,
    "moco_v3": init_moco_v3_,
}
