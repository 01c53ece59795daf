"""Preprocessing gives the bits of transformers' own image processors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from odonata.data.preprocess import (
    CLIP,
    IMAGENET,
    NAFLEX,
    SIGLIP,
    SIGLIP_BIG_VISION,
    Preprocess,
    naflex_patches,
    naflex_size,
)
from odonata.data.resize import center_crop, letterbox, resize
from odonata.errors import DataError

SIZES = [(375, 500), (500, 333), (224, 224), (227, 224), (230, 301), (100, 120), (61, 400), (224, 225)]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_clip_has_the_bits_of_transformers(size: tuple[int, int]):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    oracle = CLIPImageProcessorPil()
    image = noise(*size)
    want = oracle(image, return_tensors="pt")["pixel_values"][0]
    got = replace(CLIP, crop_rounding="hf")(image)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    assert torch.equal(Preprocess.from_hf_preprocessor_config(oracle.to_dict())(image), want)


def test_small_pictures_are_padded_as_transformers_pads_them():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for crop in (225, 226, 300):
        oracle = CLIPImageProcessorPil(crop_size={"height": crop, "width": crop + 1})
        for size in ((224, 224), (227, 300), (150, 301)):
            want = oracle(noise(*size), return_tensors="pt")["pixel_values"][0]
            assert torch.equal(Preprocess.from_hf_preprocessor_config(oracle.to_dict())(noise(*size)), want)


@pytest.mark.parametrize("size", SIZES)
def test_siglip_has_the_bits_of_transformers(size: tuple[int, int]):
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    oracle = SiglipImageProcessorPil()
    want = oracle(noise(*size), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(SIGLIP(noise(*size)), want)
    assert torch.equal(Preprocess.from_hf_preprocessor_config(oracle.to_dict())(noise(*size)), want)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patches", [64, 256])
def test_naflex_has_the_bits_of_transformers(size: tuple[int, int], patches: int):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    want = Siglip2ImageProcessorPil(max_num_patches=patches)(noise(*size), return_tensors="pt")
    got, (rows, columns) = naflex_patches(noise(*size), 16, patches)
    assert [rows, columns] == want["spatial_shapes"][0].tolist()
    assert torch.equal(got, want["pixel_values"][0][: rows * columns])
    assert len(got) <= patches
    assert int(want["pixel_attention_mask"][0].sum()) == len(got)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 1024))
def test_naflex_never_exceeds_its_patches(height: int, width: int, patches: int):
    got_height, got_width = naflex_size(height, width, 16, patches)
    assert got_height % 16 == got_width % 16 == 0
    assert (got_height // 16) * (got_width // 16) <= max(patches, 1)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_crop_roundings_differ_only_for_margins_of_3_modulo_4(height: int, width: int, size: int):
    image = torch.arange(3 * height * width).remainder(251).to(torch.uint8).reshape(3, height, width)
    first, second = center_crop(image, (size, size)), center_crop(image, (size, size), "hf")
    assert first.shape == second.shape == (3, size, size)
    margins = [side - size for side in (height, width)]
    if all(margin % 4 != 3 if margin >= 0 else margin % 2 == 0 for margin in margins):
        assert torch.equal(first, second)


def test_torch_resize_is_near_pillows():
    image = torch.from_numpy(np.array(noise(200, 300).resize((300, 200)))).permute(2, 0, 1)
    for interpolation, limit in (("bilinear", 1), ("bicubic", 14)):
        a = resize(image, (97, 131), interpolation, "pillow").int()
        b = resize(image, (97, 131), interpolation, "torch").int()
        assert (a - b).abs().max() <= limit
        assert (a - b).abs().float().mean() < 0.1


def test_big_vision_resizes_without_antialias_and_truncates():
    # Worked by hand: from 4 to 2 pixels half-pixel centres fall between pixels 0, 1 and 2, 3.
    row = torch.tensor([10, 21, 100, 201], dtype=torch.uint8).expand(3, 1, 4)
    assert resize(row, (1, 2), "bilinear", "torch", antialias=False)[0, 0].tolist() == [15, 150]
    got = SIGLIP_BIG_VISION(noise(300, 200))
    assert got.shape == (3, 224, 224)
    assert got.min() >= -1 and got.max() <= 1


def test_letterbox_says_where_points_land():
    image = torch.full((3, 50, 100), 7, dtype=torch.uint8)
    got, scale, (left, top) = letterbox(image, (64, 64), fill=114)
    assert (scale, left, top) == (0.64, 0, 16)
    assert got[:, :16].unique().tolist() == [114] and got[:, 16:48].unique().tolist() == [7]


def test_imagenet_crops_224_of_256():
    image = noise(256, 256)
    got = IMAGENET.denormalize(IMAGENET(image))
    assert torch.equal(got, torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 16:240, 16:240])


@pytest.mark.parametrize(
    "preset", [CLIP, SIGLIP, SIGLIP_BIG_VISION, IMAGENET, NAFLEX, replace(CLIP, size=(224, 336), resize_size=240)]
)
def test_configurations_round_trip(preset: Preprocess):
    assert Preprocess.from_dict(preset.to_dict()) == preset
    if preset.antialias:
        again = Preprocess.from_hf_preprocessor_config(preset.to_hf_preprocessor_config())
        assert again == replace(preset, crop_rounding="hf")
    if preset is CLIP:
        assert Preprocess.from_open_clip(preset.to_open_clip()) == preset


def test_a_rectangle_is_covered_as_open_clip_covers_it():
    got = replace(CLIP, size=(100, 200)).pixels(noise(300, 300))
    assert torch.equal(
        got, resize(torch.from_numpy(np.array(noise(300, 300))).permute(2, 0, 1), (200, 200), "bicubic")[:, 50:150]
    )
    with pytest.raises(DataError, match="give resize_size"):
        replace(CLIP, size=(100, 200)).to_hf_preprocessor_config()


def test_old_configurations_with_bare_numbers():
    clip = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "do_center_crop": True}
    assert Preprocess.from_hf_preprocessor_config(clip | {"resample": 3}).resize == "shortest"
    vit = Preprocess.from_hf_preprocessor_config({"feature_extractor_type": "ViTFeatureExtractor", "size": 224})
    assert vit.resize == "squash"


def test_unknown_fields_are_named():
    with pytest.raises(DataError, match="unknown field 'sice'"):
        Preprocess.from_dict({"sice": 224})
    with pytest.raises(DataError, match="resample 9"):
        Preprocess.from_hf_preprocessor_config({"resample": 9})
    with pytest.raises(DataError, match="resize_mode 'fill'"):
        Preprocess.from_open_clip({"resize_mode": "fill"})
