"""DETR beside transformers' with the same weights, beside the original's record, and what must change no answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detect.overfitting import recall_after
from fixtures.named_numbers import numbers
from odonata.data.framing import Framing, outside
from odonata.data.object_batches import ObjectBatch
from odonata.detect.assets import DetectorAssets
from odonata.detect.detr import DETR, DETRConfig, best_class, cells_inside
from odonata.detect.predictor import DetectorPredictor, frame_batch, load
from odonata.detect.set_prediction import IGNORED, Costs, Target, class_loss, match, set_losses
from odonata.errors import RecipeError, RunError, WeightsError
from odonata.nn.positions import sines_of_mask
from odonata.ops.boxes import cxcywh_to_xyxy
from odonata.weights.detectors import read_model

transformers = pytest.importorskip("transformers")
CLASSES, QUERIES = 5, 7
SIZES = torch.tensor([[96, 128], [75, 101]])
BOXES = [
    torch.tensor([[10.0, 20.0, 50.0, 70.0], [60.0, 12.0, 119.0, 88.0], [5.0, 5.0, 30.0, 22.0]]),
    torch.tensor([[31.0, 14.0, 77.0, 66.0]]),
]
LABELS = [torch.tensor([1, 3, 4]), torch.tensor([2])]


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours - theirs).double().norm() / theirs.double().norm())


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


def targets() -> list[Target]:
    found: list[Target] = []
    for boxes, labels, (height, width) in zip(BOXES, LABELS, SIZES.tolist(), strict=True):
        sides = torch.tensor([width, height, width, height]).double()
        middle = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1) / sides
        found.append(Target(middle, labels, torch.zeros(0, 4).double()))
    return found


def batch_of(sizes=SIZES, boxes=BOXES, labels=LABELS, ignore=None, frame=(96, 128), seed=5) -> ObjectBatch:
    images = 255 * torch.rand(len(sizes), 3, *frame, generator=torch.Generator().manual_seed(seed))
    ignore = ignore or [torch.zeros(len(x), dtype=torch.bool) for x in labels]
    count = len(sizes)
    return ObjectBatch(images, sizes, list(boxes), list(labels), ignore, torch.ones(count), torch.arange(count))


def small(**changes) -> DETR:
    torch.manual_seed(0)
    sizes = {"dim": 32, "encoder_layers": 1, "decoder_layers": 2, "mlp_width": 64, "queries": QUERIES}
    sizes |= {"num_heads": 8, "norm": "post"}
    framing = Framing(size=64, max_size=128, divisor=8, rounding="detr")
    return DETR(replace(DETRConfig(framing=framing, **sizes), **changes), CLASSES)


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
    import json

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


@pytest.mark.shows("detr", "weights")
def test_the_originals_layout_packs_projections_and_has_92_rows_for_coco(tmp_path):
    torch.manual_seed(0)
    shape = {"dim": 32, "num_heads": 8, "encoder_layers": 1, "decoder_layers": 2, "mlp_width": 64}
    published = {
        k: v for k, v in DETRConfig.presets["r50"].items() if k not in shape | {"backbone": 0, "backbone_lr": 0}
    }
    config = DETRConfig(backbone="resnet14-small:norm=frozen_batch,output_stride=16", **(published | shape))
    model = predictor(config, classes=91)
    model.convert(tmp_path / "out", "official")
    held = torch.load(tmp_path / "out/detr-dc5.pth", weights_only=True)
    assert held.keys() == {"model"}
    shapes = {name: list(value.shape) for name, value in held["model"].items()}
    assert shapes["class_embed.weight"] == [92, 32]
    assert shapes["transformer.decoder.layers.1.multihead_attn.in_proj_weight"] == [96, 32]
    assert shapes["backbone.0.body.layer1.0.downsample.0.weight"] == [64, 16, 1, 1]
    assert not any("encoder.norm" in name or "num_batches" in name for name in shapes)
    again = load(tmp_path / "out/detr-dc5.pth", None, torch.device("cpu"))
    assert again.assets.config == config
    assert (again.categories[0].name, again.categories[1].name) == ("background", "person")
    for name, value in model.detector.state_dict().items():
        assert torch.equal(value, again.detector.state_dict()[name]), name


def predictor(config: DETRConfig, classes: int) -> DetectorPredictor:
    from odonata.data.objects import Category

    assets = DetectorAssets("detr", config, tuple(Category(i, f"c{i}") for i in range(classes)))
    return DetectorPredictor(assets.build().eval(), assets, torch.device("cpu"))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.shows("detr", "parity")
def test_the_transformer_is_the_originals_written_with_torchs_attention(norm):
    torch.manual_seed(2)
    model = small(norm=norm, positions_at="attention", num_heads=4).double().eval().transformer
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, places, asked = torch.randn(2, 12, 32).double(), torch.randn(2, 12, 32).double(), torch.randn(7, 32).double()
    seen = torch.arange(12).lt(9).expand(2, 12)
    ours = model(x, places, asked, seen, every_layer=True)
    assert relative(ours, original(model, x, places, asked, ~seen, norm == "pre")) < 1e-10


def original(model, x, places, asked, padding, pre):
    """`models/transformer.py` step by step, each attention by torch's packed one."""

    def attention(part, q, k, v, mask=None):
        packed = torch.cat([part.q.weight, part.k.weight, part.v.weight])
        bias = torch.cat([part.q.bias, part.k.bias, part.v.bias])
        out, _ = F.multi_head_attention_forward(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), 32, 4, packed, bias, None, None, False, 0.0,
            part.proj.weight, part.proj.bias, training=False, key_padding_mask=mask, need_weights=False,
        )  # fmt: skip
        return out.transpose(0, 1)

    def mlp(layer, y):
        return layer.mlp.fc2(layer.mlp.fc1(y).relu())

    for layer in model.encoder.layers:
        if pre:
            y = layer.norm1(x)
            x = x + attention(layer.attn, y + places, y + places, y, padding)
            x = x + mlp(layer, layer.norm2(x))
        else:
            x = layer.norm1(x + attention(layer.attn, x + places, x + places, x, padding))
            x = layer.norm2(x + mlp(layer, x))
    memory = model.encoder.norm(x) if pre else x
    asked = asked.expand(len(x), -1, -1)
    tokens, answers = torch.zeros_like(asked), []
    for layer in model.decoder.layers:
        if pre:
            y = layer.norm1(tokens)
            tokens = tokens + attention(layer.attn, y + asked, y + asked, y)
            y = layer.norm2(tokens)
            tokens = tokens + attention(layer.cross, y + asked, memory + places, memory, padding)
            tokens = tokens + mlp(layer, layer.norm3(tokens))
        else:
            tokens = layer.norm1(tokens + attention(layer.attn, tokens + asked, tokens + asked, tokens))
            tokens = layer.norm2(tokens + attention(layer.cross, tokens + asked, memory + places, memory, padding))
            tokens = layer.norm3(tokens + mlp(layer, tokens))
        answers.append(model.decoder.norm(tokens))
    return torch.stack(answers)


