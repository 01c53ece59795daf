"""Prompt ensembles and template sets."""

import math

import pytest
import torch

from odonata.errors import DataError, RecipeError
from odonata.metrics.templates import TEMPLATES, read_templates, templates
from odonata.metrics.zeroshot import class_embeddings, zeroshot


def test_the_ensemble_is_the_normalised_mean_of_normalised_embeddings():
    table = {"a cat": [3.0, 0.0], "my cat": [0.0, 0.5], "a dog": [-1.0, 0.0], "my dog": [-9.0, 0.0]}
    found = class_embeddings(lambda texts: torch.tensor([table[t] for t in texts]), ["cat", "dog"], ["a {}", "my {}"])
    torch.testing.assert_close(found, torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [-1, 0]]))


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_equal_prompts_are_embedded_once_and_the_batch_does_not_matter(batch):
    seen = []

    def encode(texts):
        seen.extend(texts)
        return torch.tensor([[len(text), 1.0] for text in texts])

    found = class_embeddings(encode, ["ab", "c", "ab"], ["{}", "x {}"], batch=batch)
    assert seen == ["ab", "x ab", "c", "x c"]
    assert torch.equal(found[0], found[2])


def test_images_go_to_the_nearest_class_whatever_their_length():
    classes = torch.eye(3)
    image = torch.tensor([[5.0, 1, 0], [0.1, 0.2, 0], [0, 1, 9]])
    assert zeroshot(image, classes, torch.tensor([0, 1, 1]), ks=(1, 2)).top == {1: pytest.approx(2 / 3), 2: 1.0}


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match=r"template 'a photo' has no \{\}"):
        class_embeddings(lambda texts: torch.ones(len(texts), 2), ["cat"], ["a photo"])
    with pytest.raises(DataError, match="got 0 and 1"):
        class_embeddings(lambda texts: torch.ones(len(texts), 2), [])
    with pytest.raises(DataError, match=r"embeddings of \[4\], the classes of \[3\]"):
        zeroshot(torch.ones(2, 4), torch.eye(3), torch.tensor([0, 1]))


def test_every_template_has_a_place_for_the_name():
    assert all("{}" in template for group in TEMPLATES.values() for template in group)
    assert templates("simple") == ("a photo of a {}.",)
    with pytest.raises(RecipeError, match="no template set 'imagenet'; choose one of name, simple"):
        templates("imagenet")


def test_templates_are_read_from_a_file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("# mine\n\na {} here\n  the {}\n")
    assert read_templates(path) == ("a {} here", "the {}")
    path.write_text("a {} here\nnothing\n")
    with pytest.raises(DataError, match=r"t.txt:2: template 'nothing' has no {}"):
        read_templates(path)
    path.write_text("# none\n")
    with pytest.raises(DataError, match=r"t.txt: it holds no template"):
        read_templates(path)
    with pytest.raises(DataError, match=r"absent.txt: cannot be read"):
        read_templates(tmp_path / "absent.txt")
