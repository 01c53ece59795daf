"""Transforms: Pillow's colours, geometry that carries boxes, masks and points along, chance from the key alone."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from odonata.data import color
from odonata.data.item import Item, affine_item, rotation
from odonata.data.randaugment import OPERATIONS, RandAugment, apply_operation
from odonata.data.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Letterbox,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Solarize,
    keyed_generator,
)


def picture(height: int = 60, width: int = 80, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(1, 3, 6, 8, generator=generator) * 255
    return torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def painted(box: tuple[int, int, int, int], height: int = 120, width: int = 160) -> Item:
    """A white rectangle on black, with its box, its mask and its corners."""
    x1, y1, x2, y2 = box
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, y1:y2, x1:x2] = True
    image = (mask * 255).to(torch.uint8).expand(3, -1, -1).contiguous()
    points = torch.tensor([[[x1, y1], [x2, y2]]], dtype=torch.float32)
    return Item(image, torch.tensor([box], dtype=torch.float32), torch.tensor([5]), mask, points)


def distance(a: torch.Tensor, b: Image.Image) -> int:
    return int((a.int() - torch.from_numpy(np.array(b)).permute(2, 0, 1).int()).abs().max())


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (color.adjust_brightness, ImageEnhance.Brightness),
        (color.adjust_contrast, ImageEnhance.Contrast),
        (color.adjust_saturation, ImageEnhance.Color),
        (color.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements_are_pillows(ours, theirs, factor: float):
    for seed in range(3):
        image = picture(seed=seed)
        assert distance(ours(image, factor), theirs(pillow(image)).enhance(factor)) <= 1


def test_point_operations_are_pillows_bit_for_bit():
    for seed in range(5):
        image = picture(seed=seed) // 2 + 40
        flat = pillow(image)
        assert distance(color.solarize(image, 100), ImageOps.solarize(flat, 100)) == 0
        assert distance(color.posterize(image, 3), ImageOps.posterize(flat, 3)) == 0
        assert distance(color.invert(image), ImageOps.invert(flat)) == 0
        assert distance(color.equalize(image), ImageOps.equalize(flat)) == 0
        assert distance(color.autocontrast(image), ImageOps.autocontrast(flat)) <= 1
        assert distance(color.grayscale(image), ImageOps.grayscale(flat).convert("RGB")) == 0


def test_fused_jitter_is_near_the_single_adjustments():
    image = picture()
    fused = color.jitter(image, [("contrast", 1.3), ("brightness", 0.8), ("saturation", 1.4), ("hue", 0.05)])
    single = color.adjust_saturation(color.adjust_brightness(color.adjust_contrast(image, 1.3), 0.8), 1.4)
    assert (fused.int() - color.adjust_hue(single, 0.05).int()).abs().max() <= 4


def test_a_turn_of_hue_keeps_luminance_and_a_whole_turn_the_picture():
    image = picture() // 3 + 80  # away from the ends, so that nothing is cut off
    assert (color.adjust_hue(image, 1.0).int() - image.int()).abs().max() <= 1
    assert (color.luma(color.adjust_hue(image, 0.3)).int() - color.luma(image).int()).abs().max() <= 2


def test_blur_keeps_flat_pictures_and_the_mean():
    flat = torch.full((3, 20, 20), 90, dtype=torch.uint8)
    assert torch.equal(color.gaussian_blur(flat, 2.0), flat)
    image = picture()
    assert abs(color.gaussian_blur(image, 1.5).float().mean() - image.float().mean()) < 1
    assert color.gaussian_blur(image, 3.0).float().std() < image.float().std()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (32, 64), (33, 7)])
@pytest.mark.parametrize("sigma", [0.1, 0.8, 2.0])
def test_blur_is_scipys_within_one_level(height, width, sigma):
    image = picture(height, width)
    radius = min(math.ceil(3 * sigma), height - 1, width - 1)
    values = image.double().numpy()
    theirs = scipy.ndimage.gaussian_filter(values, (0, sigma, sigma), mode="mirror", radius=radius)
    difference = np.abs(color.gaussian_blur(image, sigma).numpy() - theirs)
    assert difference.max() <= 0.501  # half a level is the rounding to bytes


def test_two_flips_are_none():
    item = painted((10, 20, 50, 90))
    flip = HorizontalFlip(p=1.0)
    once = flip(item, keyed_generator(0, 0, 0))
    assert once.boxes is not None and once.boxes.tolist() == [[110, 20, 150, 90]]
    twice = flip(once, keyed_generator(0, 0, 1))
    for name in ("image", "boxes", "masks", "points", "labels"):
        assert torch.equal(getattr(twice, name), getattr(item, name)), name


GEOMETRY = [
    RandomResizedCrop(64, scale=(0.3, 1.0)),
    RandomResizedCrop((48, 96), scale=(0.5, 1.0)),
    RandomCrop(80),
    RandomCrop((130, 50)),
    Resize(72),
    Resize((50, 90)),
    CenterCrop(90),
    CenterCrop((140, 100)),
    Letterbox(96),
    HorizontalFlip(1.0),
]


@given(st.sampled_from(GEOMETRY), st.integers(0, 120), st.integers(0, 80), st.integers(8, 40), st.integers(0, 10_000))
@example(GEOMETRY[1], 0, 59, 40, 4597)  # once 4e-6 pixels outside, by rounding
@settings(deadline=None, max_examples=150)
def test_boxes_follow_their_rectangles(transform, x: int, y: int, side: int, key: int):
    item = painted((x, y, x + side, y + side))
    moved = transform(item, keyed_generator(0, 0, key))
    assert moved.boxes is not None and moved.masks is not None and moved.labels is not None
    assert len(moved.boxes) == len(moved.masks) == len(moved.labels) == len(moved.points)
    if len(moved.boxes) == 0:
        return
    x1, y1, x2, y2 = moved.boxes[0].tolist()
    assert 0 <= x1 <= x2 <= moved.image.shape[2] and 0 <= y1 <= y2 <= moved.image.shape[1]
    rows, columns = torch.nonzero(moved.masks[0], as_tuple=True)
    if len(rows) == 0:
        assert x2 - x1 < 1.5 or y2 - y1 < 1.5
        return
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert max(abs(a - float(b)) for a, b in zip((x1, y1, x2, y2), found, strict=True)) <= 1.0
    bright = moved.image[0] > 127
    assert (bright & (torch.arange(bright.shape[1]) > x2 + 1.5)).sum() == 0 or isinstance(transform, Letterbox)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_affine_operations_carry_boxes_and_points(name: str, sign: float):
    item = painted((60, 45, 100, 75))
    moved = apply_operation(item, name, 0.4, sign)
    assert moved.boxes is not None and moved.masks is not None and moved.points is not None
    rows, columns = torch.nonzero(moved.masks[0], as_tuple=True)
    found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (moved.boxes[0] - found).abs().max() <= 2
    middle = moved.points[0].mean(0)
    assert (middle - torch.tensor([columns.float().mean() + 0.5, rows.float().mean() + 0.5])).abs().max() < 1


def test_a_quarter_turn_is_exact():
    image = picture(40, 40)
    turned = affine_item(Item(image), rotation(90), (0.0, 0.0)).image
    assert (turned.int() - torch.rot90(image, 1, (1, 2)).int()).abs().max() <= 1


def test_objects_out_of_sight_are_dropped_with_their_labels():
    item = painted((0, 0, 10, 10))
    moved = CenterCrop(60)(item, keyed_generator(0, 0, 0))
    assert moved.labels is not None and moved.masks is not None
    assert moved.labels.tolist() == [] and moved.masks.shape == (0, 60, 60)


RANDOM = [
    RandomResizedCrop(32),
    RandomCrop(32),
    HorizontalFlip(),
    ColorJitter(),
    Grayscale(0.5),
    GaussianBlur(),
    Solarize(p=0.5),
    RandAugment(2, 7),
]


@pytest.mark.parametrize("transform", RANDOM, ids=lambda transform: type(transform).__name__)
def test_chance_comes_from_the_key_alone(transform):
    item = Item(picture())
    first = [transform(item, keyed_generator(0, 1, index)).image for index in range(6)]
    torch.manual_seed(99)
    again = [transform(item, keyed_generator(0, 1, index)).image for index in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in itertools.pairwise(first))
    assert torch.equal(item.image, picture()), "the input is not changed"


def test_what_a_transform_draws_does_not_depend_on_the_picture():
    """Else a picture that was replaced would shift the chance of what follows."""
    for transform in RANDOM:
        left = []
        for image in (picture(), picture(33, 200, seed=1)):
            generator = keyed_generator(0, 0, 3)
            transform(Item(image), generator)
            left.append(torch.rand(1, generator=generator).item())
        assert left[0] == left[1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
@settings(deadline=None)
def test_windows_lie_within_the_picture(height: int, width: int, key: int):
    top, left, h, w = RandomResizedCrop(8).window(height, width, keyed_generator(0, 0, key))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0


def test_windows_have_the_areas_and_aspects_asked_for():
    crop = RandomResizedCrop(8, scale=(0.2, 0.6))
    windows = [crop.window(500, 500, keyed_generator(0, 0, key)) for key in range(400)]
    shares = [h * w / 250_000 for _, _, h, w in windows]
    assert 0.19 < min(shares) < 0.23 and 0.57 < max(shares) < 0.61
    assert all(0.74 < w / h < 1.35 for _, _, h, w in windows)


def test_every_operation_keeps_shape_and_type():
    for name in OPERATIONS:
        moved = apply_operation(Item(picture()), name, 0.7, -1.0)
        assert moved.image.shape == (3, 60, 80) and moved.image.dtype == torch.uint8
    with pytest.raises(ValueError, match="operation 'melt' is unknown"):
        apply_operation(Item(picture()), "melt", 0.5)


def test_wrong_pixels_are_refused():
    with pytest.raises(ValueError, match=r"want uint8 pixels \[3, height, width\], got torch.float32"):
        Item(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="do not fit the picture"):
        Item(picture(), masks=torch.zeros(1, 4, 4, dtype=torch.bool))


def test_a_recipe_of_transforms_is_one_transform():
    both = Compose((RandomResizedCrop(32), HorizontalFlip(), ColorJitter(p=0.5)))
    assert both(painted((10, 10, 90, 90)), keyed_generator(0, 0, 0)).image.shape == (3, 32, 32)
