"""Pictures with maps of classes: every layout and palette, void, and what is wrong with a map."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from odonata.data.check_semantic import check_semantic
from odonata.data.item import Item
from odonata.data.open_semantic import VOC_CLASSES, is_semantic_set, open_semantic, read_class_table
from odonata.data.semantic import voc_palette
from odonata.data.semantic_batches import (
    SemanticData,
    SemanticDataset,
    collate_semantic,
    read_semantic,
    to_semantic_batch,
    train_and_heldout_semantic,
)
from odonata.errors import DataError

SQUARE = np.zeros((8, 12), np.uint8)
SQUARE[2:6, 3:7] = 1


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def folders(root: Path, labels: np.ndarray = SQUARE, classes: str | None = "ground\nsquare\n") -> Path:
    save(root / "images" / "a.png", np.zeros((8, 12, 3), np.uint8))
    if classes is not None:
        (root / "classes.txt").write_text(classes)
    return save(root / "masks" / "a.png", labels)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        read_semantic(open_semantic(path)[0])
    return str(error.value)


def test_numbers_are_classes_and_255_is_void(tmp_path: Path):
    labels = SQUARE.copy()
    labels[0] = 255
    folders(tmp_path, labels)
    source = open_semantic(tmp_path)
    assert source.classes == ("ground", "square") and source.ignore_index == 255 and source[0].size == (8, 12)
    assert np.array_equal(source[0].map.read(), labels) and is_semantic_set(tmp_path)


def test_classes_named_void_are_none(tmp_path: Path):
    folders(tmp_path, SQUARE + 1, classes="Sky\nVoid\nGrass\n")
    source = open_semantic(tmp_path)
    assert source.classes == ("Sky", "Grass")
    assert np.array_equal(source[0].map.read(), np.where(SQUARE == 1, 1, 255))


def test_a_table_gives_numbers_and_colours(tmp_path: Path):
    folders(tmp_path, SQUARE * 255, classes=None)
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n0,ground,10,20,30\n255,square,0,0,200\n")
    source = open_semantic(tmp_path)
    assert source.palette == ((10, 20, 30), (0, 0, 200)) and np.array_equal(source[0].map.read(), SQUARE)
    colours = np.array(source.palette, np.uint8)[SQUARE]
    save(tmp_path / "masks" / "a.png", colours)
    assert np.array_equal(open_semantic(tmp_path)[0].map.read(), SQUARE)
    colours[4, 5] = (9, 9, 9)
    path = save(tmp_path / "masks" / "a.png", colours)
    assert refusal(tmp_path).startswith(f"{path}: colour (9, 9, 9) at row 4, column 5 is no class's; the table has 2 ")


def test_palette_pictures_count_by_index(tmp_path: Path):
    folders(tmp_path)
    image = Image.fromarray(SQUARE, mode="P")
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "masks" / "a.png")
    assert np.array_equal(open_semantic(tmp_path)[0].map.read(), SQUARE)


def test_a_value_that_is_no_class_is_named_or_void(tmp_path: Path):
    path = folders(tmp_path, SQUARE * 7)
    assert refusal(tmp_path) == (
        f"{path}: value 7 at row 2, column 3 is no class's; the table has 2 classes (ground, square)"
    )
    lenient = open_semantic(tmp_path, on_error="skip")[0].map.read()
    assert np.array_equal(lenient, np.where(SQUARE == 1, 255, 0))


def test_what_does_not_fit_is_named(tmp_path: Path):
    path = folders(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"no names of classes; write classes\.txt .* \(a\.png holds the values 0, 1\)"):
        open_semantic(tmp_path)
    (tmp_path / "classes.txt").write_text("ground\nsquare\n")
    save(path, SQUARE[:, :10])
    with pytest.raises(DataError, match="the map is 10 × 8 px, and its picture 12 × 8"):
        open_semantic(tmp_path)
    path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="not a picture that Pillow can read"):
        open_semantic(tmp_path)
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match="the map belongs to a picture that is missing"):
        open_semantic(tmp_path)
    with pytest.raises(DataError, match=r"no maps of classes were found; known are CamVid"):
        open_semantic(tmp_path / "images")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,name\n0,a\n0,b\n", "classes.csv:3: the number 0 is given to two classes"),
        ("name,r,g,b\na,1,2,3\nb,1,2,3\n", "classes.csv:3: the colour (1, 2, 3) is given to two classes"),
        ("name,r,g,b\na,1,2,300\n", "classes.csv:2: the colour is ['1', '2', '300']"),
        ("id,name\nx,a\n", "classes.csv:2: {'id': 'x', 'name': 'a'}; want a name and a whole number"),
        ("1,2,3\n", "classes.csv:1: ['1', '2', '3']; want a name with its number"),
        ("name\nvoid\n", "classes.csv: no names of classes"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_class_table(tmp_path / "classes.csv")
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_layouts_with_splits(tmp_path: Path):
    for split in ("train", "val"):
        save(tmp_path / "outside" / "images" / split / "a.jpg", np.zeros((8, 12, 3), np.uint8))
        save(tmp_path / "outside" / "masks" / split / "a.png", SQUARE)
        save(tmp_path / "inside" / split / "images" / "a.jpg", np.zeros((8, 12, 3), np.uint8))
        save(tmp_path / "inside" / split / "masks" / "a_mask.png", SQUARE)
    for layout in ("outside", "inside"):
        (tmp_path / layout / "classes.txt").write_text("ground\nsquare\n")
        source = open_semantic(tmp_path / layout)
        assert source.splits == ("train", "val") and len(source) == 2 and source.kind == "folders"
    save(tmp_path / "voc" / "JPEGImages" / "a.jpg", np.zeros((8, 12, 3), np.uint8))
    save(tmp_path / "voc" / "SegmentationClass" / "a.png", SQUARE)
    lists = tmp_path / "voc" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    voc = open_semantic(tmp_path / "voc")
    assert voc.splits == ("val",) and voc.classes == tuple(VOC_CLASSES) and len(voc.classes) == 21


def test_the_palette_is_the_devkits():
    # The colours of VOC's pictures: background, aeroplane, bicycle, …, tvmonitor, and 255, the border.
    colours = voc_palette(256)
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colours[15] == (192, 128, 128) and colours[20] == (0, 64, 128) and colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256


def test_the_real_sets(shared_data: Path):
    streets = open_semantic(shared_data / "segmentation" / "camvid")
    assert [len(streets.split(s)) for s in ("train", "val")] == [367, 101] and len(streets.classes) == 11
    assert set(np.unique(streets[0].map.read()).tolist()) <= {*range(11), 255} and streets.kind == "camvid"
    coco = open_semantic(shared_data / "image-text" / "coco-mini" / "semantic")
    assert len(coco) == 80 and len(coco.classes) == 129 and coco.splits == ("train",)
    report = check_semantic(shared_data / "segmentation" / "camvid", split="val")
    assert report.ok and report.num_images == 101 and abs(sum(report.shares.values()) - 1) < 1e-9


def test_the_embedded_maps_are_the_masks_of_the_objects():
    from odonata.data.open_objects import open_objects

    maps, objects = open_semantic("objects:n=14"), open_objects("objects:n=14")
    assert maps.classes[0] == "background" and maps.splits == objects.splits
    for place, sample in zip(maps, objects, strict=True):
        wanted = np.zeros(sample.size, np.uint8)
        for label, mask in zip(sample.labels.tolist(), sample.masks(), strict=True):
            wanted[mask] = label + 1
        assert np.array_equal(pickle.loads(pickle.dumps(place.map)).read(), wanted)


def test_batches_are_padded_with_void():
    small = Item(torch.ones(3, 5, 9, dtype=torch.uint8), classes=torch.full((5, 9), 2, dtype=torch.uint8))
    large = Item(torch.ones(3, 7, 4, dtype=torch.uint8), classes=torch.full((7, 4), 1, dtype=torch.uint8))
    batch = to_semantic_batch([small, large], 8)
    assert batch.images.shape == (2, 3, 8, 16) and batch.maps.dtype == torch.int64 and len(batch) == 2
    assert batch.sizes.tolist() == [[5, 9], [7, 4]]
    assert (batch.maps[0, :5, :9] == 2).all() and (batch.maps == 255).sum() == 2 * 128 - 45 - 28
    assert (batch.images[batch.maps[:, None].expand(-1, 3, -1, -1) == 255] == 0).all()


def test_an_item_is_a_function_of_its_key():
    train, held = train_and_heldout_semantic(SemanticData(path="objects:n=21,size=64", limit=9))
    assert len(train) == 9 and held is not None and len(held) == 3

    def noisy(item: Item, generator: torch.Generator) -> Item:
        return item.with_image(torch.randint(0, 255, item.image.shape, generator=generator, dtype=torch.uint8))

    data = SemanticDataset(train, noisy, seed=1)
    batch = collate_semantic(32)([data[0, 3], data[0, 3], data[1, 3]])
    assert torch.equal(batch.images[0], batch.images[1]) and not torch.equal(batch.images[0], batch.images[2])
    assert batch.indices.tolist() == [3, 3, 3] and torch.equal(batch.maps[0], batch.maps[2])


def test_a_bad_map_is_skipped_when_that_is_wanted(tmp_path: Path):
    folders(tmp_path)
    save(tmp_path / "images" / "b.png", np.zeros((8, 12, 3), np.uint8))
    bad = save(tmp_path / "masks" / "b.png", SQUARE * 9)
    source = open_semantic(tmp_path)
    with pytest.raises(DataError, match="value 9 at row 2"):
        SemanticDataset(source, lambda item, _: item)[0, 1]
    assert SemanticDataset(source, lambda item, _: item, on_error="skip")[0, 1].index == 0
    report = check_semantic(tmp_path)
    assert not report.ok and [where for where, _ in report.problems] == [str(bad)]
