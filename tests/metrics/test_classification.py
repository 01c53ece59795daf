"""Accuracies against scikit-learn."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from odonata.errors import DataError
from odonata.metrics.classification import classification


def test_scores_are_those_of_scikit_learn():
    scores, labels = torch.randn(200, 7), torch.randint(7, (200,))
    ours = classification(scores, labels, ks=(1, 2, 5))
    for k in (1, 2, 5):
        assert ours.top[k] == pytest.approx(top_k_accuracy_score(labels, scores, k=k))
    assert ours.mean_per_class == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert ours.confusion.tolist() == confusion_matrix(labels, scores.argmax(1)).tolist()


def test_equal_or_undefined_scores_earn_nothing():
    assert classification(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)).top[1] == 0
    assert classification(torch.full((5, 3), torch.nan), torch.zeros(5, dtype=torch.int64)).top[1] == 0


def test_a_class_without_samples_has_no_accuracy_and_top_5_of_3_classes_is_1():
    ours = classification(torch.eye(3)[:2], torch.tensor([0, 1]))
    assert ours.per_class[2].isnan()
    assert ours.mean_per_class == 1
    assert ours.top == {1: 1, 5: 1}


def test_labels_out_of_range_are_named():
    with pytest.raises(DataError, match="sample 1 has the label 3, but there are 3 classes"):
        classification(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(DataError, match=r"not \[2, 3\] with 1"):
        classification(torch.zeros(2, 3), torch.tensor([0]))
