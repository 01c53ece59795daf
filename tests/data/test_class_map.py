"""Maps of classes as segmenters give them."""

import numpy as np
import torch
from PIL import Image

from odonata.data.class_map import ClassMap
from odonata.data.semantic import raw_map, voc_palette
from odonata.ops.masks import decode

MAP = torch.zeros(4, 10, dtype=torch.uint8)
MAP[:, 5:] = 2
MAP[0, 0] = 255
CLASSES = ("sky", "road", "tree")


def made(**more) -> ClassMap:
    return ClassMap(MAP, CLASSES, voc_palette(3), image="a.jpg", **more)


def test_shares_are_of_the_whole_picture_and_void_is_no_class():
    answer = made()
    assert answer.size == (4, 10) and len(answer) == 2
    assert answer.pixels() == {2: 20, 0: 19}
    assert answer.summary() == ("a.jpg", "2", "tree 50%, sky 48%")
    assert answer.to_dict() == {
        "image": "a.jpg",
        "height": 4,
        "width": 10,
        "classes": [
            {"label": 2, "name": "tree", "pixels": 20, "share": 0.5},
            {"label": 0, "name": "sky", "pixels": 19, "share": 0.475},
        ],
    }


def test_a_saved_map_is_read_back_by_its_numbers_and_by_its_colours(tmp_path):
    made().save(tmp_path / "a.png")
    assert np.array_equal(raw_map(tmp_path / "a.png"), MAP.numpy())
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.convert("RGB").getpixel((9, 0)) == voc_palette(3)[2]


def test_a_drawing_leaves_void_alone_and_has_a_legend():
    picture = Image.new("RGB", (10, 4), (100, 100, 100))
    drawn = made().draw(picture)
    assert drawn.getpixel((0, 0)) == (100, 100, 100) and drawn.getpixel((9, 0)) != (100, 100, 100)
    assert drawn.width > picture.width
    assert made().draw(torch.full((3, 4, 10), 100, dtype=torch.uint8)).getpixel((9, 0)) == drawn.getpixel((9, 0))


def test_a_threshold_takes_what_is_less_sure_for_void_where_there_are_scores():
    scores = torch.ones(4, 10)
    scores[:, 5:8] = 0.4
    assert made(scores=scores).summary(0.5)[2] == "sky 48%, tree 20%"
    assert made().summary(0.5) == made().summary()


def test_masks_of_all_classes_are_cocos():
    rows = made().to_coco(7)
    assert [row["category_id"] for row in rows] == [2, 0]
    assert torch.equal(decode(rows[0]["segmentation"]), MAP == 2) and rows[0]["image_id"] == 7
