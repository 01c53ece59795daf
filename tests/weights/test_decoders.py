"""Directories of decoders, in and out: what transformers wrote is read, and what is written transformers reads."""

import dataclasses
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from language.hf_decoders import LLAMA3, MODELS, add_tokenizer, edit_config, ids_of, ours, theirs, written
from odonata.errors import WeightsError
from odonata.language.assets import DecoderAssets
from odonata.language.decoder import Decoder, DecoderConfig, variant
from odonata.language.language_model import load, open_model, published_files, read_folder, recognises
from odonata.nn.rope_text import RopeScaling
from odonata.text.text_bpe import train_text_bpe
from odonata.weights import decoders
from odonata.weights.layout import Files
from odonata.weights.published import write_folder

TOKENIZER = train_text_bpe(["the quick brown fox"], 259)
BPE_SIZE = {"vocab_size": 259}


def with_tokenizer(name: str, folder, **changes):
    kind, config, sizes = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**sizes | BPE_SIZE, bos_token_id=None, eos_token_id=0, pad_token_id=0, **changes)).eval()
    written(model, folder, tokenizer=True)
    return model


@pytest.mark.shows("decoder", "weights")
@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_and_written_again_is_bit_equal_and_loads_in_transformers(name, tmp_path):
    model = with_tokenizer(name, tmp_path / "a")
    decoder, assets, _ = read_folder(tmp_path / "a")
    write_folder(tmp_path / "b", published_files(decoder.state_dict(), assets))
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in "ab")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for file in (tmp_path / "a").iterdir():
        if file.suffix == ".json" and file.name not in ("config.json", "generation_config.json"):
            assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes(), file.name
    configs = [json.loads((tmp_path / side / "config.json").read_text()) for side in "ab"]
    assert configs[0].items() <= configs[1].items()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        assert torch.equal(again(ids_of(2, 9)).logits, model(ids_of(2, 9)).logits)


NEW = {
    "qwen2": {},
    "qwen2, untied": {"tie_word_embeddings": False},
    "qwen3": {"qkv_bias": False, "qk_norm": True},
    "qwen3 with biases": {"output_bias": True, "qk_norm": True},
    "llama": {"qkv_bias": False},
    "llama with biases": {"output_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama, stretched": {"qkv_bias": False, "rope_scaling": RopeScaling("linear", 3.0)},
    "llama, stretched as Llama 3": {"qkv_bias": False, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64)},
    "gpt2": {"positions": "learned", "norm": "layer", "mlp": "plain", "activation": "gelu_tanh", "output_bias": True,
             "mlp_bias": True, "num_key_value_heads": 4},
}  # fmt: skip


@pytest.mark.shows("decoder", "weights")
@pytest.mark.parametrize("name", NEW)
def test_a_decoder_made_here_is_written_as_transformers_reads_it(name, tmp_path):
    config = dataclasses.replace(variant("nano", 259), **{"num_key_value_heads": 2} | NEW[name])
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    write_folder(tmp_path / "out", published_files(decoder.state_dict(), DecoderAssets(config, TOKENIZER)))
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert model.config.model_type == name.replace(",", "").split()[0]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.eos_token_id == 0 and model.config.pad_token_id == 0 and model.dtype == torch.float32
    ids = ids_of(2, 100, vocab=259)
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).logits, decoder(ids), atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("quick")["input_ids"] == TOKENIZER.encode("quick")
    back, assets, _ = read_folder(tmp_path / "out")
    assert assets.config == config and torch.equal(back(ids), decoder(ids))


