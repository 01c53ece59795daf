"""From a recipe to a task: what is derived, what is begun from, what is said, and what is refused."""

import dataclasses

import pytest
import torch
from PIL import Image

from odonata.engine.config_file import from_plain, read_recipe_name
from odonata.engine.fit import train
from odonata.errors import DataError, RecipeError
from odonata.represent.build import build, effective
from odonata.represent.recipes import by_name
from represent.originals import official_state
from represent.short_runs import WORLD, short

DIGITS = "scenes-digits:n=60,size=32"


def quiet(recipe):
    return dataclasses.replace(recipe, evaluation=dataclasses.replace(recipe.evaluation, pictures=0))


def begin(recipe, assets=None):
    torch.manual_seed(recipe.seed)
    return build(recipe, assets)


def pictures(folder, count, size=40):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (size, size), (number * 20 % 256, 100, 200)).save(folder / f"{number}.png")


def test_the_rate_is_scaled_to_the_batch_and_epochs_become_steps():
    recipe = short("moco-v2", DIGITS, steps=1, batch=8, method={"epochs": 3.0})
    resolved, lines = effective(recipe, 60)
    assert resolved.optim.lr == pytest.approx(0.24 * 8 / 256)
    assert resolved.steps == 3 * (60 // 8)
    assert "effective learning rate 0.24 × 8 / 256 = 0.0075" in lines[1]
    again, _ = effective(resolved, 60)
    assert (again.optim.lr, again.steps) == (resolved.optim.lr, resolved.steps)
    moby, _ = effective(short("moby", DIGITS, steps=1, batch=8), 60)
    assert moby.optim.lr == pytest.approx(by_name("moby").optim.lr * 8 / 512)


def test_the_runs_config_holds_the_resolved_values_and_a_resumed_run_scales_nothing_twice(tmp_path):
    task = begin(quiet(short("moco-v2", DIGITS, steps=1, batch=8, method={"epochs": 1.0})))
    train(task.recipe, task, tmp_path / "run", WORLD)
    name, plain = read_recipe_name(tmp_path / "run/config.yaml")
    kept = from_plain(plain, by_name(name), "config.yaml")
    assert kept.steps == 60 // 8
    assert kept.optim.lr == pytest.approx(0.24 * 8 / 256)
    assert begin(kept, tmp_path / "run/assets").recipe.optim.lr == kept.optim.lr


def warmed_up(task, steps):
    """Train and return copies of the tower and the heads at each step."""
    seen = []
    method, after = task.method, task.method.after_update

    def note():
        after()
        seen.append(({k: p.detach().clone() for k, p in method.backbone.named_parameters()},
                     {k: p.detach().clone() for k, p in method.projector.named_parameters()}))  # fmt: skip

    method.after_update = note
    train(task.recipe, task, None, WORLD)
    assert len(seen) == steps
    return seen


def test_a_tower_that_begins_at_a_run_rests_while_heads_warm_up(tmp_path):
    first = begin(quiet(short("moco-v2", DIGITS, steps=2, batch=8)))
    train(first.recipe, first, tmp_path / "run", WORLD)
    recipe = quiet(
        short("moco-v2", DIGITS, steps=10, batch=8, method={"init": str(tmp_path / "run"), "head_warmup": 0.3})
    )
    task = begin(recipe)
    start = {k: p.detach().clone() for k, p in task.method.backbone.named_parameters()}
    assert all(torch.equal(p, first.method.backbone.state_dict()[k]) for k, p in start.items())
    assert any("heads start anew" in note for note in task.notes)
    assert task.recipe.optim.lr_scales == {"backbone.": 0.1}
    seen = warmed_up(task, 10)
    for tower, _ in seen[:3]:
        assert all(torch.equal(tower[k], start[k]) for k in start)
    heads = [heads for _, heads in seen]
    assert all(not torch.equal(heads[i]["0.weight"], heads[i + 1]["0.weight"]) for i in range(3))
    assert not torch.equal(seen[3][0]["stem.convs.0.weight"], start["stem.convs.0.weight"])


def test_a_tower_begins_at_published_weights_with_their_projector(tmp_path):
    path = tmp_path / "moco_v2.pth.tar"
    torch.save({"state_dict": {f"module.{k}": v for k, v in official_state("v2").items()}}, path)
    config = {"init": str(path), "backbone": "resnet18", "mlp": True, "dim": 16}
    task = begin(quiet(short("moco-v2", DIGITS, steps=2, batch=8, method=config)))
    assert torch.equal(task.method.backbone.stem.convs[0].weight, official_state("v2")["encoder_q.conv1.weight"])
    assert torch.equal(task.method.slow_projector[0].weight, official_state("v2")["encoder_q.fc.0.weight"])
    with pytest.raises(RecipeError, match="do not fit --backbone resnet34"):
        begin(quiet(short("moco-v2", DIGITS, steps=2, batch=8, method=config | {"backbone": "resnet34"})))


def test_weights_of_a_run_with_another_tower_are_refused(tmp_path):
    first = begin(quiet(short("moco-v2", DIGITS, steps=1, batch=8)))
    train(first.recipe, first, tmp_path / "run", WORLD)
    other = {"init": str(tmp_path / "run"), "backbone": "resnet14"}
    with pytest.raises(RecipeError, match="do not fit --backbone resnet14"):
        begin(quiet(short("moco-v2", DIGITS, steps=1, batch=8, method=other)))


def test_labels_and_small_pictures_are_said_once():
    task = begin(short("moco-v2", DIGITS, steps=1, batch=8, method={"image_size": 48}))
    assert sum("not used for training" in note for note in task.notes) == 1
    assert sum("smaller than --image-size 48" in note for note in task.notes) == 1


def test_pictures_at_any_depth_need_no_captions(tmp_path):
    pictures(tmp_path, 4)
    pictures(tmp_path / "a/b", 6)
    task = begin(short("moco-v2", tmp_path, steps=1, batch=4))
    assert task.notes[0].startswith("data: ")
    assert len(task.batches.dataset) + task.notes[0].count("none held back") >= 8


@pytest.mark.shows("moco-v3", "manners")
@pytest.mark.shows("moby", "manners")
@pytest.mark.parametrize("name", ["moco-v2", "moco-v3", "moby", "classify"])
def test_too_few_pictures_are_refused(tmp_path, name):
    pictures(tmp_path / "one", 1)
    with pytest.raises(DataError, match="one picture only"):
        begin(short(name, tmp_path / "one", steps=1))
    pictures(tmp_path / "few/a", 6)
    pictures(tmp_path / "few/b", 6)
    with pytest.raises(DataError, match="batch size 64 is larger than the data set"):
        begin(short(name, tmp_path / "few", steps=1))


def test_a_classifier_of_one_class_is_refused(tmp_path):
    pictures(tmp_path / "cat", 12)
    with pytest.raises(DataError, match="two or more"):
        begin(short("classify", tmp_path, steps=1, batch=2))


def test_a_broken_picture_is_named_or_left_out(tmp_path):
    pictures(tmp_path, 12)
    for number in range(12, 15):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"1[234]\.png"):
        task = begin(short("moco-v2", tmp_path, steps=8, batch=4))
        train(task.recipe, task, None, WORLD)
    task = begin(short("moco-v2", tmp_path, steps=4, batch=4, data={"on_error": "skip"}))
    train(task.recipe, task, None, WORLD)


def test_stochastic_depth_is_refused_where_there_is_none():
    with pytest.raises(RecipeError, match="no stochastic depth"):
        begin(short("moby", DIGITS, steps=1, method={"drop_path": 0.2}))
