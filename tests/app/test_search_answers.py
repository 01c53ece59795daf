"""`odonata search MODEL TASK`: what it prints and writes, what it reads, and what it says where something is amiss."""

import json
import re
import shutil

import pytest
from PIL import Image

from app.conftest import odonata, refused
from odonata.text.text_bpe import train_text_bpe
from posttrain.search_models import random_qwen2

SMALL = ("--budget", "4", "--prompts", "3", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory as transformers writes it, that knows the characters of digits-sum."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    random_qwen2(folder)
    return folder


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    """A directory whose tokenizer knows every byte."""
    folder = tmp_path_factory.mktemp("models") / "bytes"
    random_qwen2(folder, tokenizer=train_text_bpe(["how many apples does she have left"], 300))
    return folder


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Runs of `reward` and `prm` on answers of a base that has read little."""
    root = tmp_path_factory.mktemp("judges")
    for name in ("reward", "prm"):
        done = odonata(
            "train", name, "--task", "digits-sum:base_steps=60", "--sampled.prompts", 64, "--data.batch-size", 8,
            "--steps", 2, "--evaluation.rows", 8, "--device", "cpu", "--out", root / name,
        )  # fmt: skip
        assert done.status == 0, done.err
    return root


def test_a_table_of_ways_and_budgets(model, tmp_path):
    curve, answers = tmp_path / "curve.png", tmp_path / "answers.jsonl"
    done = odonata("search", model, "digits-sum", "--by", "greedy", "beam", "best-of-n", "vote", *SMALL,
                   "--draw", curve, "--out", answers)  # fmt: skip
    assert done.status == 0, done.err
    assert "questions: 3 of digits-sum:digits=6" in done.out and "judged by marked-answer" in done.out
    accuracy, costs = re.search(r"^budget .*?\n\n.*?(?=\n→)", done.out, re.M | re.S)[0].split("\n\n")
    ways = ["greedy", "beam", "best-of-n (log p)", "best-of-n (log p / length)", "vote", "pass@k"]
    for table in (accuracy, costs):
        assert table.splitlines()[0].split()[1:] == ["1", "2", "4"]
        assert [re.split(r"  +", line)[0] for line in table.splitlines()[1:]] == ways
    assert Image.open(curve).format == "PNG"
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(records) == 3 and all(len(record["answers"]) == 4 for record in records)
    assert records[0]["prompt"].endswith("=") and set(records[0]["beam"]) == {"1", "2", "4"}
    assert {"text", "tokens", "logprob", "finished", "right", "scores"} == set(records[0]["answers"][0])


def test_figures_for_programs_repeat_by_their_seed(model):
    def run(*more):
        return odonata("search", model, "digits-sum", "--by", "vote", "mcts", "--oracle", *SMALL, "--json", *more).json

    rows = run()
    assert rows == run("--batch-rows", 2) != run("--seed", 1)
    assert {"method", "budget", "accuracy", "low", "high", "problems", "tokens"} == set(rows[0])
    assert {row["method"] for row in rows} == {"vote", "mcts (truth)", "pass@k"}
    assert all(0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 and row["problems"] == 3 for row in rows)


def test_options_reach_the_search(model):
    def tokens(*more):
        rows = odonata("search", model, "digits-sum", "--by", "beam", *SMALL, "--json", *more).json
        return next(row["tokens"] for row in rows if (row["method"], row["budget"]) == ("pass@k", 4))

    assert tokens("--max-new-tokens", 2) <= 8 < tokens("--max-new-tokens", 40)
    assert odonata("search", model, "digits-sum:digits=3", *SMALL).out.startswith("questions: 3 of digits-sum:digits=3")
    limited = odonata("search", model, "digits-sum", *SMALL, "--max-new-tokens", 1).out
    assert re.search(r"\d+ of 12 samples did not come to an end within 1 tokens", limited)


def test_a_reward_model_weighs_votes_and_chooses(model, judges):
    rows = odonata("search", model, "digits-sum", "--by", "vote", "best-of-n", "mcts", "--reward-model",
                   judges / "reward", *SMALL, "--json").json  # fmt: skip
    assert {"vote (reward)", "best-of-n (reward)", "mcts"} < {row["method"] for row in rows}
    done = odonata("search", model, "digits-sum", "--by", "prm", "vote", "mcts", "--reward-model", judges / "prm",
                   "--aggregate", "prod", "--width", 2, *SMALL, "--json")  # fmt: skip
    assert done.status == 0, done.err
    ways = {row["method"] for row in done.json}
    assert {f"prm ({how})" for how in ("min", "prod", "mean", "last", "beam")} < ways and "vote (prm prod)" in ways


@pytest.mark.parametrize(
    ("rows", "reward"),
    [
        ([{"question": "2 and 2?", "answer": "#### 4"}, {"question": "3 and 4?", "answer": "so\n#### 7"}], "math"),
        ([{"nums": [1, 2, 3], "target": 6, "solution": "1+2+3"}], "countdown"),
        ([{"Body": "Two and two.", "Question": "How many?", "Answer": 4.0, "Equation": "( 2.0 + 2.0 )"}], "math"),
        ([{"prompt": "1+1=", "answer": 2}], "math"),
    ],
)
def test_files_say_which_reward_fits(speaker, tmp_path, rows, reward):
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = odonata("search", speaker, path, "--by", "vote", "beam", *SMALL, "--max-new-tokens", 6)
    assert done.status == 0, done.err
    assert f"questions: {len(rows)} of {len(rows)} from {path}" in done.out and f"judged by {reward};" in done.out


def test_rows_of_gsm8k_and_countdown(speaker, shared_data):
    for name in ("gsm8k/test.jsonl.gz", "countdown/test.jsonl"):
        done = odonata("search", speaker, shared_data / "reasoning" / name, "--by", "greedy", "vote", "best-of-n",
                       *SMALL, "--max-new-tokens", 8, "--prompt-form", "text")  # fmt: skip
        assert done.status == 0, done.err
        assert re.search(r"questions: 3 of \d+ from ", done.out) and "pass@k" in done.out


def test_help_tells_of_both_searches(model):
    both = odonata("search", "--help")
    assert both.status == 0
    assert "the pictures nearest to words or to a picture" in both.out and "a language model " in both.out
    answers = odonata("search", model, "--help").out
    assert "--budget" in answers and "--reward-model" in answers and "--image" not in answers
    vectors = odonata("search", "vectors", "--help").out
    assert "--image" in vectors and "--budget" not in vectors


def test_what_comes_first_says_what_is_searched(model, tmp_path):
    assert "not a folder of vectors made by `odonata embed`" in refused("search", tmp_path, "a bus")
    assert "search what? Name vectors, or a language model" in refused("search")
    assert odonata("search", *SMALL, model, "digits-sum", "--json").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "digits-sum", "--by", "vote"), "nowhere: no such run folder or language model"),
        (("{model}", "nowhere.jsonl"), "nowhere.jsonl: no such file of questions, nor a built-in task"),
        (("{model}", "digits-sum:digit=3"), "digits-sum has no option 'digit'"),
        (("{model}", "digits-sum", "--budget", "0"), "--budget is 0; it must be at least 1"),
        (("{model}", "digits-sum", "--prompts", "0"), "--prompts is 0; it must be at least 1"),
        (("{model}", "digits-sum", "--by", "prm"), "--by prm needs a reward model of steps"),
        (("{model}", "digits-sum", "--by", "mcts"), "--by mcts needs something that judges answers"),
        (("{model}", "digits-sum", "--by", "vote", "--oracle"), "--oracle has no use in --by vote"),
        (("{model}", "digits-sum", "--by", "vote", "--step-tokens", "2"), "--step-end and --step-tokens has no use"),
        (("{model}", "digits-sum", "--by", "mcts", "--oracle", "--step-tokens", "0"), "--step-tokens is 0"),
        (("{model}", "digits-sum", "--temperature", "0"), "samples need one above 0"),
        (("{model}", "digits-sum", "--reward", "maths"), "unknown reward 'maths'; perhaps you meant math"),
        (("{model}", "digits-sum", "--by", "vote", "--reward", "code"), "--by vote compares answers"),
        (("{model}", "digits-sum", "--reward-model", "{model}"), "holds no reward model"),
        (("{model}", "digits-sum", "--prompt-template", "Q: {{q}}"), "--prompt-template is about files"),
        (("{model}", "digits-sum", "--draw", "curve.pdf"), "curve.pdf: this file is written as .png"),
        (("{model}", "digits-sum", "--out", "no/such/a.jsonl"), "no/such: no such folder to write a.jsonl into"),
    ],
)
def test_errors_say_what_and_where(model, arguments, words):
    assert words in refused("search", *(part.format(model=model) for part in arguments))


def test_models_and_files_of_another_kind_are_named(trained, model, judges, photos, tmp_path):
    message = refused("search", trained / "clip", "digits-sum", "--by", "vote")
    assert "clip is a run of another kind: it holds no language model" in message
    message = refused("search", judges / "reward", "digits-sum", "--by", "vote")
    assert "reward is a run of another kind: it holds no language model" in message
    assert "--by prm needs a reward model of steps" in refused(
        "search", model, "digits-sum", "--by", "prm", "--reward-model", judges / "reward"
    )
    assert "scores steps, which has no use in --by best-of-n" in refused(
        "search", model, "digits-sum", "--by", "best-of-n", "--reward-model", judges / "prm"
    )
    assert re.search(r"a\.jpg", refused("search", model, photos / "a.jpg", "--by", "vote"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "2?", "answer": "#### 4"}\n{"question": "3?"}\n')
    assert "bad.jsonl:2: 'answer' is missing" in refused("search", model, bad)
    bad.write_text('{"prompt": "a poem"}\n')
    assert "bad.jsonl:1: the row has prompt, so nothing says which answers are right" in refused("search", model, bad)
    halved = tmp_path / "halved"
    shutil.copytree(model, halved)
    (halved / "model.safetensors").unlink()
    assert "model.safetensors" in refused("search", halved, "digits-sum")
