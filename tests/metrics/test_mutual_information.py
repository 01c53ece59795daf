"""InfoNCE says no more than the information there is, and no more than ln K."""

import math

import pytest
import torch

from odonata.metrics.mutual_information import (
    correlated_pairs,
    correlation_for,
    density_ratio,
    gaussian_information,
    info_nce_bound,
    info_nce_of,
    optimal_info_nce,
)


@pytest.mark.parametrize(
    ("information", "candidates", "seen"),
    [(10, 4, 1.38), (10, 64, 4.12), (10, 1024, 6.64), (10, 4096, 7.68), (2, 1024, 1.99)],
)
def test_the_optimal_critic_sees_what_is_there_but_no_more_than_ln_k(information, candidates, seen):
    found = optimal_info_nce(information, 20, candidates, generator=torch.Generator().manual_seed(0))
    assert found == pytest.approx(seen, abs=0.1)
    assert found <= math.log(candidates)
    assert found <= information + 0.05  # the mean over 8192 queries scatters by some hundredths


def test_more_candidates_see_more_until_all_is_seen():
    seen = [optimal_info_nce(2, 20, k, generator=torch.Generator().manual_seed(1)) for k in (2, 8, 64, 1024)]
    assert seen == sorted(seen)


def test_no_critic_says_more_than_ln_k():
    """Not even one that is told the answer; one that knows nothing says 0."""
    assert float(info_nce_of(100.0 * torch.eye(16))) == pytest.approx(math.log(16))
    assert float(info_nce_of(torch.zeros(16, 16))) == pytest.approx(0.0, abs=1e-6)
    assert float(info_nce_bound(torch.tensor(0.0), 64)) == pytest.approx(math.log(64))


def test_the_density_ratio_is_that_of_torchs_gaussians():
    x, y = correlated_pairs(6, 3, 0.8)
    scale = math.sqrt(1 - 0.8**2)
    theirs = torch.distributions.Normal(0.8 * x[:, None], scale).log_prob(y[None]).sum(2)
    theirs = theirs - torch.distributions.Normal(0.0, 1.0).log_prob(y).sum(1)
    torch.testing.assert_close(density_ratio(x, y, 0.8), theirs, rtol=1e-4, atol=1e-4)


def test_the_mean_log_ratio_is_the_information():
    rho = correlation_for(2.0, 20)
    assert gaussian_information(rho, 20) == pytest.approx(2.0)
    x, y = correlated_pairs(20_000, 20, rho)
    own = torch.cat([density_ratio(a, b, rho).diagonal() for a, b in zip(x.split(500), y.split(500), strict=True)])
    assert float(own.mean()) == pytest.approx(2.0, abs=0.05)
    assert correlation_for(0.0, 20) == 0.0


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="never negative"):
        correlation_for(-1.0, 20)
    with pytest.raises(ValueError, match="two candidates or more"):
        optimal_info_nce(2, 20, 1)