class Original:
    """What `fixtures/make_detr.py` recorded of facebookresearch/detr, and ours with the same weights."""

    def __init__(self, name: str, folder: Path) -> None:
        arrays = np.load(Path(__file__).parents[1] / "fixtures/detr_original.npz")
        self.arrays = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
        self.state = {key: numbers(key, tuple(shape)) for key, shape in self.plain("shapes").items()}
        # Published files have the hash of their content at the end of their names.
        self.file = folder / f"detr-{name}-0123abcd.pth"
        torch.save({"model": self.state}, self.file)
        self.model = load(self.file, None, torch.device("cpu"))
        detector = DETR(replace(self.model.assets.config, freeze=0), 91)
        detector.load_state_dict(self.model.detector.state_dict())
        self.detector = detector.eval()
        made = [numbers(f"picture {n}", (3, *size)) * 10 for n, size in enumerate(SIZES.tolist())]
        self.pixels = torch.stack([F.pad(p, (0, 128 - p.shape[2], 0, 96 - p.shape[1])) for p in made])
        self.padding = outside(SIZES, (96, 128))

    def plain(self, key: str):
        return json.loads(self.arrays[key].tobytes())

    def targets(self) -> list[Target]:
        boxes = [[[0.3, 0.4, 0.25, 0.5], [0.7, 0.5, 0.45, 0.6], [0.2, 0.2, 0.1, 0.17]], [[0.55, 0.5, 0.4, 0.7]]]
        labels = [[1, 17, 90], [44]]
        return [Target(torch.tensor(a), torch.tensor(b), torch.zeros(0, 4)) for a, b in zip(boxes, labels, strict=True)]


