"""DFN: what it must show; scores and loss are checked against transformers' CLIPModel."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import odonata
from align.towers import assert_gradients, batch_of, clip_peer, clip_texts, digest, gradients, relative, run, tiny
from odonata.align.build import METHODS, build
from odonata.align.dfn import DFNConfig, best_share, score_pairs
from odonata.align.dfn_filter import open_filter
from odonata.align.dual_encoder import config_to_dict
from odonata.align.predictor import TwoTowerPredictor
from odonata.data.image_text import train_and_heldout
from odonata.data.scenes import Scenes
from odonata.errors import DataError, OdonataError
from odonata.text.bpe import train_bpe
from odonata.weights import hf_clip
from odonata.weights.read import read_state


@pytest.mark.shows("dfn", "parity")
def test_scores_are_transformers_cosines(tmp_path):
    samples = [dataclasses.replace(s, captions=s.captions[:2]) for s in Scenes(12, size=32, seed=5).as_source()]
    captions = [caption for sample in samples for caption in sample.captions]
    tokenizer = train_bpe(captions, vocab_size=300, context_length=24)
    peer = clip_peer(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=24, eos_token_id=tokenizer.eos_id, bos_token_id=1
    )
    peer.save_pretrained(tmp_path)
    loaded = odonata.load(tmp_path, device="cpu")
    scorer = TwoTowerPredictor(
        loaded.model, dataclasses.replace(loaded.assets, tokenizer=tokenizer), "filter", torch.device("cpu")
    )
    found = score_pairs(scorer, samples, batch_size=5)
    pixels = torch.stack([loaded.assets.preprocess(sample.image.tensor()) for sample in samples])
    with torch.no_grad():
        theirs = peer(input_ids=tokenizer.encode(captions), pixel_values=pixels)
        cosines = (theirs.logits_per_image / peer.logit_scale.exp()).numpy()
    expected = np.array([max(cosines[row, 2 * row], cosines[row, 2 * row + 1]) for row in range(12)])
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    assert best_share(found, 0.5).tolist() == sorted(np.argsort(-expected, kind="stable")[:6].tolist())


@pytest.mark.shows("dfn", "parity")
def test_loss_and_gradients_equal_transformers(tmp_path):
    peer = clip_peer()
    peer.save_pretrained(tmp_path)
    model = odonata.load(tmp_path, device="cpu").model
    images, tokens = torch.randn(5, 3, 32, 32), clip_texts()
    theirs = peer(input_ids=tokens, pixel_values=images, return_loss=True)
    ours = METHODS["dfn"](DFNConfig(), model).train()(batch_of(images, tokens))["loss"]
    assert relative(ours, theirs.loss) < 1e-5
    theirs.loss.backward()
    ours.backward()
    assert_gradients(hf_clip.key_map(config_to_dict(model.config)).from_ours(gradients(model)), gradients(peer))


@pytest.mark.shows("dfn", "weights")
def test_a_run_goes_through_published_layouts_bit_by_bit_and_its_filter_reloads(tmp_path):
    task, folder = run(tiny("dfn", steps=2), tmp_path / "run")
    model = odonata.load(folder, device="cpu")
    for layout in ("hf", "open_clip", "odonata"):
        model.convert(tmp_path / layout, layout)
        assert digest(odonata.load(tmp_path / layout, device="cpu").model) == digest(model.model), layout
    odonata.load(tmp_path / "hf", device="cpu").convert(tmp_path / "back", "hf")
    first, last = read_state(tmp_path / "hf").state, read_state(tmp_path / "back").state
    assert first.keys() == last.keys() and all(torch.equal(first[name], last[name]) for name in first)
    device = torch.device("cpu")
    scorer, again = open_filter(folder, device), odonata.load(folder / "assets" / "filter", device="cpu")
    assert digest(scorer.model) == digest(again.model) != digest(model.model)
    # The reloaded filter chooses the very pairs that the run kept.
    pool, _ = train_and_heldout(tiny("dfn").data)
    kept = json.loads((folder / "assets" / "kept.json").read_text())
    assert best_share(score_pairs(scorer, pool), 0.6).tolist() == kept
    assert len(task.batches.dataset.source) == len(kept) == round(0.6 * len(pool))


@pytest.mark.shows("dfn", "manners")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 0.0}, r"--keep is 0.0; a share lies in \(0, 1\]"),
        ({"keep": 1.5}, r"--keep is 1.5; a share lies in \(0, 1\]"),
        ({"keep": 0.01}, r"--keep 0.01 of 40 pairs is none"),
        ({"filter_by": "/nowhere"}, "/nowhere: no such run folder or weights"),
        ({"clean": "/nowhere.csv"}, r"nowhere\.csv"),
        ({"filter_steps": 0}, "--filter-steps is 0"),
    ],
)
def test_wrong_options_are_named(tmp_path, fields, message):
    with pytest.raises(OdonataError, match=message):
        run(tiny("dfn", **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("dfn", "manners")
def test_a_filter_that_is_no_pair_of_towers_or_broken_is_named(tmp_path):
    _, folder = run(tiny("catlip", variant="vit-tiny16", image_size=32, steps=1), tmp_path / "catlip")
    with pytest.raises(OdonataError, match="scores no pairs: it is no pair of towers"):
        build(tiny("dfn", filter_by=str(folder)))
    with pytest.raises(DataError, match="pair 1 has the score nan: the filter is broken"):
        best_share(np.array([0.1, float("nan")]), 0.5)
