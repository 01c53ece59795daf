"""From recipes to training: rates, stages, initial weights, augmentation; and that all four methods learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odonata.backbones.create import create
from odonata.backbones.pretrained import published_files
from odonata.data.framing import Framing
from odonata.data.item import Item
from odonata.data.keys import keyed_generator
from odonata.data.preprocess import IMAGENET
from odonata.data.semantic import voc_palette
from odonata.data.semantic_batches import SemanticBatch, SemanticData
from odonata.engine.param_groups import build_optimizer
from odonata.engine.recipe import SGD
from odonata.errors import RecipeError, WeightsError
from odonata.segment import recipes
from odonata.segment.assets import SegmenterAssets
from odonata.segment.augmentation import ScaleAndCrop, training_transform
from odonata.segment.build import build, rate_scales, start_from
from odonata.segment.fcn import FCN, FCN8sConfig, FCN16sConfig, FCN32sConfig
from odonata.segment.predictor import SegmenterPredictor
from odonata.segment.pspnet import PSPNet, PSPNetConfig
from odonata.weights.published import write_folder

SMALL = SemanticData(path="objects:n=24,size=32,sides=8-32", batch_size=4)
RECIPES = {"fcn-32s": recipes.fcn_32s, "fcn-16s": recipes.fcn_16s, "fcn-8s": recipes.fcn_8s, "pspnet": recipes.pspnet}


def recipe(name: str, **method):
    made = RECIPES[name]()
    return replace(made, data=SMALL, method=replace(made.method, **method), steps=2)


def quadrants() -> SemanticBatch:
    """Eight pictures of four plain quadrants, whose colour is their class."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, 3, (8, 2, 2), generator=generator)
    maps = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
    images = (torch.nn.functional.one_hot(maps, 3).permute(0, 3, 1, 2) * 200).to(torch.uint8)
    return SemanticBatch(images, maps, torch.tensor([[64, 64]] * 8), torch.arange(8))


