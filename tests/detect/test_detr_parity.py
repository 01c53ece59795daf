"""DETR beside transformers with the same weights, and transformers' directories in and out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detect.detr_cases import CLASSES, QUERIES, SIZES, batch_of, relative, targets
from odonata.detect.detr import DETR
from odonata.detect.predictor import load
from odonata.detect.set_prediction import Costs, match, set_losses
from odonata.errors import WeightsError
from odonata.nn.positions import sines_of_mask
from odonata.weights.detectors import read_model

transformers = pytest.importorskip("transformers")


def reference(**options):
    """transformers' detector, small, with weights by chance."""
    tower = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1], layer_type="bottleneck",
        out_features=["stage4"],
    )  # fmt: skip
    shape = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = transformers.DetrConfig(
        backbone_config=tower, use_timm_backbone=False, backbone=None, num_queries=QUERIES, num_labels=CLASSES,
        dropout=0.0, **(shape | options),
    )  # fmt: skip
    peer = transformers.DetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in peer.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and value.is_floating_point():
                value.copy_(0.2 * torch.randn_like(value) + name.endswith("weight"))
            elif name.startswith("model.query"):
                value.normal_()
            elif name.startswith("bbox_predictor"):
                value.normal_(std=value.shape[1] ** -0.5)
            elif value.ndim == 2:
                value.normal_(std=2 * value.shape[1] ** -0.5)  # else all queries say much the same
    return peer.requires_grad_(True)


class Pair:
    """The same weights on both sides, in float64."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        self.folder = folder
        self.peer = reference()
        self.peer.save_pretrained(folder)
        self.model = load(folder, None, torch.device("cpu"))
        config = replace(self.model.assets.config, freeze=0)
        detector = DETR(config, CLASSES)
        detector.load_state_dict(self.model.detector.state_dict())
        self.ours = detector.double().eval()
        self.peer.double()

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Prepared pictures, and which of their pixels are padding."""
        padding = ~torch.stack([torch.arange(96)[:, None].lt(h) & torch.arange(128).lt(w) for h, w in SIZES.tolist()])
        pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return pixels.masked_fill(padding[:, None], 0), padding

    def layers(self, pixels: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and boxes of every decoder layer of transformers', each read as the original reads it."""
        states: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda *a: states.append(a[-1])) for layer in self.peer.model.decoder.layers
        ]
        out = self.peer(pixels, pixel_mask=(~padding).long())
        for hook in hooks:
            hook.remove()
        tokens = self.peer.model.decoder.layernorm(torch.stack(states))
        logits, boxes = self.peer.class_labels_classifier(tokens), self.peer.bbox_predictor(tokens).sigmoid()
        assert torch.allclose(logits[-1], out.logits) and torch.allclose(boxes[-1], out.pred_boxes)
        return logits, boxes


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("hf"))


@pytest.mark.shows("detr", "parity")
def test_classes_and_boxes_of_padded_pictures_are_transformers_at_every_layer(pair):
    pixels, padding = pair.inputs()
    with torch.no_grad():
        logits, boxes = pair.layers(pixels, padding)
        out = pair.ours.forward_head(pixels, padding, every_layer=True)
    assert relative(out.logits, logits) < 1e-10
    assert relative(out.boxes, boxes) < 1e-10
    assert logits[-1].std(1).min() > 0.003  # queries say different things


