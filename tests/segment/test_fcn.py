"""FCN beside pytorch-fcn's and torchvision's, and what its paper says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from odonata.backbones.create import variant
from odonata.errors import RecipeError, WeightsError
from odonata.segment.fcn import FCN, FCN8sConfig, FCN16sConfig, FCN32sConfig, Skips, bilinear_kernel, cell
from odonata.segment.predictor import load
from odonata.weights import fcn_pytorch_fcn, fcn_torchvision
from odonata.weights.dilated_names import tower_fields
from odonata.weights.read import read_state
from segment.segment_records import CLASSES, Record, check_gradients, losses_of, picture, relative

KINDS = {"fcn-32s": "FCN32s", "fcn-16s": "FCN16s", "fcn-8s": "FCN8s"}
SIZE = (75, 61)


def caffe_form(kind: str, folder: Path):
    record = Record("pytorch_fcn", f"{kind}/")
    return record, record.predictor(folder / ("fcn8s-atonce.safetensors" if "AtOnce" in kind else "fcn.safetensors"))


@pytest.mark.shows("fcn-32s", "parity")
@pytest.mark.shows("fcn-16s", "parity")
@pytest.mark.shows("fcn-8s", "parity")
@pytest.mark.parametrize("kind", ["FCN32s", "FCN16s", "FCN8s", "FCN8sAtOnce"])
def test_pytorch_fcn_computes_the_same_scores_loss_and_gradients(kind, tmp_path):
    """At 75 × 61 pixels, which no stride divides, with every width a sixteenth; in float64."""
    record, model = caffe_form(kind, tmp_path)
    with torch.no_grad():
        scores = model.segmenter.dense(picture(*SIZE))
    assert scores.shape == (2, CLASSES, *SIZE)
    assert relative(scores[..., ::3, ::3], record.arrays["out"]) < 1e-12
    losses = losses_of(model.segmenter, *SIZE)
    assert losses["loss"].item() == pytest.approx(float(record.arrays["loss"]), rel=1e-6)
    losses["loss"].backward()
    stride = model.assets.config.stride
    rules = fcn_pytorch_fcn.rules({"depths": [2, 2, 3, 3, 3]}, stride, CLASSES, False)
    names = {rule.theirs[0]: rule.ours[0] for rule in rules if rule.ours}
    check_gradients(model.segmenter, record, names)


@pytest.mark.shows("fcn-32s", "weights")
@pytest.mark.shows("fcn-16s", "weights")
@pytest.mark.shows("fcn-8s", "weights")
@pytest.mark.parametrize("name", list(KINDS))
def test_pytorch_fcns_file_comes_back_bit_equal(name, tmp_path):
    record, model = caffe_form(KINDS[name], tmp_path)
    assert model.assets.method == name
    model.convert(tmp_path / "out", "pytorch-fcn")
    theirs, written = record.state(), read_state(tmp_path / "out/model.safetensors").state
    assert theirs.keys() == written.keys()
    assert all(torch.equal(theirs[key], written[key].float()) for key in theirs)


def test_a_learned_enlargement_is_read_and_written_and_a_learned_last_one_refused(tmp_path):
    state = Record("pytorch_fcn", "FCN16s/").state()
    state["upscore2.weight"] = state["upscore2.weight"] + 0.01
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    model = load(tmp_path / "a.safetensors", None, torch.device("cpu"))
    assert model.assets.config.learn_upsampling
    model.convert(tmp_path / "out", "pytorch-fcn")
    written = read_state(tmp_path / "out/model.safetensors").state
    assert all(torch.equal(state[key], written[key]) for key in state)
    state["upscore16.weight"] = state["upscore16.weight"] + 0.01
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"upscore16\.weight has learned"):
        load(tmp_path / "b.safetensors", None, torch.device("cpu"))


@pytest.fixture(scope="module")
def dilated(tmp_path_factory):
    record = Record("torchvision")
    return record, record.predictor(tmp_path_factory.mktemp("fcn") / "model.safetensors", dropout=0.0)


@pytest.mark.shows("fcn-8s", "parity")
def test_torchvision_computes_the_same_scores_losses_and_gradients(dilated):
    """Both outputs at 50 × 71 pixels, then a step of training; every width an eighth, in float64."""
    record, model = dilated
    with torch.no_grad():
        outputs = model.segmenter.network(picture(50, 71), auxiliary=True)
    for ours, name in zip(outputs, ("out", "aux"), strict=True):
        assert relative(ours[..., ::2, ::2], record.arrays[name]) < 1e-12
    losses = losses_of(model.segmenter.train(), 50, 71)
    theirs = record.plain("losses")
    assert losses["main"].item() == pytest.approx(theirs["out"], rel=1e-6)
    assert losses["auxiliary"].item() == pytest.approx(theirs["aux"], rel=1e-6)
    losses["loss"].backward()
    tower = tower_fields(model.segmenter.state_dict(), "torchvision")
    names = {rule.theirs[0]: rule.ours[0] for rule in fcn_torchvision.rules(tower, True)}
    check_gradients(model.segmenter, record, names)
    model.segmenter.eval()


@pytest.mark.shows("fcn-8s", "weights")
def test_torchvisions_file_comes_back_bit_equal(tmp_path):
    record = Record("torchvision")
    model = record.predictor(tmp_path / "model.safetensors")
    assert model.assets.config.aux_weight == 0.5 and model.assets.config.backbone.endswith("output_stride=8")
    model.segmenter.float().load_state_dict(load(tmp_path, None, torch.device("cpu")).segmenter.state_dict())
    model.convert(tmp_path / "out", "torchvision")
    theirs, written = record.state(), read_state(tmp_path / "out/model.safetensors").state
    assert theirs.keys() == written.keys() and all(torch.equal(theirs[key], written[key]) for key in theirs)
    with pytest.raises(WeightsError, match="networks have skips"):
        model.convert(tmp_path / "other", "pytorch-fcn")


def test_a_file_of_torchvisions_without_its_auxiliary_head_is_read_too(tmp_path):
    state = {k: v for k, v in Record("torchvision").state().items() if not k.startswith("aux_classifier")}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    model = load(tmp_path, None, torch.device("cpu"))
    assert model.segmenter.network.auxiliary is None and model.assets.config.aux_weight == 0


def test_the_offsets_are_those_of_the_authors_networks():
    """Cut from the enlarged scores: 19, 27 and 31 pixels; from the skipped scores: 5 and 9 cells."""
    vgg = variant("vgg16-fcn")
    last = cell(vgg, 5, deep=True)
    assert 32 - 0.5 - last == 19
    after_pool4 = last - 1.5 * 16
    assert (after_pool4 - cell(vgg, 4)) / 16 == 5 and 16 - 0.5 - after_pool4 == 27
    after_pool3 = after_pool4 - 1.5 * 8
    assert (after_pool3 - cell(vgg, 3)) / 8 == 9 and 8 - 0.5 - after_pool3 == 31


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_the_enlarging_kernel_is_the_interpolation_of_torch(factor):
    """Inside, a transposed convolution with these weights is bilinear interpolation between middles of cells."""
    from odonata.segment.fcn import Enlarge

    cells = torch.rand(1, 3, 6, 5)
    ours = Enlarge(factor)(cells)
    theirs = torch.nn.functional.interpolate(cells, scale_factor=factor, mode="bilinear", align_corners=False)
    half = factor // 2
    inner = ours[:, :, half:-half, half:-half]
    assert torch.allclose(inner[:, :, factor:-factor, factor:-factor], theirs[:, :, factor:-factor, factor:-factor])
    assert bilinear_kernel(factor).sum().item() == pytest.approx(factor**2)


@pytest.mark.parametrize("config", [FCN32sConfig(), FCN16sConfig(), FCN8sConfig()])
@pytest.mark.parametrize("size", [(64, 96), (37, 50), (1, 33)])
def test_scores_are_as_large_as_the_picture_and_begin_at_zero(config, size):
    network = Skips(config, 4).eval()
    scores = network(torch.rand(2, 3, *size))[0]
    assert scores.shape == (2, 4, *size) and not scores.any()


def test_the_scores_of_a_small_vgg_lie_where_the_picture_does():
    """A picture that is mirrored has mirrored scores, if its weights are: no layer shifts the map."""
    config = FCN8sConfig()
    torch.manual_seed(1)
    network = Skips(config, 3).eval()
    with torch.no_grad():
        for layer in (network.score, *network.skip_scores):
            layer.weight.normal_()
        for parameter in network.backbone.parameters():
            if parameter.ndim == 4:
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
    image = torch.rand(1, 3, 64, 128)
    plain, mirrored = network(image)[0], network(image.flip(-1))[0].flip(-1)
    assert plain.std() > 0.01
    assert torch.allclose(plain, mirrored, atol=1e-5)


def test_in_training_at_once_the_skipped_layers_are_scaled(tmp_path):
    _, model = caffe_form("FCN8sAtOnce", tmp_path)
    assert model.assets.config.at_once and model.segmenter.network.factors == (0.01, 0.0001)
    assert "poolings scaled before they are scored" in " ".join(model.notes)
    assert Skips(FCN16sConfig(at_once=True), 3).factors == (0.01,)


def test_learned_enlargements_begin_as_the_fixed_ones():
    torch.manual_seed(0)
    fixed = Skips(FCN8sConfig(), 3).eval()
    learned = Skips(FCN8sConfig(learn_upsampling=True), 3).eval()
    learned.load_state_dict(fixed.state_dict(), strict=False)
    for network in (fixed, learned):
        torch.nn.init.constant_(network.score.weight, 0.1)
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(fixed(image)[0], learned(image)[0], atol=1e-6)
    assert len(list(learned.doublings.parameters())) == 2 and not list(fixed.doublings.parameters())


@pytest.mark.shows("fcn-32s", "manners")
@pytest.mark.shows("fcn-16s", "manners")
@pytest.mark.shows("fcn-8s", "manners")
@pytest.mark.parametrize("kind", [FCN32sConfig, FCN16sConfig, FCN8sConfig])
def test_a_tower_that_does_not_fit_is_named_with_those_that_do(kind):
    for backbone in ("vgg16", "resnet10-small"):
        with pytest.raises(RecipeError, match=r"vgg16-fcn, vgg-small; --head torchvision takes residual"):
            FCN(kind(backbone=backbone), 3)
    with pytest.raises(RecipeError, match="no auxiliary output"):
        kind(aux_weight=0.5)
    other = 16 if kind.stride == 8 else 8
    with pytest.raises(RecipeError, match=rf"cell every {other} pixels, and the method every {kind.stride}"):
        FCN(kind(head="torchvision", backbone=f"resnet10-small:output_stride={other}"), 3)
