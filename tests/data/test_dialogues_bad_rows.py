"""Rows that cannot be used: each stops the reading with its file, line and reason, or is left out and listed."""

import gzip
import json
from pathlib import Path

import pytest

from odonata.data.dialogues import (
    read_exchanges,
    read_judgements,
    read_preferences,
    read_questions,
    read_steps,
)
from odonata.errors import DataError

READERS = {
    "exchanges": read_exchanges,
    "preferences": read_preferences,
    "judgements": read_judgements,
    "steps": read_steps,
    "questions": read_questions,
}
USER, BOT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
GOOD = {
    "messages": {"messages": [USER, BOT]},
    "conversations": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "completion": {"prompt": "a", "completion": "b"},
    "instruction": {"instruction": "a", "output": "b"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "pair": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    "judgement": {"prompt": "a", "completion": "b", "label": True},
    "steps": {"prompt": "a", "completions": ["b"], "labels": [True]},
    "first-mistake": {"input": "a", "steps": ["b", "c"], "mistake_index": 1},
    "gsm8k": {"question": "a", "answer": "b\n#### 1"},
    "math": {"problem": "a", "solution": "\\boxed{1}"},
    "problem": {"problem": "a", "answer": 1.0, "solution": "b"},
    "countdown": {"nums": [1, 2], "target": 3},
    "model-solutions": {"question": "a", "ground_truth": "b\nA: 1", "m": {"solution": "c", "is_correct": True}},
}


def turns(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


def pair(chosen: str, rejected: str = "\n\nHuman: a\n\nAssistant: c") -> dict:
    return {"chosen": chosen, "rejected": rejected}


BAD = {
    ("exchanges", "messages"): [
        ("{", "not valid JSON: Expecting property name"),
        ("[1]", "want an object {...}, got list"),
        (b'{"messages": "caf\xe9"}', "the line is not UTF-8; save the file as UTF-8"),
        ("[" * 100_000, "not valid JSON: "),
        ({"messages": "hi"}, "'messages' is str 'hi', want a list of {\"role\": ..., \"content\""),
        ({"messages": []}, "'messages' has no turns"),
        ({"messages": [3]}, 'turn 1 of \'messages\' is int 3, want {"role": ..., "content": ...}'),
        ({"messages": [{"content": "a"}, BOT]}, "turn 1 of 'messages' has no 'role', only content"),
        (turns("user", "bot"), "turn 2 of 'messages' has the unknown role 'bot'; known are system,"),
        ({"messages": [{"role": []}]}, "turn 1 of 'messages' has the unknown role []"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' (user) has no 'content'"),
        ({"messages": [{**USER, "content": " \n"}, BOT]}, "turn 1 of 'messages' (user) is empty"),
        ({"messages": [USER, {**BOT, "content": None}]}, "(assistant) is null, want text"),
        ({"messages": [{**USER, "content": 7}, BOT]}, "(user) is int 7, want text"),
        ({"messages": [{**USER, "content": ["x"]}, BOT]}, "has a part str 'x'; only"),
        ({"messages": [USER, {**BOT, "tool_calls": [1]}]}, "turn 2 of 'messages' calls tools"),
        ({"messages": [{**USER, "content": "\ud83d"}, BOT]}, "half a surrogate pair"),
        (turns("user"), "the last turn of 'messages' is the user's; want the assistant's answer"),
        (turns("assistant"), "turn 1 of 'messages' is the assistant's, but nobody has asked yet"),
        (turns("system", "assistant"), "turn 2 of 'messages' is the assistant's, but nobody has"),
        (turns("user", "assistant", "assistant"), "is the assistant's like the one before"),
        (turns("user", "system", "assistant"), "turn 2 of 'messages' is the system's; it can only"),
        (turns("user", "tool", "assistant"), "turn 2 of 'messages' is a tool's, but does not"),
        ({**GOOD["messages"], "tools": [{}]}, "'tools' is not read; write what it says into"),
    ],
    ("exchanges", "conversations"): [
        ({"conversations": [{"from": "alien", "value": "a"}]}, "unknown role 'alien'; known"),
        ({"conversations": [{"from": "human", "text": "a"}]}, "(human) has no 'value', only"),
    ],
    ("questions", "messages"): [
        (turns("system", "assistant"), "the prompt in 'messages' ends with the system's turn"),
        (turns("assistant"), "'messages' has no turns before the answer"),
    ],
    ("exchanges", "completion"): [
        ({"prompt": "a"}, "'completion' is missing; the first row ("),
        ({"prompt": "a", "completion": None}, "'completion' is null; the first row ("),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty"),
        ({"prompt": "a", "completion": 4}, "'completion' is int 4, want text"),
        ({"prompt": [USER, BOT], "completion": "b"}, "the prompt in 'prompt' ends with the assi"),
        ({"prompt": "z", "completion": [USER, BOT]}, "'completion' is no answer to 'prompt'"),
        (GOOD["messages"], "'prompt' is missing; the first row ("),
        (GOOD["judgement"], "the row is of the format judgement; the first row ("),
    ],
    ("exchanges", "instruction"): [
        ({"instruction": "a", "input": 3, "output": "b"}, "'input' is int 3, want text"),
        ({**GOOD["instruction"], "history": [["x", "y"]]}, "'history' is not read; write the"),
    ],
    ("exchanges", "problem"): [
        ({"problem": "a", "answer": 1}, "'solution' is missing; the row has problem, answer"),
    ],
    ("preferences", "preference"): [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "'chosen' and 'rejected' are equal: '"),
        ({"prompt": "a", "chosen": "b", "rejected": [BOT]}, "must both be text or both be mess"),
        ({**GOOD["preference"], "margin": "big"}, "'margin' is str 'big', want a finite number"),
        ({**GOOD["preference"], "margin": float("nan")}, "'margin' is float nan, want a finite"),
    ],
    ("preferences", "pair"): [
        (pair(GOOD["pair"]["rejected"]), "'chosen' and 'rejected' are equal: 'c'"),
        (pair("hello"), "'chosen' begins with 'hello', want a transcript: '\\n\\nHuman: ..."),
        (pair("Well.\n\nHuman: a\n\nAssistant: b"), "'chosen' begins with 'Well.\\n\\nHuman: a\\n\\nA"),
        (pair("\n\nHuman: z\n\nAssistant: b"), "differ in turn 1 already, of 2 and 2; only the last"),
        (pair("\n\nHuman: a\n\nAssistant: "), "turn 2 of 'chosen' (Assistant) is empty"),
        (pair("\n\nHuman: a"), "the last turn of 'chosen' is the user's; want the assistant's"),
        (pair("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c"), "turn 3 of 'chosen' is the assistant's"),
        ({"chosen": [USER, BOT], "rejected": [USER, USER, {**BOT, "content": "z"}]}, "in turn 2 already"),
    ],
    ("judgements", "judgement"): [
        ({"prompt": "a", "completion": "b", "label": 0.5}, "'label' is float 0.5, want true or f"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "'label' is str 'good', want true"),
        ({"prompt": "a", "completion": "b", "label": 2}, "'label' is int 2, want true or false"),
    ],
    ("judgements", "model-solutions"): [
        ({"question": "a", "ground_truth": "b"}, "no field holds a solution with 'is_corr"),
        ({**GOOD["model-solutions"], "n": {"is_correct": 1}}, "'solution' in 'n' is null"),
    ],
    ("steps", "steps"): [
        ({"prompt": "a", "completions": [], "labels": []}, "'completions' is list [], want a list of at"),
        ({"prompt": "a", "completions": ["b", " "], "labels": [True, True]}, "step 2 of 'completions' is em"),
        ({"prompt": "a", "completions": ["b"], "labels": [True, True]}, "1 steps in 'completions', but 2 in"),
        ({"prompt": "a", "completions": ["b"], "labels": True}, "'labels' is bool True, want a list"),
        ({"prompt": "a", "completions": ["b"], "labels": [0.3]}, "'labels' is list [0.3], want true and"),
        ({"prompt": "a", "completions": ["b", "c"], "labels": [True, 1]}, "want true and false, or 1"),
    ],
    ("steps", "first-mistake"): [
        ({"input": "a", "steps": ["b"], "mistake_index": 1}, "'mistake_index' is int 1, want null or"),
        ({"input": "a", "steps": ["b"], "mistake_index": True}, "'mistake_index' is bool True, want"),
        ({"input": "a", "steps": ["b"]}, "'mistake_index' is missing; the first row ("),
    ],
    ("questions", "gsm8k"): [
        ({"question": "a", "answer": "b"}, "the row is of the format question; the first row ("),
    ],
    ("questions", "math"): [
        ({"problem": "a", "solution": "b"}, "'solution' has no \\boxed{} answer: 'b'"),
        ({"problem": "a", "solution": "\\boxed{b"}, "the brace of the last \\boxed in 'solution' is never"),
        ({"problem": "a", "solution": "\\boxed{}"}, "the boxed answer in 'solution' is empty"),
    ],
    ("questions", "problem"): [
        ({"problem": "a", "answer": float("inf")}, "'answer' is inf, want a finite number or text"),
        ({"problem": "a", "answer": [1]}, "'answer' is list [1], want text"),
    ],
    ("questions", "countdown"): [
        ({"nums": "1 2", "target": 3}, "'nums' is str '1 2', want a list of whole numbers"),
        ({"nums": [], "target": 3}, "'nums' is list [], want a list of whole numbers"),
        ({"nums": [1, 2.5], "target": 3}, "'nums' is list [1, 2.5], want a list of whole numbers"),
        ({"nums": [1], "target": True}, "'target' is bool True, want a whole number"),
    ],
    ("questions", "model-solutions"): [
        ({"question": "a", "ground_truth": "b"}, "'ground_truth' does not end with a line 'A:"),
    ],
}  # fmt: skip
ROWS = [(*key, *row) for key, rows in BAD.items() for row in rows]


@pytest.mark.parametrize("kind, format, row, words", ROWS, ids=range(len(ROWS)))
def test_a_bad_row_stops_the_reading_or_is_left_out(tmp_path: Path, kind: str, format: str, row, words: str):
    line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD[format]).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError) as error:
        READERS[kind](path)
    assert str(error.value).startswith(f"{path}:2: ") and words in str(error.value)
    read = READERS[kind](path, on_error="skip")
    assert {item.where for item in read.items} == {f"{path}:1"} and read.kind == format
    assert len(read.problems) == 1 and read.problems[0].startswith(f"{path}:2: ") and words in read.problems[0]


