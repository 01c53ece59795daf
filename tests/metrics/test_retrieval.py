"""Retrieval scores by hand, by torchmetrics, and under changes that must not matter."""

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.retrieval import retrieval_hit_rate

from odonata.errors import DataError
from odonata.metrics.retrieval import retrieval


def test_an_example_by_hand():
    # Similarities of 2 images to 3 texts; texts 0 and 2 describe image 0, text 1 describes image 1.
    image = torch.eye(2)
    text = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.8, 0.5]])
    scores = retrieval(image, text, torch.tensor([0, 1, 0]), ks=(1, 2, 3))
    # Image 0 ranks texts 2, 1, 0: its best caption is first. Image 1 ranks 0, 2, 1: its only one is third.
    assert scores.image_to_text.recall == {1: 0.5, 2: 0.5, 3: 1.0}
    assert scores.image_to_text.median_rank == 2
    # Text 0 prefers image 1 (wrong), text 1 image 1 (right), text 2 image 0 (right).
    assert scores.text_to_image.recall[1] == pytest.approx(2 / 3)
    assert scores.text_to_image.mean_rank == pytest.approx(4 / 3)
    assert scores.flat()["text_to_image/recall@2"] == 1


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_recall_is_the_hit_rate_of_torchmetrics(chunk):
    image, owner = torch.randn(20, 6), torch.arange(60) % 20
    text = image[owner] + 2 * torch.randn(60, 6)
    scores = retrieval(image, text, owner, chunk=chunk)
    for k in (1, 5, 10):
        rows = [retrieval_hit_rate(image[i] @ text.T, owner == i, top_k=k) for i in range(20)]
        assert scores.image_to_text.recall[k] == pytest.approx(torch.stack(rows).mean().item())
        columns = [retrieval_hit_rate(text[j] @ image.T, torch.arange(20) == owner[j], top_k=k) for j in range(60)]
        assert scores.text_to_image.recall[k] == pytest.approx(torch.stack(columns).mean().item())


def test_the_order_of_images_and_texts_does_not_matter():
    image, owner = F.normalize(torch.randn(15, 4), dim=1), torch.randint(15, (40,))
    text = F.normalize(image[owner] + torch.randn(40, 4), dim=1)
    images, texts = torch.randperm(15), torch.randperm(40)
    moved = retrieval(image[images], text[texts], images.argsort()[owner[texts]])
    assert moved == retrieval(image, text, owner)


def test_collapsed_embeddings_score_nothing():
    scores = retrieval(torch.ones(10, 3), torch.ones(10, 3), ks=(1, 9, 10))
    assert scores.image_to_text.recall == {1: 0, 9: 0, 10: 1}
    assert scores.mean_recall == pytest.approx(1 / 3)


def test_images_without_a_text_are_candidates_only():
    scores = retrieval(torch.eye(4), torch.eye(4)[:2], torch.tensor([0, 1]))
    assert (scores.image_to_text.queries, scores.text_to_image.queries) == (2, 2)
    assert scores.mean_recall == 1


@pytest.mark.parametrize(
    ("text", "owner", "message"),
    [
        (torch.ones(2, 3), None, r"not \[2, 4\] and \[2, 3\]"),
        (torch.ones(3, 4), torch.tensor([0, 2, 1]), "text 1 belongs to image 2, but there are 2 images"),
        (torch.ones(3, 4), None, "text 2 belongs to image 2"),
        (torch.ones(2, 4), torch.tensor([0]), "image_of_text must be 2 integers"),
        (torch.tensor([[1.0] * 4, [float("nan")] * 4]), None, "the embedding of text 1 is not finite"),
    ],
)
def test_what_does_not_fit_is_named(text, owner, message):
    with pytest.raises(DataError, match=message):
        retrieval(torch.ones(2, 4), text, owner)