@pytest.mark.shows("detr", "parity")
def test_losses_of_every_layer_and_all_gradients_are_transformers(pair):
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    pixels, padding = pair.inputs()
    logits, boxes = pair.layers(pixels, padding)
    labels = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh_normalized} for t in targets()]
    config = replace_aux(pair.peer.config)
    torch.set_default_dtype(torch.float64)  # its criterion makes weights of the default type
    try:
        loss, parts, _ = ForObjectDetectionLoss(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)
    finally:
        torch.set_default_dtype(torch.float32)
    pair.peer.zero_grad()
    loss.backward()
    out = pair.ours.forward_head(pixels, padding, every_layer=True)
    losses = set_losses(out.logits, out.boxes, targets(), Costs())
    for layer, suffix in enumerate(("_0", "_1", "")):
        for ours, name in ((losses.class_, "loss_ce"), (losses.l1, "loss_bbox"), (losses.giou, "loss_giou")):
            assert relative(ours[layer], parts[name + suffix]) < 1e-8, (layer, name)
    total = pair.ours.weighed(losses).sum()
    assert relative(total.detach(), loss.detach()) < 1e-8
    pair.ours.zero_grad()
    total.backward()
    raw_names = read_model(pair.folder, "detect").plan.key_map
    saved = {published(name): p for name, p in pair.peer.named_parameters()}
    buffers = {published(name): b for name, b in pair.peer.named_buffers()}
    theirs, _ = raw_names.to_ours({k: p.grad for k, p in saved.items()} | buffers, strict=False)
    checked = 0
    for name, parameter in pair.ours.named_parameters():
        # A bias of the keys moves all scores of a query alike: its gradient is zero, and only rounding is left.
        assert (parameter.grad - theirs[name]).norm() < 1e-6 * theirs[name].norm() + 1e-12, name
        checked += 1
    assert checked > 100


def replace_aux(config):
    """The configuration with auxiliary losses, which its criterion asks for."""
    import copy

    changed = copy.deepcopy(config)
    changed.auxiliary_loss = True
    return changed


def published(name: str) -> str:
    from odonata.weights.detr_hf import published_name

    return published_name(name)


@pytest.mark.shows("detr", "parity")
def test_a_step_from_bytes_has_transformers_loss(pair):
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    batch = batch_of()
    ours, peer = pair.ours.float(), pair.peer.float()
    try:
        losses = ours.loss(batch)
        padding = pair.inputs()[1]
        logits, boxes = pair.layers(ours.pixels(batch), padding)
        labels = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh_normalized.float()} for t in targets()]
        loss, parts, _ = ForObjectDetectionLoss(
            logits[-1], labels, "cpu", boxes[-1], replace_aux(peer.config), logits, boxes
        )
    finally:
        pair.ours.double(), pair.peer.double()
    assert relative(losses["loss"], loss) < 1e-5
    assert relative(losses["giou"], parts["loss_giou"]) < 1e-5


@pytest.mark.shows("detr", "parity")
def test_queries_and_objects_are_paired_as_transformers_pairs_them():
    from transformers.loss.loss_for_object_detection import HungarianMatcher

    torch.manual_seed(1)
    logits, boxes = torch.randn(3, 2, 20, CLASSES + 1), torch.rand(3, 2, 20, 4) * 0.5 + 0.1
    goals = targets()
    for goal in goals:
        goal.boxes_cxcywh_normalized = goal.boxes_cxcywh_normalized.float()
    pairs = match(logits, boxes, goals, Costs(1, 5, 2))
    matcher = HungarianMatcher(1, 5, 2)
    labels = [{"class_labels": t.labels, "boxes": t.boxes_cxcywh_normalized} for t in goals]
    for layer in range(3):
        theirs = matcher({"logits": logits[layer], "pred_boxes": boxes[layer]}, labels)
        for picture, (queries, objects) in enumerate(theirs):
            here = (pairs.layers == layer) & (pairs.pictures == picture)
            assert pairs.queries[here].tolist() == queries.tolist()
            assert pairs.objects[here].tolist() == objects.tolist()


