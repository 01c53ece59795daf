"""Average precision against scikit-learn."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from odonata.errors import DataError
from odonata.metrics.multilabel import average_precision, mean_average_precision


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 40), levels=st.integers(1, 50))
def test_it_is_that_of_scikit_learn_with_and_without_ties(seed, rows, levels):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (rows, 3), generator=generator) / levels
    labels = torch.rand(rows, 3, generator=generator) < 0.4
    labels[0] = True
    ours = average_precision(scores, labels)
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(3)]
    assert ours.tolist() == pytest.approx(expected)


def test_the_order_of_samples_and_any_rising_map_of_scores_do_not_matter():
    scores, labels, order = torch.randn(30, 4), torch.rand(30, 4) < 0.5, torch.randperm(30)
    moved = average_precision(scores[order].exp(), labels[order])
    torch.testing.assert_close(moved, average_precision(scores, labels))


def test_a_class_that_nobody_has_does_not_count():
    scores, labels = torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[True, False], [False, False]])
    assert average_precision(scores, labels)[1].isnan()
    assert mean_average_precision(scores, labels) == 1


def test_what_does_not_fit_is_named():
    with pytest.raises(DataError, match=r"\[2, 3\], \[2, 2\]"):
        average_precision(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.bool))
    with pytest.raises(DataError, match="sample 1 for class 0 is not a number"):
        average_precision(torch.tensor([[0.0], [torch.nan]]), torch.ones(2, 1, dtype=torch.bool))
