"""What trials about losses measure is exact: their figures are known beforehand, on seeds that no claim reports."""

import pytest

from odonata import claims
from odonata.claims.claim import Trial
from odonata.claims.posttrain_normalisation import VARIANTS, WHERE, weight_of_prompt

SEED = 105


def figures(name, condition, variant, budget=0.02):
    return claims.load(name).trial(Trial(name, condition, variant, {}, SEED, "test", budget))


@pytest.mark.parametrize(
    ("variant", "quantity"), [("k1", "size"), ("k2", "from reverse"), ("k3", "from forward")]
)  # fmt: skip
def test_gradients_of_estimators_on_own_samples_are_the_known_ones(variant, quantity):
    found = figures("kl-gradients", "its own samples", variant)
    assert found[quantity] < 1e-14
    assert sum(found[name] < 1e-9 for name in ("size", "from reverse", "from forward")) == 1


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_off_policy_the_ratio_is_what_makes_them_right(kind):
    where = "an older policy's samples"
    assert figures("kl-gradients", where, f"{kind} · ratio")["from reverse"] < 1e-14
    assert figures("kl-gradients", where, kind)["from reverse"] > 0.01


@pytest.mark.parametrize("variant", VARIANTS)
def test_normalisations_push_as_their_formulas_say(variant):
    found = figures("loss-normalisation", WHERE, variant)
    assert found["push"] == pytest.approx(0.25 if variant == "grpo" else 1.0)
    assert found["error"] < 1e-14
    assert found["inflation, equal rows"] == pytest.approx(1.0) or variant == "dapo"
    if variant in ("dr-grpo", "rloo"):
        assert found["hard prompt"] == pytest.approx(1.0)


def test_without_the_deviation_a_prompt_weighs_what_the_policy_gradient_says():
    # Less the group's mean, (n − 1)/n of it; less the others' mean, all of it.
    for chance in (0.03, 0.5, 0.8):
        assert weight_of_prompt("dr-grpo", chance) * 256 == pytest.approx(7 / 8)  # over 256 tokens an answer
        assert weight_of_prompt("rloo", chance) == pytest.approx(1.0)
