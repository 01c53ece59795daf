"""LiT: what it must show; the oracle is transformers' VisionTextDualEncoderModel with its image tower frozen."""

import pytest
import torch
from PIL import Image
from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

import odonata
from align.towers import (
    CLIP_TOWERS,
    SIGLIP_TOWERS,
    assert_gradients,
    batch_of,
    clip_peer,
    clip_texts,
    digest,
    gradients,
    randomise,
    relative,
    run,
    small_vit,
    tiny,
)
from odonata.align.dual_encoder import DualEncoder, config_from_dict
from odonata.align.lit import LiT, LiTConfig
from odonata.align.siglip import SigLIP, SigLIPConfig
from odonata.errors import OdonataError, RecipeError
from odonata.weights import hf_clip
from odonata.weights.layout import ReadOptions
from odonata.weights.read import Raw


def oracle():
    """transformers' two-tower model; its image projection is the identity, for LiT has none."""
    parts = clip_peer()
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        parts.config.vision_config, parts.config.text_config, projection_dim=48
    )
    model = VisionTextDualEncoderModel(config)
    randomise(model)
    with torch.no_grad():
        model.visual_projection.weight.copy_(torch.eye(48))
    model.vision_model.requires_grad_(False)
    model.visual_projection.requires_grad_(False)
    hf = parts.config.to_dict() | {"projection_dim": 48}
    plan = hf_clip.plan(Raw(None, {}, hf, "config.json"), ReadOptions())
    return model, plan


def in_clip_names(values):
    """CLIPModel's names: the two-tower model may say `vision_model.vision_model.…`."""
    return {
        name.replace("vision_model.vision_model.", "vision_model.").replace("text_model.text_model.", "text_model."): v
        for name, v in values.items()
    }


@pytest.mark.shows("lit", "parity")
@pytest.mark.parametrize("lock", ["image", "none"])
def test_loss_and_gradients_equal_transformers(lock):
    peer, plan = oracle()
    if lock == "none":
        peer.requires_grad_(True)
    state, _ = plan.key_map.to_ours(in_clip_names(peer.state_dict()), strict=False)
    del state["visual_projection.weight"]
    model = DualEncoder(config_from_dict(plan.config | {"visual_projection": False}))
    model.load_state_dict(state)
    method = LiT(LiTConfig(lock=lock), model).train()
    images, tokens = torch.randn(5, 3, 32, 32), clip_texts()
    theirs = peer(input_ids=tokens, pixel_values=images, return_loss=True)
    ours = method(batch_of(images, tokens))["loss"]
    assert relative(ours, theirs.loss) < 1e-5
    theirs.loss.backward()
    ours.backward()
    if lock == "image":
        assert all(p.grad is None for p in model.visual.parameters())
    expected = in_clip_names(gradients(peer))
    expected.pop("visual_projection.weight", None)
    found = gradients(model)
    rules = [rule for rule in plan.key_map.rules if all(name in found for name in rule.ours)]
    named = {
        name: value
        for rule in rules
        for name, value in zip(rule.theirs, rule.from_ours([found[n] for n in rule.ours]), strict=True)
    }
    assert_gradients(named, expected)


@pytest.mark.shows("lit", "weights")
def test_a_run_goes_through_odonatas_folder_bit_by_bit(tmp_path):
    _, folder = run(tiny("lit", steps=2), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    model.convert(tmp_path / "own")
    again = odonata.load(tmp_path / "own", device="cpu")
    assert digest(again.model) == digest(model.model)
    assert again.embed_text("a red 3").equal(model.embed_text("a red 3"))
    assert (again.assets.config, again.assets.preprocess) == (model.assets.config, model.assets.preprocess)


@pytest.mark.shows("lit", "weights")
def test_a_run_from_published_weights_goes_back_into_their_layout(tmp_path):
    _, base = run(tiny("clip", steps=1), tmp_path / "base")
    odonata.load(base, device="cpu").convert(tmp_path / "hf", "hf")
    _, folder = run(tiny("lit", init=str(tmp_path / "hf"), model=None, steps=2), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    model.convert(tmp_path / "back", "hf")
    again, before = odonata.load(tmp_path / "back", device="cpu"), odonata.load(tmp_path / "hf", device="cpu")
    assert digest(again.model) == digest(model.model)
    assert digest(again.model.visual) == digest(before.model.visual), "the locked tower is the published one"
    assert digest(again.model.text) != digest(before.model.text)


@pytest.mark.shows("lit", "trains")
@pytest.mark.parametrize("source", ["clip", "catlip"])
def test_the_locked_tower_keeps_its_bits_and_stays_in_evaluation_mode(tmp_path, monkeypatch, source):
    small_vit(monkeypatch)
    _, base = run(tiny(source, steps=2), tmp_path / "base")
    found = odonata.load(base, device="cpu")
    before = (found.model if source == "clip" else found.method).visual
    task, _ = run(tiny("lit", tower=str(base), steps=3), tmp_path / "run")
    after = task.method.model.visual
    before.reset_head(0)
    assert digest(after) == digest(before)
    task.method.train()
    assert task.method.model.text.training and not any(part.training for part in after.modules())


@pytest.mark.shows("lit", "manners")
def test_a_bias_makes_it_siglit():
    model = DualEncoder(SIGLIP_TOWERS)
    batch = batch_of(torch.randn(4, 3, 32, 32), torch.randint(0, 300, (4, 20)))
    expected = SigLIP(SigLIPConfig(init="kept"), model)(batch)["loss"]
    assert torch.equal(LiT(LiTConfig(), model)(batch)["loss"], expected)


@pytest.mark.shows("lit", "manners")
def test_pictures_of_ones_own_need_a_tower(tmp_path):
    for number in range(8):
        Image.new("RGB", (32, 32), (number * 30, 0, 0)).save(tmp_path / f"{number}.png")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("image,caption\n" + "".join(f"{n}.png,picture number {n}\n" for n in range(8)))
    with pytest.raises(RecipeError, match="LiT locks a pretrained tower: give a run or published weights with --tower"):
        run(tiny("lit", data__path=str(pairs)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("lit", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lock": "text"}, "--lock text keeps a pretrained text tower: name its weights with --init"),
        ({"tower": "a", "init": "b"}, "--tower does not go together with --init"),
        ({"tower": "a", "lock": "none"}, "--tower names the image tower to lock, and --lock is none"),
        ({"lock": "both"}, "lock is 'both'"),
        ({"tower": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("lit", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("lit", "manners")
def test_the_text_tower_can_be_the_locked_one():
    method = LiT(LiTConfig(lock="text", init="x"), DualEncoder(CLIP_TOWERS)).train()
    method(batch_of(torch.randn(4, 3, 32, 32), torch.randint(0, 300, (4, 20))))["loss"].backward()
    assert not any(name.startswith("model.text") for name in gradients(method))
    assert "model.visual.class_token" in gradients(method)
