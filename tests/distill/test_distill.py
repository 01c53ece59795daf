"""Distillation as a method: any teacher, any loss, two stages, resume, and what is refused."""

import dataclasses
import json
import math

import pytest
import torch
from transformers import ResNetConfig as TheirConfig
from transformers import ResNetForImageClassification

from odonata.app.api import load, train
from odonata.backbones.create import create
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET
from odonata.distill.build import build, check_teacher, make_losses
from odonata.distill.distill import Distill, DistillConfig
from odonata.distill.losses import LOSSES
from odonata.distill.losses.interface import loss_class
from odonata.distill.recipes import distill
from odonata.distill.taps import TappedTower, read_taps, shapes_of
from odonata.distill.teacher import Teacher
from odonata.engine.checkpoint import weights_file
from odonata.engine.distributed import World
from odonata.engine.fit import Engine
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.represent.assets import TowerAssets
from odonata.represent.predictor import TowerPredictor
from odonata.weights.read import read_state

TINY = {"image_size": 16, "data__path": "digits:n=160,size=32", "data__batch_size": 16, "steps": 4,
        "teacher_steps": 2, "evaluation__pictures": 10, "num_negatives": 32, "log_every": 1}  # fmt: skip
CPU = torch.device("cpu")


def tower(name="resnet8", classes=10):
    made = create(name)
    made.reset_head(classes)
    return made


def method_of(student, teacher, *names, classes=10, size=16, **fields):
    """A method around two towers, without data."""
    config = DistillConfig(loss=names, image_size=size, **fields)
    student.eval()
    ours = shapes_of(lambda x: read_taps(student, x, "student"), "student", size, CPU)
    theirs = shapes_of(TappedTower(teacher, "teacher").eval(), "teacher", size, CPU)
    student.train()
    options = {"crd": {"labels": torch.arange(40) % 10, "num_negatives": 16}}
    losses = {name: loss_class(name)(ours, theirs, **options.get(name, {})) for name in names}
    return Distill(config, student, IMAGENET, classes, TappedTower(teacher, "teacher"), IMAGENET, losses)


def batch(rows=6, size=16):
    views = [torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8)]
    return ViewBatch(views, torch.arange(rows) % 10, torch.arange(rows))


@pytest.mark.shows("distill", "parity")
def test_kd_of_two_transformers_networks_gives_their_own_loss_and_gradients(tmp_path):
    """Hinton's loss on the logits of transformers' ResNets, against ours on the same weights, in float64."""
    torch.manual_seed(0)
    networks = []
    for widths in ((8, 16), (16, 32)):
        config = TheirConfig(embedding_size=8, hidden_sizes=widths, depths=[1, 1], layer_type="basic", num_labels=5)
        networks.append(ResNetForImageClassification(config))
        networks[-1].save_pretrained(tmp_path / str(widths[0]))
    student, teacher = (load(tmp_path / name).backbone.double() for name in ("8", "16"))
    method = method_of(student.float(), teacher.float(), "kd", classes=5, size=32).double().train()
    given = dataclasses.replace(batch(size=32), labels=torch.arange(6) % 5)
    images = (given.views[0].double() / 255 - method.mean) / method.std
    theirs_student, theirs_teacher = networks[0].double().train(), networks[1].double().eval()
    logits, soft = theirs_student(images).logits, theirs_teacher(images).logits.detach()
    softened = torch.nn.functional.kl_div((logits / 4).log_softmax(1), (soft / 4).softmax(1), reduction="batchmean")
    want = 0.1 * torch.nn.functional.cross_entropy(logits, given.labels) + 0.9 * 16 * softened
    want.backward()
    # `pixels` computes in float32, as it does in training; the reference gets the same pictures.
    method.pixels = lambda view: images
    method.teacher.forward = lambda x, f=method.teacher.forward: f(images)
    ours = method.loss(given)["loss"]
    ours.backward()
    assert float((ours - want) / want) == pytest.approx(0, abs=1e-6)
    reference = networks[0].resnet.embedder.embedder.convolution.weight.grad
    found = student.stem.convs[0].weight.grad
    assert (found - reference).norm() / reference.norm() < 1e-5


def test_taps_of_a_residual_network_are_its_stem_its_stages_and_what_precedes_their_activation():
    made = tower().eval()
    images = torch.randn(2, 3, 32, 32)
    taps = read_taps(made, images, "teacher")
    assert [tuple(m.shape[1:]) for m in taps.maps] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    for stage, map_ in enumerate(made.features(images, [0, 1, 2])):
        assert torch.equal(taps.maps[stage + 1], map_)
        assert torch.equal(taps.preactivations[stage].relu(), map_)
        assert (taps.preactivations[stage] < 0).any()
    assert torch.equal(taps.logits, made(images))


