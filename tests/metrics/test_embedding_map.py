"""Maps of features against scikit-learn's."""

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.manifold._t_sne import _joint_probabilities
from sklearn.metrics import pairwise_distances

from odonata.errors import DataError
from odonata.metrics.embedding_map import divergence, joint_affinities, principal_plane, tsne
from odonata.metrics.spectrum import effective_rank


def groups(count=120, dim=10):
    centres = torch.randn(4, dim) * 4
    labels = torch.arange(count) % 4
    return centres[labels] + torch.randn(count, dim), labels


def test_the_plane_is_that_of_principal_component_analysis():
    features, _ = groups()
    ours, theirs = principal_plane(features), torch.from_numpy(PCA(2).fit_transform(features.numpy()))
    for column in range(2):
        assert torch.allclose(ours[:, column].abs(), theirs[:, column].abs().float(), atol=1e-4)


def test_affinities_are_those_of_scikit_learn():
    features, _ = groups()
    squared = pairwise_distances(features.double().numpy(), squared=True).astype("float32")
    theirs = torch.from_numpy(_joint_probabilities(squared, 20.0, 0))
    ours = joint_affinities(features, 20.0)[*torch.triu_indices(120, 120, 1)] * 1.0
    assert torch.allclose(2 * ours / (2 * ours).sum(), theirs / theirs.sum(), rtol=1e-3, atol=1e-7)


def test_the_map_is_as_good_as_scikit_learns_and_keeps_groups_together():
    features, labels = groups()
    affinities = joint_affinities(features, 20.0)
    ours = tsne(features, 20.0)
    theirs = torch.from_numpy(TSNE(perplexity=20.0, init="pca", random_state=0).fit_transform(features.numpy()))
    assert divergence(affinities, ours) < 1.15 * divergence(affinities, theirs)
    distances = torch.cdist(ours, ours).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(1)] == labels).float().mean() > 0.95


def test_too_few_points_are_refused():
    with pytest.raises(DataError, match="needs 90 points or more, not 20"):
        tsne(torch.randn(20, 3))


def test_the_effective_rank_counts_directions_used_evenly():
    assert effective_rank(torch.eye(8) * 3) == pytest.approx(7, rel=0.05)  # centring takes one away
    assert effective_rank(torch.ones(10, 4)) == 1.0
    line = torch.linspace(-1, 1, 50)[:, None] * torch.randn(1, 6)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
