"""Reward models as scorers: they say what a judge says, of whole answers or of steps, cut ones included."""

import copy
import math

import pytest
import torch

from odonata.data.dialogues import Prompt
from odonata.errors import WeightsError
from odonata.posttrain.judge import Judge
from odonata.posttrain.scorer import Scorer, ScorerAssets
from odonata.posttrain.search.asked import Answer
from odonata.posttrain.search.judged import JudgedAnswers, JudgedSteps, JudgedWhole, open_reward_model, scorer_of
from odonata.posttrain.search.scorers import AnswerScorer, StepScorer, values_of
from posttrain.search_models import CPU, asked, opened, random_qwen2

PROMPTS = [Prompt(text="12="), Prompt(text="314="), Prompt(text="12=")]
TEXTS = ["13#3", "34", "#"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged") / "model"
    random_qwen2(folder)
    return opened(folder)


def judge(model, kind, steps="separator", separator="\n"):
    """A judge of random weights."""
    torch.manual_seed(1)
    scorer = Scorer(copy.deepcopy(model.decoder), 1 if kind == "reward" else 2, bias=kind == "steps")
    torch.nn.init.normal_(scorer.score.weight)
    assets = copy.deepcopy(model.assets)
    return Judge(scorer.eval(), ScorerAssets(assets, kind, steps, separator), CPU, "random")


def test_whole_answers_are_scored_as_a_judge_does_and_cut_ones_without_an_end(model):
    own = judge(model, "reward")
    scorer = scorer_of(own)
    assert isinstance(scorer, JudgedAnswers) and isinstance(scorer, AnswerScorer) and not isinstance(scorer, StepScorer)
    ended = scorer.scores(PROMPTS, TEXTS, [True] * 3)
    assert ended == pytest.approx([own.score(p.text, text) for p, text in zip(PROMPTS, TEXTS, strict=True)], rel=1e-5)
    cut = scorer.scores(PROMPTS[:1], TEXTS[:1], [False])
    ids = model.tokenizer.encode("12="), model.tokenizer.encode("13#3")
    assert cut == pytest.approx(own.scores_of([ids[0]], [ids[1]]), rel=1e-5) and cut[0] != pytest.approx(ended[0])
    assert scorer.scores(PROMPTS[:1], [""], [False]) == scorer.scores(PROMPTS[:1], [""], [True])


def test_steps_are_those_of_the_judge(model):
    own = judge(model, "steps", "digits-sum", "")
    scorer = scorer_of(own)
    assert isinstance(scorer, JudgedSteps) and isinstance(scorer, StepScorer) and not isinstance(scorer, AnswerScorer)
    found = scorer.step_scores(PROMPTS, [*TEXTS[:2], ""], [True, False, True])
    assert [len(steps) for steps in found] == [3, 2, 0]
    assert found[0] == pytest.approx(own.step_scores("12=", ["1", "3", "#3"]), rel=1e-5)
    assert scorer.step_scores(PROMPTS[:1], [""], [True]) == [[]]
    question = asked(model, "12=")[0]
    said = Answer((3, 4), "13#3", -1.0, True)
    assert values_of(scorer, "min")([question], [said]) == [pytest.approx(min(found[0]))]


def test_an_answer_that_is_one_step_is_scored_by_its_log_odds(model):
    own = judge(model, "steps", "whole", "")
    scorer = scorer_of(own)
    assert isinstance(scorer, JudgedWhole) and isinstance(scorer, AnswerScorer) and not isinstance(scorer, StepScorer)
    found = scorer.scores(PROMPTS, ["13#3", "34", ""], [True] * 3)
    chance = own.step_scores("12=", ["13#3"])[0]
    assert found[0] == pytest.approx(math.log(chance / (1 - chance)), rel=1e-4) and found[2] == -math.inf
    question = asked(model, "12=")[0]
    values = values_of(scorer, "min")([question] * 2, [Answer((3,), text, -1.0, True) for text in ("13#3", "")])
    assert values == [pytest.approx(chance, rel=1e-5), 0.0]


def test_what_is_no_reward_model_is_refused(model, tmp_path):
    with pytest.raises(WeightsError, match="nowhere"):
        open_reward_model(tmp_path / "nowhere")
