"""The readers on published files: what is in them, counted, and the rows of hh-rlhf that no one should train on."""

from collections import Counter
from pathlib import Path

import pytest

from odonata.data.check_dialogues import check_dialogues
from odonata.data.dialogues import (
    read_exchanges,
    read_judgements,
    read_preferences,
    read_questions,
    read_steps,
    split_heldout,
)
from odonata.errors import DataError


@pytest.fixture
def reasoning(shared_data: Path) -> Path:
    return shared_data / "reasoning"


@pytest.mark.parametrize("name, count", [("train", 6000), ("test", 900)])
def test_gsm8k_has_a_number_for_every_question(reasoning: Path, name: str, count: int):
    path = reasoning / f"gsm8k/{name}.jsonl.gz"
    questions, exchanges = read_questions(path), read_exchanges(path)
    assert len(questions) == len(exchanges) == count and questions.kind == "gsm8k" and not questions.problems
    for question, exchange in zip(questions.items, exchanges.items, strict=True):
        float(question.row["answer"])  # commas are gone
        assert exchange.completion == question.row["solution"] and exchange.completion.rpartition("#### ")[1]
        assert exchange.prompt == question.prompt and exchange.where == question.where


def test_gsm8k_begins_as_published(reasoning: Path):
    first = read_questions(reasoning / "gsm8k/test.jsonl.gz").items[0]
    assert first.prompt.turns[0].content.startswith("Janet’s ducks lay 16 eggs per day.")
    assert first.row["answer"] == "18" and first.where.endswith("test.jsonl.gz:1")


def test_model_solutions_are_judged_and_of_the_test_questions(reasoning: Path):
    path = reasoning / "gsm8k/example_model_solutions.jsonl.gz"
    judgements = read_judgements(path)
    # By file order: 6B finetuned, 6B with a verifier, 175B finetuned, 175B with a verifier (Cobbe et al. 2021).
    right = [sum(item.desirable for item in judgements.items[i::4]) for i in range(4)]
    assert len(judgements) == 3600 and right == [200, 361, 315, 516]
    test = {item.prompt: item.row["answer"] for item in read_questions(reasoning / "gsm8k/test.jsonl.gz").items}
    solved = {item.prompt: item.row["answer"] for item in read_questions(path).items}
    assert solved == test, "the same 900 questions with the same gold answers, found by another mark"


def test_a_folder_of_two_formats_is_refused_with_the_row_that_differs(reasoning: Path):
    with pytest.raises(
        DataError, match=r"test\.jsonl\.gz:1: 'ground_truth' is missing; the first row \(.*example_model"
    ):
        read_questions(reasoning / "gsm8k")


def test_svamp_and_amc_are_questions_with_whole_numbers(reasoning: Path):
    svamp, amc = (read_questions(reasoning / f"math/{name}.jsonl.gz") for name in ("svamp", "amc23"))
    assert (len(svamp), svamp.kind, len(amc), amc.kind) == (1000, "svamp", 40, "problem")
    assert all(str(int(item.row["answer"])) == item.row["answer"] for item in (*svamp.items, *amc.items))
    second = svamp.items[1].prompt.turns[0].content
    assert second == (
        "Marco and his dad went strawberry picking. Marco's dad's strawberries weighed 11 pounds. If together their "
        "strawberries weighed 30 pounds. How much did Marco's strawberries weigh?"
    )
    assert amc.items[0].row["answer"] == "27" and amc.items[0].prompt.turns[0].content.startswith("Cities $A$ and $B$")


def test_countdown_is_held_out_by_its_files(reasoning: Path):
    read = read_questions(reasoning / "countdown")
    assert len(read) == 2300 and read.kind == "countdown" and not read.problems
    assert Counter(len(item.row["numbers"]) for item in read.items) == {3: 1324, 4: 976}
    train, test = split_heldout(read)
    assert (len(train), len(test)) == (2000, 300)
    assert not {item.prompt for item in train.items} & {item.prompt for item in test.items}
    assert train.fingerprint() == read_questions(reasoning / "countdown/train.jsonl").fingerprint()


