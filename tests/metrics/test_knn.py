"""kNN against scikit-learn."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from odonata.errors import DataError
from odonata.metrics.knn import knn_scores


@pytest.mark.parametrize("weights", ["uniform", "exponential"])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_votes_are_those_of_scikit_learn(weights, chunk):
    train, labels, test = torch.randn(150, 8), torch.randint(5, (150,)), torch.randn(40, 8)
    labels[:5] = torch.arange(5)

    def exponential(cosine_distance):
        return torch.from_numpy((1 - cosine_distance) / 0.07).exp().numpy()

    peer = KNeighborsClassifier(9, weights="uniform" if weights == "uniform" else exponential, metric="cosine")
    expected = peer.fit(train.double(), labels).predict_proba(test.double())
    ours = knn_scores(train, labels, test, k=9, weights=weights, chunk=chunk)
    torch.testing.assert_close(ours.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_the_order_and_length_of_training_features_do_not_matter():
    train, labels, test = torch.randn(50, 8), torch.randint(5, (50,)), torch.randn(10, 8)
    order = torch.randperm(50)
    moved = knn_scores(3 * train[order], labels[order], test, classes=6)
    torch.testing.assert_close(moved, knn_scores(F.normalize(train, dim=1), labels, test, classes=6))
    assert moved[:, 5].eq(0).all()


def test_a_bank_in_parts_gives_the_votes_of_the_whole(monkeypatch):
    train, labels, test = torch.randn(100, 8), torch.randint(5, (100,)), torch.randn(20, 8)
    whole = knn_scores(train, labels, test, k=9, classes=5)
    # Parts of fewer samples than neighbours, the last of them smaller still.
    monkeypatch.setattr("odonata.metrics.knn.BANK_ROWS", 7)
    torch.testing.assert_close(knn_scores(train, labels, test, k=9, classes=5), whole)


def test_more_neighbours_than_samples_means_all_samples():
    votes = knn_scores(torch.eye(3), torch.tensor([0, 1, 1]), torch.ones(1, 3), k=20, weights="uniform")
    torch.testing.assert_close(votes, torch.tensor([[1 / 3, 2 / 3]]))


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match=r"training \[3, 3\] with 2 labels, test \[1, 3\]"):
        knn_scores(torch.eye(3), torch.tensor([0, 1]), torch.ones(1, 3))
    with pytest.raises(DataError, match="k ≥ 1, not 0"):
        knn_scores(torch.eye(3), torch.arange(3), torch.ones(1, 3), k=0)
