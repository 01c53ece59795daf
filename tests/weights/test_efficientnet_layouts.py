"""EfficientNet's published layouts: timm, lukemelas, torchvision (recorded) and transformers (side by side)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from fixtures.named_numbers import numbers
from odonata.backbones.create import create, from_plain, to_plain, variant
from odonata.backbones.efficientnet import in_convention
from odonata.backbones.pretrained import load_backbone, published_files
from odonata.data.preprocess import IMAGENET
from odonata.errors import WeightsError
from odonata.represent.build import read_start, start_from
from odonata.represent.classify import ClassifyConfig
from odonata.weights import efficientnet_lukemelas as lukemelas
from odonata.weights.efficientnet_hf import odd_blocks
from odonata.weights.read import Raw
from odonata.weights.towers import Hints

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/small_towers.npz")


def unpacked(name):
    return json.loads(RECORDED[name].tobytes())


def theirs(name):
    return {key: numbers(key, tuple(shape)) for key, shape in unpacked(f"{name}/shapes").items()}


def images(size, batch=1):
    return numbers("images", (batch, 3, size, size)).double() * (3 * size * size) ** 0.5


def error(ours, reference):
    return float((ours - reference).norm() / reference.norm())


def save(files, folder):
    folder.mkdir(exist_ok=True)
    save_file(files.state, folder / files.weights_name, metadata={"format": "pt"})
    for name, content in files.texts.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@torch.no_grad()
def loaded(name, tmp_path, convention=None, file="weights"):
    save_file(theirs(name), tmp_path / f"{file}.safetensors")
    return load_backbone(tmp_path / f"{file}.safetensors", Hints(convention=convention))


SOURCES = [("timm_tf", "tf"), ("timm_torch", "torch"), ("torchvision", None), ("lukemelas", None)]


@pytest.mark.parametrize(("name", "convention"), SOURCES)
def test_the_originals_compute_the_same_at_224_and_75_pixels(name, convention, tmp_path):
    tower = loaded(name, tmp_path, convention).backbone.double()
    for size in (224, 75):
        with torch.no_grad():
            assert error(tower(images(size))[0], torch.from_numpy(RECORDED[f"{name}/{size}"])) < 1e-12


def test_in_single_precision_as_well(tmp_path):
    tower = loaded("timm_tf", tmp_path, "tf").backbone
    with torch.no_grad():
        assert error(tower(images(75).float())[0], torch.from_numpy(RECORDED["timm_tf/75"]).float()) < 1e-5


def test_the_wrong_convention_would_be_seen(tmp_path):
    tower = loaded("timm_tf", tmp_path, "torch").backbone.double()
    with torch.no_grad():
        assert error(tower(images(224))[0], torch.from_numpy(RECORDED["timm_tf/224"])) > 3e-4


def test_loss_and_gradients_in_training_are_timms(tmp_path):
    result = loaded("timm_tf", tmp_path, "tf")
    tower = result.backbone.double().train()
    tower.dropout.p = 0.0
    for module in tower.modules():
        if hasattr(module, "rate"):
            module.rate = 0.0
    loss = F.cross_entropy(tower(images(64, 4)), torch.arange(4))
    loss.backward()
    assert loss.item() == pytest.approx(float(RECORDED["train/loss"]), rel=1e-10)
    ours = {name: parameter.grad for name, parameter in tower.named_parameters()}
    # Where a parameter stands in timm's file is what the layout says of its name.
    files = published_files(tower, "timm").state
    where = {value.data_ptr(): name for name, value in tower.state_dict().items()}
    recorded = unpacked("train/gradients")
    assert len(recorded) == len(ours)
    for name, norm in recorded.items():
        assert ours[where[files[name].data_ptr()]].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-12), name


@pytest.mark.parametrize(("name", "convention"), SOURCES)
def test_what_was_read_is_written_back_bit_for_bit(name, convention, tmp_path):
    result = loaded(name, tmp_path, convention)
    before = theirs(name)
    after = published_files(result.backbone, name.partition("_")[0], result.preprocess).state
    assert set(after) == set(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_timms_convention_comes_from_the_file_beside_from_the_name_or_is_guessed_aloud(tmp_path):
    def read(file):
        result = loaded("timm_tf", tmp_path, file=file)
        return result.backbone.config.padding, next(n for n in result.published.notes if n.startswith("convention"))

    padding, note = read("weights")
    assert padding == "same"
    assert "the likelier" in note
    assert read("tf_efficientnet_b0_ns-c0e6a31c")[1].endswith("as the file's name says")
    assert read("efficientnet_b0_ra-3dd342df") == (
        "symmetric",
        "convention: torch (padding symmetric, epsilon 1e-05), as the file's name says",
    )
    described = {"architecture": "efficientnet_b0", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert read("weights")[0] == "symmetric"
    assert loaded("timm_tf", tmp_path).preprocess.mean == (0.5, 0.5, 0.5)  # AdvProp's
    with pytest.raises(WeightsError, match="convention 'caffe' is unknown; it is tf or torch"):
        loaded("timm_tf", tmp_path, "caffe")


@pytest.mark.parametrize("convention", ["tf", "torch"])
def test_a_written_timm_folder_keeps_its_convention(convention, tmp_path):
    tower = create("efficientnet-b0", **{k: getattr(in_convention(variant("efficientnet-b0"), convention), k)
                                         for k in ("padding", "norm_eps", "norm_momentum")})  # fmt: skip
    back = load_backbone(save(published_files(tower, "timm", IMAGENET), tmp_path / "timm"))
    assert back.backbone.config == tower.config
    assert back.preprocess == IMAGENET


def test_torchvision_has_two_epsilons():
    recorded = unpacked("torchvision/norms")
    for size, (eps, momentum) in recorded.items():
        with torch.device("meta"):
            tower = create(f"efficientnet-{size}", padding="symmetric", norm_eps=eps, norm_momentum=momentum)
        assert published_files(tower, "torchvision").state
        with pytest.raises(WeightsError, match="its epsilon is"):
            other = 1e-5 if eps == 1e-3 else 1e-3
            with torch.device("meta"):
                wrong = create(f"efficientnet-{size}", padding="symmetric", norm_eps=other)
            published_files(wrong, "torchvision")


@pytest.mark.parametrize("size", range(8))
def test_sizes_are_told_from_shapes(size):
    """No file holds the resolution or the dropout."""
    with torch.device("meta"):
        tower = create(f"efficientnet-b{size}")
    state = published_files(tower, "lukemelas").state
    plan = lukemelas.plan(Raw(Path("x"), state), Hints())
    assert from_plain(plan.config) == tower.config
    assert plan.preprocess["size"] == tower.config.resolution


def test_other_sizes_are_read_as_they_are(tmp_path):
    tower = create("efficientnet-b0", width=0.25, depth=0.5)
    tower.reset_head(3)
    back = load_backbone(save(published_files(tower, "lukemelas"), tmp_path / "own"))
    assert back.backbone.config.stage_widths == tower.config.stage_widths
    assert any("ImageNet's is taken" in note for note in back.published.notes)
    x = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(back.backbone(x), tower.eval()(x))


def test_a_classifier_is_left_alone_when_a_tower_is_filled(tmp_path):
    save_file(theirs("timm_tf"), tmp_path / "w.safetensors")
    tower = create("efficientnet-b0")
    tower.reset_head(5)
    head = tower.head.weight.clone()
    config = ClassifyConfig(backbone="efficientnet-b0", init=str(tmp_path / "w.safetensors"))
    start_from(tower, read_start(config), config)
    assert torch.equal(tower.head.weight, head)
    assert torch.equal(tower.stem.conv.weight, theirs("timm_tf")["conv_stem.weight"])


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("timm", {"stem_stride": 1}, "does not say strides"),
        ("timm", {"norm_eps": 1e-4}, "padding 'same' with epsilon 0.0001"),
        ("timm", {"width": 0.5}, "this tower is none of them"),
        ("lukemelas", {"padding": "symmetric"}, "pads as TensorFlow"),
        ("torchvision", {}, "pads symmetrically"),
        ("hf", {"padding": "symmetric"}, "pads as TensorFlow"),
        ("hf", {"resolution": 225}, "even images"),
        ("hf", {"width": 0.25}, "stage 1 begins with a block of 8 channels in and out"),
        ("keras", {}, "no layout 'keras'.*timm, lukemelas, torchvision, hf"),
    ],
)
def test_what_a_layout_cannot_say_is_refused(layout, changes, message):
    with torch.device("meta"):
        tower = create("efficientnet-b0", **changes)
    with pytest.raises(WeightsError, match=message):
        published_files(tower, layout)


def test_missing_and_foreign_tensors_are_named(tmp_path):
    state = theirs("timm_tf")
    del state["blocks.3.1.bn2.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"missing: blocks\.3\.1\.bn2\.bias"):
        load_backbone(tmp_path / "w.safetensors")


HF = {"width": 0.5, "depth": 1.1, "resolution": 120}


def named(tower):
    tower.load_state_dict({key: numbers(key, tuple(value.shape)) for key, value in tower.state_dict().items()})
    return tower.eval()


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """Our tower, and transformers' that reads what ours wrote."""
    from transformers import EfficientNetForImageClassification

    tower = create("efficientnet-b0", **HF)
    tower.reset_head(5)
    folder = save(published_files(named(tower), "hf"), tmp_path_factory.mktemp("hf") / "out")
    model, report = EfficientNetForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return tower, model.eval(), folder


