"""Drawings of detections and class maps: what is painted where, at any size of picture."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from odonata.data.detections import Detections
from odonata.data.drawing import colour_of, draw_class_map, draw_objects
from odonata.data.objects import Category

TABLE = (Category(1, "cell"), Category(2, "platelet"))


def grey(width: int = 300, height: int = 200, level: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), (level, level, level))


def detections(*boxes: tuple[float, ...], size: tuple[int, int] = (200, 300), **more: torch.Tensor) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.linspace(0.9, 0.5, count),
        torch.arange(count) % 2,
        size,
        TABLE,
        **more,
    )


def test_the_frame_of_a_box_has_the_colour_of_its_class_and_the_inside_stays():
    drawn = draw_objects(grey(), detections((50, 60, 150, 160), (170, 60, 290, 190)))
    assert drawn.size == (300, 200) and drawn.mode == "RGB"
    for x1, y1, x2, y2, label in ((50, 60, 150, 160, 0), (170, 60, 290, 190, 1)):
        for x, y in ((x1, (y1 + y2) // 2), (x2 - 1, (y1 + y2) // 2), ((x1 + x2) // 2, y2 - 1)):
            assert drawn.getpixel((x, y)) == colour_of(label)
        assert drawn.getpixel(((x1 + x2) // 2, (y1 + y2) // 2)) == (128, 128, 128)


def test_the_picture_given_is_not_changed_and_nothing_found_changes_nothing():
    image = grey()
    draw_objects(image, detections((50, 60, 150, 160)))
    assert image.getcolors() == [(60000, (128, 128, 128))]
    assert draw_objects(image, detections()).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(64, 48), (320, 240), (1000, 3000), (4000, 3000)])
def test_labels_are_read_at_any_size(size: tuple[int, int]):
    """The plate above the box is high enough for letters, and its ink differs clearly from its ground."""
    width, height = size
    box = (0.05 * width, 0.5 * height, 0.9 * width, 0.9 * height)
    drawn = np.asarray(draw_objects(grey(*size), detections(box, size=(height, width))))
    column = drawn[: int(box[1]), int(box[0])]
    plate = (column == colour_of(0)).all(1).sum()
    assert plate >= 9 and plate >= 0.02 * max(size)
    inside = drawn[int(box[1]) - plate : int(box[1]), int(box[0]) :].reshape(-1, 3).astype(int)
    assert (inside.max(0) - inside.min(0)).max() > 100
    dark = (inside.sum(1) < 100).mean() if sum(colour_of(0)) > 380 else (inside.sum(1) > 660).mean()
    assert dark > 0.01


def test_a_label_at_the_upper_edge_stays_within_the_picture():
    drawn = np.asarray(draw_objects(grey(), detections((280, 0, 300, 100))))
    plate = (drawn == colour_of(0)).all(2)
    assert not plate[:, :230].any() and plate[2:8, 255:279].mean() > 0.3, (
        "moved to the left, so that it is read in full"
    )


def test_no_label_covers_that_of_a_surer_object():
    alone = np.asarray(draw_objects(grey(), detections((100, 80, 200, 150))))
    surest, second = (
        np.asarray(draw_objects(grey(), detections((100, 80, 200, 150), (104, 82, 204, 152)))),
        colour_of(1),
    )
    plate = alone[60:80, 100:200] != 128
    assert plate.any() and (surest[60:80, 100:200][plate] == alone[60:80, 100:200][plate]).all()
    below = surest[153:175, 104:150]
    assert (below == second).all(2).sum() > 100 or (surest[84:110, 104:150] == second).all(2).sum() > 100


def test_a_picture_too_small_for_words_gets_its_box():
    drawn = np.asarray(draw_objects(grey(12, 12), detections((2, 2, 10, 10), size=(12, 12))))
    assert (drawn[2, 2:10] == colour_of(0)).all() and (drawn[4:8, 4:8] == 128).all()


def test_masks_shine_through_and_have_an_edge():
    mask = torch.zeros(1, 200, 300, dtype=torch.bool)
    mask[0, 70:150, 60:140] = True
    drawn = draw_objects(grey(), detections((60, 70, 140, 150), masks=mask), opacity=0.5)
    expected = [round(0.5 * 128 + 0.5 * value) for value in colour_of(0)]
    assert drawn.getpixel((100, 110)) == pytest.approx(expected, abs=1)
    assert drawn.getpixel((60, 110)) == colour_of(0) and drawn.getpixel((200, 110)) == (128, 128, 128)


def test_points_are_dots():
    points = torch.tensor([[[100.0, 100.0], [120.0, 130.0]]])
    drawn = draw_objects(grey(), detections((60, 70, 140, 150), points=points))
    assert drawn.getpixel((100, 100)) == colour_of(0) == drawn.getpixel((120, 130))


def test_the_surest_lies_on_top():
    both = detections((50, 60, 150, 160), (50, 60, 150, 160))
    assert draw_objects(grey(), both).getpixel((50, 110)) == colour_of(0)
    turned = both.take(torch.tensor([1, 0]))
    assert draw_objects(grey(), turned).getpixel((50, 110)) == colour_of(0)


def test_boxes_out_of_the_picture_or_without_numbers_do_no_harm():
    odd = detections((-50, -50, 400, 300), (float("nan"), 0, 10, 10), (500, 500, 600, 600), (80, 80, 80, 80))
    drawn = draw_objects(grey(), odd)
    assert drawn.size == (300, 200) and drawn.getpixel((0, 199)) == colour_of(0)


def test_colours_are_distinct_and_stable():
    colours = [colour_of(label) for label in range(48)]
    far = [
        max(abs(a - b) for a, b in zip(one, other, strict=True)) for one, other in itertools.combinations(colours, 2)
    ]
    assert min(far) >= 25
    near = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(colours)]
    assert min(near) >= 90, "neighbours in number are told apart at a glance"
    assert colour_of(0) == (242, 36, 36) and colour_of(1000) == colour_of(1000 % 48)


def test_a_class_map_is_painted_and_what_is_not_said_stays():
    values = np.full((100, 150), 255, dtype=np.uint8)
    values[:, :50], values[:, 50:100] = 0, 2
    drawn = draw_class_map(grey(), values, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], opacity=1.0)
    assert drawn.size == (300, 200)
    assert [drawn.getpixel((x, 100)) for x in (20, 150, 250)] == [(255, 0, 0), (0, 0, 255), (128, 128, 128)]
    with pytest.raises(ValueError, match="the map has class 2, and the palette 2 colours"):
        draw_class_map(grey(), values, [(0, 0, 0), (1, 1, 1)])


def test_the_legend_names_the_classes_that_occur():
    values = np.zeros((200, 300), dtype=np.uint8)
    values[:100] = 2
    names = ["road", "car", "sky"]
    drawn = np.asarray(draw_class_map(grey(), values, None, names))
    assert drawn.shape[0] == 200 and drawn.shape[1] > 330
    strip = {tuple(colour) for colour in drawn[:, 300:].reshape(-1, 3)}
    assert {colour_of(0), colour_of(2)} <= strip and colour_of(1) not in strip
    many = np.arange(200, dtype=np.uint8).repeat(2).reshape(20, 20)
    assert draw_class_map(grey(20, 20), many, None, []).height >= 200
