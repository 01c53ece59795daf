"""Layouts in and out; recorded outputs of open_clip and timm (tests/fixtures/make_open_clip.py) are the oracle."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fixtures.named_numbers import numbers
from odonata.align.dual_encoder import DualEncoder, config_from_dict, config_to_dict
from odonata.align.dual_encoder_variants import CLIP, SIGLIP, VARIANTS
from odonata.align.pretrained import load_dual_encoder, preprocess_of, save_dual_encoder
from odonata.errors import WeightsError
from odonata.weights import big_vision, hf_clip, hf_siglip, open_clip, openai_clip
from odonata.weights.published import read_published, write_published
from odonata.weights.read import read_state

FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORDED = np.load(FIXTURES / "open_clip.npz")
BIG_VISION = json.loads((FIXTURES / "big_vision_keys.json").read_text())
MODELS = ["vit_quick_gelu", "vit_gelu", "rn", "siglip", "siglip_tanh"]


def described(name):
    return json.loads(RECORDED[f"{name}/json"].tobytes())


def open_clip_folder(name, folder):
    description = described(name)
    state = {key: numbers(key, tuple(shape)) for key, shape in description["shapes"].items()}
    model = description["config"]
    if "timm_model_name" in model["vision_cfg"]:
        model["vision_cfg"] |= {"timm_pool": "map", "timm_proj": "none"}
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return state


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def inputs(name):
    size = described(name)["config"]["vision_cfg"]["image_size"]
    return numbers("images", (3, 3, size, size)) * size, torch.from_numpy(RECORDED[f"{name}/tokens"].astype(np.int64))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_open_clip(tmp_path, name):
    open_clip_folder(name, tmp_path)
    model, published = load_dual_encoder(tmp_path)
    images, tokens = inputs(name)
    image, text = model.encode_image(images, normalize=False), model.encode_text(tokens, normalize=False)
    assert relative(image, torch.from_numpy(RECORDED[f"{name}/image"])) < 1e-5
    assert relative(text, torch.from_numpy(RECORDED[f"{name}/text"])) < 1e-5
    loss = (F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T).square().sum()
    loss.backward()
    gradients = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    buffers = {key: value for key, value in model.state_dict().items() if key not in gradients}
    prefix = "text." if name.startswith("siglip") else ""
    theirs = open_clip.key_map(published.config, prefix).from_ours(gradients | buffers)
    for key, norm in described(name)["gradient_norms"].items():
        assert theirs[key].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), key


@pytest.mark.parametrize("name", ["loop", "scan"])
def test_big_vision_equals_what_open_clip_reads(tmp_path, name):
    state = {key: numbers(key, tuple(shape)) for key, shape in BIG_VISION[name].items()}
    np.savez(tmp_path / "siglip.npz", **{key: value.numpy() for key, value in state.items()})
    model, published = load_dual_encoder(tmp_path / "siglip.npz")
    images, tokens = inputs("siglip_tanh")
    with torch.no_grad():
        image, text = model.encode_image(images, normalize=False), model.encode_text(tokens, normalize=False)
    assert relative(image, torch.from_numpy(RECORDED[f"big_vision_{name}/image"])) < 1e-5
    assert relative(text, torch.from_numpy(RECORDED[f"big_vision_{name}/text"])) < 1e-5
    key_map = big_vision.key_map(published.config, stacked=name == "scan")
    assert equal(key_map.from_ours(published.state), state)


@pytest.mark.parametrize("name", MODELS)
def test_open_clip_round_trip_is_bit_equal(tmp_path, name):
    theirs = open_clip_folder(name, tmp_path / "in")
    published = read_published(tmp_path / "in")
    prefix = "text." if name.startswith("siglip") else ""
    assert equal(open_clip.key_map(published.config, prefix).from_ours(published.state), theirs)
    config = config_to_dict(config_from_dict(published.config))
    if name.startswith("siglip"):
        with pytest.raises(WeightsError, match=r"timm has none of width, depth, MLP.*export it as hf"):
            write_published(tmp_path / "out", published.state, config, "open_clip")
        return
    write_published(tmp_path / "out", published.state, config, "open_clip")
    again = read_published(tmp_path / "out")
    assert equal(read_state(tmp_path / "out").state, theirs)
    assert config_from_dict(again.config) == config_from_dict(published.config)


def laptop(name, **text):
    model = DualEncoder(VARIANTS[name])
    return DualEncoder(replace(model.config, text=replace(model.config.text, **text))) if text else model


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("clip-laptop", "hf"),
        ("clip-laptop", "openai"),
        ("clip-laptop", "open_clip"),
        ("siglip-laptop", "hf"),
        ("siglip-laptop", "big_vision"),
    ],
)
def test_our_model_survives_every_layout(tmp_path, name, layout):
    model = laptop(name).eval()
    written = save_dual_encoder(tmp_path / "out", model, layout)
    path = written[0] if layout in ("openai", "big_vision") else tmp_path / "out"
    again, published = load_dual_encoder(path, layout)
    assert equal(again.state_dict(), model.state_dict())
    tokens = torch.randint(2, 4000, (2, model.config.text.context_length))
    tokens[:, -1] = 4095
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    sizes = {"input_resolution", "context_length", "vocab_size"} if layout == "openai" else set()
    assert published.notes[0] == f"layout {published.layout}" and set(published.unused) == sizes


def test_openai_archive_in_half_precision(tmp_path):
    """A TorchScript archive with OpenAI's names, halves and three integers, as their files are."""
    shapes = described("rn")["shapes"]
    halves = {key: numbers(key, tuple(shape)) for key, shape in shapes.items()}
    halves = {key: value.half() if value.is_floating_point() else value for key, value in halves.items()}
    root = torch.nn.Module()
    extra = {"input_resolution": 64, "context_length": 12, "vocab_size": 60}
    for key, value in (halves | {name: torch.tensor(number) for name, number in extra.items()}).items():
        *path, last = key.split(".")
        part = root
        for step in path:
            if not hasattr(part, step):
                part.add_module(step, torch.nn.Module())
            part = getattr(part, step)
        part.register_buffer(last, value)
    torch.jit.script(root).save(str(tmp_path / "RN.pt"))
    model, published = load_dual_encoder(tmp_path / "RN.pt", allow_torchscript=True)
    assert published.layout == "openai" and sorted(published.unused) == sorted(extra)
    assert "weights stored as torch.float16; models built here hold float32" in published.notes
    assert model.visual.config.layers == (2, 1, 1, 1) and model.visual.config.num_heads == 8
    assert equal(openai_clip.key_map(published.config).from_ours(published.state), halves)
    images, _ = inputs("rn")
    with torch.no_grad():
        image = model.encode_image(images, normalize=False)
    assert relative(image, torch.from_numpy(RECORDED["rn/image"])) < 1e-2  # half precision
    assert preprocess_of(published).crop_rounding == "torchvision"


