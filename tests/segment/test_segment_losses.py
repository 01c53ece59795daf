"""The loss of segmenters."""

import pytest
import torch
import torch.nn.functional as F

from odonata.segment.losses import pixel_cross_entropy


def test_it_is_the_mean_over_pixels_with_a_class():
    logits, maps = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    maps[0, :3] = 255
    assert pixel_cross_entropy(logits, maps).item() == pytest.approx(
        F.cross_entropy(logits, maps, ignore_index=255).item(), rel=1e-6
    )


def test_over_pictures_it_is_caffes_sum():
    """Equal scores cost ln 4 a pixel: 30 pixels a picture."""
    maps = torch.zeros(2, 5, 6, dtype=torch.int64)
    loss = pixel_cross_entropy(torch.zeros(2, 4, 5, 6), maps, "pictures")
    assert loss.item() == pytest.approx(30 * torch.tensor(4.0).log().item(), rel=1e-6)


def test_a_batch_of_which_nothing_is_said_teaches_nothing():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    for over in ("pixels", "pictures"):
        loss = pixel_cross_entropy(logits, torch.full((1, 3, 3), 255), over)
        loss.backward()
        assert loss.item() == 0 and not logits.grad.any()


def test_half_precision_is_summed_in_float32():
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.bfloat16)
    loss = pixel_cross_entropy(logits, torch.zeros(1, 300, 300, dtype=torch.int64), "pictures")
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(90000 * 0.693147, rel=1e-4)
