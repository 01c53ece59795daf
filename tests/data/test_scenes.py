"""The embedded pictures are what their captions say, and the same whenever they are made."""

import pickle
import re
import time

import numpy as np
import pytest

from odonata.data.scene_captions import COLOURS, DIGIT_WORDS
from odonata.data.scenes import PALETTE, TEMPLATES, Scene, Scenes, class_names, exemplars, load_digits, zeroshot_set

DIGIT = r"(\d|" + "|".join(DIGIT_WORDS) + ")"
NAME = rf"an? (?:small |large )?({'|'.join(COLOURS)}) {DIGIT}"


def digit(text: str) -> int:
    return int(text) if text.isdigit() else DIGIT_WORDS.index(text)


def centre(scene: Scene, number: int) -> tuple[float, float]:
    rows, columns = np.nonzero(scene.masks[number])
    return (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2


def nearest_colour(scene: Scene, number: int) -> str:
    mean = scene.image[scene.masks[number]].mean(0)
    return min(PALETTE, key=lambda name: float(np.abs(mean - PALETTE[name]).sum()))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return Scenes(300, "val", seed=3, objects=(1, 4))[:]


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits as oracle

    images, labels = load_digits()
    assert np.array_equal(images, oracle().images) and np.array_equal(labels, oracle().target)


def test_no_exemplar_is_shared_between_splits():
    groups = [{number for numbers in exemplars(split) for number in numbers} for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 1797


def test_boxes_are_tight_around_masks_and_masks_apart(scenes: list[Scene]):
    for scene in scenes:
        assert scene.masks.sum(0).max() <= 1
        for number, box in enumerate(scene.boxes):
            rows, columns = np.nonzero(scene.masks[number])
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_the_colours_are_those_painted(scenes: list[Scene]):
    wrong = [
        (name, nearest_colour(scene, number))
        for scene in scenes
        for number, name in enumerate(scene.colours)
        if nearest_colour(scene, number) != name
    ]
    assert not wrong


def test_captions_name_exactly_what_is_there(scenes: list[Scene]):
    for scene in scenes:
        there = set(zip(scene.colours, scene.digits.tolist(), strict=True))
        assert len(there) == len(scene.digits)
        for caption in scene.captions:
            named = {(colour, digit(number)) for colour, number in re.findall(NAME, caption)}
            assert named and named <= there, caption
            if not re.search("above|below|left of|right of", caption):
                assert named == there, caption


def test_relations_in_captions_hold_in_the_masks(scenes: list[Scene]):
    seen = set()
    for scene in scenes:
        names = [(colour, number) for colour, number in zip(scene.colours, scene.digits.tolist(), strict=True)]
        for caption in scene.captions:
            match = re.fullmatch(rf"{NAME}(?: is)? (above|below|to the left of|to the right of) {NAME}", caption)
            if match is None:
                assert not re.search("above|below|left of|right of", caption)
                continue
            a, b = names.index((match[1], digit(match[2]))), names.index((match[4], digit(match[5])))
            (ax, ay), (bx, by) = centre(scene, a), centre(scene, b)
            holds = {"above": ay < by, "below": ay > by, "to the left of": ax < bx, "to the right of": ax > bx}
            assert holds[match[3]], caption
            seen.add(match[3])
    assert len(seen) == 4


def test_sizes_and_places_in_captions_hold(scenes: list[Scene]):
    seen = set()
    for scene in scenes:
        x, y = (value / 64 for value in centre(scene, 0))
        height = float(scene.boxes[0, 3] - scene.boxes[0, 1]) / 64
        for caption in scene.captions if len(scene.digits) == 1 else ():
            assert "small" not in caption or height < 0.28
            assert "large" not in caption or height > 0.45
            for word, holds in (("left", x < 0.5), ("right", x > 0.5), ("top", y < 0.5), ("bottom", y > 0.5)):
                assert word not in caption or holds, caption
                seen |= {word} if word in caption else set()
    assert len(seen) == 4


def test_relations_come_in_both_directions(scenes: list[Scene]):
    opposite = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    for scene in scenes:
        said = {(r.subject, r.predicate, r.object) for r in scene.relations}
        assert said == {(b, opposite[predicate], a) for a, predicate, b in said}
        assert len(scene.digits) != 2 or len(said) == 2


def test_a_picture_depends_on_seed_split_and_number_alone():
    a, b = Scenes(50, seed=1), Scenes(500, seed=1)
    assert np.array_equal(a[7].image, b[7].image) and a[7].captions == b[7].captions
    assert np.array_equal(a.pixels(7), a[7].image)
    assert not np.array_equal(a[7].image, Scenes(50, seed=2)[7].image)
    assert not np.array_equal(a[7].image, Scenes(50, "test", seed=1)[7].image)
    assert np.array_equal(a[-1].image, a[49].image)
    with pytest.raises(IndexError):
        a[50]


def test_the_source_paints_on_demand_and_travels_to_workers():
    scenes = Scenes(20, size=48)
    source = pickle.loads(pickle.dumps(scenes.as_source()))
    assert np.array_equal(source[3].image.tensor().permute(1, 2, 0).numpy(), scenes[3].image)
    assert source[3].captions == scenes[3].captions
    assert source.fingerprint() == scenes.as_source().fingerprint()


def test_zero_shot_classes_are_balanced_and_true():
    source = zeroshot_set(160)
    names = class_names()
    assert len(names) == 80 and names[60] == "an orange 0"
    for sample in source:
        assert sample.label is not None and names[sample.label] in sample.captions
        assert (COLOURS.index(sample.extra["colours"][0]) * 10 + sample.extra["digits"][0]) == sample.label
    assert {template.format(names[3]) for template in TEMPLATES} >= {"a red 3", "a picture of a red 3"}


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="split 'dev' is unknown; known: train, val, test"):
        Scenes(3, "dev")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 to 4 objects"):
        Scenes(3, objects=(2, 9))


@pytest.mark.slow
def test_two_thousand_pictures_take_about_a_second():
    scenes = Scenes(2000)
    scenes[0]
    start = time.process_time()
    for index in range(500):
        scenes[index]
    # Half the rate of an idle machine: the machines of tests are shared.
    assert (time.process_time() - start) / 500 < 1 / 1000
