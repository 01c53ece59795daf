"""Answers by more compute: ways that choose, what they choose from, what they cost, and what is refused."""

import math

import pytest
import torch

from odonata.data.dialogues import Prompt, Question
from odonata.errors import DataError, RecipeError
from odonata.language.language_model import LanguageModel
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.search import solve as solving
from odonata.posttrain.search.asked import Answer, Truth, key_of, truth_for
from odonata.posttrain.search.options import SearchOptions
from odonata.posttrain.search.scorers import answer_scores, logistic, steps_of_answers, values_of
from odonata.posttrain.search.solve import solve
from odonata.posttrain.search.sources import open_source
from odonata.posttrain.start import make_base
from odonata.posttrain.tasks import task_named
from posttrain.search_models import CPU, asked, opened, questions, random_qwen2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model."""
    folder = tmp_path_factory.mktemp("random") / "model"
    random_qwen2(folder, peaked=0.3)
    return opened(folder)


def answer(text, logprob=-1.0, finished=True):
    return Answer((*map(ord, text), 1), text, logprob, finished)


SAID = [answer("#4", -1.0), answer("#3", -2.0), answer("33#3", -1.5), answer("#4", -3.0)]
"""3 is right: the likeliest is wrong, the likeliest a token is right, and the vote is a draw."""


class Fake:
    """Says the same four answers to every question, and greedily the second."""

    def __init__(self, *_):
        pass

    def sample(self, asked, count):
        return [SAID[:count] for _ in asked]

    def greedy(self, asked):
        return [SAID[1] for _ in asked]

    def beam(self, asked, width, penalty):
        return [SAID[2]] * len(asked), [-0.5 * penalty] * len(asked), [5 * width] * len(asked)


class ByText:
    """Scores answers by a table."""

    def __init__(self, table):
        self.table = table

    def scores(self, prompts, completions, finished):
        return [self.table[text] for text in completions]


class BySteps(ByText):
    """Scores steps by a table."""

    scores = None

    def step_scores(self, prompts, completions, finished):
        return [self.table[text] for text in completions]


def accuracies(found):
    return {(row.method, row.budget): row.accuracy for row in found.rows}


def test_every_way_chooses_among_the_same_answers(model, monkeypatch):
    monkeypatch.setattr(solving, "Speaker", Fake)
    scorer = ByText({"#4": 2.0, "#3": -1.0, "33#3": 3.0})
    found = solve(
        model, questions("12="), by=("greedy", "sample", "beam", "best-of-n", "vote"), budget=4,
        reward="marked-answer", scorer=scorer, length_penalty=2.0,
    )  # fmt: skip
    right = accuracies(found)
    assert right["greedy", 1] == 1 and right["sample", 1] == 0.5
    assert right["best-of-n (log p)", 4] == 0 and right["best-of-n (log p / length)", 4] == 1
    assert right["best-of-n (reward)", 4] == 1 and right["best-of-n (reward)", 1] == 0.5
    assert right["vote", 4] == 0.5  # two for 4 and two for 3: either is seen first as often
    assert right["vote (reward)", 4] == 0  # 4 has 2 σ(2) = 1.76, 3 has σ(−1) + σ(3) = 1.22
    assert [right["beam", width] for width in (1, 2, 4)] == [1, 1, 1]
    assert right["pass@k", 1] == 0.5 and right["pass@k", 2] == pytest.approx(5 / 6) and right["pass@k", 4] == 1
    assert found.rows[0].method == "greedy" and found.rows[-1].method == "pass@k"
    assert found.records[0]["beam"]["2"]["score"] == -1.0
    assert [said["right"] for said in found.records[0]["answers"]] == [0, 1, 1, 0]


def test_costs_are_the_tokens_that_were_generated(model, monkeypatch):
    monkeypatch.setattr(solving, "Speaker", Fake)
    found = solve(model, questions("12=", "7="), by=("greedy", "beam", "vote"), budget=4, reward="marked-answer")
    mean = (3 + 3 + 5 + 3) / 4
    assert found.tokens["vote"] == {1: mean, 2: 2 * mean, 4: 4 * mean} == found.tokens["pass@k"]
    assert found.tokens["greedy"] == {1: 3.0} and found.tokens["beam"] == {1: 5.0, 2: 10.0, 4: 20.0}
    rows = {(row["method"], row["budget"]): row["tokens"] for row in found.to_list()}
    assert rows["beam", 4] == 20.0 and rows["vote", 2] == 2 * mean
    accuracy, costs = found.table().split("\n\n")
    assert accuracy.splitlines()[0].split() == ["budget", "1", "2", "4"]
    assert costs.splitlines()[1].split() == ["greedy", "3.0", "–", "–"]


def test_steps_choose_by_each_aggregate(model, monkeypatch):
    monkeypatch.setattr(solving, "Speaker", Fake)
    monkeypatch.setattr(solving, "guided_beam", lambda *_, **__: [_Guided(SAID[2])])
    scorer = BySteps({"#4": [0.6, 0.6], "#3": [0.9, 0.1], "33#3": [0.99, 0.5, 0.7]})
    found = solve(
        model, questions("12="), by=("prm", "vote"), budget=4, reward="marked-answer", scorer=scorer, aggregate="prod"
    )
    right = accuracies(found)
    # min: .6 .1 .5; prod: .36 .09 .35; mean: .6 .5 .73; last: .6 .1 .7
    assert [right[f"prm ({how})", 4] for how in ("min", "prod", "mean", "last")] == [0, 0, 1, 1]
    assert right["vote (prm prod)", 4] == 0  # .72 against .44
    assert right["prm (beam)", 2] == 1


class _Guided:
    def __init__(self, answer):
        self.answer, self.tokens, self.value = answer, 6, 0.5


def test_the_same_seed_gives_the_same_answers(model):
    def run(seed):
        return solve(
            model, questions("12=", "314="), by=("vote", "mcts"), budget=8, reward="marked-answer", oracle=True,
            max_new_tokens=6, seed=seed, batch_rows=3 + seed,
        ).records  # fmt: skip

    assert run(1) == run(1) != run(2)


def test_what_cannot_be_judged_is_counted_and_wrong(model, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def odd(answers):\n    return [None if len(a.completion) % 2 else 1.0 for a in answers]\n"
        "def much(answers):\n    return [7.0 for a in answers]\n"
    )
    found = solve(model, questions("12="), by=("sample",), budget=16, reward=f"{tmp_path}/mine.py:odd",
                  max_new_tokens=6)  # fmt: skip
    texts = [said["text"] for said in found.records[0]["answers"]]
    assert accuracies(found)["sample", 1] == sum(len(text) % 2 == 0 for text in texts) / 16
    assert any("answers could not be judged by" in note and "count as wrong" in note for note in found.notes)
    with pytest.raises(RecipeError, match="gave 7; a search wants one that says how right an answer is, from 0 to 1"):
        solve(model, questions("12="), by=("sample",), budget=2, reward=f"{tmp_path}/mine.py:much", max_new_tokens=6)


def test_votes_compare_what_the_reward_judges():
    marked, expression, math_ = key_of("marked-answer"), key_of("countdown"), key_of("math")
    assert [marked(answer(text)) for text in ("12#3", "#3", "#", "3")] == ["3", "3", None, None]
    assert marked(answer("#3", finished=False)) is None
    assert key_of("marked-countdown")(answer("3-2=1;#3 - 2")) == "3-2"
    assert expression(answer("so\n<answer>(1 + 2)</answer>")) == "(1+2)" and expression(answer("no idea")) is None
    assert math_(answer("The answer is 0.5.")) == math_(answer(r"\boxed{\frac12}"))
    assert math_(answer("perhaps 7")) is None
    with pytest.raises(RecipeError, match="answers, and those that --reward code judges have no form to compare in"):
        key_of("code")
    with pytest.raises(RecipeError, match="unknown reward 'maths'"):
        key_of("maths")


def test_a_row_says_which_reward_fits():
    def name(row):
        return truth_for(Question(Prompt(text="?"), row, "task.jsonl:3"))

    assert name({"answer": "7"}) == "math" and name({"nums": [1, 2], "target": 3, "answer": "x"}) == "countdown"
    with pytest.raises(
        RecipeError, match=r"task.jsonl:3: the row has prompt, so nothing says .* name it with --reward"
    ):
        name({"prompt": "?"})


def test_a_truth_is_asked_once_of_an_answer(model):
    asking = []

    class Counting:
        name = "counting"

        def __call__(self, answers):
            asking.append(len(answers))
            return [1.0 for _ in answers]

    truth, question = Truth(Counting()), asked(model, "12=")[0]
    assert truth([question] * 3, [SAID[0], SAID[1], SAID[0]]) == [1.0] * 3
    assert truth([question], [SAID[1]]) == [1.0]
    assert sum(asking) == len({SAID[0].ids, SAID[1].ids})


def test_scorers_become_values_from_0_to_1(model):
    question = asked(model, "12=")[0]
    table = ByText({"#3": 800.0, "#4": -800.0, "33#3": 0.0})
    said = [SAID[1], SAID[0], SAID[2]]
    assert values_of(table, "min")([question] * 3, said) == [1.0, 0.0, 0.5]
    steps = BySteps({"#3": [0.5, 0.8], "#4": [], "33#3": [0.2]})
    assert values_of(steps, "prod")([question] * 3, said) == [pytest.approx(0.4), 0.0, pytest.approx(0.2)]
    assert steps_of_answers(steps, [question], [SAID[0]]) == [[0.0]]
    assert values_of(Truth(reward_named("marked-answer")), "min")([question] * 3, said) == [1.0, 0.0, 1.0]
    assert logistic(-1e4) == 0 and logistic(1e4) == 1
    with pytest.raises(DataError, match="gave a score that is not a number"):
        answer_scores(ByText({"#3": math.nan}), [question], [SAID[1]])


PROCESS, OUTCOME = BySteps({}), ByText({})


@pytest.mark.parametrize(
    ("options", "scorer", "message"),
    [
        ({"by": ("prm",)}, None, "--by prm needs a reward model of steps .* none is given"),
        ({"by": ("prm",)}, OUTCOME, "--by prm needs a reward model of steps .* scores whole answers"),
        ({"by": ("mcts",)}, None, "--by mcts needs something that judges answers: --reward-model RUN, or --oracle"),
        ({"by": ("vote",), "oracle": True}, None, "--oracle has no use in --by vote: only mcts would use it"),
        ({"by": ("mcts",), "oracle": True}, OUTCOME, "no use in --by mcts with --oracle: best-of-n, vote would use it"),
        ({"by": ("greedy", "beam")}, OUTCOME, "scores whole answers, which has no use in --by greedy beam"),
        ({"by": ("best-of-n",)}, PROCESS, "scores steps, which has no use in --by best-of-n: mcts, prm, vote would"),
        ({"by": ("vote",), "aggregate": "min"}, OUTCOME, "--aggregate is about scores of steps"),
        ({"by": ("vote",), "width": 4}, None, "--width has no use in --by vote: only prm and mcts would use it"),
        ({"by": ("vote",), "length_penalty": 1.0}, None, "--length-penalty has no use in --by vote: only beam"),
        ({"budget": 0}, None, "--budget is 0; it must be at least 1"),
        ({"temperature": 0.0}, None, "--temperature is 0.0; samples need one above 0"),
        ({"by": ()}, None, "--by takes some of greedy, .* not nothing"),
        ({"by": ("vote", "vote")}, None, "each once, not vote vote"),
        ({"by": ("luck",)}, None, "--by takes some of greedy, .* not luck"),
    ],
)
def test_contradictions_and_options_without_use_are_refused(options, scorer, message):
    with pytest.raises(RecipeError, match=message):
        SearchOptions(**options).check(scorer)


def test_no_question_is_an_error(model):
    with pytest.raises(DataError, match="there is no question to answer"):
        solve(model, [], by=("vote",))


def test_questions_of_a_task_are_those_of_its_split_val():
    source, texts = open_source("digits-sum:digits=4", count=3), task_named("digits-sum:digits=4").texts
    assert [q.prompt.text for q in source.questions] == [texts.prompt("val", i) for i in range(3)]
    assert (source.reward, source.step.tokens, source.max_new_tokens) == ("marked-answer", 1, texts.longest + 8)
    assert open_source("countdown").step.text == ";" and open_source("countdown").reward == "marked-countdown"
    with pytest.raises(RecipeError, match="--prompt-template is about files; the built-in task digits-sum brings"):
        open_source("digits-sum", template="Q: {question}")
    with pytest.raises(DataError, match=r"no/task.jsonl: no such file of questions, nor a built-in task"):
        open_source("no/task.jsonl")


@pytest.mark.slow
def test_a_tree_with_a_perfect_judge_gains_from_budget_on_a_task():
    task = task_named("digits-sum:digits=4,worked=0.2,base_steps=300")
    torch.manual_seed(0)
    decoder, assets, _ = make_base(task, 0)
    base = LanguageModel(decoder.eval(), assets, CPU)
    source = open_source("digits-sum:digits=4,worked=0.2", count=48)
    found = solve(
        base, source.questions, by=("beam", "mcts"), budget=64, reward=source.reward, step=source.step,
        oracle=True, max_new_tokens=source.max_new_tokens,
    )  # fmt: skip
    right = accuracies(found)
    steps = [right["mcts (truth)", budget] for budget in (1, 8, 64)]
    assert steps == sorted(steps) and steps[2] > steps[0] + 0.4
    assert found.tokens["mcts (truth)"][64] < found.tokens["pass@k"][64] / 2  # it stops where it has found one
