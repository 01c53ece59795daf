"""The linear probe against scikit-learn's LogisticRegression."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from odonata.errors import DataError
from odonata.metrics.probe import fit_linear_probe, sweep_linear_probe


def clusters(rows, noise=1.5, classes=4, dim=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(rows) % classes
    return centres[labels] + noise * torch.randn(rows, dim, generator=generator), labels


@pytest.mark.parametrize("l2", [0.01, 1.0, 100.0])
def test_the_optimum_is_that_of_scikit_learn(l2):
    x, y = clusters(300)
    peer = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-10).fit(x.double(), y)
    ours = fit_linear_probe(x, y, l2=l2)
    torch.testing.assert_close(ours.weight, torch.from_numpy(peer.coef_), rtol=1e-3, atol=1e-4)
    test, _ = clusters(100, seed=1)
    expected = torch.from_numpy(peer.predict_proba(test.double()))
    torch.testing.assert_close(ours.scores(test).softmax(1), expected, rtol=1e-3, atol=1e-5)


def test_the_order_of_samples_and_the_start_do_not_matter():
    x, y = clusters(200)
    order = torch.randperm(200)
    first = fit_linear_probe(x, y, l2=1.0)
    second = fit_linear_probe(x[order], y[order], l2=1.0, start=fit_linear_probe(x, y, l2=1000.0))
    torch.testing.assert_close(first.weight, second.weight, rtol=1e-4, atol=1e-5)


def test_the_sweep_takes_the_best_on_validation_and_refits_on_both():
    (x, y), (vx, vy) = clusters(40, noise=3), clusters(80, noise=3, seed=1)
    probe, accuracy = sweep_linear_probe(x, y, vx, vy, sweep=(1e-4, 1e-1, 10.0, 1e3))
    best = max(accuracy.values())
    assert probe.l2 == max(l2 for l2, value in accuracy.items() if value == best)
    both = fit_linear_probe(torch.cat([x, vx]), torch.cat([y, vy]), l2=probe.l2)
    torch.testing.assert_close(probe.weight, both.weight, rtol=1e-3, atol=1e-4)
    alone, _ = sweep_linear_probe(x, y, vx, vy, sweep=(10.0,), refit=False)
    torch.testing.assert_close(alone.weight, fit_linear_probe(x, y, l2=10.0).weight, rtol=1e-3, atol=1e-4)


def test_half_precision_features_are_welcome_and_no_grad_does_not_hinder():
    x, y = clusters(60)
    with torch.no_grad():
        probe = fit_linear_probe(x.bfloat16(), y)
    assert (probe.scores(x).argmax(1) == y).double().mean() > 0.7


def test_what_does_not_fit_is_named():
    x, y = clusters(8)
    with pytest.raises(DataError, match="l2 must be above 0, not 0"):
        fit_linear_probe(x, y, l2=0.0)
    with pytest.raises(DataError, match=r"\[8, 10\], 3"):
        fit_linear_probe(x, y[:3])
    x[2, 3] = torch.inf
    with pytest.raises(DataError, match="features of sample 2 are not finite"):
        fit_linear_probe(x, y)
    with pytest.raises(DataError, match="holds no strength"):
        sweep_linear_probe(x[:2], y[:2], x[:2], y[:2], sweep=())
