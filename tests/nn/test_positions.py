from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from transformers import BlipVisionConfig, CLIPVisionConfig, ViTMAEConfig
from transformers.models.blip.modeling_blip import BlipVisionEmbeddings
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionEmbeddings
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

from fixtures.named_numbers import numbers
from odonata.nn.positions import resize_positions, resize_positions_per_image, sincos_2d

RECORDED = np.load(Path(__file__).parents[1] / "fixtures" / "open_clip.npz")


def test_sincos_equals_transformers_mae():
    peer = ViTMAEEmbeddings(ViTMAEConfig(hidden_size=24, image_size=20, patch_size=4))
    peer.initialize_weights()
    torch.testing.assert_close(sincos_2d(24, (5, 5), 1), peer.position_embeddings[0], rtol=0, atol=1e-6)


def test_sincos_of_a_rectangle_is_a_corner_of_the_square():
    square = sincos_2d(16, (6, 6)).reshape(6, 6, 16)
    torch.testing.assert_close(sincos_2d(16, (3, 5)).reshape(3, 5, 16), square[:3, :5])


@pytest.mark.parametrize("peer", ["open_clip", "timm"])
def test_open_clip_convention_equals_recorded_outputs(peer):
    stored = numbers("visual.positional_embedding", (17, 8))
    ours = resize_positions(stored, (4, 4), (6, 6), convention="open_clip")
    np.testing.assert_allclose(ours.numpy(), RECORDED[f"positions/{peer}"], atol=1e-6)


def test_hf_convention_equals_transformers_clip():
    peer = CLIPVisionEmbeddings(CLIPVisionConfig(hidden_size=8, num_attention_heads=2, image_size=16, patch_size=4))
    theirs = peer.interpolate_pos_encoding(torch.zeros(1, 7 * 5 + 1, 8), 28, 20)[0]
    ours = resize_positions(peer.position_embedding.weight, (4, 4), (7, 5), convention="hf")
    torch.testing.assert_close(ours, theirs)


def test_blip_convention_equals_transformers_blip():
    peer = BlipVisionEmbeddings(BlipVisionConfig(hidden_size=8, image_size=16, patch_size=4))
    theirs = peer.interpolate_pos_encoding(torch.zeros(1, 37, 8), 24, 24)[0]
    ours = resize_positions(peer.position_embedding[0], (4, 4), (6, 6), convention="blip")
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("convention", ["big_vision", "vilt"])
def test_aligned_corners_equal_scipy_zoom(convention):
    grid = torch.randn(4, 4, 8)
    theirs = scipy.ndimage.zoom(grid.double().numpy(), (7 / 4, 5 / 4, 1), order=1)
    ours = resize_positions(grid.flatten(0, 1), (4, 4), (7, 5), convention=convention)
    np.testing.assert_allclose(ours.reshape(7, 5, 8).numpy(), theirs, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_naflex_equals_transformers_siglip2(dtype):
    grid, shapes = torch.randn(4, 4, 8).to(dtype), torch.tensor([[2, 7], [4, 4], [5, 1]])
    theirs = Siglip2VisionEmbeddings.resize_positional_embeddings(grid, shapes, 16)
    ours = resize_positions_per_image(grid.flatten(0, 1), (4, 4), shapes, 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_conventions_differ_measurably():
    stored = torch.randn(16, 8)
    made = {c: resize_positions(stored, (4, 4), (3, 3), convention=c) for c in ("open_clip", "hf", "big_vision")}
    assert (made["open_clip"] - made["hf"]).norm() > 0.1 * made["hf"].norm()
    assert (made["big_vision"] - made["hf"]).norm() > 0.1 * made["hf"].norm()


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="'nearest' is unknown: open_clip, hf"):
        resize_positions(torch.zeros(4, 2), (2, 2), (3, 3), convention="nearest")
    with pytest.raises(ValueError, match="4 positions cannot hold a grid of 3x3"):
        resize_positions(torch.zeros(4, 2), (3, 3), (2, 2), convention="hf")
    with pytest.raises(ValueError, match="a grid of 3x3 patches does not fit a row of 8 tokens"):
        resize_positions_per_image(torch.zeros(4, 2), (2, 2), torch.tensor([[3, 3]]), 8)
    with pytest.raises(ValueError, match="divisible by 4, not 10"):
        sincos_2d(10, (2, 2))