@pytest.fixture(scope="module", params=["r50", "r50-dc5"])
def original_of(request, tmp_path_factory) -> Original:
    return Original(request.param, tmp_path_factory.mktemp("original"))


@pytest.mark.shows("detr", "parity")
def test_outputs_losses_and_gradients_are_the_originals(original_of):
    out = original_of.detector.forward_head(original_of.pixels, original_of.padding, every_layer=True)
    for ours, name in ((out.logits, "logits"), (out.boxes, "boxes")):
        assert relative(ours.detach(), torch.from_numpy(original_of.arrays[name])) < 1e-5
    losses = set_losses(out.logits, out.boxes, original_of.targets(), Costs())
    theirs = original_of.plain("losses")
    for layer, suffix in enumerate(("_0", "")):
        for ours, name in ((losses.class_, "loss_ce"), (losses.l1, "loss_bbox"), (losses.giou, "loss_giou")):
            assert ours[layer].item() == pytest.approx(theirs[name + suffix], rel=1e-5)
    total = original_of.detector.weighed(losses).sum()
    assert total.item() == pytest.approx(theirs["total"], rel=1e-5)
    original_of.detector.zero_grad()
    total.backward()
    norms = original_of.plain("gradients")
    found = {name: float(p.grad.norm()) for name, p in original_of.detector.named_parameters() if p.grad is not None}
    for ours, name in {
        "class_logits.weight": "class_embed.weight",
        "box_head.2.weight": "bbox_embed.layers.1.weight",
        "query_positions": "query_embed.weight",
        "transformer.decoder.layers.0.cross.proj.weight": "transformer.decoder.layers.0.multihead_attn.out_proj.weight",
        "transformer.encoder.layers.0.mlp.fc1.weight": "transformer.encoder.layers.0.linear1.weight",
        "backbone.stages.3.layers.0.conv2.weight": "backbone.0.body.layer4.0.conv2.weight",
        "backbone.stages.1.layers.0.conv1.weight": "backbone.0.body.layer2.0.conv1.weight",
    }.items():
        assert found[ours] == pytest.approx(norms[name], rel=1e-4), ours


@pytest.mark.shows("detr", "parity")
def test_the_originals_answer_in_pixels_is_ours(original_of):
    out = original_of.detector.forward_head(original_of.pixels, original_of.padding)
    scores, labels = best_class(out.logits[-1])
    for number, (height, width) in enumerate(SIZES.tolist()):
        theirs = {key: torch.from_numpy(original_of.arrays[f"{number}/{key}"]) for key in ("scores", "labels", "boxes")}
        assert torch.equal(labels[number], theirs["labels"])
        assert relative(scores[number].detach(), theirs["scores"]) < 1e-5
        sides = torch.tensor([width, height, width, height])
        assert relative((cxcywh_to_xyxy(out.boxes[-1, number]) * sides).detach(), theirs["boxes"]) < 1e-5


@pytest.mark.shows("detr", "weights")
def test_the_originals_file_comes_back_bit_equal(original_of, tmp_path):
    (file,) = original_of.model.convert(tmp_path / "out", "official")
    written = torch.load(file, weights_only=True)["model"]
    assert written.keys() == original_of.state.keys()
    assert all(torch.equal(written[key], value) for key, value in original_of.state.items())
    config = original_of.model.assets.config
    dc5 = "dc5" in original_of.file.name
    assert config.backbone == f"resnet50:norm=frozen_batch{',output_stride=16' if dc5 else ''}"
    assert config.norm == ("pre" if dc5 else "post")
    assert len(original_of.model.categories) == 91


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


@pytest.mark.shows("detr", "manners")
def test_other_networks_under_detrs_name_are_refused(pair, tmp_path):
    import json
    import shutil

    shutil.copytree(pair.folder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"position_embedding_type": "learned"}))
    with pytest.raises(WeightsError, match="learned positions"):
        load(tmp_path / "m", None, torch.device("cpu"))


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