@pytest.mark.shows("fcn-32s", "trains")
@pytest.mark.shows("fcn-16s", "trains")
@pytest.mark.shows("fcn-8s", "trains")
@pytest.mark.shows("pspnet", "trains")
@pytest.mark.parametrize("name", list(RECIPES))
def test_eight_pictures_are_learned_by_heart(name):
    """30 steps; a guess by the commonest class is right for 40 % of the pixels."""
    torch.manual_seed(0)
    made, batch = RECIPES[name](), quadrants()
    method = SegmenterAssets(name, made.method, ("r", "g", "b"), voc_palette(3)).build().train()
    optimizer = build_optimizer(method, made.optim)
    first = method.loss(batch)["main"].item()
    for _ in range(30):
        losses = method.loss(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    right = (method.predict(batch).argmax(1) == batch.maps).float().mean().item()
    assert losses["main"].item() < 0.25 * first and right > 0.93
    assert losses["pixel_accuracy"].item() > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn-8s", "pspnet"])
def test_digits_are_found_in_the_embedded_set(name):
    """60 steps on 100 pictures of 64 pixels; the ground alone, at 11 classes, would be 8 to 9 % mIoU."""
    from odonata.segment.evaluation import Evaluator, SegmentEvaluation

    torch.manual_seed(0)
    made = replace(RECIPES[name](), data=SemanticData(path="objects:n=100,size=64,sides=24-48", batch_size=8))
    task = build(made)
    optimizer = build_optimizer(task.method, made.optim)
    batches = task.batches.start()
    first = None
    for _ in range(60):
        losses = task.method.loss(next(batches))
        first = first or losses["loss"].item()
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    evaluator = task.evaluate.__self__
    assert isinstance(evaluator, Evaluator) and isinstance(made.evaluation, SegmentEvaluation)
    figures = evaluator.measure(task.method.eval())
    assert losses["loss"].item() < 0.6 * first and figures["pixel_accuracy"] > 0.8


@pytest.mark.parametrize("name", list(RECIPES))
def test_two_steps_of_the_recipe_go_through_and_are_the_same_twice(name):
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        task = build(recipe(name))
        batches = task.batches.start()
        seen.append([task.method.loss(next(batches))["loss"].item() for _ in range(2)])
    assert seen[0] == seen[1] and task.goal == "mIoU"
    assert "effective length: 2 steps" in task.notes[-1] and "11 classes: background, 0, 1" in task.notes[1]


def test_the_presets_rates_reach_the_optimiser():
    """PSPNet: heads at ten times the rate. FCN: biases at twice the rate, none of them decays."""
    config = PSPNetConfig(head_lr=10.0)
    groups = build_optimizer(PSPNet(config, 3), SGD(lr=0.01, lr_scales=rate_scales(config))).param_groups
    rates = {name: group["lr"] for group in groups for name in group["names"]}
    assert rates["network.head.conv.weight"] == rates["network.pooling.norms.0.weight"] == pytest.approx(0.1)
    assert rates["network.auxiliary.logits.bias"] == pytest.approx(0.1)
    assert all(rate == 0.01 for name, rate in rates.items() if name.startswith("network.backbone."))
    config = FCN8sConfig(bias_lr=2.0, head_lr=3.0)
    groups = build_optimizer(FCN(config, 3), SGD(lr=1.0, lr_scales=rate_scales(config))).param_groups
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found["network.backbone.stages.0.layers.0.conv.bias"] == (2.0, 0.0)
    assert found["network.backbone.stages.0.layers.0.conv.weight"] == (1.0, 1e-4)
    assert found["network.score.bias"] == (6.0, 0.0) and found["network.score.weight"][0] == 3.0


def saved(config, name, folder, classes=("a", "b", "c")):
    """A segmenter with random scores, as a folder of weights."""
    assets = SegmenterAssets(name, config, classes, voc_palette(len(classes)))
    segmenter = assets.build()
    with torch.no_grad():
        for parameter in segmenter.parameters():
            if not parameter.any():
                parameter.normal_()
    SegmenterPredictor(segmenter, assets, torch.device("cpu")).convert(folder, "odonata")
    return segmenter


@pytest.mark.parametrize(("before", "after"), [(FCN32sConfig, FCN16sConfig), (FCN16sConfig, FCN8sConfig)])
def test_a_finer_fcn_begins_where_the_coarser_one_ended(before, after, tmp_path):
    """The new scores begin at zero, so the first answer is the coarser network's, enlarged in two steps."""
    name = f"fcn-{before.stride}s"
    old = saved(before(), name, tmp_path / "old").eval()
    config = after(init=str(tmp_path / "old"))
    method = FCN(config, 3).eval()
    notes = start_from(method, config, ("a", "b", "c"))
    assert "init: anew: network.skip_scores." in notes[1]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        coarse, fine = old.dense(image), method.dense(image)
    # Interpolated in two steps instead of one: the same in the middle of cells, slightly different between them.
    assert torch.corrcoef(torch.stack([coarse.flatten(), fine.flatten()]))[0, 1] > 0.98


def test_scores_of_other_classes_are_not_taken(tmp_path):
    old = saved(PSPNetConfig(), "pspnet", tmp_path / "old")
    config = PSPNetConfig(init=str(tmp_path / "old"))
    method = PSPNet(config, 3)
    start_from(method, config, ("x", "y", "z"))
    ours, theirs = method.state_dict(), old.state_dict()
    assert torch.equal(ours["network.head.conv.weight"], theirs["network.head.conv.weight"])
    assert not torch.equal(ours["network.head.logits.weight"], theirs["network.head.logits.weight"])


def test_a_classifiers_dense_layers_become_convolutions(tmp_path):
    narrow = "widths=[4,8,8,16,16],fc_width=24"
    dense = create(f"vgg16:{narrow}")
    dense.reset_head(10)
    write_folder(tmp_path / "vgg", published_files(dense, "torchvision", IMAGENET))
    config = FCN32sConfig(backbone=f"vgg16-fcn:{narrow}", init=str(tmp_path / "vgg"))
    method = FCN(config, 3)
    notes = start_from(method, config, ("a", "b", "c"))
    assert notes[0].startswith("init: 30 of 30 tensors")
    fc6 = dense.state_dict()["fc6.weight"].view(24, 16, 7, 7)
    assert torch.equal(method.tower.state_dict()["fc6.weight"], fc6)
    other = replace(config, framing=Framing(resize="keep", divisor=1, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(RecipeError, match=r"set --framing\.mean and --framing\.std"):
        start_from(FCN(other, 3), other, ("a", "b", "c"))


@pytest.mark.shows("pspnet", "manners")
def test_settings_that_cannot_learn_are_refused_before_training(tmp_path):
    one = replace(recipe("pspnet"), data=replace(SMALL, batch_size=1))
    with pytest.raises(RecipeError, match=r"--data\.batch-size is 1 .* or --norm group"):
        build(one)
    assert build(replace(one, method=replace(one.method, norm="group"))).batch_size == 1
    with pytest.raises(RecipeError, match="--preset 'mmseg' is unknown; there are semseg-r50"):
        build(recipe("pspnet", preset="mmseg"))
    with pytest.raises(WeightsError, match="no such run folder or weights"):
        build(recipe("fcn-8s", init=str(tmp_path / "nothing")))
    with pytest.raises(WeightsError, match=r"none of its \d+ tensors fits"):
        saved(PSPNetConfig(), "pspnet", tmp_path / "other")
        build(recipe("fcn-8s", init=str(tmp_path / "other")))


def half_and_half(height: int = 40, width: int = 60) -> Item:
    image, classes = torch.zeros(3, height, width, dtype=torch.uint8), torch.zeros(height, width, dtype=torch.uint8)
    image[:, :, width // 2 :], classes[:, width // 2 :] = 255, 1
    return Item(image, classes=classes)


def test_maps_move_with_their_pictures():
    transform = training_transform(PSPNetConfig(scale=(0.5, 2.0), crop=33, rotate=10.0), SemanticData())
    for number in range(12):
        item = transform(half_and_half(), keyed_generator(0, 0, number))
        assert max(item.height_width) <= 33 and item.classes is not None
        said = item.classes != 255
        agree = (item.image[0] > 127) == (item.classes == 1)
        assert agree[said].float().mean() > 0.9


def test_crops_are_of_the_scaled_picture_and_never_larger():
    for factor, crop, wanted in ((2.0, 33, (33, 33)), (0.5, 33, (20, 30)), (1.5, 0, (40, 60)), (0.5, 0, (20, 30))):
        item = ScaleAndCrop(Framing(resize="keep", divisor=1), (factor, factor), crop)(
            half_and_half(), keyed_generator(0, 0, 1)
        )
        assert item.height_width == wanted


def test_batches_of_crops_have_the_crops_size_and_void_beyond_the_picture():
    task = build(recipe("pspnet", crop=41))
    batch = next(task.batches.start())
    assert batch.images.shape[-2:] == (41, 41)
    for size, classes in zip(batch.sizes.tolist(), batch.maps, strict=True):
        assert (classes[size[0] :] == 255).all() and (classes[:, size[1] :] == 255).all()
