"""A claim that would not be a fair test cannot be stated."""

import pytest

from odonata.claims.claim import Comparison, Published, Trial
from odonata.errors import RecipeError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"new": ({"lr": 1.0}, {"lr": 2.0}), "old": ({"lr": 1.0},)}}, "equally many settings"),
        ({"seeds": (1, 2)}, "three different seeds"),
        ({"seeds": (1, 2, 2)}, "three different seeds"),
        ({"seeds": (1, 2, 101)}, "cannot be reported too"),
        ({"grid": dict.fromkeys(("new", "old"), ({"lr": 1.0}, {"lr": 2.0}))}, "no figure to choose by"),
        ({"comparisons": (Comparison("?", "new@small", "old@small", "score", ">", primary=False),)}, "no primary"),
        ({"comparisons": (Comparison("?", "new@small", "young@small", "score", ">"),)}, "'young@small'"),
        ({"comparisons": (Comparison("?", "new@small - new@large", 0.0, "score", ">"),)}, "'new@large'"),
        ({"published": Published("score", "a paper", {"new@large": 1.0})}, "published figure for 'new@large'"),
    ],
)
def test_unfair_claims_are_refused(toy_claim, changes, message):
    with pytest.raises(RecipeError, match=message):
        toy_claim(**changes)


def test_trials_of_other_settings_seeds_splits_or_lengths_have_other_keys(tmp_path):
    base = Trial("toy", "small", "new", {"lr": 1.0}, 1, "test")
    others = [
        Trial("toy", "large", "new", {"lr": 1.0}, 1, "test"),
        Trial("toy", "small", "old", {"lr": 1.0}, 1, "test"),
        Trial("toy", "small", "new", {"lr": 2.0}, 1, "test"),
        Trial("toy", "small", "new", {"lr": 1.0}, 2, "test"),
        Trial("toy", "small", "new", {"lr": 1.0}, 1, "val"),
        Trial("toy", "small", "new", {"lr": 1.0}, 1, "test", budget=0.1),
    ]
    assert len({base.key, *(other.key for other in others)}) == 7
    assert Trial("toy", "small", "new", {"lr": 1.0}, 1, "test", folder=tmp_path).key == base.key
