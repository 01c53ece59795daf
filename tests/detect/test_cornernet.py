"""CornerNet beside its authors' code, and what its tags and corners mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detect.key_point_records import FOLDER, batch_of, check_gradients, images, plain, relative, saved, state_of
from detect.overfitting import recall_after
from odonata.backbones.hourglass import VARIANTS
from odonata.data.framing import Framing
from odonata.detect.cornernet import Corner, CornerNet, CornerNetConfig, decode_pairs, tag_losses
from odonata.detect.key_points import boxes_in_cells
from odonata.detect.predictor import load
from odonata.errors import RecipeError, WeightsError
from odonata.weights.cornernet_official import rules_of
from odonata.weights.hourglass_cornernet import TOWERS
from odonata.weights.read import read_state

RECORDED = np.load(FOLDER / "cornernet.npz")
SIZE = 127


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(state_of(RECORDED, "shapes"), tmp_path_factory.mktemp("cornernet"))


def small(**changes):
    config = CornerNetConfig(backbone="hourglass-small:norm=group,stacks=1", pool_width=8, head_width=8)
    torch.manual_seed(0)
    return CornerNet(replace(config, **changes), 3).eval()


@pytest.mark.shows("cornernet", "parity")
def test_maps_and_pairs_are_the_authors(model):
    detector = model.detector.double().eval()
    with torch.no_grad():
        said = detector.forward_corners(images(SIZE), every=False)[-1]
    for corner, side in zip(said, ("tl", "br"), strict=True):
        for name in ("heat", "tag", "offset"):
            assert relative(getattr(corner, name), RECORDED[f"maps/{side}_{name}"]) < 1e-6
    boxes, scores, labels = decode_pairs(said, 60, 200, 0.5)
    decoded = RECORDED["decoded"]
    pair = decoded[..., 4] > 0
    assert 50 < pair.sum() < 400
    assert ((scores > 0).numpy() == pair).all()
    assert relative(boxes[pair], decoded[..., :4][pair]) < 1e-10
    assert relative(scores[pair], decoded[..., 4][pair]) < 1e-10
    assert labels[pair].tolist() == decoded[..., 7][pair].astype(int).tolist()


@pytest.mark.shows("cornernet", "parity")
def test_targets_are_the_authors():
    """127 pixels become 32 cells: their sampler's ratio is 32 / 127."""
    detector, batch = small(), batch_of(SIZE)
    boxes = boxes_in_cells(batch, 32, 32)
    there = RECORDED["targets/mask"].astype(bool)
    for side, first in (("tl", 0), ("br", 2)):
        goal = detector.targets(batch, boxes, 32, 32, first)
        assert relative(goal.heat, RECORDED[f"targets/{side}_heat"]) < 1e-6
        assert (goal.cells[:, 1] * 32 + goal.cells[:, 0]).tolist() == RECORDED[f"targets/{side}_cells"][there].tolist()
        assert relative(goal.offset, RECORDED[f"targets/{side}_offset"][there]) < 1e-5


@pytest.mark.shows("cornernet", "parity")
def test_losses_and_gradients_are_the_authors(model, monkeypatch):
    detector = model.detector.double().train()
    monkeypatch.setattr(detector, "pixels", lambda batch: images(SIZE))
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    losses = detector.loss(batch_of(SIZE))
    loss, *parts = plain(RECORDED, "losses")
    assert losses["loss"].item() == pytest.approx(loss, rel=1e-6)
    for part, theirs in zip(("heat", "pull", "push", "offset"), parts, strict=True):
        # theirs are sums over both hourglasses
        assert losses[part].item() == pytest.approx(theirs / 2, rel=1e-6)
    detector.zero_grad()
    losses["loss"].backward()
    check_gradients(detector, plain(RECORDED, "gradients"), rules_of("hourglass-small"))
    detector.load_state_dict(before)


