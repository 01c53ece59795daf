"""The claim about grouped queries measures what it says."""

import pytest

from odonata.claims.claim import Trial
from odonata.claims.language_gqa import CLAIM, KEY_HEADS, WHERE


@pytest.mark.parametrize(("variant", "cache"), [("multi-head", 1024), ("grouped", 512), ("multi-query", 256)])
def test_a_trial_of_grouped_queries_trains_its_own_heads_and_counts_their_cache(variant, cache):
    trial = Trial(CLAIM.name, WHERE, variant, {"lr": 3e-3}, 101, "val", budget=0.01)
    figures = CLAIM.trial(trial)
    # Two layers, keys and values, 16 dimensions of 4 bytes a head.
    assert figures["cache"] == cache == 2 * 2 * KEY_HEADS[variant] * 16 * 4
    assert 0.1 < figures["nats"] < 2.64
    assert CLAIM.trial(trial) == figures, "a trial depends on nothing but what it is given"