@pytest.mark.parametrize(
    "kind, format, words",
    [
        (
            "exchanges",
            "judgement",
            "a row of the format judgement (prompt, completion, label) gives judgements, not exch",
        ),
        (
            "exchanges",
            "preference",
            "gives preferences or judgements or questions, not exchanges; these are read from ",
        ),
        ("exchanges", "countdown", "a row of the format countdown (nums, target) gives questions, not exchanges"),
        ("preferences", "messages", "a row of the format messages (messages) gives exchanges or questions, not prefe"),
        ("steps", "completion", "these are read from prompt, completions, labels; input, steps, mistake_index"),
        ("questions", "steps", "a row of the format steps (prompt, completions, labels) gives steps, not questions"),
    ],
)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_file_of_another_kind_is_refused_whole(tmp_path: Path, kind: str, format: str, words: str, on_error):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD[format]))
    with pytest.raises(DataError) as error:
        READERS[kind](path, on_error=on_error)
    assert str(error.value).startswith(f"{path}:1: ") and words in str(error.value)


def test_an_unknown_format_names_its_fields_and_those_that_are_known(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "once upon a time"}\n')
    with pytest.raises(
        DataError, match=r"a\.jsonl:1: the row has text; judgements are read from prompt, chosen, rejected"
    ):
        read_judgements(tmp_path / "a.jsonl")


