"""Mosaic, mixup and copy-paste: every object comes along with its pixels, and the augmentations by name."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.data.framing import Framing
from odonata.data.item import Item
from odonata.data.keys import keyed_generator
from odonata.data.object_mixes import CopyPaste, MixUp, Mosaic, join_objects, standard_augmentation
from odonata.data.object_transforms import RandomAffine


def scene(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (120, 160), level: int = 220) -> Item:
    image = torch.full((3, *size), 30, dtype=torch.uint8)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    classes = torch.zeros(size, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        masks[number, y1:y2, x1:x2] = True
        image[:, y1:y2, x1:x2] = level
        classes[y1:y2, x1:x2] = level
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.full((len(boxes),), level)
    return Item(image, corners, labels, masks, None, torch.zeros(len(boxes), dtype=torch.bool), classes)


def box_of(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=torch.float32)


def check(item: Item) -> None:
    assert item.boxes is not None and item.masks is not None and item.labels is not None and item.ignore is not None
    assert len({len(item.boxes), len(item.masks), len(item.labels), len(item.ignore)}) == 1
    assert item.boxes.isfinite().all() and (item.boxes[:, 2:] > item.boxes[:, :2]).all()
    for box, mask in zip(item.boxes, item.masks, strict=True):
        if mask.any():
            assert (box_of(mask) - box).abs().max() <= 1.0


MIXES = [
    Mosaic(96),
    Mosaic((64, 128), affine=None),
    Mosaic(96, affine=RandomAffine(degrees=20, shear=5)),
    MixUp(),
    CopyPaste(),
    CopyPaste(share=1.0),
]


@given(st.sampled_from(MIXES), st.integers(0, 100), st.integers(0, 70), st.integers(8, 45), st.integers(0, 10_000))
@settings(deadline=None, max_examples=150)
def test_masks_stay_with_their_boxes(mix, x: int, y: int, side: int, key: int):
    items = [
        scene((x, y, x + side, y + side), (70, 40, 110, 90)),
        scene((30, 20, 90, 70), size=(100, 90), level=200),
        scene(size=(50, 200)),
        scene((10, 10, 30, 30), (60, 60, 100, 100), size=(128, 128), level=160),
    ]
    mixed = mix(items[: mix.others + 1], keyed_generator(0, 0, key))
    check(mixed)
    assert mixed.classes is not None and mixed.scale > 0


def test_four_pictures_lie_about_one_centre():
    items = [scene((0, 0, 64, 64), size=(64, 64), level=level) for level in (50, 100, 150, 200)]
    mosaic = Mosaic(64, affine=None)(items, keyed_generator(0, 0, 4))
    assert mosaic.height_width == (64, 64) and mosaic.boxes is not None and mosaic.labels is not None
    assert mosaic.masks is not None and mosaic.classes is not None
    assert torch.equal(mosaic.masks.sum(0), torch.ones(64, 64, dtype=torch.int64)), "each pixel shows one picture"
    for box, label in zip(mosaic.boxes.int().tolist(), mosaic.labels.tolist(), strict=True):
        shown = mosaic.image[0, box[1] : box[3], box[0] : box[2]]
        assert (shown == label).all()
        assert (mosaic.classes[box[1] : box[3], box[0] : box[2]] == label).all()
        assert (label in (50, 100)) == (box[1] == 0) and (label in (50, 150)) == (box[0] == 0)


def test_the_first_picture_alone_where_chance_says_so():
    item = scene((10, 10, 40, 40))
    for mix in (Mosaic(64, p=0.0), MixUp(p=0.0), CopyPaste(p=0.0)):
        assert mix([item] * (mix.others + 1), keyed_generator(0, 0, 0)) is item
    half = [Mosaic(64, p=0.5)([item] * 4, keyed_generator(0, 0, key)) is item for key in range(60)]
    assert 15 < sum(half) < 45


@pytest.mark.parametrize("mix", [Mosaic(64, p=0.5), MixUp(p=0.5), CopyPaste(p=0.5)], ids=lambda m: type(m).__name__)
def test_what_a_mix_draws_depends_neither_on_the_pictures_nor_on_chance(mix):
    left = set()
    for items in ([scene((5, 5, 30, 30))] * 4, [scene(size=(33, 70))] * 4):
        generator = keyed_generator(0, 0, 7)
        mix(items[: mix.others + 1], generator)
        left.add(torch.rand(1, generator=generator).item())
    assert len(left) == 1


def test_mixup_has_the_boxes_of_both_and_the_light_of_both():
    first, second = scene((10, 10, 40, 40)), scene((60, 20, 80, 60), size=(60, 80), level=100)
    mixed = MixUp()([first, second], keyed_generator(0, 0, 0))
    assert mixed.boxes is not None and mixed.labels is not None
    assert mixed.boxes.tolist() == [[10, 10, 40, 40], [120, 40, 160, 120]], "the second is twice as large here"
    weight = (int(mixed.image[0, 20, 20]) - 30) / 190
    assert 0.05 < weight < 0.95
    assert int(mixed.image[0, 80, 140]) == pytest.approx(30 * weight + 100 * (1 - weight), abs=1.5)
    assert mixed.scale == pytest.approx(2**0.5)


def test_the_weights_of_mixup_are_betas():
    white = scene(size=(2, 2)).with_image(torch.full((3, 2, 2), 255, dtype=torch.uint8))
    black = scene(size=(2, 2)).with_image(torch.zeros(3, 2, 2, dtype=torch.uint8))
    mixup = MixUp(alpha=8)
    weights = torch.tensor(
        [int(mixup([white, black], keyed_generator(0, 0, key)).image[0, 0, 0]) / 255 for key in range(1500)]
    )
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(weights.var()) == pytest.approx(1 / (4 * (2 * 8 + 1)), rel=0.15)


def test_what_is_hidden_leaves_mask_and_box():
    below = scene((20, 20, 60, 60), (100, 100, 110, 110))
    above = scene((40, 0, 120, 120), level=90)
    pasted = None
    for key in range(40):
        pasted = CopyPaste(share=1.0)([below, above], keyed_generator(0, 0, key))
        if pasted.boxes is not None and pasted.boxes[-1].tolist() == [40, 0, 120, 120]:  # not mirrored
            break
    assert pasted is not None and pasted.boxes is not None and pasted.labels is not None
    assert pasted.boxes.tolist() == [[20, 20, 40, 60], [40, 0, 120, 120]]
    assert pasted.labels.tolist() == [220, 90], "the small one is wholly hidden"
    assert pasted.masks is not None and not (pasted.masks[0] & pasted.masks[1]).any()
    assert (pasted.image[:, pasted.masks[1]] == 90).all() and pasted.classes is not None
    assert (pasted.classes[pasted.masks[1]] == 90).all()


def test_an_object_that_nothing_hides_keeps_its_box():
    below = replace(scene((20, 20, 60, 60)), boxes=torch.tensor([[19.6, 20.3, 60.2, 59.9]]))
    pasted = CopyPaste(share=1.0)([below, scene((65, 0, 95, 20))], keyed_generator(0, 0, 1))
    assert pasted.boxes is not None and pasted.boxes[0].tolist() == pytest.approx([19.6, 20.3, 60.2, 59.9])


def test_crowds_are_not_pasted():
    crowd = replace(scene((10, 10, 90, 90)), ignore=torch.tensor([True]))
    below = scene((20, 20, 60, 60))
    assert CopyPaste(share=1.0)([below, crowd], keyed_generator(0, 0, 0)) is below


def test_copy_paste_says_that_it_needs_masks():
    bare = replace(scene((10, 10, 40, 40)), masks=None)
    with pytest.raises(ValueError, match="copy-paste needs masks of all objects"):
        CopyPaste()([bare, bare], keyed_generator(0, 0, 0))


def test_ignored_objects_stay_ignored_in_every_mix():
    items = [replace(scene((30, 30, 90, 90)), ignore=torch.tensor([True]), labels=torch.tensor([7])) for _ in range(4)]
    for mix in (Mosaic(96), MixUp()):
        mixed = mix(items[: mix.others + 1], keyed_generator(0, 0, 2))
        assert mixed.ignore is not None and len(mixed.ignore) > 0 and mixed.ignore.all()


def test_objects_join_only_with_what_all_of_them_have():
    with_masks, without = scene((1, 1, 9, 9)), replace(scene((2, 2, 8, 8)), masks=None)
    assert join_objects(with_masks, [with_masks, without]).masks is None
    empty = replace(scene(), masks=None)
    joined = join_objects(with_masks, [with_masks, empty])
    assert joined.masks is not None and len(joined.masks) == 1, "a picture without objects takes nothing away"


@pytest.mark.parametrize("augment", ["none", "flip", "standard", "ssd", "mosaic"])
@pytest.mark.parametrize(
    "framing", [Framing("shortest", 96, 160, 32), Framing("letterbox", 96, 0, 32)], ids=lambda f: f.resize
)
def test_every_augmentation_ends_in_the_frame(augment, framing: Framing):
    mixes, transform = standard_augmentation(augment, framing, copy_paste=0.5)
    seen = set()
    for key in range(12):
        generator = keyed_generator(0, 0, key)
        item = scene((20, 20, 70, 70), (100, 50, 150, 110))
        for mix in mixes:
            item = mix([item, *[scene((5, 5, 80, 50), size=(90, 90))] * mix.others], generator)
        item = transform(item, generator)
        check(item)
        height, width = item.height_width
        assert (height, width) == (96, 96) if framing.resize == "letterbox" else min(height, width) in range(40, 97)
        seen.add(item.image.float().mean().item())
    assert augment == "none" or len(seen) > 2
