"""MTCNN beside facenet-pytorch's, its published weights on photos, and what its networks learn from."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures"
sys.path.insert(0, str(FIXTURES))

from mtcnn_numbers import PHOTOS, SETTINGS, WINDOWS, picture, windows  # noqa: E402
from named_numbers import numbers  # noqa: E402

from odonata.app.api import load  # noqa: E402
from odonata.data.item import Item  # noqa: E402
from odonata.data.object_batches import ObjectBatch, ObjectData, to_batch, train_and_heldout_objects  # noqa: E402
from odonata.data.sample import ImageRef  # noqa: E402
from odonata.detect import mtcnn_training  # noqa: E402
from odonata.detect.mtcnn import MTCNN, MTCNNConfig  # noqa: E402
from odonata.detect.mtcnn_cascade import cells, find, landmarks, pyramid, squares  # noqa: E402
from odonata.detect.mtcnn_training import FACE, NONE, PART, UNUSED, choose, labelled, picture_of, upright  # noqa: E402
from odonata.errors import RecipeError, WeightsError  # noqa: E402
from odonata.ops.boxes import paired_iou  # noqa: E402

NETS = tuple(WINDOWS)


@pytest.fixture(scope="module")
def record():
    with np.load(FIXTURES / "mtcnn.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def files(record, tmp_path_factory):
    """facenet-pytorch's three files, with numbers that follow from the names."""
    folder = tmp_path_factory.mktemp("facenet")
    shapes = json.loads(str(record["shapes"]))
    for net in NETS:
        names = [name for name in shapes if name.startswith(net)]
        torch.save({name[5:]: numbers(name, tuple(shapes[name])) for name in names}, folder / f"{net}.pt")
    return folder


@pytest.fixture(scope="module")
def model(files):
    return load(files, device="cpu")


def batch_of(*images, boxes=None, ignore=None, points=None):
    none = [torch.zeros(0, 4)] * len(images)
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(0).tolist()
    padded = [torch.nn.functional.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2]), value=77) for i in images]
    boxes = boxes or none
    return ObjectBatch(
        torch.stack(padded), sizes, boxes, [torch.zeros(len(b), dtype=torch.int64) for b in boxes],
        ignore or [torch.zeros(len(b), dtype=torch.bool) for b in boxes], torch.ones(len(images)),
        torch.arange(len(images)), points=points,
    )  # fmt: skip


def relative(ours, theirs):
    theirs = torch.as_tensor(theirs)
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.shows("mtcnn", "parity")
@pytest.mark.parametrize("net", NETS)
def test_each_network_answers_as_facenet_pytorchs(net, model, record):
    with torch.no_grad():
        logits, sides, *points = model.detector.get_submodule(net)(windows(net))
    assert relative(sides, record[f"{net}/0"]) < 1e-5
    assert relative(logits.softmax(1), record[f"{net}/{1 + len(points)}"]) < 1e-5
    for answer in points:
        assert relative(answer, record[f"{net}/1"]) < 1e-5


@pytest.mark.shows("mtcnn", "parity")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_cascade_finds_what_facenet_pytorchs_finds(setting, model, record):
    options, seed = SETTINGS[setting]
    first, second, third = options["thresholds"]
    config = dataclasses.replace(
        model.detector.config, min_face=options["min_face"], factor=options["factor"],
        proposal_threshold=first, refine_threshold=second, score_threshold=third,
    )  # fmt: skip
    nets = [model.detector.get_submodule(net) for net in NETS]
    with torch.no_grad():
        faces = find(nets, torch.from_numpy(picture(seed)), config)
    theirs = {part: torch.from_numpy(record[f"setting/{setting}/{part}"]) for part in ("boxes", "scores", "points")}
    assert len(theirs["boxes"]) >= 10
    for part, values in theirs.items():
        assert getattr(faces, part).shape == values.shape
        assert (getattr(faces, part) - values).abs().max() < (1e-5 if part == "scores" else 0.01), part