def test_transformers_reads_what_is_written_and_computes_the_same_at_the_native_size(beside):
    tower, model, folder = beside
    back = load_backbone(folder)
    assert back.backbone.config == tower.config
    assert all(torch.equal(v, tower.state_dict()[k]) for k, v in back.backbone.state_dict().items())
    x = images(120, 2)
    with torch.no_grad():
        expected = model.double()(x).logits
        assert error(back.backbone.double()(x), expected) < 1e-12
        assert error(tower.double()(x), expected) < 1e-12


@torch.no_grad()
def test_transformers_computes_the_same_for_b1_at_its_240_pixels(tmp_path):
    """The block that its conversion script lists, 16, strides over a map of 15 cells."""
    from transformers import EfficientNetForImageClassification

    tower = create("efficientnet-b1")
    tower.reset_head(5)
    folder = save(published_files(named(tower), "hf"), tmp_path / "b1")
    model = EfficientNetForImageClassification.from_pretrained(folder).eval()
    assert error(tower(images(240).float()), model(images(240).float()).logits) < 1e-5
    assert error(tower.double()(images(240)), model.double()(images(240)).logits) < 1e-12


def test_transformers_is_right_at_the_native_size_only(beside):
    """Its list of odd blocks is for 120 pixels, as timm's and ours follow the input."""
    tower, model, _ = beside
    assert model.config.depthwise_padding == [8]  # 120 → 60 → 30 → 15, which block 8 strides over
    x = images(104)
    with torch.no_grad():
        assert error(model.double()(x).logits, tower.double()(x)) > 1e-4


