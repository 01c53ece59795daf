"""The claim about test-time compute: each variant chooses by what it says, from the same samples."""

import pytest

from odonata.claims import posttrain_test_time as claim
from odonata.claims.claim import Trial
from odonata.posttrain.search.scorers import AnswerScorer, StepScorer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base that has read little."""
    folder = tmp_path_factory.mktemp("claim")
    claim.prepare(folder, 0.02)
    return folder


def trial(base, variant, condition="8", seed=91):
    return Trial("test-time-scaling", condition, variant, {}, seed, "test", 0.03, base)


def test_judges_are_of_answers_or_of_steps(base):
    kinds = {variant: claim.judge_of(trial(base, variant)) for variant in claim.ROWS}
    assert kinds[claim.VOTE] is None and kinds[claim.LOGPROB] is None
    assert isinstance(kinds[claim.REWARD], AnswerScorer) and isinstance(kinds[claim.WEIGHTED], AnswerScorer)
    assert isinstance(kinds[claim.OUTCOMES], StepScorer) and isinstance(kinds[claim.STEPS], StepScorer)


def test_variants_choose_among_the_same_samples(base):
    found = {variant: claim.trial(trial(base, variant)) for variant in (claim.VOTE, claim.LOGPROB, claim.REWARD)}
    assert len({figures["pass@k"] for figures in found.values()}) == 1
    assert all(0 <= figures["right"] <= figures["pass@k"] for figures in found.values())
    alone = [claim.trial(trial(base, variant, "1"))["right"] for variant in (claim.VOTE, claim.LOGPROB)]
    assert alone[0] == pytest.approx(alone[1])  # there is nothing to choose
    assert claim.trial(trial(base, claim.VOTE)) == found[claim.VOTE] != claim.trial(trial(base, claim.VOTE, seed=92))
