"""What a masked autoencoder sees and what it makes of it, for a run's report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from odonata.data.preprocess import Preprocess
from odonata.data.resize import resize
from odonata.data.sample import ImageText
from odonata.represent.mae import MAE, mask_pixels


def reconstructions(
    method: MAE, samples: Sequence[ImageText], preprocess: Preprocess
) -> Iterator[tuple[list[Image.Image], list[str]]]:
    """Yield three pictures for each sample, original, what the encoder sees, and reconstruction; and lines of text.

    Args:
        method: what was trained.
        samples: pictures of any size.
        preprocess: how they come to the tower's size.
    """
    size = method.tower.image_size
    grid, patch = method.tower.grid, method.tower.patch_size
    generator = torch.Generator().manual_seed(0)
    for sample in samples:
        image = resize(sample.image.tensor(), (size, size), preprocess.interpolation, backend=preprocess.backend)[None]
        noise = torch.rand(1, grid[0] * grid[1], generator=generator)
        drawn, mask = method.reconstruct(image, noise)
        seen = torch.where(mask_pixels(mask, patch, grid), torch.full_like(image, 127), image)
        error = (drawn.float() - image.float()).square().mean().sqrt() / 255
        yield (
            [Image.fromarray(one[0].permute(1, 2, 0).numpy()) for one in (image, seen, drawn)],
            [f"original; {float(mask.float().mean()):.0%} dropped; reconstruction, off by {float(error):.1%} (RMS)"],
        )