@pytest.mark.shows("cornernet", "weights")
def test_the_authors_file_comes_back_bit_equal(model, tmp_path: Path):
    theirs = state_of(RECORDED, "shapes")
    saved(theirs, tmp_path / "in").convert(tmp_path / "out", "official")
    written = read_state(tmp_path / "out/model.safetensors").state
    assert written.keys() == theirs.keys()
    assert all(torch.equal(theirs[key], written[key]) for key in theirs)
    config = model.assets.config
    assert (config.pad_bits, config.flip_test, config.pool_width, config.backbone) == (
        127,
        True,
        128,
        "hourglass-small",
    )


@pytest.mark.shows("cornernet", "weights")
def test_their_pickled_file_is_read(tmp_path: Path):
    """`CornerNet_500000.pkl` is a state dictionary whose names begin with `module.`, of a PyTorch without counters."""
    theirs = state_of(RECORDED, "shapes")
    old = {f"module.{k}": v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "CornerNet_500000.pkl")
    read = load(tmp_path / "CornerNet_500000.pkl", None, torch.device("cpu"))
    assert torch.equal(read.detector.left_upper[1].tag[2].weight, theirs["tl_tags.1.1.weight"])


def test_the_names_of_hourglasses_stand_for_the_same_towers():
    for name, shape in TOWERS.items():
        config = VARIANTS[name]
        assert shape == tuple(getattr(config, field) for field in shape._fields)


def test_tags_that_agree_cost_nothing_and_those_a_unit_apart_are_left_alone():
    pictures = torch.zeros(3, dtype=torch.int64)
    tags = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    pull, push = tag_losses(tags, tags, pictures)
    assert pull == 0
    assert push.item() == pytest.approx(0, abs=1e-3)  # up to the 1e-4 that is added to counts
    near = tag_losses(tags * 0, tags * 0, pictures)[1]
    assert near.item() == pytest.approx(1, abs=1e-3)


def test_an_object_alone_in_its_picture_is_pushed_by_none():
    """It costs a constant 1, the authors' 1e-4 / 1e-4, whatever its tag is."""
    tags = torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    push = tag_losses(tags, tags, torch.arange(3))[1]
    push.backward()
    assert push.item() == pytest.approx(3, rel=1e-3)
    assert tags.grad.tolist() == [0, 0, 0]


def corner(heat, tag, offset=0.0):
    """One picture of 8 × 8 cells and two classes with peaks (class, x, y, height) and tags there."""
    maps = torch.full((1, 2, 8, 8), -9.0)
    tags = torch.full((1, 1, 8, 8), 50.0)
    for (label, x, y, height), value in zip(heat, tag, strict=True):
        maps[0, label, y, x], tags[0, 0, y, x] = height, value
    return Corner(maps, tags, torch.full((1, 2, 8, 8), offset))


@pytest.mark.parametrize(
    ("second", "tag"),
    [((1, 6, 6, 2.0), 0.1), ((0, 6, 6, 2.0), 0.7), ((0, 1, 6, 2.0), 0.1), ((0, 6, 1, 2.0), 0.1)],
    ids=["another class", "tags apart", "left of it", "above it"],
)
def test_corners_that_do_not_belong_together_are_no_pair(second, tag):
    first = corner([(0, 2, 2, 1.0)], [0.0], 0.25)
    boxes, scores, labels = decode_pairs((first, corner([(0, 6, 5, 2.0)], [0.4], 0.5)), 4, 10, 0.5)
    assert boxes[0, 0].tolist() == [2.25, 2.25, 6.5, 5.5]
    assert labels[0, 0] == 0
    assert scores[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor([1.0, 2.0])).mean().item())
    assert decode_pairs((first, corner([second], [tag], 0.5)), 1, 10, 0.5)[1].max() == -1