def test_transformers_own_random_tower_is_read(tmp_path):
    from transformers import EfficientNetConfig, EfficientNetModel

    torch.manual_seed(0)
    config = EfficientNetConfig(width_coefficient=0.5, depth_coefficient=0.5, image_size=64, hidden_dim=640,
                                dropout_rate=0.1)  # fmt: skip
    model = EfficientNetModel(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    model.save_pretrained(tmp_path)
    back = load_backbone(tmp_path)
    assert back.backbone.config.dropout == 0.1
    x = images(64, 2)
    with torch.no_grad():
        expected = model.double()(x).pooler_output
        assert error(back.backbone.double()(x), expected) < 1e-12


# `depthwise_padding` of google/efficientnet-b0 … b7, in transformers' conversion script.
PUBLISHED = [[], [16], [5, 8, 16], [5, 18], [6], [13, 27], [31], [18]]


@pytest.mark.parametrize("size", range(8))
def test_the_blocks_over_odd_maps_are_the_published_ones(size):
    assert odd_blocks(to_plain(variant(f"efficientnet-b{size}"))) == PUBLISHED[size]


def test_running_statistics_are_an_average_here_and_the_last_batch_in_transformers(beside):
    """TensorFlow's momentum .99 keeps 99 % of the old statistics; PyTorch's .99 throws 99 % of them away."""
    from transformers import EfficientNetForImageClassification

    _, _, folder = beside
    model = EfficientNetForImageClassification.from_pretrained(folder).train()
    tower = load_backbone(folder).backbone.train()
    momenta = {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    assert momenta == {0.99, 0.1}  # .1, PyTorch's default, in the layers that expand
    batches = [torch.randn(4, 3, 32, 32) + shift for shift in (0.0, 0.3, -0.3, 0.0, 2.0)]
    with torch.no_grad():
        means = [tower.stem.conv(batch).mean((0, 2, 3)) for batch in batches]
        average, last = torch.stack(means[:-1]).mean(0), means[-1]
        for norm in (model.efficientnet.embeddings.batchnorm, tower.stem.norm):
            norm.running_mean.copy_(average)  # as after long training
        for batch in batches:
            model(batch)
            tower(batch)
    apart = (last - average).norm()
    assert (model.efficientnet.embeddings.batchnorm.running_mean - last).norm() < 0.03 * apart
    assert (tower.stem.norm.running_mean - average).norm() < 0.03 * apart
