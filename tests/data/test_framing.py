"""From a picture to a detector's frame and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.data.framing import Framing, outside
from odonata.errors import DataError

SIDES = st.integers(8, 900)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (427, 640), (500, 333)])
def test_detrs_sizes_are_those_of_transformers(size):
    from transformers.models.detr.image_processing_pil_detr import get_size_with_aspect_ratio

    framing = Framing(size=800, max_size=1333, rounding="detr")
    assert framing.scaled_size(*size) == tuple(get_size_with_aspect_ratio(size, 800, 1333))


def test_a_long_picture_has_the_originals_size_and_not_that_of_transformers():
    # facebookresearch/detr multiplies the rounded short side, transformers the unrounded one (133.3: 1333).
    assert Framing(size=800, max_size=1333, rounding="detr").scaled_size(100, 1000) == (133, 1330)


def test_torchvisions_sizes_are_rounded_down():
    # GeneralizedRCNNTransform of 0.28 makes 800 × 1066 of 480 × 640, and 1333 × 999 of 640 × 480 at 1000.
    assert Framing().scaled_size(480, 640) == (800, 1066)
    assert Framing(size=1000, max_size=1333).scaled_size(640, 480) == (1333, 999)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from(["shortest", "letterbox", "squash", "keep"]), st.integers(16, 300))
def test_boxes_go_into_the_frame_and_come_back(height, width, resize, size):
    framing = Framing(resize, size=size, max_size=2 * size)
    place = framing.place(height, width)
    boxes = torch.tensor([[0.0, 0.0, width, height], [width / 4, height / 4, width / 2, height / 2]])
    framed = place.to_frame(boxes)
    assert torch.allclose(place.to_picture(framed), boxes, rtol=1e-4, atol=1e-2)
    new = framing.frame(picture(height, width))[0].shape[-2:]
    assert framed[0, 2] <= new[1] + 1e-3 and framed[0, 3] <= new[0] + 1e-3


def test_a_letterbox_is_grey_around_the_picture():
    framed, place = Framing("letterbox", size=64, fill=127).frame(torch.zeros(3, 20, 40, dtype=torch.uint8))
    assert framed.shape == (3, 64, 64)
    assert place.offset == (0.0, 16.0) and place.scale == (1.6, 1.6)
    assert (framed[:, :16] == 127).all() and (framed[:, 16:48] == 0).all() and (framed[:, 48:] == 127).all()


def test_what_lies_outside_the_picture_is_zero_after_normalisation():
    framing = Framing()
    images = torch.full((2, 3, 8, 8), 255.0)
    sizes = torch.tensor([[8, 8], [4, 6]])
    pixels = framing.normalize(images, sizes)
    assert (pixels[1, :, 4:] == 0).all() and (pixels[1, :, :, 6:] == 0).all()
    assert torch.allclose(pixels[1, 0, :4, :6], torch.tensor((1 - 0.485) / 0.229))
    assert outside(sizes, (8, 8))[0].sum() == 0


def test_bgr_weights_get_their_channels_in_their_order():
    image = torch.tensor([10.0, 20.0, 30.0])[None, :, None, None].expand(1, 3, 2, 2)
    framing = Framing(mean=(0, 0, 0), std=(1 / 255,) * 3, order="bgr")
    assert torch.allclose(
        framing.normalize(image, torch.tensor([[2, 2]]))[0, :, 0, 0], torch.tensor([30.0, 20.0, 10.0])
    )


def test_a_plain_framing_survives_json():
    framing = Framing("letterbox", size=416, order="bgr")
    assert Framing.from_dict(framing.to_dict()) == framing
    with pytest.raises(ValueError, match="unknown keys"):
        Framing.from_dict({"sizes": 3})


def test_a_panorama_says_that_it_needs_tiles():
    with pytest.raises(DataError, match="tiles"):
        Framing(size=800, max_size=0).scaled_size(100, 20_000)
    # With a limit on the longer side it fits, and a side never vanishes.
    assert Framing(size=800, max_size=1333).scaled_size(1, 20_000) == (1, 1333)
