"""Formats of text data: what a row says, from whatever file, and how it is held out."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from odonata.data.dialogue_formats import FORMATS
from odonata.data.dialogues import (
    Exchange,
    Judgement,
    Preference,
    Prompt,
    Read,
    Steps,
    Turn,
    read_exchanges,
    read_judgements,
    read_preferences,
    read_questions,
    read_steps,
)
from odonata.errors import DataError, RecipeError


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(read: Read):
    (item,) = read.items
    return item


def asked(text: str) -> Prompt:
    return Prompt(turns=(Turn("user", text),))


def said(*contents: str) -> list[dict]:
    """Messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


# ---- formats ---------------------------------------------------------------------------------------------------------

EXCHANGES = {
    "messages": ({"messages": said("2+2?", "4")}, asked("2+2?"), "4"),
    "conversations": (
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        asked("2+2?"),
        "4",
    ),
    "completion": ({"prompt": "2+2=", "completion": "4"}, Prompt(text="2+2="), "4"),
    "completion of messages": (
        {"prompt": said("2+2?"), "completion": [{"role": "assistant", "content": "4"}]},
        asked("2+2?"),
        "4",
    ),
    "a string answered by messages": ({"prompt": "2+2?", "completion": said("2+2?", "4")}, asked("2+2?"), "4"),
    "instruction": ({"instruction": "Add.", "input": "2, 2", "output": "4"}, asked("Add.\n\n2, 2"), "4"),
    "instruction without input": ({"instruction": "Say 4.", "input": "", "output": "4"}, asked("Say 4."), "4"),
    "gsm8k": ({"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"}, asked("2+2?"), "It is <<2+2=4>>4.\n#### 4"),
    "question": ({"question": "Best bird?", "answer": "The wren"}, asked("Best bird?"), "The wren"),
    "math": ({"problem": "2+2?", "solution": "\\boxed{4}", "level": "1"}, asked("2+2?"), "\\boxed{4}"),
    "null fields are absent": ({"prompt": "2+2=", "completion": "4", "messages": None}, Prompt(text="2+2="), "4"),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_exchange_is_read_from_each_format(tmp_path: Path, name: str):
    row, prompt, completion = EXCHANGES[name]
    path = write(tmp_path / "a.jsonl", row)
    assert only(read_exchanges(path)) == Exchange(prompt, completion, f"{path}:1")


def test_a_conversation_of_many_turns_keeps_them_all_in_order(tmp_path: Path):
    messages = [{"role": "system", "content": "Be brief."}, *said("a", "b", "c", "d")]
    exchange = only(read_exchanges(write(tmp_path / "a.jsonl", {"messages": messages})))
    assert [turn.role for turn in exchange.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.content for turn in exchange.turns] == ["Be brief.", "a", "b", "c", "d"]
    assert exchange.prompt.turns == exchange.turns[:-1] and exchange.completion == "d"
    beside = {"system": "Be brief.", "messages": said("a", "b", "c", "d")}
    assert only(read_exchanges(write(tmp_path / "b.jsonl", beside))).turns == exchange.turns
    assert Exchange(Prompt(text="a"), "b", "").turns == ()


def test_contents_in_parts_and_turns_of_tools_are_read(tmp_path: Path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "look it up"},
        {"role": "tool", "content": "found"},
        {"role": "tool", "content": "more"},
        {"role": "assistant", "content": "done"},
    ]
    exchange = only(read_exchanges(write(tmp_path / "a.jsonl", {"messages": messages})))
    assert exchange.turns[0] == Turn("user", "ab") and exchange.completion == "done"


def test_two_turns_of_the_user_in_a_row_are_sound(tmp_path: Path):
    messages = [*said("a"), *said("b", "c")]
    assert len(only(read_exchanges(write(tmp_path / "a.jsonl", {"messages": messages}))).turns) == 3


