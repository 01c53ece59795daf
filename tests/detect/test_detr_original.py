"""DETR beside facebookresearch/detr as it was recorded, and the original's files in and out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detect.detr_cases import SIZES, predictor, relative, small
from fixtures.named_numbers import numbers
from odonata.data.framing import outside
from odonata.detect.detr import DETR, DETRConfig, best_class
from odonata.detect.predictor import load
from odonata.detect.set_prediction import Costs, Target, set_losses
from odonata.ops.boxes import cxcywh_to_xyxy


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