@pytest.mark.shows("detr", "parity")
def test_detections_are_those_of_transformers_post_processing(pair):
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    batch, ours, peer = batch_of(), pair.ours.float(), pair.peer.float()
    try:
        with torch.no_grad():
            out = peer(ours.pixels(batch), pixel_mask=(~pair.inputs()[1]).long())
            answers = ours.predict(batch)
    finally:
        pair.ours.double(), pair.peer.double()
    threshold = ours.options.score_threshold
    theirs = DetrImageProcessorPil.post_process_object_detection(None, out, threshold, SIZES)
    for answer, expected, (height, width) in zip(answers, theirs, SIZES.tolist(), strict=True):
        order = expected["scores"].argsort(descending=True, stable=True)
        assert len(answer) == len(order) > 0
        assert answer.labels.tolist() == expected["labels"][order].tolist()
        assert relative(answer.scores, expected["scores"][order]) < 1e-5
        inside = torch.minimum(expected["boxes"][order].clamp(min=0), torch.tensor([width, height, width, height]))
        assert relative(answer.boxes, inside) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_positions_of_a_masked_map_are_transformers(dtype):
    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

    _, padding = torch.zeros(0), torch.ones(2, 6, 9, dtype=torch.bool)
    padding[0, :4, :9], padding[1, :6, :5] = False, False
    theirs = DetrSinePositionEmbedding(16, normalize=True)((2, 1, 6, 9), "cpu", dtype, ~padding)
    ours = sines_of_mask(~padding, 32, dtype=dtype)
    assert relative(ours, theirs.flatten(2).transpose(1, 2)) < 1e-6
    with pytest.raises(ValueError, match="divisible by 4"):
        sines_of_mask(~padding, 30)


@pytest.mark.shows("detr", "weights")
def test_a_directory_of_transformers_comes_back_bit_equal_and_is_read_there(pair, tmp_path):
    pair.model.convert(tmp_path / "out", "hf")
    again = load(tmp_path / "out", None, torch.device("cpu"))
    assert again.assets.config == pair.model.assets.config
    for name, value in pair.model.detector.state_dict().items():
        assert torch.equal(value, again.detector.state_dict()[name]), name
    peer = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "out").eval()
    expected = pair.peer.state_dict()
    assert peer.config.num_labels == CLASSES and peer.config.num_queries == QUERIES
    for name, value in peer.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[name].float()), name


@pytest.mark.shows("detr", "weights")
def test_names_of_version_5_and_of_timm_are_read_too(pair, tmp_path):

    import safetensors.torch

    from odonata.weights.detr_hf import body_rules
    from odonata.weights.detr_tower import Tower, resnet_fields
    from odonata.weights.maps import KeyMap

    own = pair.model.detector.state_dict()
    fields = resnet_fields(own, "resnet14-small", "backbone.")
    body = KeyMap(body_rules(Tower(fields, False), timm=True)).from_ours(
        {k: v for k, v in own.items() if k.startswith("backbone.")}
    )
    rest = {k: v.float() for k, v in pair.peer.state_dict().items() if not k.startswith("model.backbone.")}
    assert "model.decoder.layers.0.mlp.fc1.weight" in rest and "model.encoder.layers.0.self_attn.o_proj.bias" in rest
    safetensors.torch.save_file(body | rest, tmp_path / "model.safetensors")
    config = json.loads((pair.folder / "config.json").read_text())
    names = {"0": "N/A", "1": "cat", "2": "dog", "3": "bird", "4": "bee"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"dilation": True, "id2label": names}))
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 480, "longest_edge": 640}}')
    found = load(tmp_path, None, torch.device("cpu"))
    assert found.assets.config.backbone.endswith("output_stride=16")
    assert [c.name for c in found.categories] == ["N/A", "cat", "dog", "bird", "bee"]
    assert (found.framing.size, found.framing.max_size, found.framing.rounding) == (480, 640, "detr")
    for name, value in own.items():
        assert torch.equal(value, found.detector.state_dict()[name]), name


@pytest.mark.shows("detr", "manners")
def test_other_networks_under_detrs_name_are_refused(pair, tmp_path):
    import shutil

    shutil.copytree(pair.folder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"position_embedding_type": "learned"}))
    with pytest.raises(WeightsError, match="learned positions"):
        load(tmp_path / "m", None, torch.device("cpu"))
