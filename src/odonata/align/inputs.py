"""From pictures of any size to what an image tower takes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from odonata.align.assets import Assets
from odonata.backbones.vit import ViTConfig


def image_inputs(pictures: list[UInt8[Tensor, "3 height width"]], assets: Assets) -> dict[str, Any]:
    """Return what a tower takes: `images`, and for NaFlex `mask` and `grids`.

    Args:
        pictures: uint8 [3, height, width] each; of the tower's size unless it is a NaFlex tower.
        assets: say which.
    """
    preprocess = assets.preprocess
    if not assets.max_patches:
        return {"images": preprocess.normalize(torch.stack(pictures))}
    assert isinstance(assets.config.visual, ViTConfig)
    found = [preprocess.naflex_patches(p, assets.config.visual.patch_size, assets.max_patches) for p in pictures]
    longest = max(len(patches) for patches, _ in found)
    images = torch.zeros(len(found), longest, found[0][0].shape[1])
    mask = torch.zeros(len(found), longest, dtype=torch.bool)
    for row, (patches, _) in enumerate(found):
        images[row, : len(patches)] = patches
        mask[row, : len(patches)] = True
    return {"images": images, "mask": mask, "grids": torch.tensor([grid for _, grid in found])}
