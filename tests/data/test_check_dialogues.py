"""The report on text data, and the command that prints it."""

import json
from pathlib import Path

import pytest

from odonata.app.cli import main
from odonata.data.check_dialogues import check_dialogues
from odonata.errors import DataError, RecipeError


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_repeats_and_prompts_of_both_parts_are_counted(tmp_path: Path):
    same = {"prompt": "a", "completion": "b"}
    write(tmp_path / "train.jsonl", same, same, {"prompt": "a", "completion": "c"}, {"prompt": "d", "completion": "e"})
    write(tmp_path / "test.jsonl", {"prompt": "d", "completion": "other"}, {"prompt": "f", "completion": "g"})
    report = check_dialogues(tmp_path, "chat")
    assert report.parts == {"test": 2, "train": 4} and report.ok
    assert (report.repeats, report.repeated_prompts) == (1, 3)
    assert report.shared_prompts == [(f"{tmp_path}/train.jsonl:4", f"{tmp_path}/test.jsonl:1")]
    assert report.warnings == [
        "1 items repeat others word for word; each copy counts in training",
        "1 prompts are trained on and held out: what is measured there is memory",
    ]
    alone = check_dialogues(tmp_path / "train.jsonl", "chat", heldout=tmp_path / "test.jsonl")
    assert alone.shared_prompts == report.shared_prompts and alone.parts == {}
    assert alone.facts["prompts that are text"] == 4 and alone.facts["characters to learn"] == 4


def test_a_bias_for_length_is_measured_and_warned_of(tmp_path: Path):
    def rows(longer: int) -> list[dict]:
        return [
            {"prompt": f"p{i}", "chosen": "yes" + "!" * (i < longer), "rejected": "no?" + "?" * (i >= longer)}
            for i in range(100)
        ]

    for longer, words in (
        (50, None),
        (61, "the longer answer is chosen in 61%"),
        (39, "the shorter answer is chosen in 61%"),
    ):
        report = check_dialogues(write(tmp_path / "a.jsonl", *rows(longer)), "preference")
        assert report.facts["share of pairs whose longer answer is chosen"] == longer / 100
        assert [w.split(" of the")[0] for w in report.warnings] == ([words] if words else [])


def test_contradictions_are_warned_of(tmp_path: Path):
    pairs = [
        {"prompt": "p", "chosen": a, "rejected": b, **more}
        for a, b, more in (("x", "y", {"margin": 1}), ("y", "z", {}))
    ]
    report = check_dialogues(write(tmp_path / "a.jsonl", *pairs), "preference")
    assert report.warnings == [
        "only 1 of 2 pairs have a margin",
        "1 answers are chosen in one pair and rejected in another",
    ]
    judged = [{"prompt": "p", "completion": "x", "label": label} for label in (True, False)]
    report = check_dialogues(write(tmp_path / "b.jsonl", *judged), "judgement")
    assert report.warnings == ["1 answers are wanted in one row and unwanted in another"]
    asked = [{"question": "p", "answer": answer} for answer in ("1", "2", "2")]
    report = check_dialogues(write(tmp_path / "c.jsonl", *asked), "questions")
    assert report.warnings[0] == "1 prompts stand with different answers"
    assert report.facts["share of the commonest answer, '2'"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "wanted, unwanted, words",
    [
        (3, 3, None),
        (4, 3, None),
        (3, 0, "all completions are wanted: there is nothing to tell apart"),
        (2, 5, "make them 1:1 to 4:3, such as 2.50 for the wanted"),
        (5, 2, "make them 1:1 to 4:3, such as 2.50 for the unwanted"),
    ],
)
def test_the_balance_of_judgements_is_what_kto_asks_for(tmp_path: Path, wanted: int, unwanted: int, words: str | None):
    rows = [{"prompt": f"{i}", "completion": "x", "label": i < wanted} for i in range(wanted + unwanted)]
    report = check_dialogues(write(tmp_path / "a.jsonl", *rows), "judgement")
    assert report.facts["share wanted"] == wanted / (wanted + unwanted)
    assert not report.warnings if words is None else report.warnings[0].endswith(words)


def test_steps_are_counted_and_0_must_be_explained(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "q", "completions": ["a", "b", "c"], "labels": [1, 1, 0]})
    with pytest.raises(DataError, match="say whether 0 means"):
        check_dialogues(path, "steps")
    facts = check_dialogues(path, "steps", zero="wrong").facts
    assert facts["steps"] == 3 and facts["steps wrong"] == 1
    assert facts["right steps before the first mistake, mean"] == 2
    with pytest.raises(RecipeError, match="zero='wrong' says what a label of steps means; the kind 'chat'"):
        check_dialogues(path, "chat", zero="wrong")
    sound = write(tmp_path / "b.jsonl", {"input": "q", "steps": ["a"], "mistake_index": None})
    assert check_dialogues(sound, "steps").warnings == ["all steps have the same label: there is nothing to tell apart"]


def test_one_answer_to_everything_is_warned_of(tmp_path: Path):
    rows = [{"prompt": f"{i}", "completion": "I cannot." if i < 60 else f"{i}"} for i in range(100)]
    assert check_dialogues(write(tmp_path / "a.jsonl", *rows), "chat").warnings == [
        "60% of the completions are 'I cannot.'"
    ]


def test_the_command_prints_the_report_and_says_what_would_stop_a_training(tmp_path: Path, capsys):
    path = write(tmp_path / "a.jsonl", {"prompt": "[red]a", "completion": "b"}, {"prompt": "c", "completion": ""})
    assert main(["check-data", str(path), "--kind", "chat"]) == 1
    shown = capsys.readouterr().out
    assert f"would stop a training:\n  {path}:2: 'completion' is empty" in shown
    assert main(["check-data", str(path), "--kind", "chat", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["num_items"] == 1 and not report["ok"] and report["format"] == "completion"
    write(path, {"prompt": "a", "completion": "b"})
    assert main(["check-data", str(path), "--kind", "chat"]) == 0


@pytest.mark.parametrize(
    "options, words",
    [
        (
            ["--kind", "preference"],
            "a row of the format completion (prompt, completion) gives exchanges or questions, not pr",
        ),
        (["--kind", "chat", "--split", "train"], "--split is for pictures"),
        (["--kind", "chat", "--zero", "wrong"], "zero='wrong' says what a label of steps means"),
        (["--heldout", "x"], "--heldout is for text: --kind chat, preference, judgement, steps, questions"),
    ],
)
def test_the_command_refuses_what_does_not_fit(tmp_path: Path, capsys, options: list[str], words: str):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"})
    assert main(["check-data", str(path), *options]) == 2
    assert words in capsys.readouterr().err
