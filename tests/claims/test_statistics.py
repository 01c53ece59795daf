"""The intervals are those of scipy, and the verdict follows from where they lie."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from odonata.claims.claim import Comparison
from odonata.claims.statistics import (
    Interval,
    Outcome,
    compare,
    judge,
    rank_correlation,
    t_interval,
    verdict_of,
)

NEW = {1: 50.1, 2: 61.9, 3: 44.0, 4: 58.7, 5: 39.9}
OLD = {1: 49.0, 2: 60.5, 3: 43.2, 4: 57.1, 5: 39.1}


def results(**cells: dict[int, float]) -> dict[str, dict[int, dict[str, float]]]:
    return {f"{name}@x": {seed: {"r1": value} for seed, value in values.items()} for name, values in cells.items()}


def ask(treatment: str = "new@x", control: str | float = "old@x", relation: str = ">", **options) -> Comparison:
    return Comparison("?", treatment, control, "r1", relation, **options)  # pyright: ignore[reportArgumentType]


def test_interval_is_that_of_scipys_paired_t_test():
    outcome = compare(ask(), results(new=NEW, old=OLD))
    want = stats.ttest_rel(list(NEW.values()), list(OLD.values())).confidence_interval(0.95)
    assert (outcome.interval.low, outcome.interval.high) == pytest.approx((want.low, want.high), rel=1e-12)
    assert outcome.verdict == "supported"
    assert outcome.seeds == 5


def test_interval_against_a_constant_is_that_of_scipys_one_sample_test():
    outcome = compare(ask(control=48.0), results(new=NEW))
    want = stats.ttest_1samp(list(NEW.values()), 48.0).confidence_interval(0.95)
    assert (outcome.interval.low, outcome.interval.high) == pytest.approx((want.low - 48, want.high - 48), rel=1e-12)
    assert outcome.verdict == "inconclusive"


def test_pairing_finds_what_the_spread_of_seeds_hides():
    unpaired = stats.ttest_ind(list(NEW.values()), list(OLD.values())).confidence_interval(0.95)
    assert unpaired.low < 0 < unpaired.high
    assert compare(ask(), results(new=NEW, old=OLD)).interval.low > 0
    wrong = dict(zip(OLD, [*list(OLD.values())[2:], *list(OLD.values())[:2]], strict=True))
    assert compare(ask(), results(new=NEW, old=wrong)).verdict == "inconclusive"


def test_values_are_paired_by_seed_and_not_by_order():
    turned = dict(reversed(list(OLD.items())))
    assert compare(ask(), results(new=NEW, old=turned)) == compare(ask(), results(new=NEW, old=OLD))


def test_ratio_is_the_geometric_mean_of_the_pairs():
    outcome = compare(ask(relation="<", margin=1.05, ratio=True), results(new=NEW, old=OLD))
    logs = [math.log(NEW[seed] / OLD[seed]) for seed in NEW]
    assert outcome.interval.mean == pytest.approx(stats.gmean([NEW[s] / OLD[s] for s in NEW]))
    want = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (outcome.interval.low, outcome.interval.high) == pytest.approx((math.exp(want.low), math.exp(want.high)))


def test_gap_between_cells_is_paired_too():
    cells = results(new=NEW, old=OLD, far={s: v - 3 for s, v in NEW.items()}, near={s: v - 1 for s, v in NEW.items()})
    outcome = compare(ask("new@x - far@x", "new@x - near@x"), cells)
    assert outcome.interval.mean == pytest.approx(2)
    assert outcome.verdict == "supported"


@pytest.mark.parametrize(
    ("interval", "relation", "margin", "verdict"),
    [
        ((1, 3), ">", 0, "supported"),
        ((1, 3), ">", 2, "inconclusive"),
        ((1, 3), ">", 4, "not supported"),
        ((1, 3), "<", 4, "supported"),
        ((1, 3), "<", 0, "not supported"),
        ((-1, 1), "<", 0, "inconclusive"),
        ((0, 0), ">", 0, "inconclusive"),
    ],
)
def test_verdict_says_where_the_whole_interval_lies(interval, relation, margin, verdict):
    assert judge(Interval(sum(interval) / 2, *interval), relation, margin) == verdict


@given(st.floats(-5, 5), st.floats(0, 5), st.floats(-5, 5))
def test_opposite_hypotheses_never_both_hold(mean, half, margin):
    interval = Interval(mean, mean - half, mean + half)
    opposite = {"supported": "not supported", "not supported": "supported", "inconclusive": "inconclusive"}
    assert judge(interval, "<", margin) == opposite[judge(interval, ">", margin)]


def test_a_claim_needs_every_primary_comparison_and_no_secondary_one():
    def outcome(verdict, primary=True):
        return Outcome(ask(primary=primary), Interval(0, 0, 0), verdict, 5)

    yes, no, open_ = outcome("supported"), outcome("not supported"), outcome("inconclusive")
    assert verdict_of([yes, yes, outcome("not supported", primary=False)]) == "supported"
    assert verdict_of([yes, open_]) == "inconclusive"
    assert verdict_of([yes, open_, no]) == "not supported"


def test_seeds_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"paired, but its sides ran with seeds \[1, 2, 3, 4, 5\] and \[1, 2\]"):
        compare(ask(), results(new=NEW, old={1: 1.0, 2: 2.0}))


def test_figures_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="not always positive"):
        compare(ask(ratio=True), results(new=NEW, old={**OLD, 3: 0.0}))
    with pytest.raises(ValueError, match="two finite values or more"):
        t_interval([1.0, math.inf])
    with pytest.raises(ValueError, match="two finite values or more"):
        t_interval([1.0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=14))
def test_rank_correlation_is_scipys(pairs):
    first, second = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    if len(set(first)) > 1 and len(set(second)) > 1:
        assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)