def test_the_mirrored_picture_answers_with_boxes_of_the_picture():
    """A network that says one box whatever it sees says it twice, once mirrored, where the mirrored one counts too."""
    detector = small(flip_test=True, score_threshold=0.1)
    said = corner([(0, 1, 2, 2.0)], [0.0]), corner([(0, 4, 5, 2.0)], [0.0])
    detector.forward_corners = lambda images, every: [said]
    batch = replace(batch_of(32), images=torch.zeros(1, 3, 32, 32), sizes=torch.tensor([[32, 32]]))
    boxes = {tuple(box) for box in detector.predict(batch)[0].boxes.tolist()}
    assert boxes == {(4.0, 8.0, 16.0, 20.0), (16.0, 8.0, 28.0, 20.0)}


def test_ignored_objects_are_no_corners_and_no_background():
    detector, batch = small().train(), batch_of(128)
    crowd = replace(batch, ignore=[torch.tensor([False, True, False]), torch.tensor([True])])
    boxes = boxes_in_cells(crowd, 32, 32)
    goal = detector.targets(crowd, boxes, 32, 32, 2)
    assert len(goal.cells) == 2
    assert goal.heat[1].max() == 0
    losses = detector.loss(crowd)
    assert losses["loss"].isfinite()
    everything = replace(batch, ignore=[torch.ones(3, dtype=torch.bool), torch.ones(1, dtype=torch.bool)])
    assert detector.loss(everything)["pull"] == 0


def test_a_batch_without_objects_has_finite_losses_and_gradients():
    detector = small().train()
    none = [torch.zeros(0, dtype=torch.int64)] * 2
    empty = replace(batch_of(64), boxes=[torch.zeros(0, 4)] * 2, labels=none, ignore=[x.bool() for x in none])
    losses = detector.loss(empty)
    losses["loss"].backward()
    assert losses["push"] == losses["offset"] == 0
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize(("side", "frame"), [(100, 127), (127, 127), (128, 255)])
def test_published_frames_give_whole_maps(side, frame):
    """A frame of side | 127 gives (frame + 1) / 4 cells, and boxes come back in pixels of the picture."""
    detector = small(pad_bits=127, score_threshold=0.0)
    batch = replace(batch_of(128), images=torch.zeros(1, 3, side, side), sizes=torch.tensor([[side, side]]))
    seen = []
    forward = detector.forward_corners
    detector.forward_corners = lambda images, every: seen.append(images) or forward(images, every)
    with torch.no_grad():
        answer = detector.predict(batch)[0]
        cells = forward(seen[0], False)[-1][0].heat.shape[-1]
    assert seen[0].shape[-1] == frame
    assert cells == (frame + 1) // 4
    assert answer.boxes.max() <= side


def test_an_exported_graph_pairs_the_same_corners_without_a_running_maximum():
    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = small()

        def forward(self, images):
            return self.detector.dense(images)

    dense = Dense().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        graph = torch.export.export(dense, (torch.randn(2, 3, 64, 96),))
        x = torch.randn(2, 3, 64, 96)
        boxes, scores = graph.module()(x)
        wanted, sure = dense(x)
    assert "cummax" not in str(graph.graph)
    assert sure.max() > 0
    assert relative(scores, sure) < 1e-5
    pairs = sure.amax(2) > 0
    assert relative(boxes[pairs], wanted[pairs]) < 1e-5


@pytest.mark.shows("cornernet", "manners")
def test_what_does_not_fit_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="CornerNet stands on hourglasses, and --backbone is resnet18"):
        small(backbone="resnet18")
    theirs = state_of(RECORDED, "shapes")
    with pytest.raises(WeightsError, match=r"tensors are missing: tl_tags\.1"):
        saved({k: v for k, v in theirs.items() if not k.startswith("tl_tags.1.1")}, tmp_path / "cut")
    with pytest.raises(WeightsError, match="have batch normalisation"):
        rules_of("hourglass-small:norm=group")


@pytest.mark.slow
@pytest.mark.shows("cornernet", "trains")
def test_a_few_pictures_are_learned_by_heart():
    config = CornerNetConfig(framing=Framing(size=128, max_size=256))
    assert recall_after(config, 120, pictures=4) > 0.8