@pytest.mark.parametrize("name", ["vit-tiny4", "swin-tiny32", "convnext-tiny32", "efficientnet-small", "RN50"])
def test_any_tower_can_be_tapped(name):
    made = create(name, **({"image_size": 32} if name == "vit-tiny4" else {})).eval()
    with torch.no_grad():
        taps = read_taps(made, torch.randn(1, 3, 32, 32), name)
        last = made.features(torch.randn(1, 3, 32, 32), [-1], "nchw")[0]
    assert taps.maps[-1].shape == last.shape
    assert all(m.ndim == 4 for m in taps.maps)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_trains_the_student_and_leaves_the_teacher_alone(name):
    teacher = tower("resnet8" if name == "fsp" else "resnet14")
    method = method_of(tower(), teacher, name).train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    for step in (0, 5):  # the first stage, where there is one, and the main one
        method.begin_step(step, 8)
        method.loss(batch())["loss"].backward()
        method.after_backward()
    after = method.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("teacher."))
    assert all(p.grad is None for p in teacher.parameters())
    assert method.backbone.stages[0].layers[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "body"), [("ft", False), ("ab", True), ("fsp", True)])
def test_the_first_stage_trains_what_the_paper_trains_in_it(name, body):
    method = method_of(tower(), tower(), name, first_stage=0.5).train()
    method.begin_step(0, 10)
    out = method.loss(batch())
    out["loss"].backward()
    method.after_backward()
    assert f"first/{name}" in out and "cross_entropy" not in out
    assert (method.backbone.stages[0].layers[0].conv1.weight.grad is not None) == body
    assert method.backbone.head.weight.grad is None
    method.begin_step(5, 10)
    method.zero_grad()
    method.loss(batch())["loss"].backward()
    method.after_backward()
    assert method.backbone.head.weight.grad is not None
    if name == "ft":
        assert all(p.grad is None for p in method.losses["ft"].paraphraser.parameters())


def test_published_weights_of_the_parts():
    method = method_of(tower(), tower("resnet14"), "kd", "at")
    out = method.loss(batch())
    assert float(out["loss"]) == pytest.approx(
        float(0.1 * out["cross_entropy"] + 0.9 * out["kd"] + 1000 * out["at"]), rel=1e-5
    )
    alone = method_of(tower(), tower("resnet14")).loss(batch())
    assert float(alone["loss"]) == pytest.approx(float(alone["cross_entropy"]), rel=1e-6)


