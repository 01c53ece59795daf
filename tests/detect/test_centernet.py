"""CenterNet beside its authors' code, and what follows from an object being a point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.key_point_records import FOLDER, batch_of, check_gradients, images, plain, relative, saved, state_of
from detect.overfitting import recall_after
from odonata.data.framing import Framing
from odonata.detect.centernet import CenterNet, CenterNetConfig
from odonata.detect.key_points import frames_of
from odonata.detect.predictor import load
from odonata.errors import RecipeError, WeightsError
from odonata.weights.centernet_official import hourglass_rules, resnet_rules
from odonata.weights.read import read_state

RECORDED = np.load(FOLDER / "centernet.npz")
TOWERS = ("resnet", "hourglass")


@pytest.fixture(scope="module", params=TOWERS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, saved(state_of(RECORDED, f"{request.param}/shapes"), folder)


@pytest.mark.shows("centernet", "parity")
def test_maps_and_boxes_are_the_authors(model):
    name, predictor = model
    detector = predictor.detector.double().eval()
    with torch.no_grad():
        said = detector.forward_maps(images(128))[-1]
        for ours, theirs in (("heat", "hm"), ("size", "wh"), ("offset", "reg")):
            assert relative(getattr(said, ours), RECORDED[f"{name}/{theirs}"]) < 1e-10
        boxes, scores, labels = detector.peaks(images(128))
    decoded = RECORDED[f"{name}/decoded"]
    assert relative(boxes[:, :40], decoded[..., :4] * 4) < 1e-10
    assert relative(scores[:, :40], decoded[..., 4]) < 1e-10
    assert labels[:, :40].tolist() == decoded[..., 5].astype(int).tolist()


@pytest.mark.shows("centernet", "parity")
def test_targets_are_the_authors():
    goal = small(neck="pyramid").targets(batch_of(128), 32, 32)
    there = RECORDED["targets/reg_mask"].astype(bool)
    assert relative(goal.heat, RECORDED["targets/hm"]) < 1e-6
    assert (goal.cells[:, 1] * 32 + goal.cells[:, 0]).tolist() == RECORDED["targets/ind"][there].tolist()
    assert relative(goal.size, RECORDED["targets/wh"][there]) < 1e-6
    assert relative(goal.offset, RECORDED["targets/reg"][there]) < 1e-6


@pytest.mark.shows("centernet", "parity")
def test_losses_and_gradients_are_the_authors(model, monkeypatch):
    name, predictor = model
    detector = predictor.detector.double().train()
    monkeypatch.setattr(detector, "pixels", lambda batch: images(128))
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    losses = detector.loss(batch_of(128))
    for part, theirs in zip(("loss", "heat", "size", "offset"), plain(RECORDED, f"{name}/losses"), strict=True):
        assert losses[part].item() == pytest.approx(theirs, rel=1e-6)
    detector.zero_grad()
    losses["loss"].backward()
    config = predictor.assets.config
    tower = {"block": "basic", "depths": [2] * 4, "widths": [64, 128, 256, 512], "stem_width": 64, "shortcut": "conv"}
    rules = resnet_rules(tower, 3) if name == "resnet" else hourglass_rules(config.backbone)
    check_gradients(detector, plain(RECORDED, f"{name}/gradients"), rules)
    detector.load_state_dict(before)
    detector.eval()


@pytest.mark.shows("centernet", "weights")
@pytest.mark.parametrize("name", TOWERS)
def test_the_authors_file_comes_back_bit_equal(name, tmp_path: Path):
    theirs = state_of(RECORDED, f"{name}/shapes")
    predictor = saved(theirs, tmp_path / "in")
    predictor.convert(tmp_path / "out", "official")
    written = read_state(tmp_path / "out/model.safetensors").state
    assert written.keys() == theirs.keys()
    assert all(torch.equal(theirs[key], written[key]) for key in theirs)
    assert predictor.assets.config.pad_bits == {"resnet": 31, "hourglass": 127}[name]
    assert predictor.framing.order == "bgr"


@pytest.mark.shows("centernet", "weights")
def test_a_training_checkpoint_is_read_without_counters_of_batches(tmp_path: Path):
    theirs = state_of(RECORDED, "hourglass/shapes")
    old = {f"module.{k}": v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    torch.save({"epoch": 140, "state_dict": old}, tmp_path / "ctdet.pth")
    assert load(tmp_path / "ctdet.pth", None, torch.device("cpu")).assets.config.backbone == "hourglass-small"


def small(**changes):
    config = CenterNetConfig(framing=Framing(size=64, max_size=128), neck_width=16, head_width=16)
    torch.manual_seed(0)
    return CenterNet(replace(config, **changes), 3).eval()


@pytest.mark.parametrize("neck", ["pyramid", "deconvolutions"])
def test_every_neck_gives_a_quarter_of_the_frame(neck):
    with torch.no_grad():
        said = small(neck=neck).forward_maps(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.heat.shape) for x in said] == [(1, 3, 16, 24)]
    # −2.19: every cell begins as a middle with a chance of a tenth
    assert said[0].heat.sigmoid().mean().item() == pytest.approx(0.1, abs=0.03)


def test_what_covers_an_ignored_object_teaches_nothing():
    detector, batch = small(), batch_of(128)
    detector.train()
    one = detector.loss(batch)
    crowd = replace(batch, ignore=[torch.tensor([False, True, False]), torch.tensor([False])])
    other = detector.targets(crowd, 32, 32)
    box = batch.boxes[0][1] / 4
    x, y = int(box[0]) + 1, int(box[1]) + 1
    assert not other.counted[0, 0, y, x]
    assert other.counted[0, 0, 0, 31]
    assert other.counted[1].all()
    assert len(other.cells) == 3
    assert detector.loss(crowd)["heat"] != one["heat"]
    assert other.heat[0, 2].max() == 0  # no Gaussian of its own either


def test_a_batch_without_objects_has_finite_losses_and_gradients():
    detector, batch = small().train(), batch_of(128)
    none = [torch.zeros(0, dtype=torch.int64)] * 2
    empty = replace(batch, boxes=[torch.zeros(0, 4)] * 2, labels=none, ignore=[x.bool() for x in none])
    losses = detector.loss(empty)
    losses["loss"].backward()
    assert losses["size"] == 0
    assert losses["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


def test_a_perfect_map_gives_the_boxes_back():
    batch, detector = batch_of(128), small(score_threshold=0.5)
    goal = detector.targets(batch, 32, 32)

    class Said:
        heat = torch.logit(goal.heat.clamp(1e-4, 1 - 1e-4))
        size, offset = torch.zeros(2, 2, 32, 32), torch.zeros(2, 2, 32, 32)

    for picture, (x, y), size, offset in zip(goal.pictures, goal.cells, goal.size, goal.offset, strict=True):
        Said.size[picture, :, y, x], Said.offset[picture, :, y, x] = size, offset
    detector.forward_maps = lambda images: [Said]
    for answer, boxes, labels in zip(detector.predict(batch), batch.boxes, batch.labels, strict=True):
        order = answer.labels.argsort()
        assert torch.allclose(answer.boxes[order], boxes[labels.argsort()], atol=1e-4)


def test_mirrored_pictures_give_mirrored_boxes_where_both_are_looked_at():
    detector = small(flip_test=True, score_threshold=0.0)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, second = detector.believed(x), detector.believed(x.flip(3))
    assert torch.allclose(first[1], second[1].flip(3), atol=1e-6)
    assert torch.allclose(first[0].size, second[0].size.flip(3), atol=1e-6)


@pytest.mark.parametrize(("side", "frame"), [(63, 64), (64, 96), (100, 128), (127, 128), (128, 160)])
def test_published_frames_are_never_the_picture_itself(side, frame):
    """(x | 31) + 1: a side that already is a multiple of 32 still grows by 32, as in the authors' test code."""
    batch = replace(batch_of(128), images=torch.full((1, 3, side, side), 255.0), sizes=torch.tensor([[side, side]]))
    framing = Framing(resize="keep", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    ((images_, sizes, shift),) = frames_of(batch, framing, 31, 1)
    assert images_.shape[-2:] == (frame, frame)
    assert shift == (frame // 2 - side // 2,) * 2
    assert sizes == [(side, side)]
    picture = images_[0, 0, shift[1] : shift[1] + side, shift[0] : shift[0] + side]
    assert (picture == 1).all()
    assert (images_ == -1).sum() == 3 * (frame**2 - side**2)  # margins are black, not zero


def test_boxes_do_not_depend_on_the_published_frame():
    """A network that sees each cell alone must say the same boxes whether margins stand around the picture or not."""
    detector, batch = small(pad_bits=31, score_threshold=0.0), batch_of(128)
    bright = batch.images.clone()
    bright[:, :, 40:44, 60:64] = 255.0
    batch = replace(batch, images=bright)

    def one_spot(images):
        heat = torch.nn.functional.avg_pool2d(images, 4)

        class Said:
            size, offset = torch.full_like(heat[:, :2], 2.0), torch.full_like(heat[:, :2], 0.5)

        Said.heat = heat
        return [Said]

    detector.forward_maps = one_spot
    whole = small(score_threshold=0.0)
    whole.forward_maps = one_spot
    a, b = detector.predict(batch)[0], whole.predict(batch)[0]
    assert a.boxes[0].tolist() == b.boxes[0].tolist() == [58.0, 38.0, 66.0, 46.0]


@pytest.mark.shows("centernet", "manners")
def test_what_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="--neck stacks is for towers of hourglasses, and --backbone is resnet10"):
        small(neck="stacks")
    theirs = state_of(RECORDED, "hourglass/shapes")
    with pytest.raises(WeightsError, match="deformable convolutions"):
        saved({**theirs, "deconv_layers.0.conv_offset_mask.weight": torch.zeros(1)}, tmp_path / "dcn")
    with pytest.raises(WeightsError, match=r"widths .* have no name"):
        saved({k: v for k, v in theirs.items() if not k.startswith("kps.1")}, tmp_path / "one")
    with pytest.raises(WeightsError, match="have no pyramid"):
        from odonata.weights.detectors import write_model

        write_model(small().state_dict(), "centernet", small().config, [], "official")


@pytest.mark.slow
@pytest.mark.shows("centernet", "trains")
def test_a_few_pictures_are_learned_by_heart():
    assert recall_after(CenterNetConfig(framing=Framing(size=128, max_size=256)), 120) > 0.9
