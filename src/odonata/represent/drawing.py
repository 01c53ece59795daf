"""Pictures of features: their main directions as colours, and where a transformer's class token looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from odonata.backbones.vit import ViT
from odonata.data.any_picture import as_tensor
from odonata.nn.attention import Attention
from odonata.nn.transformer import Block
from odonata.represent.predictor import TowerPredictor

SIDE = 224
"""Side of each drawn panel in pixels."""


def principal_colours(feature_map: Float[Tensor, "channels height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Return the first three principal directions of a map's cells as red, green and blue.

    Each is stretched so that its 2nd and 98th percentile become black and full colour; a direction's sign is chosen so
    that its largest weight is positive, which makes equal maps look equal.

    Source: DINOv2, Oquab et al. 2023, fig. 1 (there over several pictures together).
    """
    cells = feature_map.flatten(1).T.double()
    cells = cells - cells.mean(0)
    _, _, directions = torch.linalg.svd(cells, full_matrices=False)
    chosen = directions[:3]
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    shares = cells @ (chosen * signs).T
    shares = torch.nn.functional.pad(shares, (0, 3 - shares.shape[1]))
    low, high = (torch.quantile(shares, q, dim=0) for q in (0.02, 0.98))
    levels = ((shares - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) * 255
    return levels.round().to(torch.uint8).reshape(*feature_map.shape[1:], 3).numpy()


@torch.no_grad()
def class_attention(tower: ViT, images: Float[Tensor, "1 3 height width"], layer: int) -> Float[Tensor, "height width"]:
    """Return how much the class token of a block looks at each patch, the mean over heads, summing to at most 1.

    Args:
        tower: with a class token.
        images: one prepared picture.
        layer: number of the block.

    Source: DINO `visualize_attention.py`, there by head.
    """
    kept: list[Tensor] = []
    block = tower.transformer.layers[layer]
    assert isinstance(block, Block)
    handle = block.attn.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        tower.features(images, [layer])
    finally:
        handle.remove()
    weights = _attention_of_first(block.attn, kept[0])
    size = tower.config.patch_size
    grid = (images.shape[2] // size, images.shape[3] // size)
    return weights.mean(1)[0, tower.prefix_tokens :].reshape(grid)


def _attention_of_first(attention: Attention, tokens: Float[Tensor, "1 tokens dim"]) -> Float[Tensor, "1 heads tokens"]:
    heads = attention.num_heads
    query = attention.q(tokens[:, :1]).unflatten(-1, (heads, -1)).transpose(1, 2)
    keys = attention.k(tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
    return (query @ keys.transpose(-1, -2) * attention.head_dim**-0.5).softmax(-1)[:, :, 0]


def draw_features(model: TowerPredictor, picture: Path, layers: Sequence[int], folder: Path) -> Path:
    """Draw a picture beside its features after each layer, and its attention where there is a class token.

    Args:
        model: the tower.
        picture: file of the picture.
        layers: which ones.
        folder: where to; the drawing is called by the picture's name.

    Returns:
        The file.
    """
    prepared = model.prepare(as_tensor(picture))[None].to(model.device)
    shown = Image.fromarray(model.preprocess.denormalize(prepared[0].cpu()).permute(1, 2, 0).numpy())
    rows = [[shown, *(Image.fromarray(principal_colours(m[0].cpu())) for m in model.features(picture, layers))]]
    tower = model.backbone
    if isinstance(tower, ViT) and tower.class_token is not None and not _turns(tower):
        maps = [class_attention(tower, prepared, layer) for layer in layers]
        rows.append([Image.new("RGB", (1, 1), "white"), *(_heat(m) for m in maps)])
    canvas = Image.new("RGB", (SIDE * len(rows[0]), SIDE * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, panel in enumerate(row):
            canvas.paste(panel.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x * SIDE, y * SIDE))
    file = folder / f"{picture.stem}.features.png"
    canvas.save(file)
    return file


def _turns(tower: ViT) -> bool:
    """Whether queries and keys are rotated by their places, which is not drawn here."""
    return tower.config.positions == "rope"


def _heat(weights: Float[Tensor, "height width"]) -> Image.Image:
    """From black over red and yellow to white."""
    level = (weights / weights.max().clamp(min=1e-12)).cpu().numpy()
    channels = [np.clip(3 * level - start, 0, 1) for start in (0, 1, 2)]
    return Image.fromarray((np.stack(channels, -1) * 255).round().astype(np.uint8))


PALETTE = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#17becf", "#8c564b", "#e377c2", "#bcbd22", "#7f7f7f",
)  # fmt: skip
"""Colours of classes; the eleventh class has the first again, as a ring."""


def draw_map(plane: Float[Tensor, "points 2"], labels: Sequence[int], side: int = 360) -> Image.Image:
    """Draw points of a plane, coloured by class; those without a class are black.

    Args:
        plane: coordinates.
        labels: class of each point, -1 for none.
        side: of the drawing, in pixels.
    """
    low, high = plane.amin(0), plane.amax(0)
    places = ((plane - low) / (high - low).clamp(min=1e-12) * (side - 16) + 8).tolist()
    canvas = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(canvas)
    for (x, y), label in zip(places, labels, strict=True):
        colour = PALETTE[label % len(PALETTE)] if label >= 0 else "#000000"
        ring = (label // len(PALETTE)) % 2 == 1
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=None if ring else colour, outline=colour)
    return canvas