OLD = {
    "qwen2": ({"rope_theta": 1e6}, {"rope_theta": 1e6}),
    "llama": ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_theta": 5e5}),
    "llama-linear": ({"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 3.0}}, None),
    "llama-llama3": ({"rope_theta": 50000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
                     None),
}  # fmt: skip


@pytest.mark.shows("decoder", "weights")
@pytest.mark.parametrize("name", OLD)
def test_keys_of_transformers_4_mean_what_those_of_5_mean(name, tmp_path):
    keys, parameters = OLD[name]
    changed = {"rope_parameters": {"rope_type": "default", **parameters}} if parameters else {}
    kind, config, sizes = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**sizes | changed)).eval()
    written(model, tmp_path)
    ids = ids_of(2, 100)
    with torch.no_grad():
        reference = model(ids).logits
        assert torch.equal(ours(tmp_path)(ids), reference)
        edit_config(tmp_path, drop=("rope_parameters", "dtype", "layer_types"), torch_dtype="float32", **keys)
        assert torch.equal(ours(tmp_path)(ids), reference)


@pytest.mark.shows("decoder", "weights")
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_weights_in_shards_are_read_and_written(name, tmp_path, monkeypatch):
    model = with_tokenizer(name, tmp_path / "whole")
    written(model, tmp_path / "shards", tokenizer=True, max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    decoder, assets, _ = read_folder(tmp_path / "shards")
    whole, _, _ = read_folder(tmp_path / "whole")
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in decoder.state_dict().items())
    monkeypatch.setattr(decoders, "SHARD_BYTES", 60_000)
    files = write_folder(tmp_path / "out", published_files(decoder.state_dict(), assets))
    shards = [file for file in files if file.suffix == ".safetensors"]
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    largest = max(value.nbytes for value in decoder.state_dict().values())
    assert all(file.stat().st_size < max(60_000, largest) + 4_000 for file in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        v.nbytes for v in load_file(tmp_path / "whole/model.safetensors").values()
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(again(ids_of(1, 9)).logits, model(ids_of(1, 9)).logits)


def test_weights_one_larger_than_a_shard_stand_alone(tmp_path):
    state = {"small": torch.zeros(2), "large": torch.ones(100), "end": torch.zeros(3)}
    write_folder(tmp_path / "out", Files("model.safetensors", state, shard_bytes=40))
    held = [set(load_file(file)) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert held == [{"small"}, {"large"}, {"end"}]


def test_a_tied_head_may_stand_in_the_file_and_is_not_written(tmp_path):
    with_tokenizer("qwen2", tmp_path / "a")
    state = load_file(tmp_path / "a" / "model.safetensors")
    assert "lm_head.weight" not in state
    head = state["model.embed_tokens.weight"].clone()
    save_file({**state, "lm_head.weight": head}, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    decoder, assets, _ = read_folder(tmp_path / "a")
    assert decoder.lm_head is None
    assert "lm_head.weight" not in published_files(decoder.state_dict(), assets).state


def test_gpt2_files_without_the_trunks_name_and_with_its_triangles_are_read(tmp_path):
    model = theirs("gpt2")
    written(model, tmp_path)
    state = {
        key.removeprefix("transformer."): value for key, value in load_file(tmp_path / "model.safetensors").items()
    }
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 128, 128).tril() for i in range(3)}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        assert torch.allclose(ours(tmp_path)(ids_of(1, 9)), model(ids_of(1, 9)).logits, atol=1e-6)


@pytest.mark.parametrize(("generation", "config", "ends"), [
    ({"eos_token_id": [2, 1]}, {"eos_token_id": 2}, (0, 2, 1)),
    (None, {"eos_token_id": [5, 0]}, (0, 5)),
    ({"eos_token_id": None}, {"eos_token_id": None}, (0,)),
])  # fmt: skip
def test_all_ends_that_a_directory_names_end_a_text_and_are_written_again(generation, config, ends, tmp_path):
    with_tokenizer("llama", tmp_path / "a")
    edit_config(tmp_path / "a", **config)
    file = tmp_path / "a" / "generation_config.json"
    file.unlink()
    if generation is not None:
        file.write_text(json.dumps(generation))
    decoder, assets, _ = read_folder(tmp_path / "a")
    assert assets.tokenizer.eos_ids == ends
    write_folder(tmp_path / "b", published_files(decoder.state_dict(), assets))
    kept = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    if generation is not None:
        assert kept == generation
    else:
        assert kept["eos_token_id"] == list(ends)
    assert read_folder(tmp_path / "b")[1].tokenizer.eos_ids == ends


@pytest.mark.shows("decoder", "weights")
def test_bfloat16_files_are_held_in_float32_exactly_and_said_to_be_so_when_written(tmp_path):
    model = with_tokenizer("qwen3", tmp_path / "x").bfloat16()
    written(model, tmp_path / "a", tokenizer=True)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    decoder, assets, notes = read_folder(tmp_path / "a")
    assert any("stored as bfloat16" in note for note in notes)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    own = decoder.state_dict()
    assert all(value.dtype == torch.float32 for value in own.values())
    assert torch.equal(own["norm.weight"].bfloat16(), stored["model.norm.weight"])
    write_folder(tmp_path / "b", published_files(own, assets))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert again.dtype == torch.float32, "what was trained in float32 is not rounded by whoever reads it"
    assert torch.equal(again.state_dict()["model.norm.weight"], own["norm.weight"])


def test_a_full_attention_model_may_name_windows_that_no_layer_uses(tmp_path):
    written(theirs("qwen2"), tmp_path)
    edit_config(tmp_path, drop=("layer_types",), use_sliding_window=True, max_window_layers=3, sliding_window=16)
    assert ours(tmp_path).config.num_hidden_layers == 3


BROKEN = {
    "an unknown architecture": ({"model_type": "mamba2"}, (),
                                "model_type is 'mamba2'; known are gpt2, llama, qwen2, qwen3"),
    "windows": ({"use_sliding_window": True, "layer_types": ["full_attention"] * 2 + ["sliding_attention"]}, (),
                "use_sliding_window is true: attention in windows is not supported"),
    "windows by their first layer": ({"use_sliding_window": True, "max_window_layers": 2}, ("layer_types",),
                                     "attention in windows is not supported"),
    "another way of stretching": ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, (),
                                  "rope_type is 'yarn'; known are default, linear, llama3"),
    "another way of stretching, older": ({"rope_scaling": {"type": "dynamic", "factor": 2}}, ("rope_parameters",),
                                         "rope_type is 'dynamic'"),
    "a stretch by no factor": ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, (),
                               "rope_type 'llama3' lacks low_freq_factor, high_freq_factor, original_max_position"),
    "parts of heads": ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, (),
                       "partial_rotary_factor is 0.5; known is 1.0"),
    "another activation": ({"hidden_act": "gelu"}, (), "hidden_act is 'gelu'; known is silu"),
    "a missing size": ({}, ("hidden_size",), "config.json: hidden_size is missing"),
    "a vocabulary of another size": ({"vocab_size": 300}, (), "vocab_size is 300, but the embedding has 259"),
    "a head that is not there": ({"tie_word_embeddings": False}, (), "1 tensors are missing: lm_head.weight"),
    "more layers than there are": ({"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, (),
                                   "12 tensors are missing: model.layers.3."),
    "fewer heads of keys": ({"num_key_value_heads": 3}, (), "k_proj.weight has shape"),
}  # fmt: skip


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize("what", BROKEN)
def test_a_directory_that_is_no_model_of_ours_says_why(what, tmp_path):
    changes, drop, message = BROKEN[what]
    with_tokenizer("qwen2", tmp_path)
    edit_config(tmp_path, drop=drop, **changes)
    with pytest.raises(WeightsError, match=message) as error:
        read_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