@pytest.mark.shows("mtcnn", "parity")
@pytest.mark.parametrize("photo", PHOTOS)
def test_published_weights_find_the_same_faces_in_photos(photo, shared_data, record):
    model = load(shared_data / "weights/mtcnn", device="cpu")
    image = ImageRef(shared_data / photo).tensor()
    with torch.no_grad():
        (faces,) = model.detector.predict(batch_of(image))
    boxes = torch.from_numpy(record[f"photo/{photo}/boxes"])
    # Nearly equal scores may change places.
    closest = (faces.boxes[:, None] - boxes).abs().amax(2).argmin(0)
    assert sorted(closest.tolist()) == list(range(len(boxes))) == list(range(len(faces)))
    assert (faces.boxes[closest] - boxes).abs().max() < 0.01
    assert (faces.points[closest] - torch.from_numpy(record[f"photo/{photo}/points"])).abs().max() < 0.01
    assert (faces.scores[closest] - torch.from_numpy(record[f"photo/{photo}/scores"])).abs().max() < 1e-4


def test_the_cascade_looks_closely_at_few_windows(shared_data):
    model = load(shared_data / "weights/mtcnn", device="cpu")
    counts = model.detector.cascade_counts(ImageRef(shared_data / PHOTOS[2]).tensor())
    assert counts["windows"] > 10_000 and counts["faces"] == 9
    assert counts["windows"] > 20 * counts["rnet"] > 60 * counts["onet"] >= 60 * counts["faces"]
    assert counts["rnet"] <= counts["proposed"]


def test_a_picture_gives_the_same_alone_and_padded_in_a_batch(model):
    images = [torch.from_numpy(picture(0)), torch.from_numpy(picture(2))[:, :70, :101].contiguous()]
    model.detector.options = dataclasses.replace(model.detector.config, score_threshold=0.5, refine_threshold=0.5)
    with torch.no_grad():
        together = model.detector.predict(batch_of(*images))
        for image, answer in zip(images, together, strict=True):
            (alone,) = model.detector.predict(batch_of(image))
            assert len(alone) and torch.equal(alone.boxes, answer.boxes) and torch.equal(alone.points, answer.points)
    model.detector.options = model.detector.config


def test_a_picture_smaller_than_a_face_and_an_empty_answer_work(model):
    (answer,) = model.detector.predict(batch_of(torch.zeros(3, 11, 300, dtype=torch.uint8)))
    assert len(answer) == 0 and answer.points.shape == (0, 5, 2)
    found = model.predict(torch.zeros(3, 300, 15, dtype=torch.uint8))
    assert found.to_dict()["objects"] == [] and found.categories[0].name == "face"


def test_predictions_carry_landmarks_into_dictionaries_and_drawings(model):
    image = torch.from_numpy(picture(0))
    model.detector.config = model.detector.options = dataclasses.replace(model.detector.config, refine_threshold=0.5)
    found = model.predict(image, score=0.5)
    assert len(found) and all(len(row["points"]) == 5 for row in found.to_dict()["objects"])
    assert found.draw(image).size == (128, 96)


@pytest.mark.shows("mtcnn", "weights")
def test_facenet_pytorchs_files_come_back_bit_equal(model, files, record, tmp_path):
    model.convert(tmp_path / "out", "facenet-pytorch")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["onet.pt", "pnet.pt", "rnet.pt"]
    for net in NETS:
        ours = torch.load(tmp_path / f"out/{net}.pt", weights_only=True)
        theirs = torch.load(files / f"{net}.pt", weights_only=True)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], v) for k, v in theirs.items())


@pytest.mark.shows("mtcnn", "weights")
def test_the_original_files_hold_the_same_numbers_on_their_side(model, tmp_path):
    model.convert(tmp_path / "out", "original")
    det1, det3 = (np.load(tmp_path / f"out/det{i}.npy", allow_pickle=True, encoding="latin1").item() for i in (1, 3))
    state = model.detector.state_dict()
    assert set(det1) == {"conv1", "PReLU1", "conv2", "PReLU2", "conv3", "PReLU3", "conv4-1", "conv4-2"}
    # Across before down: the original transposes pictures.
    assert det1["conv1"]["weights"][2, 0, 1, 5] == state["pnet.trunk.0.conv.weight"][5, 1, 0, 2]
    assert det3["conv5"]["weights"].shape == (1152, 256) and det3["conv6-3"]["biases"].shape == (10,)
    again = load(tmp_path / "out", device="cpu")
    assert again.assets.config.origin == 1 and "original" in again.name
    assert all(torch.equal(value, state[name]) for name, value in again.detector.state_dict().items())