CHOSEN, REJECTED = "\n\nHuman: hi\n\nAssistant: hello", "\n\nHuman: hi\n\nAssistant: go away"
PREFERENCES = {
    "strings": ({"prompt": "hi", "chosen": "hello", "rejected": "go away"}, Prompt(text="hi")),
    "messages": (
        {"prompt": said("hi"), "chosen": said("hi", "hello")[1:], "rejected": said("hi", "go away")[1:]},
        asked("hi"),
    ),
    "a string and whole conversations": (
        {"prompt": "hi", "chosen": said("hi", "hello"), "rejected": said("hi", "go away"), "messages": said("hi", "x")},
        asked("hi"),
    ),
    "whole conversations": ({"chosen": said("hi", "hello"), "rejected": said("hi", "go away")}, asked("hi")),
    "transcripts": ({"chosen": CHOSEN, "rejected": REJECTED}, asked("hi")),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_is_read_from_each_format_and_gives_two_judgements_and_a_question(tmp_path: Path, name: str):
    row, prompt = PREFERENCES[name]
    path = write(tmp_path / "a.jsonl", {**row, "margin": 2})
    where = f"{path}:1"
    assert only(read_preferences(path)) == Preference(prompt, "hello", "go away", 2.0, where)
    assert read_judgements(path).items == (
        Judgement(prompt, "hello", True, where),
        Judgement(prompt, "go away", False, where),
    )
    assert only(read_questions(path)).prompt == prompt
    assert only(read_preferences(write(path, row))).margin is None


@pytest.mark.parametrize("label, desirable", [(True, True), (False, False), (1, True), (0, False), ("False", False)])
def test_a_judgement_says_whether_it_is_wanted(tmp_path: Path, label: object, desirable: bool):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b", "label": label})
    assert only(read_judgements(path)) == Judgement(Prompt(text="a"), "b", desirable, f"{path}:1")


def test_published_solutions_with_verdicts_are_judgements(tmp_path: Path):
    row = {"question": "2+2?", "ground_truth": "Sum.\nA: 1,004", "small": {"solution": "5", "is_correct": False}}
    path = write(tmp_path / "a.jsonl", {**row, "large": {"solution": "4", "is_correct": True}})
    assert [(item.completion, item.desirable) for item in read_judgements(path).items] == [("5", False), ("4", True)]
    assert only(read_questions(path)).row["answer"] == "1004"
    assert only(read_exchanges(path)).completion == "Sum.\nA: 1,004"


def test_steps_are_wrong_from_the_first_mistake_on(tmp_path: Path):
    rows = [{"input": "q", "steps": ["a", "b", "c"], "mistake_index": at} for at in (None, 0, 1, 2)]
    read = read_steps(write(tmp_path / "a.jsonl", *rows))
    assert [item.labels for item in read.items] == [(1, 1, 1), (-1, -1, -1), (1, -1, -1), (1, 1, -1)]
    assert [item.first_mistake for item in read.items] == [None, 0, 1, 2]
    assert read.items[0].prompt == asked("q") and read.kind == "first-mistake"


def test_labels_of_steps_are_words_or_ratings(tmp_path: Path):
    row = {"prompt": "q", "completions": ["a", "b", "c"]}
    words = read_steps(write(tmp_path / "a.jsonl", {**row, "labels": [True, False, True]}))
    assert only(words) == Steps(Prompt(text="q"), ("a", "b", "c"), (1, -1, 1), only(words).where)
    assert only(words).first_mistake == 1
    ratings = write(tmp_path / "b.jsonl", {**row, "labels": [1, 0, -1]})
    assert only(read_steps(ratings)).labels == (1, 0, -1) and only(read_steps(ratings)).first_mistake == 2


def test_labels_of_0_and_1_must_be_explained(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", {"prompt": "q", "completions": ["a", "b"], "labels": [1, 0]})
    with pytest.raises(DataError, match=r"a\.jsonl: the labels of steps are 0 and 1; say whether 0 means zero='wrong'"):
        read_steps(path, on_error="skip")
    assert only(read_steps(path, zero="wrong")).labels == (1, -1)
    assert only(read_steps(path, zero="neutral")).labels == (1, 0)
    write(path, {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]})
    with pytest.raises(RecipeError, match=r"zero='wrong' says what the label 0 means, but .* has no such labels"):
        read_steps(path, zero="wrong")


QUESTIONS = {
    "gsm8k": ({"question": "q", "answer": "Sum.\n#### 2,125"}, {"answer": "2125", "solution": "Sum.\n#### 2,125"}),
    "question": ({"question": "q", "answer": 27.0}, {"answer": "27"}),
    "problem": ({"problem": "q", "answer": 0.5, "question": "another"}, {"answer": "0.5", "question": "another"}),
    "math": ({"problem": "q", "solution": "\\fbox{no} so $\\boxed{\\frac{1}{2}}$."}, {"answer": "\\frac{1}{2}"}),
    "prompt": ({"prompt": said("q"), "tests": ["f(1) == 1"], "problem": "two-sum"}, {"problem": "two-sum"}),
    "prompt with numbers": ({"prompt": said("q"), "nums": [1, 2], "target": 3}, {"numbers": [1, 2], "target": 3}),
    "messages": ({"messages": said("q", "forgotten"), "answer": 3}, {"answer": "3"}),
    "svamp": ({"Body": "One hen lays", "Question": "q", "Answer": 7.0}, {"answer": "7"}),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_has_its_gold_answer_and_keeps_the_row(tmp_path: Path, name: str):
    row, found = QUESTIONS[name]
    question = only(read_questions(write(tmp_path / "a.jsonl", row)))
    assert question.prompt == (asked("One hen lays. q") if name == "svamp" else asked("q"))
    assert question.row == {**row, **found}


@pytest.mark.parametrize("key", ["numbers", "nums"])
def test_countdown_is_put_into_words(tmp_path: Path, key: str):
    question = only(read_questions(write(tmp_path / "a.jsonl", {key: [44, 19, 35], "target": 98})))
    assert question.row["numbers"] == [44, 19, 35] and question.row["target"] == 98
    assert question.prompt.turns[0].content == (
        "Using the numbers [44, 19, 35], write an expression that equals 98. You can use + - * / and parentheses, and "
        "each number exactly once. Show your work in <think> </think> and give the expression in <answer> </answer>, "
        "for example <answer>(1 + 2) / 3</answer>."
    )


def test_the_form_of_prompts_can_be_said(tmp_path: Path):
    plain = write(tmp_path / "a.jsonl", {"prompt": "hi", "completion": "b"})
    assert only(read_exchanges(plain, prompts="chat")).prompt == asked("hi")
    task = write(tmp_path / "b.jsonl", {"nums": [1, 2], "target": 3})
    text = only(read_questions(task, prompts="text", template="{numbers} -> {target}:")).prompt
    assert text == Prompt(text="[1, 2] -> 3:")
    pair = write(tmp_path / "c.jsonl", {"chosen": CHOSEN, "rejected": REJECTED})
    preference = only(read_preferences(pair, prompts="text"))
    assert preference.prompt.text + preference.chosen == CHOSEN, "as text, a transcript is what the file says"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"prompts": "text"}, "these rows are conversations: they go through the chat template"),
        ({"template": "{messages}"}, "a prompt template is for prompts that are strings"),
        ({"prompts": "raw"}, "prompts is 'raw'; it must be 'auto', 'chat' or 'text'"),
        ({"on_error": "raise"}, "on_error is 'raise'; it must be 'stop' or 'skip'"),
    ],
)
def test_an_option_that_does_not_fit_is_an_error(tmp_path: Path, options: dict, words: str):
    path = write(tmp_path / "a.jsonl", {"messages": said("a", "b")})
    with pytest.raises(RecipeError, match=words):
        read_exchanges(path, **options)


