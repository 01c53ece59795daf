"""transformers' Vision Transformers: the same numbers from the same weights, both generations of names, and back."""

import json

import pytest
import safetensors.torch
import torch

from odonata.backbones.pretrained import load_backbone, published_files
from odonata.backbones.vit import ViT, ViTConfig
from odonata.data.preprocess import IMAGENET
from odonata.errors import WeightsError

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = SHAPE | {"intermediate_size": 64}
GATED = {"use_gated_mlp": True, "hidden_act": "silu", "num_register_tokens": 4}
MODELS = {
    "vit": ("ViTModel", "ViTConfig", WIDE),
    "vit_unbiased": ("ViTModel", "ViTConfig", WIDE | {"qkv_bias": False}),
    "vit_classes": ("ViTForImageClassification", "ViTConfig", WIDE | {"num_labels": 5}),
    "deit_teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", WIDE | {"num_labels": 5}),
    "mae": ("ViTMAEModel", "ViTMAEConfig", WIDE | {"mask_ratio": 0.0}),
    "dinov2": ("Dinov2Model", "Dinov2Config", SHAPE),
    "dinov2_swiglu": ("Dinov2Model", "Dinov2Config", SHAPE | {"use_swiglu_ffn": True}),
    "dinov2_classes": ("Dinov2ForImageClassification", "Dinov2Config", SHAPE | {"num_labels": 5}),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", SHAPE),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", WIDE),
    "dinov3_gated": ("DINOv3ViTModel", "DINOv3ViTConfig", WIDE | GATED),
}


def reference(name):
    model, config, options = MODELS[name]
    peer = getattr(transformers, model)(getattr(transformers, config)(**options)).eval().double()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.ndim == 1))
    return peer


def answer(peer, images):
    name, options = type(peer).__name__, {}
    if name.startswith(("ViT", "DeiT")):
        options["interpolate_pos_encoding"] = True
    if name == "ViTMAEModel":  # ascending noise keeps the patches in order
        options["noise"] = torch.arange(images.shape[2] * images.shape[3] // 64).float().expand(len(images), -1)
    out = peer(images, **options)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def read(peer, folder):
    peer.save_pretrained(folder)
    found = load_backbone(folder)
    found.backbone.double()
    return found


def ours(found, images):
    return found.backbone(images) if found.published.classes else found.backbone.forward_features(images)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same(name, tmp_path):
    peer = reference(name)
    found = read(peer, tmp_path)
    for size in ((32, 32), (48, 40)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        theirs, mine = answer(peer, images), ours(found, images)
        # Rotary tables and resized positions are float32 on their side.
        assert ((mine - theirs).norm() / theirs.norm()).item() < 1e-6
    peer.zero_grad()
    found.backbone.zero_grad()
    theirs.square().sum().backward()
    mine.square().sum().backward()
    want = next(v.grad for k, v in peer.named_parameters() if k.endswith("cls_token"))
    got = found.backbone.class_token.grad
    assert ((got - want.flatten()).norm() / want.norm()).item() < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_both_generations_of_names_are_read_alike(name, tmp_path):
    peer = reference(name).float()
    found = read(peer, tmp_path).backbone.state_dict()
    safetensors.torch.save_file(
        {k: v.contiguous() for k, v in peer.state_dict().items()}, tmp_path / "model.safetensors"
    )
    modern = load_backbone(tmp_path).backbone.double().state_dict()
    assert modern.keys() == found.keys()
    assert all(torch.equal(modern[k], found[k]) for k in found)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_is_written(name, tmp_path):
    peer = reference(name).float()
    found = read(peer, tmp_path / "theirs")
    found.backbone.float()
    files = published_files(found.backbone, "hf_mae" if name == "mae" else "hf", found.preprocess)
    stored = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    for key, value in files.state.items():
        if "mask_token" not in key:
            assert torch.equal(value, stored[key]), key
    (tmp_path / "ours").mkdir()
    safetensors.torch.save_file(files.state, tmp_path / "ours" / files.weights_name, {"format": "pt"})
    for file, content in files.texts.items():
        (tmp_path / "ours" / file).write_text(json.dumps(content))
    extra = {"mask_ratio": 0.0} if name == "mae" else {}
    again, info = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True, **extra)
    assert not info["unexpected_keys"]
    assert all("pooler" in key or "register" in key for key in info["missing_keys"])
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(answer(again.eval(), images), answer(peer, images), rtol=1e-5, atol=1e-6)


def test_masking_of_mae_is_dropping_patches(tmp_path):
    peer = reference("mae")
    peer.embeddings.config.mask_ratio = 0.5
    found = read(peer, tmp_path).backbone
    images, noise = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.rand(2, 16)
    out = peer(images, noise=noise)
    kept = noise.argsort(1)[:, :8]
    tokens = found.embed(images)
    chosen = torch.cat([tokens[:, :1], tokens[torch.arange(2)[:, None], kept + 1]], 1)
    torch.testing.assert_close(found.norm(found.transformer(chosen)), out.last_hidden_state, rtol=1e-4, atol=1e-5)


def test_epsilon_heads_and_normalisation_are_said(tmp_path):
    found = read(reference("vit"), tmp_path / "vit")
    assert found.backbone.config.norm_eps == 1e-12
    assert found.preprocess.mean == (0.5, 0.5, 0.5)
    assert any("heads: 2" in note for note in found.published.notes)
    assert any("not used: pooler" in note for note in found.published.notes)
    found = read(reference("dinov3"), tmp_path / "dino")
    assert found.backbone.config.norm_eps == 1e-5 and found.preprocess.mean == IMAGENET.mean


def test_what_is_written_keeps_its_normalisation(tmp_path):
    tower = ViT(ViTConfig(image_size=32, width=64, depth=1, num_heads=1))
    files = published_files(tower, "hf", IMAGENET)
    safetensors.torch.save_file(files.state, tmp_path / files.weights_name)
    for file, content in files.texts.items():
        (tmp_path / file).write_text(json.dumps(content))
    assert load_backbone(tmp_path).preprocess.mean == IMAGENET.mean


def test_a_distilled_tower_with_one_classifier_is_refused(tmp_path):
    transformers.DeiTForImageClassification(transformers.DeiTConfig(**WIDE)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="asks its class token alone, the tower here the mean of both heads"):
        load_backbone(tmp_path)


def test_biases_that_the_tower_cannot_have_are_refused(tmp_path):
    peer = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**WIDE, query_bias=False))
    peer.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"biases of query, key, value \(False, False, True\)"):
        load_backbone(tmp_path)
