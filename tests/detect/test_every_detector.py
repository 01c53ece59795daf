"""What every detector must bear: pictures of odd sizes, without objects, with ignored ones only; a run that was cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odonata.data.item import Item
from odonata.data.object_batches import read_item, to_batch
from odonata.data.object_scenes import CATEGORIES, ObjectScenes
from odonata.data.object_transforms import FrameItem
from odonata.data.objects import ObjectSource
from odonata.detect import METHODS
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import with_preset
from odonata.detect.methods import CONFIG_OF, METHOD_OF
from odonata.detect.predictor import DetectorPredictor
from odonata.detect.recipes import by_name
from odonata.errors import DataError

NAMES = tuple(METHODS)


def known() -> ObjectSource:
    scenes = ObjectScenes(40)
    return ObjectSource([scenes.sample(i) for i in range(40)], CATEGORIES, "objects", kind="objects")


def model(name: str) -> DetectorPredictor:
    config = CONFIG_OF[name]().fitted(known())
    assets = DetectorAssets(name, config, CATEGORIES[:1] if name == "mtcnn" else CATEGORIES)
    torch.manual_seed(0)
    return DetectorPredictor(assets.build().eval(), assets, torch.device("cpu"))


def test_the_index_the_recipes_and_the_classes_name_the_same_methods():
    assert set(NAMES) == set(CONFIG_OF) and set(CONFIG_OF.values()) == set(METHOD_OF)
    for name in NAMES:
        recipe = by_name(name)
        assert recipe.name == name and type(recipe.method) is CONFIG_OF[name]


@pytest.mark.parametrize("name", NAMES)
def test_pictures_of_any_size_are_answered_or_refused_by_name(name):
    detector = model(name)
    for height, width in ((1, 40), (5, 5), (30, 3000), (60, 20_000)):
        picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        try:
            found = detector.predict(picture)
        except DataError as error:
            assert "cut it into tiles" in str(error)
            assert width == 20_000
            continue
        assert found.boxes.isfinite().all() and found.size == (height, width)
        assert (found.boxes[:, 2] <= width).all() and (found.boxes >= 0).all()
        assert (found.scores[:-1] >= found.scores[1:]).all(), "the surest first"


@pytest.mark.parametrize("name", NAMES)
def test_pictures_without_objects_and_with_ignored_ones_only_give_a_finite_step(name):
    detector = model(name).detector.train()
    frame = FrameItem(detector.options.framing)
    item = read_item(ObjectScenes(1).sample(0), detector.needs_masks)
    assert item.labels is not None and item.boxes is not None
    item = replace(item, labels=item.labels % detector.num_classes)
    empty = Item(item.image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64),
                 masks=torch.zeros(0, *item.height_width, dtype=torch.bool))  # fmt: skip
    crowd = replace(item, ignore=torch.ones(len(item.boxes), dtype=torch.bool))
    for items in ([empty, empty], [crowd, empty], [item, empty]):
        batch = to_batch([frame(one, torch.Generator()) for one in items], detector.options.framing.divisor)
        detector.zero_grad()
        losses = detector.loss(batch)
        assert all(value.isfinite() for value in losses.values()), losses
        if losses["loss"].requires_grad:
            losses["loss"].backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_method_comes_back_from_its_description(name, tmp_path):
    assets = model(name).assets
    assets.save(tmp_path)
    assert DetectorAssets.load(tmp_path) == assets


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_can_be_built(name):
    for preset in CONFIG_OF[name].presets:
        config = with_preset(CONFIG_OF[name](preset=preset))
        config = config.fitted(known())
        with torch.device("meta"):
            built = METHOD_OF[type(config)](replace(config, freeze=0), 1 if name == "mtcnn" else 10)
        assert sum(p.numel() for p in built.parameters()) > 100_000, preset


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos", "faster-rcnn", "yolo-v2"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_cut(name, tmp_path):
    from odonata.app.api import recipe, train_recipe
    from odonata.engine.checkpoint import latest_step, weights_file
    from odonata.weights.read import read_state

    fields = {"data__path": "objects:n=24,size=64,sides=8-32", "data__batch_size": 4, "steps": 4, "save_every": 2,
              "evaluation__pictures": 0, "data__augment": "mosaic", "device": "cpu"}  # fmt: skip
    chosen = recipe(name, **fields, framing__size=64, framing__max_size=96)
    whole = train_recipe(replace(chosen, out=str(tmp_path / "whole")))
    part = train_recipe(replace(chosen, steps=4, out=str(tmp_path / "part")))
    import shutil

    for checkpoint in (part / "checkpoints").iterdir():
        if "4" in checkpoint.name:
            shutil.rmtree(checkpoint) if checkpoint.is_dir() else checkpoint.unlink()
    assert latest_step(part / "checkpoints") == 2
    train_recipe(replace(chosen, out=str(part)), resume_from=part)
    one, other = (read_state(weights_file(run, "last")).state for run in (whole, part))
    assert all(torch.equal(one[key], other[key]) for key in one)