@pytest.mark.parametrize("template", ["{nothing}: {question}", "{question", "{0}", "{question.x}"])
def test_a_template_that_does_not_fit_names_the_fields(tmp_path: Path, template: str):
    path = write(tmp_path / "a.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(RecipeError, match=r"the prompt template .* does not fit the rows .*they have question, answer"):
        read_exchanges(path, template=template, on_error="skip")


def test_a_prompt_is_turns_or_text():
    with pytest.raises(ValueError, match="either turns or text"):
        Prompt()
    with pytest.raises(ValueError, match="either turns or text"):
        Prompt(turns=(Turn("user", "a"),), text="a")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path):
    rows = [{"prompt": f"p{i},", "completion": f'c"{i}\nü'} for i in range(3)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines.replace("\n", "\r\n"))
    (tmp_path / "a.ndjson").write_text(lines.replace("\n", "\n\n"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name, comma in (("a.csv", ","), ("a.tsv", "\t")):
        cells = [["prompt", "completion"], *([row["prompt"], row["completion"]] for row in rows)]
        quoted = ("\n".join(comma.join('"' + c.replace('"', '""') + '"' for c in row) for row in cells)) + "\n"
        (tmp_path / name).write_text(quoted)
    files = sorted(tmp_path.iterdir())
    reads = [read_exchanges(file) for file in files]
    assert len(files) == 6 and {read.fingerprint() for read in reads} == {reads[0].fingerprint()}
    assert all(
        [(e.prompt.text, e.completion) for e in read.items] == [tuple(r.values()) for r in rows] for read in reads
    )
    places = [read.items[-1].where.rpartition("/")[2] for read in reads]
    assert places == ["a.csv:6", "a.json: item 2", "a.jsonl:3", "a.jsonl.gz:3", "a.ndjson:5", "a.tsv:6"]


def test_a_parquet_file_needs_pyarrow_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"a\.parquet: Parquet is read by pyarrow: pip install pyarrow"):
        read_exchanges(tmp_path / "a.parquet")


def test_a_parquet_file_gives_its_rows(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": said("2+2?", "4")}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert only(read_exchanges(tmp_path / "a.parquet")).completion == "4"
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet: cannot read the Parquet file"):
        read_exchanges(tmp_path / "a.parquet")


def test_a_folder_is_read_in_order_of_its_names(tmp_path: Path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", {"prompt": name, "completion": "x"})
    (tmp_path / "README.md").write_text("not rows")
    read = read_exchanges(tmp_path)
    assert [item.prompt.text for item in read.items] == ["a", "b"] and read.parts == ("", "")


def test_reading_text_imports_no_torch():
    code = (
        "import sys; import odonata.data.dialogues, odonata.data.check_dialogues; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- documents -------------------------------------------------------------------------------------------------------

DOCUMENTED = re.findall(
    r"^\| ([\w-]+) \| `(\{.*?\})`.* \| ([\w, ]+) \|$",
    (Path(__file__).parents[2] / "docs/dialogues.md").read_text(),
    flags=re.MULTILINE,
)


def test_every_format_is_documented():
    assert {name for name, *_ in DOCUMENTED} == {format.name for format in FORMATS}


@pytest.mark.parametrize("name, row, kinds", DOCUMENTED)
def test_the_rows_of_the_documents_are_read_as_they_say(tmp_path: Path, name: str, row: str, kinds: str):
    path = tmp_path / "a.jsonl"
    path.write_text(row)
    readers = {
        "exchanges": read_exchanges,
        "preferences": read_preferences,
        "judgements": read_judgements,
        "steps": read_steps,
        "questions": read_questions,
    }
    for kind, reader in readers.items():
        if kind not in kinds.split(", "):
            with pytest.raises(DataError, match=f"not {kind}"):
                reader(path)
        elif (name, kind) != ("problem", "exchanges"):  # its row has no solution
            assert reader(path).kind == name