BAD_TRANSCRIPTS = {
    87: "turn 4 of 'chosen' (Assistant) is empty",
    517: "turn 2 of 'chosen' (Assistant) is empty",
    668: "turn 5 of 'chosen' is the assistant's like the one before",
    764: "turn 3 of 'chosen' is the assistant's like the one before",
    926: "turn 2 of 'chosen' (Assistant) is empty",
    1104: "turn 2 of 'chosen' (Assistant) is empty",
    1255: "turn 5 of 'chosen' is the assistant's like the one before",
    1320: "turn 9 of 'chosen' is the assistant's like the one before",
    1689: "turn 5 of 'chosen' is the assistant's like the one before",
}


def test_nine_rows_of_hh_rlhf_are_broken_and_the_rest_are_pairs(reasoning: Path):
    path = reasoning / "hh-rlhf/harmless-base.jsonl.gz"
    with pytest.raises(DataError, match=r"harmless-base\.jsonl\.gz:87: turn 4 of 'chosen' \(Assistant\) is empty"):
        read_preferences(path)
    read = read_preferences(path, on_error="skip")
    assert len(read) == 1791 and len(read.problems) == 9
    for problem, (line, words) in zip(read.problems, BAD_TRANSCRIPTS.items(), strict=True):
        assert problem.startswith(f"{path}:{line}: {words}")
    assert all(item.prompt.turns[-1].role == "user" and item.chosen != item.rejected for item in read.items)
    assert len(read_judgements(path, on_error="skip")) == 2 * 1791
    assert len(read_questions(path, on_error="skip")) == 1791


def test_hh_rlhf_as_text_and_as_turns_say_the_same(reasoning: Path):
    path = reasoning / "hh-rlhf/harmless-base.jsonl.gz"
    as_text, as_turns = (read_preferences(path, on_error="skip", prompts=form) for form in ("text", "auto"))
    for text, turns in zip(as_text.items, as_turns.items, strict=True):
        assert text.prompt.text.endswith("\n\nAssistant:") and text.prompt.text.startswith("\n\nHuman: ")
        assert text.prompt.text.count("\n\nHuman:") == sum(turn.role == "user" for turn in turns.prompt.turns)
        assert (text.chosen, text.rejected) == (f" {turns.chosen}", f" {turns.rejected}")


@pytest.mark.parametrize(
    "name, steps, wrong, sound",
    [
        ("logical_deduction", 2497, 1830, 6),
        ("multistep_arithmetic", 1506, 651, 62),
        ("tracking_shuffled_objects", 1617, 726, 40),
    ],
)
def test_steps_of_bigbench_mistake_are_wrong_from_the_mistake_on(
    reasoning: Path, name: str, steps: int, wrong: int, sound: int
):
    read = read_steps(reasoning / f"bigbench-mistake/{name}.jsonl.gz")
    labels = Counter(label for item in read.items for label in item.labels)
    assert len(read) == 300 and labels == {1: steps - wrong, -1: wrong}
    assert sum(item.first_mistake is None for item in read.items) == sound


def test_reports_on_the_real_files(reasoning: Path):
    report = check_dialogues(reasoning / "hh-rlhf", "preference")
    assert not report.ok and len(report.problems) == 9 and report.num_items == 1791
    assert report.facts["share of pairs whose longer answer is chosen"] == pytest.approx(0.451, abs=5e-4)
    report = check_dialogues(reasoning / "bigbench-mistake", "steps")
    assert report.ok and report.facts["steps wrong"] == 3207 and report.facts["solutions without a mistake"] == 108
    report = check_dialogues(reasoning / "gsm8k/example_model_solutions.jsonl.gz", "judgement")
    assert report.repeats == 6 and report.facts["wanted"] == 1392
    assert "1,392 wanted and 2,208 unwanted: KTO asks for weights" in report.warnings[0]
    test = reasoning / "gsm8k/test.jsonl.gz"
    assert not check_dialogues(reasoning / "gsm8k/train.jsonl.gz", "chat", heldout=test).shared_prompts
    shared = check_dialogues(
        reasoning / "gsm8k/example_model_solutions.jsonl.gz", "questions", heldout=test
    ).shared_prompts
    assert len(shared) == 900, "the published solutions are of the test questions"
