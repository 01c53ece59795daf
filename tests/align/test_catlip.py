"""CatLIP: what it must show, against transformers' ViTForImageClassification with several labels at once."""

import dataclasses

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

import odonata
from align.towers import (
    SIZE,
    as_checkpoint,
    assert_gradients,
    digest,
    gradients,
    randomise,
    relative,
    run,
    small_vit,
    tiny,
)
from odonata.align.catlip import CatLIP, CatLIPConfig, NounBatch, transfer_head
from odonata.errors import DataError, OdonataError, WeightsError
from odonata.weights import hf_vit
from odonata.weights.read import read_state

NOUNS = ("dog", "hot dog", "cat", "boat", "tree")


@pytest.fixture(autouse=True)
def _tiny_tower(monkeypatch):
    small_vit(monkeypatch)


def peer():
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
        id2label=dict(enumerate(NOUNS)), problem_type="multi_label_classification",
    )  # fmt: skip
    return randomise(ViTForImageClassification(config))


@pytest.mark.shows("catlip", "parity")
def test_loss_and_gradients_equal_transformers(tmp_path):
    theirs_model = peer()
    theirs_model.save_pretrained(tmp_path / "hf")
    model = odonata.load(tmp_path / "hf", device="cpu")
    method = CatLIP(CatLIPConfig(), model.assets.tower, len(NOUNS))
    method.load_state_dict(model.method.state_dict())
    images, targets = torch.randn(6, 3, 32, 32), (torch.rand(6, len(NOUNS)) < 0.3).float()
    theirs = theirs_model(pixel_values=images, labels=targets)
    ours = method.train()(NounBatch(images, targets))["loss"]
    assert relative(method.visual(images), theirs.logits) < 1e-5
    # transformers takes the mean over pictures and classes, CatLIP the sum over classes.
    assert relative(ours, theirs.loss * len(NOUNS)) < 1e-5
    (theirs.loss * len(NOUNS)).backward()
    ours.backward()
    named = hf_vit.key_map(dataclasses.asdict(model.assets.tower)).from_ours(gradients(method))
    assert_gradients(named, as_checkpoint(theirs_model, tmp_path / "gradients", gradients(theirs_model)))


@pytest.mark.shows("catlip", "weights")
def test_published_weights_go_out_as_they_came(tmp_path):
    theirs = peer()
    theirs.save_pretrained(tmp_path / "hf")
    model = odonata.load(tmp_path / "hf", device="cpu")
    assert model.assets.nouns.names == NOUNS
    model.convert(tmp_path / "own", "odonata")
    odonata.load(tmp_path / "own", device="cpu").convert(tmp_path / "back", "hf")
    first, last = read_state(tmp_path / "hf").state, read_state(tmp_path / "back").state
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    again, info = ViTForImageClassification.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.id2label == theirs.config.id2label
    assert again.config.problem_type == "multi_label_classification"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(images).logits, theirs(images).logits)


@pytest.mark.shows("catlip", "weights")
def test_a_run_answers_the_same_from_every_layout(tmp_path):
    vocabulary = tmp_path / "nouns.txt"
    vocabulary.write_text("digit\t1\t2\t3\npicture\tdrawing\n0\n7\n")
    _, folder = run(tiny("catlip", steps=2, nouns=str(vocabulary)), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    pictures = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    for layout in ("odonata", "hf"):
        model.convert(tmp_path / layout, layout)
        again = odonata.load(tmp_path / layout, device="cpu")
        assert digest(again.method) == digest(model.method)
        assert again.assets.nouns == model.assets.nouns, "names, and the words that stand for them"
        assert again.predict(pictures) == model.predict(pictures)
        assert again.embed_image(pictures).equal(model.embed_image(pictures))


@pytest.mark.shows("catlip", "weights")
@pytest.mark.parametrize("kind", ["hf", "tower", "odonata", "run"])
def test_training_starts_from_a_vit_a_folder_or_a_run(tmp_path, kind):
    first, folder = run(tiny("catlip", steps=1), tmp_path / "run")
    odonata.load(folder, device="cpu").convert(tmp_path / "odonata", "odonata")
    odonata.load(folder, device="cpu").convert(tmp_path / "hf", "hf")
    ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=True).save_pretrained(tmp_path / "tower")
    from odonata.align.build import build

    task = build(tiny("catlip", init=str(tmp_path / kind)))
    for name, value in first.method.visual.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(task.method.visual.state_dict()[name], value), name


@pytest.mark.shows("catlip", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "b/15"}, "--variant 'b/15' is unknown; there are vit-ti8"),
        ({"min_count": 1000}, "no noun occurs in 1000 captions or more"),
        ({"nouns": "/nowhere.txt"}, r"/nowhere\.txt"),
        ({"init": "/nowhere"}, "/nowhere does not exist"),
        ({"data__path": "scenes:n=0"}, "n must be at least 1"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("catlip", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("catlip", "manners")
def test_wrong_weights_and_layouts_are_named(tmp_path):
    _, folder = run(tiny("catlip", steps=1), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    with pytest.raises(WeightsError, match="--to 'openai' has no place for a CatLIP model; there are odonata, hf"):
        model.convert(tmp_path / "out", "openai")
    model.convert(tmp_path / "hf", "hf")
    with pytest.raises(WeightsError, match="is there already and not an empty folder"):
        model.convert(tmp_path / "hf", "hf")
    ViTModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).save_pretrained(tmp_path / "tower")
    with pytest.raises(WeightsError, match="a ViT without a classifier predicts nothing; train from it with --init"):
        odonata.load(tmp_path / "tower", device="cpu")
    theirs = peer()
    theirs.config.qkv_bias = False
    theirs.save_pretrained(tmp_path / "bare")
    with pytest.raises(WeightsError, match="qkv_bias is false"):
        odonata.load(tmp_path / "bare", device="cpu")
    fixed = dataclasses.asdict(dataclasses.replace(SIZE, positions="sincos_2d"))
    with pytest.raises(WeightsError, match="learned positions"):
        hf_vit.write({}, fixed, NOUNS, {})
    peer().save_pretrained(tmp_path / "other")
    with pytest.raises(OdonataError, match=r"do not fit --variant vit-tiny16, such as .*want \[64"):
        run(tiny("catlip", init=str(tmp_path / "other")), tmp_path / "again")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.json").write_text('{"nouns": {"names": []}}')
    with pytest.raises(WeightsError, match="missing"):
        odonata.load(tmp_path / "own", device="cpu")


@pytest.mark.shows("catlip", "manners")
def test_labels_that_name_no_noun_are_named(tmp_path):
    peer().save_pretrained(tmp_path / "hf")
    model = odonata.load(tmp_path / "hf", device="cpu")
    picture = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    assert [p.labels for p in model.predict(picture)] == [NOUNS], "a name of two words is a label as it stands"
    assert model.predict(picture, ["dogs"])[0].probabilities == model.predict(picture, ["dog"])[0].probabilities
    with pytest.raises(DataError, match="label 'a plane' names none of the model's 5 nouns"):
        model.predict(picture, ["a plane"])
    with pytest.raises(DataError, match="CatLIP has no text tower"):
        model.embed_text("a dog")
    head = transfer_head(model.method, model.assets.nouns, ["cats", "a dog on a boat"])
    old = model.method.visual.head
    assert torch.equal(head.weight[0], old.weight[2])
    torch.testing.assert_close(head.weight[1], (old.weight[0] + old.weight[3]) / 2)