@pytest.mark.shows("mtcnn", "manners")
def test_a_folder_that_lacks_a_network_says_which(files, tmp_path):
    for name in ("pnet.pt", "onet.pt"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    with pytest.raises(WeightsError, match=r"lacks rnet\.pt: the model's networks are pnet\.pt, rnet\.pt, onet\.pt"):
        load(tmp_path, device="cpu")


@pytest.mark.shows("mtcnn", "manners")
def test_impossible_options_are_named():
    with pytest.raises(RecipeError, match=r"finds one class, and the set has 10; name it with --data\.one-class face"):
        MTCNN(MTCNNConfig(), 10)
    with pytest.raises(RecipeError, match="--stage rnet needs the networks before it"):
        MTCNNConfig(stage="rnet")
    with pytest.raises(RecipeError, match="--scale-policy snip is not for MTCNN"):
        MTCNNConfig(scale_policy="snip")
    with pytest.raises(RecipeError, match=r"--factor 1\.5 0 to 1"):
        MTCNNConfig(factor=1.5)
    with pytest.raises(RecipeError, match=r"--refine-threshold is 2; it lies in \[0, 1\]"):
        MTCNNConfig(refine_threshold=2)
    with pytest.raises(RecipeError, match="must rise within"):
        MTCNNConfig(part=0.7)


@pytest.mark.shows("mtcnn", "manners")
def test_a_model_that_counts_from_0_is_not_written_in_a_layout_that_counts_from_1(model, tmp_path):
    assets = dataclasses.replace(model.assets, config=MTCNNConfig())
    with pytest.raises(WeightsError, match="pixels counted from 1; train with --origin 1"):
        dataclasses.replace(model, assets=assets).convert(tmp_path / "out", "facenet-pytorch")


def test_the_pyramid_is_the_papers():
    assert pyramid(630, 1200, 20, 0.709)[:3] == [0.6, 0.6 * 0.709, 0.6 * 0.709 * 0.709]
    assert len(pyramid(630, 1200, 20, 0.709)) == 11 and pyramid(19, 400, 20, 0.709) == []
    assert pyramid(20, 20, 20, 0.5) == [0.6]


def test_windows_become_squares_about_their_middle():
    boxes = torch.tensor([[10.0, 20, 40, 30], [-5, 0, 5, 20]])
    square = squares(boxes)
    assert torch.equal(square, torch.tensor([[10.0, 10, 40, 40], [-10, 0, 10, 20]]))
    assert torch.equal(squares(square), square)


def test_cells_at_scale_1_are_twelve_pixels_two_apart():
    places = torch.tensor([[0, 0], [3, 5]])
    assert cells(places, 1.0, 0).tolist() == [[0, 0, 12, 12], [10, 6, 22, 18]]
    # Counted from 1, the first pixel of the second window is the eleventh of its row.
    assert cells(places, 1.0, 1).tolist() == [[1, 1, 12, 12], [11, 7, 22, 18]]


FACES = torch.tensor([[30.0, 25, 62, 61], [80, 50, 100, 72]])
POINTS = torch.tensor([[[38.0, 36], [54, 35], [46, 45], [40, 53], [52, 53]]]).repeat(2, 1, 1) + torch.tensor(
    [[[0.0, 0.0]], [[40.0, 20.0]]]
)


def scene(**more):
    image = torch.from_numpy(picture(0))
    return picture_of(batch_of(image, boxes=[FACES], **more), 0, {})


@pytest.mark.parametrize("origin", [0, 1])
@pytest.mark.parametrize("stage", NETS)
def test_windows_are_those_of_the_paper_and_their_targets_lead_to_the_face(stage, origin):
    config = MTCNNConfig(origin=origin, min_face=10, windows=50)
    samples = choose(scene(points=[POINTS]), stage, config, torch.Generator().manual_seed(3))
    counts = [int((samples.kinds == kind).sum()) for kind in (FACE, PART, NONE)]
    assert counts == [10, 10, 30]
    edges = samples.windows - torch.tensor([origin, origin, 0, 0])
    overlaps = torch.stack([paired_iou(edges, face[None]) for face in FACES], 1).amax(1)
    assert overlaps[samples.kinds == FACE].min() >= 0.65 and overlaps[samples.kinds == NONE].max() < 0.3
    assert ((overlaps >= 0.4) & (overlaps < 0.65))[samples.kinds == PART].all()
    near = samples.kinds != NONE
    lengths = edges[near][:, 2:] - edges[near][:, :2]
    aimed = edges[near] + samples.sides[near] * lengths.repeat(1, 2)
    owner = (aimed[:, None] - FACES).abs().sum(2).argmin(1)
    assert torch.allclose(aimed, FACES[owner], atol=1e-4)
    placed = landmarks(samples.windows[near], samples.points[near], origin)
    assert torch.allclose(placed, POINTS[owner], atol=1e-4)


def test_draws_follow_from_their_generator_alone():
    config = MTCNNConfig(min_face=10)
    first, again, other = (
        choose(scene(), "pnet", config, torch.Generator().manual_seed(seed)).windows for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first[:5], other[:5])


def test_what_lies_on_an_ignored_object_is_no_window_without_a_face():
    hidden = scene(ignore=[torch.tensor([False, True])])
    windows = torch.tensor([[82.0, 52, 98, 70], [30, 25, 62, 61], [0, 70, 20, 90]])
    assert labelled(windows, hidden, MTCNNConfig()).kinds.tolist() == [UNUSED, FACE, NONE]
    assert labelled(windows, scene(), MTCNNConfig()).kinds.tolist() == [FACE, FACE, NONE]


def test_no_square_overlaps_a_narrow_object_enough_but_one_overlaps_the_square_about_it():
    narrow = dataclasses.replace(scene(), boxes=torch.tensor([[50.0, 20, 60, 60]]))
    window = torch.tensor([[36.0, 21, 75, 60]])
    assert labelled(window, narrow, MTCNNConfig()).kinds.tolist() == [NONE]
    found = labelled(window, narrow, MTCNNConfig(overlap="square"))
    assert found.kinds.tolist() == [FACE]
    assert torch.allclose(found.sides, torch.tensor([[14 / 39, -1 / 39, -15 / 39, 0]]))


def test_a_picture_without_faces_teaches_what_no_face_is():
    empty = picture_of(batch_of(torch.from_numpy(picture(0))), 0, {})
    samples = choose(empty, "onet", MTCNNConfig(min_face=10))
    assert len(samples.kinds) and (samples.kinds == NONE).all()


def test_windows_that_the_networks_before_let_pass_are_learned_from():
    config = MTCNNConfig(min_face=10, windows=5)
    base = scene()
    passed = torch.tensor([[31.0, 26, 63, 62]])
    with_passed = dataclasses.replace(base, boxes=base.boxes, passed={"rnet": passed})
    rows = [
        choose(with_passed, stage, config, torch.Generator().manual_seed(seed)).windows
        for stage in ("rnet", "pnet") for seed in range(40)
    ]  # fmt: skip
    seen = [bool((row == passed).all(1).any()) for row in rows]
    assert any(seen[:40]) and not any(seen[40:])


def test_mirrored_landmarks_are_put_in_order():
    mirrored = torch.stack([100 - POINTS[..., 0], POINTS[..., 1]], dim=-1)
    expected = mirrored[:, [1, 0, 2, 4, 3]]
    assert torch.equal(upright(mirrored), expected) and torch.equal(upright(POINTS), POINTS)


def test_losses_are_those_of_the_equations():
    kinds = torch.tensor([FACE, NONE, NONE, PART, FACE, NONE])
    logits = torch.tensor([[0.0, 1], [2, 0], [0, 3], [9, -9], [-1, 1], [0.5, 0]])
    sides, points = torch.randn(6, 4), torch.randn(6, 10)
    target = mtcnn_training.Samples(torch.zeros(6, 4), kinds, torch.randn(6, 4), torch.randn(6, 10))
    target.points[4] = torch.nan
    found = mtcnn_training.losses("onet", (logits, sides, points), target, MTCNNConfig(hard=0.6))
    told = [0, 1, 2, 4, 5]
    each = sorted((-float(logits[i].log_softmax(0)[int(kinds[i])]) for i in told), reverse=True)
    assert float(found["onet_face"]) == pytest.approx(sum(each[:3]) / 3, rel=1e-6)
    near = [0, 3, 4]
    expected = sum(float((sides[i] - target.sides[i]).square().sum()) for i in near) / 3
    assert float(found["onet_box"]) == pytest.approx(expected, rel=1e-6)
    # Only the first face's landmarks are known.
    assert float(found["onet_points"]) == pytest.approx(float((points[0] - target.points[0]).square().sum()), rel=1e-6)


def test_without_landmarks_the_output_of_landmarks_does_not_learn():
    detector = MTCNN(MTCNNConfig(min_face=10, windows=10), 1)
    batch = batch_of(torch.from_numpy(picture(0)), boxes=[FACES])
    detector.loss(batch)["loss"].backward()
    assert not detector.onet.points.weight.grad.any() and detector.onet.box.weight.grad.any()
    batch.points = [POINTS]
    detector.loss(batch)["loss"].backward()
    assert detector.onet.points.weight.grad.any()


def test_landmarks_reach_the_batch_with_their_objects_where_every_picture_has_them():
    image = torch.zeros(3, 96, 128, dtype=torch.uint8)
    item = Item(image, boxes=FACES, labels=torch.zeros(2, dtype=torch.int64), points=POINTS)
    batch = to_batch([item, item], 1)
    assert batch.points is not None and torch.equal(batch.points[1], POINTS)
    assert to_batch([item, dataclasses.replace(item, points=None)], 1).points is None


def test_a_set_of_several_classes_is_read_as_one():
    train, heldout = train_and_heldout_objects(ObjectData(path="objects:n=12", one_class="face"))
    assert heldout is not None and train.names == heldout.names == ("face",)
    assert not any(sample.labels.any() for sample in (*train, *heldout)) and train.num_objects > 5


def test_a_stage_trains_its_network_alone_and_the_cascade_ends_with_it():
    config = MTCNNConfig(
        stage="rnet", init="former", min_face=10, windows=10, score_threshold=0.3, proposal_threshold=0.3
    )
    detector = MTCNN(config, 1)
    batch = batch_of(torch.from_numpy(picture(0)), boxes=[FACES])
    detector.loss(batch)["loss"].backward()
    learning = {name.split(".")[0] for name, p in detector.named_parameters() if p.grad is not None}
    assert learning == {"rnet"}
    with torch.no_grad():
        counts, (answer,) = detector.cascade_counts(batch.images[0]), detector.predict(batch)
    assert "onet" not in counts and answer.points is None


@pytest.mark.slow
@pytest.mark.shows("mtcnn", "trains")
def test_it_learns_a_few_pictures_by_heart():
    from odonata.data.object_batches import read_item
    from odonata.data.open_objects import open_objects
    from odonata.ops.boxes import iou_matrix

    source = open_objects("objects:n=4,sides=24-40,objects=1-2,size=80").as_one_class("digit")
    batch = to_batch([read_item(sample) for sample in source], 1)
    thresholds = {"proposal_threshold": 0.3, "refine_threshold": 0.3, "score_threshold": 0.3}
    detector = MTCNN(MTCNNConfig(min_face=20, windows=15, overlap="square", **thresholds), 1)
    optimizer = torch.optim.AdamW(detector.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=100)
    for _ in range(100):
        optimizer.zero_grad()
        detector.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        answers = detector.eval().predict(batch)
    pairs = zip(answers, batch.boxes, strict=True)
    best = torch.cat(
        [iou_matrix(boxes, answer.boxes).amax(1) if len(answer) else boxes[:, 0] * 0 for answer, boxes in pairs]
    )
    assert (best > 0.4).float().mean() >= 0.9
    assert sum(len(answer) for answer in answers) <= 2 * len(best)