@pytest.mark.shows("distill", "trains")
@pytest.mark.slow
def test_a_student_follows_its_teacher_on_eight_pictures():
    """Without labels' share, what is learned comes from the teacher: its own answer is reached."""
    torch.manual_seed(0)
    teacher = tower("resnet14").eval()
    for module in teacher.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(40)  # so that its answers differ
    method = method_of(tower(), teacher, "kd", ce_weight=0.0).train()
    given = batch(8)
    optimizer = torch.optim.SGD(method.backbone.parameters(), 0.05, momentum=0.9)
    first = None
    for _ in range(120):
        loss = method.loss(given)["loss"]
        first = first or float(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < first / 20
    with torch.no_grad():
        images = method.pixels(given.views[0])
        agree = method.backbone(images).argmax(1) == teacher(images).argmax(1)
    assert agree.all()


@pytest.mark.shows("distill", "trains")
@pytest.mark.slow
def test_a_run_learns_the_embedded_digits_and_is_used_like_any_tower(tmp_path):
    folder = train("distill", out=str(tmp_path / "run"), steps=300, image_size=32, loss=("kd",), teacher_steps=200,
                   data__path="digits:n=2000,size=32")  # fmt: skip
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    accuracy = [row["accuracy"] for row in rows if "feature_rank" in row][-1]
    assert accuracy > 0.3  # three times chance
    model = load(folder)
    assert isinstance(model, TowerPredictor) and model.classes == tuple("0123456789")
    said = model.predict(torch.zeros(3, 32, 32, dtype=torch.uint8))[0]
    assert math.fsum(said.probabilities.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.shows("distill", "weights")
def test_the_student_leaves_in_a_published_layout_and_comes_back(tmp_path):
    folder = train("distill", out=str(tmp_path / "run"), loss=("crd", "kd"), backbone="resnet8x4", **TINY)
    model = load(folder)
    model.convert(tmp_path / "out", "torchvision")
    back = load(tmp_path / "out")
    assert back.classifies and len(back.notes) > 1
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(back.backbone(images), model.backbone(images))
    state = read_state(tmp_path / "out" / "model.safetensors").state
    assert state["fc.weight"].shape == (10, 256) and "layer3.0.downsample.0.weight" in state


@pytest.mark.parametrize("names", [("crd",), ("ft",)])
def test_a_resumed_run_is_bit_equal_banks_and_all(tmp_path, names):
    fields = TINY | {"loss": names, "first_stage": 0.5, "save_every": 2}
    whole = train("distill", out=str(tmp_path / "whole"), **fields)

    class Killed(Exception):
        pass

    recipe = dataclasses.replace(distill(), out=str(tmp_path / "cut"))
    from odonata.app.api import recipe as with_fields
    from odonata.app.api import train_recipe

    recipe = with_fields("distill", out=str(tmp_path / "cut"), **fields)
    saved, step = Engine._save_if_due, []

    def stop(self, figures, bar):
        ended = saved(self, figures, bar)
        step.append(self.step)
        if self.step == 3:
            raise Killed
        return ended

    Engine._save_if_due = stop
    try:
        with pytest.raises(Killed):
            train_recipe(recipe)
    finally:
        Engine._save_if_due = saved
    train_recipe(recipe, resume_from=tmp_path / "cut")
    first, second = (read_state(weights_file(folder, "last")).state for folder in (whole, tmp_path / "cut"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.shows("distill", "manners")
def test_what_does_not_fit_is_refused_with_both_sides_shapes(tmp_path):
    with pytest.raises(RecipeError, match=r"fsp needs .* equal channels: student .*16×.* against teacher"):
        method_of(tower(), tower("resnet8x4"), "fsp")
    with pytest.raises(RecipeError, match="kd compares logits: student has 10 classes and teacher 7"):
        method_of(tower(), tower(classes=7), "kd")
    with pytest.raises(WeightsError, match=r"--teacher .*nowhere: no such run folder or weights"):
        train("distill", out=str(tmp_path / "a"), **(TINY | {"teacher": str(tmp_path / "nowhere")}))
    with pytest.raises(RecipeError, match="--loss names one loss twice: kd kd"):
        train("distill", out=str(tmp_path / "b"), **(TINY | {"loss": ("kd", "kd")}))
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for number in range(4):
        from PIL import Image

        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "one" / "cat" / f"{number}.png")
    with pytest.raises(DataError, match="one class only"):
        train("distill", out=str(tmp_path / "c"), **(TINY | {"data__path": str(tmp_path / "one")}))
    assert not list(tmp_path.glob("[abc]"))


@pytest.mark.shows("distill", "manners")
def test_a_teacher_that_knows_nothing_of_the_pictures_is_noticed():
    recipe = dataclasses.replace(distill(), data=dataclasses.replace(distill().data, path="digits:n=80,size=32"))
    task = build(dataclasses.replace(recipe, method=DistillConfig(image_size=16, teacher_steps=1)))
    assert any("held-back pictures right" in note for note in task.notes)
    assets = TowerAssets(create("resnet8").config, IMAGENET, ("cat", "dog"))
    strange = Teacher(TappedTower(tower(classes=2), "teacher"), IMAGENET, ("ant", "bee"), {}, [])
    assert "matched by number" in check_teacher(strange, None, assets, 10)[0]
    turned = dataclasses.replace(strange, classes=("dog", "cat"))
    with pytest.raises(RecipeError, match=r"same classes in another order: dog, cat .* against cat, dog"):
        check_teacher(turned, None, assets, 10)


def test_crd_keeps_one_embedding_for_each_training_picture():
    from odonata.data.pictures import PictureData, train_and_heldout_pictures

    pictures, _ = train_and_heldout_pictures(PictureData(path="digits:n=80,size=32"))
    teacher = Teacher(TappedTower(tower(), "teacher"), IMAGENET, (), {}, [])
    found = make_losses(DistillConfig(loss=("crd",), image_size=16, num_negatives=8), tower(), teacher, pictures, 0)
    assert found["crd"].student_bank.shape == (80, 128)


def test_a_model_of_pictures_and_words_teaches_by_the_names_of_the_classes(tmp_path):
    words = train("clip", out=str(tmp_path / "clip"), steps=2, image_size=32, data__path="scenes:n=48,size=32",
                  data__batch_size=8, evaluation__pairs=0, evaluation__zeroshot="none")  # fmt: skip
    fields = TINY | {"image_size": 32, "teacher": str(words), "loss": ("kd",), "steps": 1}
    folder = train("distill", out=str(tmp_path / "run"), **fields)
    assert json.loads((folder / "assets" / "teacher.json").read_text()) == {"words": str(words)}
    assert "kd" in (folder / "log.jsonl").read_text()
    with pytest.raises(RecipeError, match="this loss compares stages, and teacher"):
        train("distill", out=str(tmp_path / "at"), **(fields | {"loss": ("at",)}))


def test_the_side_of_the_pictures_is_the_students_own_where_none_is_given():
    recipe = distill()
    data = dataclasses.replace(recipe.data, path="digits:n=80,size=32")
    task = build(dataclasses.replace(recipe, data=data, method=DistillConfig(teacher_steps=1, lr_per=64)))
    assert task.recipe.method.image_size == 32
    assert next(task.batches.start()).views[0].shape == (64, 3, 32, 32)


def test_several_ranks_need_every_parameter_in_every_step():
    """Parameters that a stage leaves out get a gradient of zero before they are set aside: DDP waits for each."""
    method = method_of(tower(), tower(), "ft").train()
    method.begin_step(0, 100)
    method.loss(batch())["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert World(0, 1, CPU).leads
