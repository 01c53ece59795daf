"""Classification: loss and gradients by transformers' own, mixing, freezing, learning, and published networks."""

import dataclasses
import math

import pytest
import torch
from PIL import Image

from odonata.app import api
from odonata.backbones.create import create
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.data.pictures import ViewBatch
from odonata.data.preprocess import IMAGENET
from odonata.engine.fit import train
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.represent.build import build
from odonata.represent.classify import Classify, ClassifyConfig, mix_pairs
from odonata.represent.predictor import load
from odonata.weights.published import write_folder
from represent.short_runs import WORLD, short


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.shows("classify", "parity")
@pytest.mark.shows("classify", "weights")
def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tower = create("resnet18", widths=(8, 16, 32, 64), stem_width=8)
    method = Classify(ClassifyConfig(backbone="resnet18"), tower, IMAGENET, 5).train()
    torch.nn.init.normal_(tower.head.weight)
    write_folder(tmp_path / "hf", published_files(tower, "hf"))
    peer = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "hf").double().train()
    method.double().pixels = lambda view: view
    images, labels = torch.randn(6, 3, 64, 64).double(), torch.tensor([0, 1, 2, 3, 4, 0])
    loss = method.loss(ViewBatch([images], labels, labels))["loss"]
    theirs = peer(pixel_values=images, labels=labels).loss
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    loss.backward()
    theirs.backward()
    pairs = [
        (tower.stem.convs[0].weight, peer.resnet.embedder.embedder.convolution.weight),
        (tower.head.weight, peer.classifier[1].weight),
        (tower.stages[3].layers[1].conv2.weight, peer.resnet.encoder.stages[3].layers[1].layer[1].convolution.weight),
    ]
    assert max(relative(ours.grad, their.grad) for ours, their in pairs) < 1e-5
    back = load_backbone(tmp_path / "hf")
    assert all(torch.equal(v, tower.get_parameter(k).float()) for k, v in back.backbone.named_parameters())


def test_mixup_keeps_the_mass_of_targets_and_mixes_pictures_as_labels():
    images, targets = torch.rand(6, 3, 8, 8), torch.eye(6)
    mixed, soft = mix_pairs(images, targets, 0.8, 0.0)
    assert torch.allclose(soft.sum(1), torch.ones(6))
    share = soft[0, 0]
    assert torch.allclose(mixed, share * images + (1 - share) * images.flip(0), atol=1e-6)


def test_cutmix_labels_are_the_share_of_pixels():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 16, 16)
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, soft = mix_pairs(images, torch.eye(6), 0.0, 1.0)
        own = (mixed[0, 0] == 0).float().mean()
        assert soft[0, 0].item() == pytest.approx(own.item(), abs=1e-6)
        assert soft[0].sum().item() == pytest.approx(1.0)


def test_cutmix_keeps_half_on_average():
    """Beta(1, 1) is even; boxes that reach over the edge are cut off, so that a little more than half is kept."""
    torch.manual_seed(0)
    kept = [float(mix_pairs(torch.zeros(2, 3, 32, 32), torch.eye(2), 0.0, 1.0)[1][0, 0]) for _ in range(2000)]
    assert 0.5 < sum(kept) / len(kept) < 0.75


def test_a_frozen_tower_keeps_weights_and_statistics():
    method = Classify(ClassifyConfig(freeze=True, norm_head=True), create("resnet8"), IMAGENET, 3).train()
    before = {k: v.clone() for k, v in method.backbone.state_dict().items() if not k.startswith("head.")}
    batch = ViewBatch([torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)], torch.arange(6) % 3, torch.arange(6))
    method.loss(batch)["loss"].backward()
    learns = [k for k, p in method.named_parameters() if p.grad is not None]
    assert learns == ["backbone.head.weight", "backbone.head.bias"]
    assert all(torch.equal(v, before[k]) for k, v in method.backbone.state_dict().items() if k in before)
    assert method.norm.num_batches_tracked == 1


