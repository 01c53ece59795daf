"""All thirteen losses between networks that have little in common, and what they say where they cannot."""

import pytest
import torch

from distill.taps import both_shapes, taps_of
from odonata.distill.losses import LOSSES
from odonata.distill.losses.interface import Taps, TapShapes, loss_class
from odonata.distill.losses.regressor import ConvRegressor
from odonata.errors import RecipeError

CONVOLUTIONAL = {"maps": [[4, 16, 16], [4, 16, 16], [6, 8, 8], [8, 4, 4], [8, 3, 2]], "dim": 8, "classes": 5}
# A plain transformer: many stages, all of one size, which no stage of the other has.
TRANSFORMER = {"maps": [[12, 7, 6]] * 13, "dim": 12, "classes": 5}
PAIRS = {"to transformer": (CONVOLUTIONAL, TRANSFORMER), "from transformer": (TRANSFORMER, CONVOLUTIONAL)}
LABELS, INDICES = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 1, 0, 7, 11, 5])


def build(name: str, student: Taps, teacher: Taps):
    options = {"labels": torch.arange(12) % 4, "num_negatives": 20} if name == "crd" else {}
    return loss_class(name)(*both_shapes(student, teacher), **options)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "fsp"])
def test_any_two_networks_can_be_paired(name, pair):
    student, teacher = (
        taps_of(f"{pair}/{side}", shapes, torch.float32) for side, shapes in zip("st", PAIRS[pair], strict=True)
    )
    loss = build(name, student, teacher)
    step = loss.first_stage(student, teacher) if loss.two_stage else loss(student, teacher, LABELS, INDICES)
    step["loss"].backward()
    parameters = list(loss.init_parameters() if loss.two_stage else loss.main_parameters())
    given = [*student.maps, *student.preactivations, student.pooled, student.logits]
    reached = [tensor for tensor in given if tensor.grad is not None]
    assert step["loss"].isfinite() and step["loss"] > 0
    assert bool(reached) == (loss.init_trains_student or not loss.two_stage)
    assert all(tensor.grad.isfinite().all() for tensor in [*reached, *parameters])
    theirs = [*teacher.maps, *teacher.preactivations, teacher.pooled, teacher.logits]
    assert all(tensor.grad is None for tensor in theirs)
    whole = loss(student, teacher, LABELS, INDICES)
    assert all(value.ndim == 0 for value in whole.values())


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_taken_in_float32_under_autocast(name):
    shapes = PAIRS["to transformer"] if name != "fsp" else (CONVOLUTIONAL, CONVOLUTIONAL)
    student, teacher = (taps_of(f"{side}", shape, torch.float32) for side, shape in zip("st", shapes, strict=True))
    # Values that bfloat16 holds, so that only the arithmetic could differ.
    for taps in (student, teacher):
        for tensor in [*taps.maps, *taps.preactivations, taps.pooled, taps.logits]:
            tensor.data = tensor.data.bfloat16().float()
    loss = build(name, student, teacher).eval()
    exact = loss(student, teacher, LABELS, INDICES)
    lists = [[[t.bfloat16() for t in maps] for maps in (s.maps, s.preactivations)] for s in (student, teacher)]
    vectors = [(s.pooled.bfloat16(), s.logits.bfloat16()) for s in (student, teacher)]
    halves = [Taps(*maps, *vector) for maps, vector in zip(lists, vectors, strict=True)]
    with torch.autocast("cpu", torch.bfloat16):
        under = loss(*halves, LABELS, INDICES)
    assert under["loss"].dtype == torch.float32
    assert {key: value.item() for key, value in under.items()} == {key: value.item() for key, value in exact.items()}


def test_weights_are_the_published_ones():
    published = {"kd": 0.9, "fitnets": 100, "at": 1000, "sp": 3000, "cc": 0.02, "vid": 1, "rkd": 1, "pkt": 30000}
    published |= {"ab": 1, "ft": 200, "fsp": 50, "nst": 50, "crd": 0.8}
    assert {name: loss_class(name).beta for name in LOSSES} == published
    assert {name for name in LOSSES if loss_class(name).ce_weight != 1} == {"kd"} and loss_class("kd").ce_weight == 0.1
    assert {name for name in LOSSES if loss_class(name).two_stage} == {"ab", "ft", "fsp"}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 8, 8), (6, 4, 4)), ((4, 4, 4), (6, 8, 8)), ((4, 6, 7), (6, 4, 4)), ((4, 7, 7), (6, 7, 7)),
     ((4, 56, 56), (6, 14, 14)), ((4, 3, 3), (6, 7, 8)), ((4, 3, 9), (6, 7, 8))],
)  # fmt: skip
def test_the_regressor_meets_the_teachers_shape_and_stays_small(student, teacher):
    regressor = ConvRegressor(student, teacher)
    assert regressor(torch.randn(2, *student)).shape == (2, *teacher)
    assert sum(p.numel() for p in regressor.parameters()) < 100 * student[0] * teacher[0]


def test_fsp_names_both_networks_and_their_shapes_where_channels_differ():
    student, teacher = TapShapes("resnet8x4", ((4, 8, 8), (8, 4, 4))), TapShapes("wrn-40-2", ((4, 8, 8), (6, 4, 4)))
    with pytest.raises(RecipeError) as error:
        loss_class("fsp")(student, teacher)
    assert "resnet8x4 (maps 4×8×8, 8×4×4; pooled 0; classes 0)" in str(error.value)
    assert "wrn-40-2 (maps 4×8×8, 6×4×4; pooled 0; classes 0)" in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("crd", {}, "needs labels"),
        ("crd", {"negatives": "other_samples"}, "their number"),
        ("crd", {"labels": torch.zeros(9, dtype=torch.int64)}, "9 samples, all of one class"),
        ("fitnets", {"layer": 5}, "layer = 5.*paired stages 0 to 1"),
        ("kd", {}, "student has 3 classes and teacher 7"),
        ("ab", {}, "student .* brings none"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name, options, message):
    student = TapShapes("student", ((4, 8, 8), (8, 4, 4)), dim=8, classes=3)
    teacher = TapShapes("teacher", ((4, 8, 8), (8, 4, 4)), dim=8, classes=7)
    with pytest.raises(RecipeError, match=message):
        loss_class(name)(student, teacher, **options)


def test_a_network_without_stages_cannot_be_compared_by_stages():
    student = TapShapes("mlp", dim=8, classes=3)
    for name in ("at", "sp", "nst", "vid", "ft", "fitnets"):
        with pytest.raises(RecipeError, match=r"mlp .* has none after its stem"):
            loss_class(name)(student, student)


def test_an_unknown_loss_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"no distillation loss 'kdsvd'; there are kd, fitnets, .*crd"):
        loss_class("kdsvd")


def test_a_missing_tap_is_named():
    shapes = TapShapes("student", dim=3, classes=3)
    with pytest.raises(RecipeError, match="needs logits"):
        loss_class("kd")(shapes, shapes)(*(Taps([], [], torch.randn(4, 3), None) for _ in range(2)))
