"""FLIP: what it must show. Its masked image tower is that of transformers' ViTMAEModel given the same noise; its text
tower is the body of SiglipTextModel read at the first position; its loss is written with `F.cross_entropy`."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import SiglipTextConfig, SiglipTextModel, ViTMAEConfig, ViTMAEModel

import odonata
from align.towers import (
    FLIP_TOWERS,
    NAFLEX_TOWERS,
    as_checkpoint,
    assert_gradients,
    batch_of,
    digest,
    gradients,
    randomise,
    relative,
    run,
    tiny,
)
from odonata.align.dual_encoder import DualEncoder
from odonata.align.flip import FLIP, FLIPConfig
from odonata.errors import OdonataError, WeightsError
from odonata.weights import hf_vit
from odonata.weights.maps import KeyMap, layers, pair, rename, reshape

WIDTH, DEPTH = FLIP_TOWERS.visual.width, FLIP_TOWERS.visual.depth
SIZE = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
IMAGE_MAP = KeyMap(
    [
        reshape("embeddings.cls_token", "visual.class_token", (1, 1, WIDTH), (WIDTH,)),
        *pair("embeddings.patch_embeddings.projection", "visual.patch_embed.proj"),
        *hf_vit.encoder("", "visual", DEPTH),
    ]
)
TEXT_MAP = KeyMap(
    [
        rename("embeddings.token_embedding.weight", "text.token_embedding.weight"),
        rename("embeddings.position_embedding.weight", "text.positions"),
        *pair("final_layer_norm", "text.norm"),
        *layers(
            [
                *pair("encoder.layers.{i}.layer_norm1", "text.transformer.layers.{i}.norm1"),
                *pair("encoder.layers.{i}.layer_norm2", "text.transformer.layers.{i}.norm2"),
                *pair("encoder.layers.{i}.mlp.fc1", "text.transformer.layers.{i}.mlp.fc1"),
                *pair("encoder.layers.{i}.mlp.fc2", "text.transformer.layers.{i}.mlp.fc2"),
                *pair("encoder.layers.{i}.self_attn.out_proj", "text.transformer.layers.{i}.attn.proj"),
                *pair("encoder.layers.{i}.self_attn.q_proj", "text.transformer.layers.{i}.attn.q"),
                *pair("encoder.layers.{i}.self_attn.k_proj", "text.transformer.layers.{i}.attn.k"),
                *pair("encoder.layers.{i}.self_attn.v_proj", "text.transformer.layers.{i}.attn.v"),
            ],
            DEPTH,
        ),
    ],
    ("head.*",),
)


def peers(ratio):
    mae = ViTMAEModel(
        ViTMAEConfig(**SIZE, image_size=32, patch_size=8, mask_ratio=ratio, layer_norm_eps=1e-6, hidden_act="gelu")
    )
    written = SiglipTextModel(
        SiglipTextConfig(
            **SIZE, vocab_size=300, max_position_embeddings=20, hidden_act="gelu", projection_size=WIDTH,
            pad_token_id=0, bos_token_id=1, eos_token_id=299,
        )
    )  # fmt: skip
    # transformers 5.23 takes the embeddings for initialised once their convolution is, and leaves the positions zero.
    mae.embeddings.patch_embeddings.projection._is_hf_initialized = False
    mae.embeddings.initialize_weights()
    return randomise(mae), randomise(written)


def text_names(state):
    return {name.removeprefix("text_model."): value for name, value in state.items()}


@pytest.mark.shows("flip", "parity")
@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.0])
def test_loss_and_gradients_on_the_kept_patches_equal_transformers(tmp_path, ratio):
    mae, written = peers(ratio)
    method = FLIP(FLIPConfig(mask_ratio=ratio, duplicates="negative"), DualEncoder(FLIP_TOWERS)).train()
    model = method.model
    state = IMAGE_MAP.to_ours(as_checkpoint(mae, tmp_path / "m", dict(mae.named_parameters())), strict=False)[0]
    state |= TEXT_MAP.to_ours(text_names(as_checkpoint(written, tmp_path / "t", dict(written.named_parameters()))))[0]
    model.load_state_dict(state, strict=False)
    torch.testing.assert_close(mae.embeddings.position_embeddings[0], model.visual.positions)
    images, tokens = torch.randn(5, 3, 32, 32), torch.randint(1, 300, (5, 20))
    torch.manual_seed(7)
    noise = torch.rand(5, 16)  # what PatchDropout draws, and what MAE's masking sorts
    features = mae(images, noise=noise).last_hidden_state
    assert features.shape[1] == 1 + int(16 * (1 - ratio))
    weights = [model.visual_projection.weight, model.text_projection.weight]
    a, b = (w.detach().clone().requires_grad_() for w in weights)
    image = F.normalize(features.mean(1) @ a.T, dim=-1)
    text = F.normalize(written(tokens).last_hidden_state[:, 0] @ b.T, dim=-1)
    logits = model.logit_scale.detach().exp() * image @ text.T
    rows = torch.arange(5)
    theirs = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    torch.manual_seed(7)
    ours = method(batch_of(images, tokens))["loss"]
    assert relative(ours, theirs) < 1e-5
    theirs.backward()
    ours.backward()
    found = gradients(model)
    assert_gradients(
        {"a": found.pop("visual_projection.weight"), "b": found.pop("text_projection.weight")},
        {"a": a.grad, "b": b.grad},
    )
    expected = IMAGE_MAP.to_ours(as_checkpoint(mae, tmp_path / "gm", gradients(mae)), strict=False)[0]
    expected |= TEXT_MAP.to_ours(text_names(as_checkpoint(written, tmp_path / "gt", gradients(written))))[0]
    found.pop("logit_scale")
    assert_gradients(found, expected)


@pytest.mark.shows("flip", "weights")
def test_a_run_goes_through_odonatas_folder_bit_by_bit(tmp_path):
    _, folder = run(tiny("flip", steps=2), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    model.convert(tmp_path / "own")
    again = odonata.load(tmp_path / "own", device="cpu")
    assert digest(again.model) == digest(model.model)
    pictures = torch.randint(256, (3, 3, 40, 32), dtype=torch.uint8)
    assert again.embed_text("a red 3").equal(model.embed_text("a red 3"))
    assert again.embed_image(pictures).equal(model.embed_image(pictures)), "no patch is dropped in use"


@pytest.mark.shows("flip", "weights")
@pytest.mark.parametrize("layout", ["hf", "openai", "open_clip", "big_vision"])
def test_layouts_that_cannot_say_what_flip_is_refuse(tmp_path, layout):
    """FLIP's own release is a JAX layout of its own; none of the others has its fixed positions and mean of tokens."""
    _, folder = run(tiny("flip", steps=1), tmp_path / "run")
    with pytest.raises(WeightsError):
        odonata.load(folder, device="cpu").convert(tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.shows("flip", "trains")
def test_half_the_patches_enter_the_blocks_and_all_of_them_in_the_last_stretch(tmp_path, monkeypatch):
    lengths = []
    chosen = tiny("flip", steps=8, unmasked=0.25, evaluation__pairs=0)
    original = FLIP.loss

    def watched(method, batch):
        handle = method.model.visual.transformer.register_forward_pre_hook(
            lambda _, given: lengths.append(given[0].shape[1])
        )
        try:
            return original(method, batch)
        finally:
            handle.remove()

    monkeypatch.setattr(FLIP, "loss", watched)
    _, folder = run(chosen, tmp_path / "run")
    assert lengths == [1 + 8] * 6 + [1 + 16] * 2
    logged = [
        json.loads(line)["mask_ratio"] for line in (folder / "log.jsonl").read_text().splitlines() if "loss" in line
    ]
    assert logged == [0.5] * 6 + [0.0] * 2


@pytest.mark.shows("flip", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, r"--mask-ratio is 1.0; it lies in \[0, 1\)"),
        ({"mask_ratio": -0.1}, r"--mask-ratio is -0.1; it lies in \[0, 1\)"),
        ({"unmasked": 1.5}, r"--unmasked is 1.5; it lies in \[0, 1\)"),
        ({"model": NAFLEX_TOWERS}, "FLIP drops patches of a ViT over fixed squares"),
        ({"variant": "RN50", "model": None}, "--variant RN50: FLIP drops patches of a ViT over fixed squares"),
        ({"variant": "FLIP-B16", "model": None}, "'FLIP-B16' is unknown; there are FLIP-B-16"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("flip", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
