"""PSPNet beside its authors' code, and what its paper says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odonata.data.framing import Framing
from odonata.errors import RecipeError, WeightsError
from odonata.segment.predictor import load
from odonata.segment.pspnet import PSPNet, PSPNetConfig
from odonata.weights import pspnet_semseg
from odonata.weights.dilated_names import tower_fields
from odonata.weights.read import read_state
from segment.segment_records import Record, check_gradients, losses_of, picture, relative

RECORD = Record("semseg")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return RECORD.predictor(tmp_path_factory.mktemp("pspnet") / "model.safetensors", dropout=0.0)


@pytest.mark.shows("pspnet", "parity")
def test_semseg_computes_the_same_scores_losses_and_gradients(model):
    """At 49 × 65 pixels, then a step of training with both outputs; every width an eighth, in float64."""
    with torch.no_grad():
        scores = model.segmenter.dense(picture(49, 65))
    assert relative(scores[..., ::2, ::2], RECORD.arrays["out"]) < 1e-12
    losses = losses_of(model.segmenter.train(), 49, 65)
    theirs = RECORD.plain("losses")
    assert losses["main"].item() == pytest.approx(theirs["out"], rel=1e-6)
    assert losses["auxiliary"].item() == pytest.approx(theirs["aux"], rel=1e-6)
    assert losses["loss"].item() == pytest.approx(theirs["out"] + 0.4 * theirs["aux"], rel=1e-6)
    losses["loss"].backward()
    tower = tower_fields(model.segmenter.state_dict(), "semseg")
    names = {rule.theirs[0]: rule.ours[0] for rule in pspnet_semseg.rules(tower, 4, True)}
    check_gradients(model.segmenter, RECORD, names)
    model.segmenter.eval()


@pytest.mark.shows("pspnet", "weights")
def test_semsegs_file_comes_back_bit_equal_with_its_auxiliary_head(tmp_path):
    RECORD.predictor(tmp_path / "model.safetensors")
    model = load(tmp_path, None, torch.device("cpu"))
    config = model.assets.config
    assert (config.window, config.flip, config.aux_weight, config.framing.max_size) == (473, True, 0.4, 512)
    model.convert(tmp_path / "out", "semseg")
    theirs, written = RECORD.state(), read_state(tmp_path / "out/model.safetensors").state
    assert theirs.keys() == written.keys() and all(torch.equal(theirs[key], written[key]) for key in theirs)


def test_training_files_with_their_prefix_and_without_the_auxiliary_head_are_read(tmp_path):
    """The authors save `{"epoch", "state_dict"}` of a data-parallel model."""
    state = {f"module.{k}": v for k, v in RECORD.state().items() if not k.startswith("aux.")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "train_epoch_3.pth")
    model = load(tmp_path / "train_epoch_3.pth", None, torch.device("cpu"))
    assert model.segmenter.network.auxiliary is None and model.assets.config.aux_weight == 0


def small(**changes) -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(PSPNetConfig(**changes), 3)


def test_every_pixel_hears_of_the_whole_picture():
    """With the pooling a change in one corner reaches the scores in the other; without it, it need not."""
    far = {}
    for bins in ((1, 2, 3, 6), ()):
        network = small(bins=bins).eval()
        image = torch.rand(1, 3, 257, 257)
        other = image.clone()
        other[:, :, :8, :8] += 5
        with torch.no_grad():
            far[bins] = (network.dense(image) - network.dense(other))[..., -8:, -8:].abs().max().item()
    assert far[1, 2, 3, 6] > 1e-6 and far[()] == 0


@pytest.mark.parametrize("size", [(49, 65), (50, 64), (1, 9)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_pictures_of_any_size_have_scores_of_that_size(size, align_corners):
    assert small(align_corners=align_corners).eval().dense(torch.rand(2, 3, *size)).shape == (2, 3, *size)


def test_sides_of_8k_and_1_are_not_padded():
    """Then corners of map and picture coincide: the score of a corner pixel is that of the corner cell."""
    network = small().eval().network
    image = torch.rand(1, 3, 41, 57)
    with torch.no_grad():
        scores = network(image)[0]
        cells = network.head(network.pooling(network.backbone.features(image, [-1])[0]))
    assert cells.shape[-2:] == (6, 8)
    assert torch.allclose(scores[..., 0, 0], cells[..., 0, 0], atol=1e-6)
    assert torch.allclose(scores[..., -1, -1], cells[..., -1, -1], atol=1e-5)
    assert torch.allclose(scores[..., 8, 16], cells[..., 1, 2], atol=1e-5)


def test_the_auxiliary_output_changes_no_answer_but_stays_in_the_weights():
    plain, helped = small(aux_weight=0.0).eval(), small().eval()
    helped.load_state_dict(plain.state_dict(), strict=False)
    image = torch.rand(1, 3, 33, 33)
    assert torch.equal(plain.dense(image), helped.dense(image))
    assert any(name.startswith("network.auxiliary.") for name in helped.state_dict())


def test_the_presets_are_the_authors():
    """The authors' network of 50 layers for 21 classes has 46,716,373 parameters without its auxiliary head."""
    preset = PSPNetConfig.presets["semseg-r50"]
    with torch.device("meta"):
        network = PSPNet(PSPNetConfig(**{**preset, "aux_weight": 0.0}), 21).network
    convs = 3 * 64 * 9 + 64 * 64 * 9 + 64 * 128 * 9
    assert sum(conv.weight.numel() for conv in network.backbone.stem.convs) == convs
    assert sum(parameter.numel() for parameter in network.parameters()) == 46_716_373
    assert network.stride == 8 and network.pooling.out_channels == 4096
    assert [stage.layers[0].conv2.dilation for stage in network.backbone.stages] == [(1, 1), (1, 1), (2, 2), (4, 4)]
    assert preset["framing"] == Framing(size=512, max_size=512, divisor=1)
    assert preset["framing"].scaled_size(375, 500) == (384, 512)


@pytest.mark.shows("pspnet", "manners")
def test_a_crop_that_aligned_corners_do_not_fit_is_named_with_the_nearest_that_do():
    for field in ("crop", "window"):
        with pytest.raises(RecipeError, match=rf"--{field} is 128; .* 129 or 137"):
            PSPNetConfig(**{field: 128})
    assert PSPNetConfig(crop=128, align_corners=False).crop == 128
    with pytest.raises(RecipeError, match="--bins"):
        PSPNetConfig(bins=(1, 0))


def test_what_semsegs_layout_cannot_say_is_refused(model, tmp_path):
    with pytest.raises(WeightsError, match="four poolings"):
        replaced = replace(model.assets.config, bins=(1, 2, 4, 8))
        pspnet_semseg.write(model.segmenter.state_dict(), replaced, [])
    with pytest.raises(WeightsError, match="aligned corners"):
        pspnet_semseg.write(model.segmenter.state_dict(), replace(model.assets.config, align_corners=False), [])
    with pytest.raises(WeightsError, match="bottlenecks"):
        pspnet_semseg.write(small().state_dict(), PSPNetConfig(), [])
