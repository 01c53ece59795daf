"""What must change no answer of DETR, what teaches it, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from detect.detr_cases import BOXES, CLASSES, LABELS, QUERIES, SIZES, batch_of, predictor, relative, small
from detect.overfitting import recall_after
from odonata.detect.assets import DetectorAssets
from odonata.detect.detr import DETR, DETRConfig, best_class, cells_inside
from odonata.detect.predictor import DetectorPredictor, frame_batch
from odonata.detect.set_prediction import IGNORED, Costs, Target, class_loss, set_losses
from odonata.errors import RecipeError, RunError, WeightsError


def test_what_stands_in_the_padding_changes_nothing():
    model = small().eval()
    batch = batch_of()
    other = replace(batch, images=batch.images.clone())
    other.images[1, :, 75:], other.images[1, :, :, 101:] = 255.0, 13.0
    with torch.no_grad():
        first, second = model.predict(batch), model.predict(other)
    assert torch.equal(first[1].boxes, second[1].boxes) and torch.equal(first[1].scores, second[1].scores)


def test_a_padded_map_gives_what_the_map_alone_gives():
    model = small().double().eval()
    level = torch.randn(1, model.backbone.taps[-1].channels, 5, 6).double()
    padded = torch.randn(1, level.shape[1], 8, 9).double()
    padded[:, :, :5, :6] = level
    inside = torch.zeros(1, 8, 9, dtype=torch.bool)
    inside[:, :5, :6] = True
    with torch.no_grad():
        alone, framed = model.from_map(level), model.from_map(padded, inside)
    assert relative(framed.logits, alone.logits) < 1e-12
    assert relative(framed.boxes, alone.boxes) < 1e-12


def test_a_cell_is_inside_where_its_first_pixel_is():
    padding = ~(torch.arange(64)[:, None].lt(33) & torch.arange(96).lt(64))[None]
    inside = cells_inside(padding, (2, 3))
    assert inside is not None and inside[0].tolist() == [[True, True, False], [True, True, False]]
    assert cells_inside(None, (2, 3)) is None


def test_pictures_of_a_batch_do_not_see_each_other():
    model = small().eval()
    batch = batch_of()
    turned = replace(batch, images=batch.images.flip(0), sizes=SIZES.flip(0))
    with torch.no_grad():
        first, second = model.predict(batch), model.predict(turned)
    for a, b in zip(first, second[::-1], strict=True):
        assert torch.allclose(a.boxes, b.boxes, atol=1e-3) and torch.allclose(a.scores, b.scores, atol=1e-5)


def test_the_order_of_the_queries_is_the_order_of_the_answers_and_no_more():
    model = small().double().eval()
    level = torch.randn(1, model.backbone.taps[-1].channels, 5, 6).double()
    order = torch.randperm(QUERIES)
    with torch.no_grad():
        first = model.from_map(level)
        model.query_positions.copy_(model.query_positions[order])
        second = model.from_map(level)
    assert relative(second.logits, first.logits[:, :, order]) < 1e-12
    assert relative(second.boxes, first.boxes[:, :, order]) < 1e-12


def test_the_loss_does_not_depend_on_the_order_of_objects():
    model = small().eval()
    batch = batch_of()
    turned = replace(batch, boxes=[b.flip(0) for b in BOXES], labels=[x.flip(0) for x in LABELS])
    assert model.loss(batch)["loss"].item() == pytest.approx(model.loss(turned)["loss"].item(), rel=1e-5)


def test_a_query_on_an_ignored_object_is_neither_matched_nor_punished():
    logits = torch.zeros(1, 1, 3, 3)
    boxes = torch.tensor([[[[0.25, 0.25, 0.3, 0.3], [0.75, 0.75, 0.2, 0.2], [0.3, 0.7, 0.1, 0.1]]]])
    crowd = torch.tensor([[0.6, 0.6, 0.9, 0.9]])
    goal = Target(boxes[0, 0, :1].clone(), torch.tensor([1]), crowd)
    loud = logits.clone()
    loud[0, 0, 1, 0] = 9.0  # what is said of the crowd
    there = [set_losses(x, boxes, [goal], Costs()).class_ for x in (logits, loud)]
    assert torch.equal(there[0], there[1])
    plain = replace_target(goal)
    elsewhere = [set_losses(x, boxes, [plain], Costs()).class_ for x in (logits, loud)]
    assert elsewhere[1] > elsewhere[0] + 0.5


def replace_target(goal: Target) -> Target:
    return Target(goal.boxes_cxcywh_normalized, goal.labels, torch.zeros(0, 4))


def test_ignored_objects_of_a_batch_are_not_to_be_found():
    model = small().eval()
    ignore = [torch.tensor([False, True, True]), torch.tensor([True])]
    alone = batch_of(boxes=[BOXES[0][:1], torch.zeros(0, 4)], labels=[LABELS[0][:1], LABELS[1][:0]])
    with_crowds = model.loss(batch_of(ignore=ignore))
    assert with_crowds["giou"].item() == pytest.approx(model.loss(alone)["giou"].item(), rel=1e-5)


def test_the_class_loss_is_torchs_weighted_mean():
    torch.manual_seed(0)
    logits, wanted = torch.randn(2, 2, 6, 4), torch.randint(4, (2, 2, 6))
    wanted[0, 0, 0] = IGNORED
    weight = torch.tensor([1.0, 1, 1, 0.1])
    for layer in range(2):
        theirs = F.cross_entropy(logits[layer].flatten(0, 1), wanted[layer].flatten(), weight)
        assert class_loss(logits, wanted, 0.1)[layer].item() == pytest.approx(theirs.item(), rel=1e-6)


def test_pictures_without_objects_teach_every_query_to_say_nothing():
    model = small()
    batch = batch_of(boxes=[torch.zeros(0, 4)] * 2, labels=[torch.zeros(0, dtype=torch.int64)] * 2)
    losses = model.loss(batch)
    losses["loss"].backward()
    assert losses["l1"].item() == 0 and losses["giou"].item() == 0
    assert losses["class"].item() > 0
    gradient = model.class_logits.bias.grad
    assert gradient is not None and gradient[-1] < 0 < gradient[0]


def test_without_auxiliary_losses_only_the_last_layer_learns():
    batch = batch_of()
    with_, without = small().loss(batch), small(auxiliary=False).loss(batch)
    assert without["auxiliary"].item() == 0
    assert (with_["loss"] - with_["auxiliary"]).item() == pytest.approx(without["loss"].item(), rel=1e-5)


def test_dc5_halves_the_stride_and_keeps_the_weights():
    plain, dc5 = (small(backbone=f"resnet14-small:norm=frozen_batch{o}") for o in ("", ",output_stride=16"))
    assert (plain.backbone.taps[-1].stride, dc5.backbone.taps[-1].stride) == (32, 16)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in dc5.state_dict().items()}


def test_the_published_models_have_the_papers_sizes():
    from odonata.detect.detector import with_preset

    with torch.device("meta"):
        sizes = {
            name: sum(
                p.numel() for p in DETR(with_preset(replace(DETRConfig(), preset=name, freeze=0)), 91).parameters()
            )
            for name in ("r50", "r101")
        }
    # Table 1: 41 and 60 million; those of the frozen normalisations are not counted.
    assert sizes["r50"] // 10**6 == 41 and sizes["r101"] // 10**6 == 60
    assert {*DETRConfig.presets} == {"r50", "r50-dc5", "r101", "r101-dc5"}


def test_a_frozen_stage_does_not_learn_and_the_rest_does():
    model = small(freeze=1, backbone="resnet14-small:norm=frozen_batch")
    model.loss(batch_of())["loss"].backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle and all(name.startswith(("backbone.stem", "backbone.stages.0")) for name in idle)


def test_what_is_exported_holds_what_is_predicted():
    model = small().eval()
    batch = batch_of(sizes=torch.tensor([[96, 128]] * 2))
    with torch.no_grad():
        boxes, scores = model.dense(model.pixels(batch))
        answers = model.predict(batch)
        logits = model.forward_head(model.pixels(batch)).logits[-1]
    assert boxes.shape == (2, QUERIES, 4) and scores.shape == (2, QUERIES, CLASSES)
    assert torch.equal(scores.amax(2), best_class(logits)[0])
    best = scores[0].amax(1).argmax()
    assert answers[0].scores[0].item() == pytest.approx(scores[0].max().item(), rel=1e-6)
    assert torch.allclose(answers[0].boxes[0], boxes[0, best].clamp(min=0), atol=1e-3)


def test_recomputing_activations_changes_no_gradient():
    batch, model = batch_of(), small().train()
    model.loss(batch)["loss"].backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.transformer.checkpointing = True
    model.loss(batch)["loss"].backward()
    assert all(torch.allclose(p.grad, before[n], atol=1e-6) for n, p in model.named_parameters() if n in before)


@pytest.mark.shows("detr", "manners")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": 0}, "queries 0"),
        ({"dim": 36}, "divisible by 4 and by --num-heads 8"),
        ({"layer": 4}, "has 4 stages"),
        ({"score_threshold": 1.5}, "lies in"),
    ],
)
def test_impossible_options_are_named(changes, message):
    with pytest.raises(RecipeError, match=message):
        small(**changes)


@pytest.mark.shows("detr", "manners")
def test_a_model_that_diverged_says_so():
    model = small()
    with torch.no_grad():
        model.class_logits.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="no longer finite"):
        model.loss(batch_of())


@pytest.mark.shows("detr", "manners")
def test_more_objects_than_queries_are_warned_of(caplog):
    losses = small(queries=2).loss(batch_of())
    assert losses["loss"].isfinite() and "3 objects for 2 queries" in caplog.text


@pytest.mark.shows("detr", "manners")
def test_layouts_refuse_what_they_cannot_say(tmp_path):
    tower = {"backbone": "resnet14-small:norm=frozen_batch", "positions_at": "attention"}
    for changes, layout, message in (
        ({}, "hf", "at its input"),
        ({**tower, "norm": "pre"}, "hf", "no pre-norm"),
        ({**tower, "num_heads": 4}, "official", "8 heads"),
        ({"positions_at": "attention"}, "hf", "batch normalisation"),
        ({**tower, "layer": 1}, "official", "last map"),
        ({**tower, "backbone": "resnet14-small:output_stride=8"}, "hf", "stride 32 or 16"),
    ):
        model = small(**changes)
        assets = DetectorAssets("detr", model.config, ())
        with pytest.raises(WeightsError, match=message):
            DetectorPredictor(model, assets, torch.device("cpu")).convert(tmp_path / "x", layout)


def test_a_frame_is_rounded_as_the_original_rounds_it():
    framing = DETRConfig.presets["r50"]["framing"]
    # The original's get_size_with_aspect_ratio(…, 800, 1333).
    assert framing.scaled_size(480, 640) == (800, 1066)
    assert framing.scaled_size(427, 640) == (800, 1199)
    assert framing.scaled_size(300, 900) == (444, 1332)
    batch, _ = frame_batch([torch.zeros(3, 300, 900, dtype=torch.uint8)], framing, torch.device("cpu"))
    assert batch.images.shape[-2:] == (444, 1332)


@pytest.mark.slow
@pytest.mark.shows("detr", "trains")
def test_eight_pictures_are_learned_by_heart():
    assert recall_after(DETRConfig(), 400, 2e-3) > 0.9


@pytest.mark.slow
def test_an_exported_file_gives_the_same_boxes_and_scores_at_other_sizes(tmp_path):
    pytest.importorskip("onnxruntime")
    from odonata.detect.export import export_onnx

    torch.manual_seed(0)
    config = DETRConfig(queries=QUERIES, decoder_layers=1, encoder_layers=1)
    done = export_onnx(predictor(config, CLASSES), tmp_path / "model.onnx", raw=True)
    assert len(done.report) > 1 and all("relative difference" in line for line in done.report)
