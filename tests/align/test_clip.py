"""CLIP: what it must show, against transformers' CLIPModel."""

import dataclasses

import pytest
import torch

import odonata
from align.towers import (
    CLIP_TOWERS,
    assert_gradients,
    batch_of,
    clip_peer,
    clip_texts,
    digest,
    gradients,
    relative,
    run,
    tiny,
)
from odonata.align.clip import CLIP, CLIPConfig
from odonata.align.dual_encoder import DualEncoder, config_to_dict
from odonata.errors import DataError, OdonataError
from odonata.nn.lora import LoRALinear
from odonata.nn.weight_average import interpolate
from odonata.weights import hf_clip
from odonata.weights.read import read_state


@pytest.mark.shows("clip", "parity")
@pytest.mark.parametrize("duplicates", ["positive", "negative"])
def test_loss_and_gradients_equal_transformers(tmp_path, duplicates):
    peer = clip_peer()
    peer.save_pretrained(tmp_path)
    model = odonata.load(tmp_path, device="cpu").model
    method = CLIP(CLIPConfig(duplicates=duplicates), model).train()
    images, tokens = torch.randn(5, 3, 32, 32), clip_texts()
    theirs = peer(input_ids=tokens, pixel_values=images, return_loss=True)
    ours = method(batch_of(images, tokens))["loss"]
    assert relative(ours, theirs.loss) < 1e-5
    theirs.loss.backward()
    ours.backward()
    named = hf_clip.key_map(config_to_dict(model.config)).from_ours(gradients(model))
    assert_gradients(named, gradients(peer))


@pytest.mark.shows("clip", "weights")
@pytest.mark.parametrize("layout", ["hf", "openai", "open_clip"])
def test_published_weights_go_out_as_they_came(tmp_path, layout):
    # The older layouts have 64 channels to a head, and read a text at its largest id.
    peer = clip_peer() if layout == "hf" else clip_peer({"hidden_size": 64, "num_attention_heads": 1}, eos_token_id=2)
    peer.save_pretrained(tmp_path / "hf")
    odonata.load(tmp_path / "hf", device="cpu").convert(tmp_path / "own", "odonata")
    written = odonata.load(tmp_path / "own", device="cpu").convert(tmp_path / "there", layout)
    there = written[0] if layout == "openai" else tmp_path / "there"
    odonata.load(there, device="cpu", layout=layout).convert(tmp_path / "back", "hf")
    first, last = read_state(tmp_path / "hf").state, read_state(tmp_path / "back").state
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert type(peer).from_pretrained(tmp_path / "back").config.text_config.hidden_act == "quick_gelu"


@pytest.mark.shows("clip", "weights")
def test_a_run_answers_the_same_from_every_layout(tmp_path):
    _, folder = run(tiny("clip", steps=2), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    images, texts = torch.randint(256, (3, 3, 40, 32), dtype=torch.uint8), ["a red 3", "two blue digits", "a 7"]
    for layout in ("odonata", "hf", "open_clip"):
        model.convert(tmp_path / layout, layout)
        again = odonata.load(tmp_path / layout, device="cpu")
        assert torch.equal(again.embed_text(texts), model.embed_text(texts)), layout
        assert torch.equal(again.embed_image(images), model.embed_image(images)), layout


@pytest.mark.shows("clip", "manners")
def test_low_rank_runs_train_nothing_else_and_answer_the_same_merged(tmp_path):
    _, base = run(tiny("clip", steps=2), tmp_path / "base")
    start = odonata.load(base, device="cpu")
    task, folder = run(tiny("clip", init=str(base), model=None, lora_rank=2, optim__lr=1e-2), tmp_path / "lora")
    trained = task.method.model
    names = {name for name, p in trained.named_parameters() if p.requires_grad}
    assert all(name == "logit_scale" or ".lora_" in name for name in names) and len(names) > 8
    for name, part in trained.named_modules():
        if isinstance(part, LoRALinear):
            assert torch.equal(part.base.weight, start.model.state_dict()[f"{name}.weight"]), name
            assert part.lora_b.abs().sum() > 0, f"{name} did not learn"
    merged = odonata.load(folder, device="cpu")
    assert not any(".lora_" in name for name in merged.model.state_dict())
    images, tokens = torch.randn(3, 3, 32, 32), torch.randint(3, 250, (3, 20))
    tokens[:, -1] = merged.assets.tokenizer.eos_id
    trained.eval()
    with torch.no_grad():
        for ours, theirs in zip(merged.model(images, tokens), trained(images, tokens), strict=True):
            assert relative(ours, theirs) < 1e-5
    merged.convert(tmp_path / "hf", "hf")


@pytest.mark.shows("clip", "manners")
def test_interpolation_between_two_models_ends_in_them():
    zero_shot, tuned = DualEncoder(CLIP_TOWERS), DualEncoder(CLIP_TOWERS)
    between = DualEncoder(CLIP_TOWERS)
    for alpha, end in ((0.0, zero_shot), (1.0, tuned)):
        between.load_state_dict(interpolate(zero_shot.state_dict(), tuned.state_dict(), alpha))
        assert digest(between) == digest(end)
    between.load_state_dict(interpolate(zero_shot.state_dict(), tuned.state_dict(), 0.5))
    middle = (zero_shot.text.positions + tuned.text.positions) / 2
    torch.testing.assert_close(between.text.positions, middle)


@pytest.mark.shows("clip", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "ViT-B-61", "model": None}, r"--variant 'ViT-B-61' is unknown; there are ViT-B-16"),
        ({"max_patches": 16}, r"--max-patches needs a NaFlex tower"),
        ({"micro_batch": -1}, r"--micro-batch is -1; it must not be negative"),
        ({"lora_rank": 4}, r"--lora-rank adapts pretrained weights: name them with --init"),
        ({"vocab_size": 100}, r"vocab_size 100 is too small"),
        ({"init": "/nowhere"}, r"/nowhere does not exist"),
        ({"data__path": "/nowhere.csv"}, r"nowhere\.csv"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("clip", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("clip", "manners")
def test_wrong_inputs_are_named(tmp_path):
    method = CLIP(CLIPConfig(), DualEncoder(CLIP_TOWERS))
    images, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 300, (2, 20))
    with pytest.raises(ValueError, match=r"texts of 21 tokens are longer than the context of 20"):
        method(batch_of(images, torch.zeros(2, 21, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"images of shape \(2, 4, 32, 32\): want \[batch, 3, height, width\]"):
        method(batch_of(torch.randn(2, 4, 32, 32), tokens))
    with pytest.raises(ValueError, match=r"one shape \[batch ≥ 1, dim\], not \[3, 48\] and \[2, 48\]"):
        method(dataclasses.replace(batch_of(images, tokens), images=torch.randn(3, 3, 32, 32)))
    _, folder = run(tiny("clip", steps=1), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    with pytest.raises(DataError, match=r"uint8 \[3, height, width\], not torch.float32 \[3, 8, 8\]"):
        model.embed_image(torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match="predict needs labels"):
        model.predict(torch.zeros(3, 8, 8, dtype=torch.uint8), [])
