"""Every format is found by itself and reads the same; what is written in one reads back bit for bit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from object_files import coco, picture, voc, voc_object, yolo
from PIL import Image

from odonata.data.convert_objects import convert_objects, write_yolo
from odonata.data.image_text import divide, hold_back
from odonata.data.instance_maps import read_map
from odonata.data.object_batches import ObjectData, read_item, train_and_heldout_objects
from odonata.data.objects import Category, ObjectSource
from odonata.data.open_objects import is_object_set, open_objects
from odonata.errors import DataError


def same_objects(first: ObjectSource, second: ObjectSource) -> None:
    """Boxes to the last bit, and everything else, whatever the order of the pictures."""
    assert first.names == second.names and len(first) == len(second)
    for a, b in zip(sorted(first, key=stem), sorted(second, key=stem), strict=True):
        assert (stem(a), a.size, a.split) == (stem(b), b.size, b.split)
        assert a.boxes.dtype == b.boxes.dtype == np.float32 and a.boxes.tobytes() == b.boxes.tobytes()
        assert a.labels.tolist() == b.labels.tolist() and a.crowd.tolist() == b.crowd.tolist()


def stem(sample) -> str:
    return Path(sample.image.name).stem


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ObjectSource:
    """Boxes with fractions that are no round numbers in any format, a crowd, a negative, two splits."""
    source = open_objects("objects:n=14,size=64,sides=12-30")
    random = np.random.default_rng(0)
    samples = []
    for number, sample in enumerate(source):
        boxes = (sample.boxes + random.uniform(0, 0.4, sample.boxes.shape)).clip(0, 64).astype(np.float32)
        crowd = np.arange(len(boxes)) == (1 if number == 3 else -1)
        samples.append(replace(sample, boxes=boxes, crowd=crowd, areas=None))
    none = np.zeros(0, dtype=np.int64)
    samples[5] = replace(samples[5], boxes=np.zeros((0, 4), np.float32), labels=none, crowd=none > 0, outlines=())
    return replace(source, samples=samples)


@pytest.mark.parametrize("chain", [("coco",), ("voc",), ("yolo",), ("coco", "voc", "yolo", "coco")])
def test_what_is_written_reads_back_to_the_last_bit(mixed: ObjectSource, tmp_path: Path, chain: tuple[str, ...]):
    if "yolo" in chain:
        mixed = replace(mixed, samples=[replace(s, crowd=np.zeros_like(s.crowd)) for s in mixed])
    source = mixed
    for number, to in enumerate(chain):
        source = open_objects(convert_objects(source, tmp_path / f"{number}", to))
        assert source.kind == to and not source.problems
    same_objects(mixed, source)
    pixels = {stem(sample): sample.image.read_array() for sample in mixed}
    assert all(np.array_equal(np.asarray(sample.image.open()), pixels[stem(sample)]) for sample in source)


def test_masks_survive_coco(mixed: ObjectSource, tmp_path: Path):
    again = open_objects(convert_objects(mixed, tmp_path / "new", "coco"))
    for a, b in zip(sorted(mixed, key=stem), sorted(again, key=stem), strict=True):
        assert np.array_equal(a.masks(), b.masks())


def test_real_sets_survive_conversion(shared_data: Path, tmp_path: Path):
    cells = open_objects(shared_data / "detection" / "bccd")
    cells = cells.subset(range(40))
    for to in ("coco", "voc", "yolo"):
        same_objects(cells, open_objects(convert_objects(cells, tmp_path / to, to)))


def test_category_ids_with_gaps_survive_coco(tmp_path: Path):
    coco(tmp_path / "old", [[10, 5, 20, 30]])
    again = open_objects(convert_objects(open_objects(tmp_path / "old"), tmp_path / "new", "coco"))
    assert again.categories == (Category(3, "dog"), Category(7, "cat")) and again[0].id == 1


def test_polygons_survive_yolo(tmp_path: Path):
    outline = [[10.0, 5.0, 30.0, 5.5, 29.25, 35.0]]
    row = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 30], "segmentation": outline}
    coco(tmp_path / "old", [], annotations=[row])
    source = open_objects(tmp_path / "old")
    again = open_objects(write_yolo(source, tmp_path / "new", polygons=True))
    assert again[0].outlines is not None and np.allclose(again[0].outlines[0], outline, rtol=1e-15)
    assert np.array_equal(again[0].masks(), source[0].masks())


def test_what_a_format_cannot_hold_is_refused(mixed: ObjectSource, tmp_path: Path):
    with pytest.raises(DataError, match="object 0 is not one polygon"):
        write_yolo(mixed, tmp_path / "polygons", polygons=True)
    narrow = replace(mixed[0], boxes=np.array([[3, 3, 4, 9]], np.float32), labels=mixed[0].labels[:1])
    with pytest.raises(DataError, match="is one pixel wide or high, and VOC cannot tell it"):
        convert_objects(replace(mixed, samples=[replace(narrow, crowd=np.zeros(1, bool))]), tmp_path / "voc", "voc")
    (tmp_path / "full" / "there").mkdir(parents=True)
    with pytest.raises(DataError, match="want a new or empty folder"):
        convert_objects(mixed, tmp_path / "full", "coco")
    with pytest.raises(ValueError, match="format 'kitti' is unknown; known: coco, voc, yolo"):
        convert_objects(mixed, tmp_path / "kitti", "kitti")


def test_every_format_is_found_by_itself(tmp_path: Path):
    coco(tmp_path / "coco", [[10, 5, 20, 30]])
    voc(tmp_path / "voc", voc_object(11, 6, 30, 35))
    yolo(tmp_path / "yolo", f"0 {20 / 60} 0.5 {20 / 60} 0.75\n")
    for kind in ("coco", "voc", "yolo"):
        source = open_objects(tmp_path / kind)
        assert source.kind == kind and source[0].boxes.tolist() == [[10, 5, 30, 35]] and is_object_set(tmp_path / kind)
    assert is_object_set(tmp_path / "coco" / "annotations" / "instances.json") and is_object_set("objects:n=3")


def test_what_is_no_set_of_objects_is_named(tmp_path: Path):
    (tmp_path / "captions.txt").write_text("a cat\n")
    picture(tmp_path / "a.png")
    for path, message in (
        (tmp_path, "no objects were found; known are COCO"),
        (tmp_path / "captions.txt", "the format .txt is unknown; known: COCO"),
        (tmp_path / "nowhere", "no such file or folder; for the embedded set write 'objects'"),
    ):
        assert not is_object_set(path)
        with pytest.raises(DataError) as error:
            open_objects(path)
        assert str(error.value).startswith(f"{path}: {message}")


def test_two_files_of_boxes_must_be_told_apart(tmp_path: Path):
    coco(tmp_path, [[10, 5, 20, 30]], name="a.json")
    assert open_objects(tmp_path).num_objects == 1
    coco(tmp_path, [], name="b.json")
    with pytest.raises(DataError, match=r"several files hold boxes: a\.json, b\.json; name the one to read"):
        open_objects(tmp_path)


def test_maps_of_instances_become_objects(tmp_path: Path):
    numbers = np.zeros((40, 60), np.uint16)
    numbers[5:35, 10:30], numbers[0, 0] = 300, 7
    for place, array in (
        ("train/images/a.png", np.zeros((40, 60, 3), np.uint8)),
        ("train/instance_maps/a.png", numbers),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / place)
    source = open_objects(tmp_path)
    assert source.kind == "masks" and source[0].split == "train" and source.categories == (Category(1, "object"),)
    assert source[0].boxes.tolist() == [[0, 0, 1, 1], [10, 5, 30, 35]] and source[0].areas.tolist() == [1, 600]
    assert np.array_equal(source[0].masks(), np.stack([numbers == 7, numbers == 300]))
    read_map.cache_clear()
    Image.fromarray(numbers[:20]).save(tmp_path / "train/instance_maps/a.png")
    with pytest.raises(DataError, match="the map is 60 × 20 px, and the picture 60 × 40"):
        open_objects(tmp_path)


def test_maps_and_polygons_of_the_nuclei_agree(shared_data: Path):
    folder = shared_data / "detection" / "nuclei-dsb2018"
    maps, polygons = open_objects(folder / "val"), open_objects(folder).split("val")
    assert maps.num_objects == polygons.num_objects == 1260
    by_stem = {stem(sample): {tuple(box) for box in sample.boxes.tolist()} for sample in polygons}
    equal = sum(tuple(box) in by_stem[stem(sample)] for sample in maps for box in sample.boxes.tolist())
    # The polygons follow the largest piece of an object; the maps hold all of its pieces.
    assert equal == 1259


def test_a_set_is_divided_by_its_splits_or_held_back_by_content(tmp_path: Path):
    train, val = divide(open_objects("objects:n=14"))
    assert len(train) == 14 and val is not None and len(val) == 2 and isinstance(val, ObjectSource)
    alone = open_objects("objects:n=40,split=test")
    kept, held = hold_back(alone, 0.3)
    assert held is not None and len(kept) + len(held) == 40 and 3 < len(held) < 25
    assert not {sample.id for sample in kept} & {sample.id for sample in held}


def test_training_refuses_a_set_without_objects(tmp_path: Path):
    for stem_ in ("a", "b"):
        voc(tmp_path, "", stem=stem_)
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match="2 pictures and no object in any"):
        train_and_heldout_objects(ObjectData(path=str(tmp_path)))


def test_a_picture_of_another_size_than_stated_is_refused(tmp_path: Path):
    coco(tmp_path, [[1, 2, 3, 4]], size=(60, 40))
    with pytest.raises(DataError, match="the picture is 60 × 40 px, and its annotation was made for 40 × 60"):
        read_item(open_objects(tmp_path)[0])