GPT2_BROKEN = {
    "n_head": ({}, ("n_head",), "n_head is missing"),
    "width": ({"n_head": 5}, (), "n_embd 48 does not divide by n_head 5"),
    "activation": ({"activation_function": "swish"}, (), "activation_function is 'swish'; known are gelu_new, "),
    "scales": (
        {"scale_attn_by_inverse_layer_idx": True},
        (),
        "scale_attn_by_inverse_layer_idx is True; known is False",
    ),
}


@pytest.mark.parametrize("what", GPT2_BROKEN)
def test_a_gpt2_that_computes_otherwise_says_so(what, tmp_path):
    changes, drop, message = GPT2_BROKEN[what]
    with_tokenizer("gpt2", tmp_path)
    edit_config(tmp_path, drop=drop, **changes)
    with pytest.raises(WeightsError, match=message):
        read_folder(tmp_path)


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("file", "message"), [
    ("config.json", "lacks config.json, which says what the model is"),
    ("model.safetensors", "lacks model.safetensors and model.safetensors.index.json"),
    ("tokenizer.json", r"lacks tokenizer.json \(or vocab.json and merges.txt\)"),
])  # fmt: skip
def test_a_missing_file_is_named(file, message, tmp_path):
    with_tokenizer("llama", tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(WeightsError, match=message):
        open_model(tmp_path)


@pytest.mark.shows("decoder", "manners")
def test_a_missing_shard_a_missing_tensor_and_a_missing_directory_are_named(tmp_path):
    model = with_tokenizer("llama", tmp_path / "a")
    written(model, tmp_path / "b", tokenizer=True, max_shard_size="60KB")
    shard = sorted((tmp_path / "b").glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"shard {shard.name} is missing; download it too"):
        read_folder(tmp_path / "b")
    state = load_file(tmp_path / "a" / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 tensors are missing: model.layers.1.mlp.up_proj.weight"):
        read_folder(tmp_path / "a")
    with pytest.raises(WeightsError, match="nowhere does not exist: a language model is a local directory"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="safetensors is a file: a language model is a local directory"):
        read_folder(tmp_path / "a" / "model.safetensors")


@pytest.mark.shows("decoder", "manners")
def test_a_tokenizer_that_is_larger_than_the_embedding_does_not_belong_to_it(tmp_path):
    written(theirs("llama"), tmp_path)
    add_tokenizer(tmp_path)
    with pytest.raises(WeightsError, match="the tokenizer has 259 entries and the embedding 97 rows"):
        read_folder(tmp_path)


def test_options_that_no_published_architecture_has_cannot_be_written(tmp_path):
    for fields in ({"activation": "relu"}, {"qkv_bias": False, "output_bias": True}, {"norm": "layer"}):
        config = DecoderConfig(**{"vocab_size": 259, "qkv_bias": True} | fields)
        with pytest.raises(
            WeightsError, match="no published architecture has this decoder's options: keep it as a run"
        ):
            published_files(Decoder(config).state_dict(), DecoderAssets(config, TOKENIZER))


def test_decoders_are_told_from_other_directories(tmp_path):
    with_tokenizer("gpt2", tmp_path / "a")
    assert recognises(tmp_path / "a") and not recognises(tmp_path) and not recognises(tmp_path / "a" / "config.json")
    edit_config(tmp_path / "a", model_type="bert", architectures=["BertModel"])
    assert not recognises(tmp_path / "a")
    edit_config(tmp_path / "a", architectures=["MambaForCausalLM"])
    assert recognises(tmp_path / "a"), "it is asked for here, and refused by the name of its architecture"


def test_a_model_writes_its_directory_whole_and_in_one_layout_only(tmp_path):
    with_tokenizer("qwen3", tmp_path / "a")
    model = load(tmp_path / "a", None, torch.device("cpu"))
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in model.convert(tmp_path / "b")
    }
    with pytest.raises(WeightsError, match="--to openai: a language model is written as hf"):
        model.convert(tmp_path / "c", "openai")
    with pytest.raises(WeightsError, match="exists and is not an empty folder"):
        model.convert(tmp_path / "b")