def test_a_row_of_another_format_may_be_read_the_same_way(tmp_path: Path):
    rows = [{"question": "a", "answer": "see\n#### 1"}, {"question": "b", "answer": "a long story"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(read_exchanges(tmp_path / "a.jsonl").items) == 2, "as an exchange, the gold answer plays no part"


FILES = {
    "nothing": ("a.jsonl", b"", r"a\.jsonl: no usable row; it is empty"),
    "blank lines": ("a.jsonl", b"\n \n", r"a\.jsonl: no usable row; it is empty"),
    "an empty table": ("a.csv", b"", r"a\.csv: no usable row; it is empty"),
    "no gzip": ("a.jsonl.gz", b'{"prompt": "a"}', r"a\.jsonl\.gz: broken or no gzip file"),
    "half a gzip": ("a.jsonl.gz", gzip.compress(b"x" * 1000)[:-9], r"a\.jsonl\.gz: broken or no gzip file"),
    "JSON lines called JSON": ("a.json", b'{"a": 1}\n{"a": 2}\n', r"a\.json:2: not valid JSON: Extra data .*\.jsonl"),
    "one object": ("a.json", b'{"data": []}', r"a\.json: want a list of rows \[{...}, ...\], got dict"),
    "no JSON": ("a.json", b"[1,\n2", r"a\.json:2: not valid JSON"),
    "a row that is none": ("a.json", b"[[1]]", r"a\.json: item 0: want an object {...}, got list"),
    "text": ("a.txt", b"hello", r"a\.txt: unknown kind of file; rows are read from \.jsonl"),
    "a cell too many": ("a.csv", b"prompt,completion\na,b,c\n", r"a\.csv:2: 3 cells, but 2 columns; a text with ','"),
    "a cell too few": ("a.csv", b"prompt,completion\na,b\nc\n", r"a\.csv:3: 'completion' is null"),
    "a table not in UTF-8": ("a.csv", b"prompt,completion\na,caf\xe9\n", r"a\.csv:2: 'completion' holds bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str):
    file, content, words = FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_exchanges(tmp_path / file)


def test_a_place_that_holds_no_rows_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file or folder"):
        read_exchanges(tmp_path / "gone.jsonl")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no file of rows lies in this folder; known are \.jsonl"):
        read_exchanges(tmp_path)


def test_where_all_rows_are_bad_the_first_reason_is_said(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n' * 3)
    (tmp_path / "b.jsonl").write_text('{"prompt": "", "completion": "a"}\n' * 3)
    with pytest.raises(
        DataError, match=r"b\.jsonl: no usable row; 3 bad rows, the first: .*b\.jsonl:1: 'prompt' is empty"
    ):
        read_exchanges(tmp_path / "b.jsonl", on_error="skip")
    with pytest.raises(DataError, match=r"b\.jsonl:1: 'chosen' is missing; the first row \(.*a\.jsonl:1\)"):
        read_judgements(_folder(tmp_path / "both", GOOD["preference"], GOOD["completion"]))


def _folder(path: Path, *rows: dict) -> Path:
    path.mkdir()
    for name, row in zip("ab", rows, strict=True):
        (path / f"{name}.jsonl").write_text(json.dumps(row))
    return path