def test_bare_open_clip_weights_ask_for_the_gelu(tmp_path):
    open_clip_folder("vit_quick_gelu", tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(WeightsError, match=r"do not tell which GELU.*quick_gelu=True.*or quick_gelu=False"):
        read_published(tmp_path)
    published = read_published(tmp_path, quick_gelu=True)
    assert published.config["visual"]["activation"] == "quick_gelu"
    assert "activation quick_gelu, as quick_gelu=True says" in published.notes
    open_clip_folder("siglip", tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(WeightsError, match=r"tells neither heads nor activation"):
        read_published(tmp_path)


def test_unsupported_and_contradicting_configurations_are_named(tmp_path):
    open_clip_folder("vit_gelu", tmp_path)
    with pytest.raises(WeightsError, match="says quick_gelu=False, you say True"):
        read_published(tmp_path, quick_gelu=True)
    file = tmp_path / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["vision_cfg"]["qk_norm"] = True
    file.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"vision_cfg\.qk_norm = True is not supported"):
        read_published(tmp_path)


def test_another_architecture_and_damaged_states_are_named(tmp_path):
    save_dual_encoder(tmp_path / "hf", laptop("clip-laptop"), "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    state = read_state(tmp_path / "hf").state
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"

    def written(changed, settings=config):
        save_file(changed, tmp_path / "hf" / "model.safetensors")
        (tmp_path / "hf" / "config.json").write_text(json.dumps(settings))
        return tmp_path / "hf"

    with pytest.raises(WeightsError, match=f"1 tensors are missing: {key}"):
        load_dual_encoder(written({name: value for name, value in state.items() if name != key}))
    with pytest.raises(WeightsError, match=r"1 tensors have no place in this architecture: lora \[2\]"):
        load_dual_encoder(written(state | {"lora": torch.zeros(2)}))
    with pytest.raises(WeightsError, match=r"fc1\.weight has shape \[5, 192\], the model wants \[768, 192\]"):
        load_dual_encoder(written(state | {key: torch.zeros(5, 192)}))
    with pytest.raises(WeightsError, match=r"the layout is not known \(model_type 'bert'"):
        load_dual_encoder(written(state, {"model_type": "bert"}))
    with pytest.raises(WeightsError, match=r"vision_config\.hidden_act 'mish' is not known"):
        config["vision_config"]["hidden_act"] = "mish"
        load_dual_encoder(written(state, config))


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    model = laptop("clip-laptop")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(WeightsError, match=r"not an empty folder; choose another or pass overwrite=True"):
        save_dual_encoder(tmp_path / "out", model)
    with pytest.raises(FileNotFoundError):
        save_dual_encoder(
            tmp_path / "out", model, overwrite=True, tokenizer_files={"tokenizer.json": tmp_path / "absent"}
        )
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    save_dual_encoder(tmp_path / "out", model, overwrite=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def test_a_layout_refuses_what_it_cannot_say(tmp_path):
    with pytest.raises(WeightsError, match="activation must be quick_gelu"):
        save_dual_encoder(tmp_path / "a", laptop("clip-laptop", activation="gelu"), "openai")
    with pytest.raises(WeightsError, match="image tower must be SigLIP's"):
        save_dual_encoder(tmp_path / "b", laptop("clip-laptop"), "big_vision")
    fixed = replace(CLIP["clip-laptop"].visual, positions="sincos_2d")
    for layout in ("hf", "openai", "open_clip"):
        with pytest.raises(WeightsError, match="learned positions"):
            save_dual_encoder(tmp_path / "e", DualEncoder(replace(CLIP["clip-laptop"], visual=fixed)), layout)
    with pytest.raises(WeightsError, match="layout 'onnx' is unknown: hf, hf_clip"):
        save_dual_encoder(tmp_path / "c", laptop("clip-laptop"), "onnx")
    base = config_to_dict(VARIANTS["ViT-B-16-SigLIP"])
    with pytest.raises(WeightsError, match="vit_base_patch16_siglip_224 computes gelu in timm"):
        write_published(tmp_path / "d", {}, base, "open_clip")
    assert not list(tmp_path.iterdir())


def test_preprocessing_and_tokenizer_travel(tmp_path):
    from odonata.data import preprocess

    (tmp_path / "tokenizer.json").write_text("{}")
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    for name, preset in (("clip-laptop", preprocess.CLIP), ("siglip-laptop", preprocess.SIGLIP)):
        preset = replace(preset, size=64)
        save_dual_encoder(tmp_path / name, laptop(name), "hf", preprocess=preset, tokenizer_files=files)
        _, published = load_dual_encoder(tmp_path / name)
        assert preprocess_of(published) == replace(preset, crop_rounding="hf")
        assert published.tokenizer["files"] == {"tokenizer.json": str(tmp_path / name / "tokenizer.json")}
    save_dual_encoder(tmp_path / "oc", laptop("clip-laptop"), "open_clip", preprocess=replace(preprocess.CLIP, size=64))
    assert preprocess_of(load_dual_encoder(tmp_path / "oc")[1]) == replace(preprocess.CLIP, size=64)


@pytest.mark.parametrize("name", [*CLIP, *SIGLIP])
def test_published_variants_match_what_their_layout_implies(name, tmp_path):
    """Shapes of every named model survive the map to transformers' or openai's names and the inference back."""
    config = VARIANTS[name]
    with torch.device("meta"):
        state = DualEncoder(config).state_dict()
    plain = config_to_dict(config)
    if "pool" in plain["visual"] and plain["visual"]["pool"] == "map":
        key_map = hf_siglip.key_map(plain)
    elif plain["visual"]["kind"] == "vit":
        key_map = hf_clip.key_map(plain)
    else:
        key_map = openai_clip.key_map(plain)
    theirs = key_map.from_ours(state)
    ours, unused = key_map.to_ours(theirs)
    assert not unused and {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in state.items()}
