"""transformers' ViT classifiers: names, words and refusals; weights and outputs stand in tests/align/test_catlip.py."""

from pathlib import Path

import pytest
import torch

from odonata.errors import WeightsError
from odonata.weights import hf_vit
from odonata.weights.read import Raw


def raw(**config):
    return Raw(Path("vit"), {}, {"model_type": "vit"} | config, "config.json")


def test_synonyms_are_words_of_their_class_and_the_first_class_keeps_a_shared_one():
    names, words = hf_vit.labels(raw(id2label={"1": "crane", "0": "Crane, bird", "2": "tabby, tabby cat"}))
    assert names == ("Crane, bird", "crane", "tabby, tabby cat")
    assert words == {"crane": 0, "bird": 0, "tabby": 2, "tabby cat": 2}


def test_written_words_win_over_synonyms():
    _, words = hf_vit.labels(raw(id2label={"0": "dog"}, noun_words={"hound": 0}))
    assert words == {"hound": 0}


@pytest.mark.parametrize("labels", [{}, {"0": "a", "2": "c"}, {"1": "a"}])
def test_classes_without_names_are_refused(labels):
    with pytest.raises(WeightsError, match="id2label does not name the classes 0, 1, 2"):
        hf_vit.labels(raw(id2label=labels))


def test_pictures_that_are_not_square_are_refused():
    with pytest.raises(WeightsError, match=r"image_size \[32, 64\] is not square"):
        hf_vit.read(raw(image_size=[32, 64]))


def test_missing_and_unknown_tensors_are_named():
    with pytest.raises(WeightsError, match=r"tensors are missing: vit\.embeddings\.cls_token"):
        checkpoint = raw(num_hidden_layers=1)
        checkpoint.state = {"vit.other": torch.zeros(2)}
        hf_vit.read(checkpoint)