@pytest.mark.slow
@pytest.mark.shows("classify", "trains")
def test_learns_eight_pictures_by_heart():
    recipe = short("classify", "scenes-digits:n=40,size=32", steps=60, batch=8, method={"lr_per": 0}, data={"limit": 8})
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, augmentation="none"))
    torch.manual_seed(0)
    task = build(recipe)
    train(task.recipe, task, None, WORLD)
    batch = next(task.batches.start())
    method = task.method.eval()
    assert (method.logits(method.pixels(batch.views[0])).argmax(1) == batch.labels).float().mean() == 1


def test_probabilities_sum_to_one_and_carry_the_names_of_classes(tmp_path):
    recipe = short("classify", "scenes-digits:n=60,size=32", steps=2, batch=8)
    torch.manual_seed(0)
    task = build(recipe)
    train(task.recipe, task, tmp_path / "run", WORLD)
    model = load(tmp_path / "run", "classify", torch.device("cpu"))
    (said,) = model.predict(torch.randint(256, (3, 32, 32), dtype=torch.uint8))
    assert tuple(said.probabilities) == task.assets.classes
    assert math.isclose(sum(said.probabilities.values()), 1, abs_tol=1e-5)
    assert [share for _, share in said.ranked()] == sorted(said.probabilities.values(), reverse=True)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z, share = 1.959964, right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


@pytest.mark.slow
@pytest.mark.shows("classify", "weights")
@pytest.mark.parametrize(("file", "published"), [("resnet20-12fca82f.th", 0.9173), ("resnet56-4bfd9763.th", 0.9339)])
def test_published_cifar_networks_score_what_their_authors_report(shared_data, file, published):
    from odonata.data.pictures import open_pictures

    model = load_backbone(shared_data / "weights/resnet-cifar10" / file)
    source = open_pictures(shared_data / "classification/cifar10/test")
    # The authors' classes are CIFAR-10's, whose order is that of their names.
    assert source.classes == tuple(sorted(source.classes))
    right = 0
    with torch.no_grad():
        for start in range(0, len(source), 128):
            part = source[start : start + 128]
            images = torch.stack([model.preprocess(sample.image.tensor()) for sample in part])
            right += int((model.backbone(images).argmax(1) == torch.tensor([s.label for s in part])).sum())
    low, high = wilson(right, len(source))
    assert len(source) == 1471
    assert low < published < high, (right, len(source))


def photo(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (level, 40, 90)).save(path)


@pytest.mark.shows("classify", "manners")
def test_what_cannot_be_classified_is_refused_and_nothing_is_left_behind(tmp_path):
    for number in range(6):
        photo(tmp_path / "one" / "cat" / f"{number}.png", number)
        photo(tmp_path / "bare" / f"{number}.png", number)
        for name in ("cat", "dog"):
            photo(tmp_path / "two" / name / f"{number}.png", number)
    fields = {"steps": 1, "data__batch_size": 4, "image_size": 32, "out": str(tmp_path / "run")}
    with pytest.raises(DataError, match=r"one: one class only \('cat'\): a classifier needs two or more"):
        api.train("classify", data__path=str(tmp_path / "one"), **fields)
    with pytest.raises(DataError, match="bare: no classes: a classifier needs two or more"):
        api.train("classify", data__path=str(tmp_path / "bare"), **fields)
    with pytest.raises(RecipeError, match="--drop-path: resnet8 has no stochastic depth"):
        api.train("classify", data__path=str(tmp_path / "two"), backbone="resnet8", drop_path=0.1, **fields)
    with pytest.raises(WeightsError, match="--init nowhere: no such run folder or weights"):
        api.train("classify", data__path=str(tmp_path / "two"), init="nowhere", **fields)
    (tmp_path / "two" / "cat" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cat/0\.png"):
        api.train("classify", data__path=str(tmp_path / "two"), **fields)
    assert not (tmp_path / "run").exists()
