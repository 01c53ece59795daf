"""Holding out: by prompts, by the names of files, and by fingerprint."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odonata.data.dialogues import Exchange, Prompt, Question, Read, read_exchanges, split_heldout
from odonata.errors import DataError, RecipeError


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(read: Read):
    (item,) = read.items
    return item


def reading(prompts: list[int], parts: tuple[str, ...] = ()) -> Read[Exchange]:
    items = tuple(Exchange(Prompt(text=f"p{p}"), f"c{i}", f"a:{i}") for i, p in enumerate(prompts))
    return Read(items, (), "completion", "a", parts)


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=60).filter(lambda prompts: len(set(prompts)) > 1),
    st.floats(0.01, 0.5),
    st.integers(0, 3),
)
def test_what_is_held_out_shares_no_prompt_and_loses_no_row(prompts: list[int], share: float, seed: int):
    read = reading(prompts)
    try:
        train, heldout = split_heldout(read, share=share, seed=seed)
    except DataError:
        assert max(prompts.count(p) for p in prompts) > len(prompts) / 2, "only where one prompt has most of the rows"
        return
    sides = [{item.prompt.text for item in side.items} for side in (train, heldout)]
    assert not sides[0] & sides[1]
    assert sorted(train.items + heldout.items, key=lambda e: int(e.where[2:])) == list(read.items)
    assert len(heldout) >= max(1, round(share * len(read))) and len(train) >= 1


def test_the_held_out_rows_depend_on_the_seed_and_stay_when_rows_are_added():
    first = split_heldout(reading(list(range(100))), count=20)[1]
    assert len(first) == 20 and first.items != split_heldout(reading(list(range(100))), count=20, seed=1)[1].items
    more = {item.prompt for item in split_heldout(reading(list(range(110))), count=22)[1].items}
    assert len(more & {item.prompt for item in first.items}) >= 16


def test_files_that_name_their_parts_are_held_out_by_name(tmp_path: Path):
    names = ("test.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl")
    for name in names:
        write(tmp_path / name, {"prompt": name, "completion": "x"})
    train, heldout = split_heldout(read_exchanges(tmp_path))
    assert [item.prompt.text for item in heldout.items] == ["test.jsonl"] and len(train) == 2
    write(tmp_path / "dev.jsonl", {"prompt": "d", "completion": "x"})
    train, heldout = split_heldout(read_exchanges(tmp_path))
    assert only(heldout).prompt.text == "d" and len(train) == 2, "validation goes before test, which stays unseen"
    with pytest.raises(RecipeError, match=r"its files say what is held out \(test, train, validation\)"):
        split_heldout(read_exchanges(tmp_path), share=0.1)
    write(tmp_path / "more.jsonl", {"prompt": "m", "completion": "x"})
    with pytest.raises(DataError, match=r"more\.jsonl:1: the file's name begins with neither train nor validation"):
        split_heldout(read_exchanges(tmp_path))


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({}, RecipeError, "a: name a share or a count to hold out; no files are called train and test"),
        ({"share": 0.1, "count": 1}, RecipeError, "a share or a count to hold out, not both"),
        ({"share": 1.0}, RecipeError, "the share to hold out is 1.0; it must be between 0 and 1"),
        ({"count": 0}, RecipeError, "the count to hold out is 0; it must be at least 1"),
        ({"count": 4}, DataError, r"a: holding out 4 of 4 rows \(3 prompts\) leaves none"),
    ],
)
def test_a_split_that_cannot_be_made_says_why(options: dict, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        split_heldout(reading([1, 1, 2, 3]), **options)


def test_the_fingerprint_is_of_content_and_order():
    read = reading([1, 2, 3])
    moved = Read(tuple(Exchange(e.prompt, e.completion, "elsewhere") for e in read.items), ("x",), read.kind, "b")
    assert moved.fingerprint() == read.fingerprint() and len(read.fingerprint()) == 16
    assert read.choose([0, 2, 1]).fingerprint() != read.fingerprint() != read.choose([0, 1]).fingerprint()
    question = Question(Prompt(text="a"), {"numbers": [1], "when": object}, "")
    assert len(Read((question,), (), "prompt", "a").fingerprint()) == 16
