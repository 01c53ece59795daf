"""Texts of files in windows, texts of embedded sets by key, and files that are none."""

import gzip
import json
import lzma

import pytest

from odonata.data.text_sets import is_text_set, open_text_set
from odonata.data.texts import SetTexts, TextData, Windows, read_texts
from odonata.errors import DataError, RecipeError


def test_files_of_every_kind_are_read_in_order_of_name(tmp_path):
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("zwei «é»".encode()))
    (tmp_path / "c.TXT.xz").write_bytes(lzma.compress(b"drei"))
    rows = [{"text": "four\u2028of one line", "id": 1}, {"text": "five"}]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.md").write_text("\ufeff# six")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / "f.txt").write_text(" \n")
    found = read_texts(tmp_path)
    assert found.documents == ["first\n", "zwei «é»", "drei", "four\u2028of one line", "five", "# six"]
    assert read_texts(tmp_path / "b.txt.gz").documents == ["zwei «é»"]
    assert found.fingerprint() != read_texts(tmp_path / "a.txt").fingerprint()
    assert found.fingerprint() == read_texts(tmp_path).fingerprint()


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl:2: not JSON"),
    ("a.jsonl", b'{"text": "x"}\n\n{"texts": "y"}\n', r'a.jsonl:3: want a row {"text": "…"}'),
    ("a.jsonl", b'[1, 2]', "a.jsonl:1: want a row"),
    ("a.jsonl", b'{"text": "\\ud800"}', "a.jsonl:1: the text holds half a surrogate pair"),
    ("a.txt", b"caf\xe9 cr\xe8me", "a.txt: cannot be read as text"),
    ("a.txt.gz", b"plain", "a.txt.gz: cannot be read as text"),
    ("a.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-12], "a.txt.gz: cannot be read as text"),
    ("a.txt.xz", b"plain", "a.txt.xz: cannot be read as text"),
    ("a.txt", b" \n\t", "there is no text in it; known are .txt, .md and .jsonl, also as .gz and .xz"),
    ("a.bin", b"abc", "there is no text in it"),
])  # fmt: skip
def test_files_that_are_no_texts_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(tmp_path / name)


def test_a_place_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"nowhere.txt: no such file, folder or embedded set of texts"):
        read_texts("nowhere.txt")


@pytest.mark.parametrize("count", [11, 20, 21, 25, 101])
def test_windows_of_the_first_epoch_cover_the_texts_and_each_token_but_one_is_scored_once(count):
    windows = Windows(range(count), 10)
    scored = [token for i in range(len(windows)) for token in windows[0, i][1]]
    assert scored == list(range(1, len(windows) * 10 + 1)) and count - len(scored) <= 10
    assert all(windows[0, i][0] == [windows[0, i][1][0] - 1] for i in range(len(windows)))


@pytest.mark.parametrize("count", [11, 101, 105])
def test_windows_of_later_epochs_begin_elsewhere_and_never_leave_the_texts(count):
    windows = Windows(range(count), 10, seed=3)
    starts = {windows[epoch, 0][0][0] for epoch in range(60)}
    assert len(starts) == (1 if count == 11 else 10)
    for epoch in range(20):
        for i in range(len(windows)):
            given, scored = windows[epoch, i]
            assert scored == list(range(given[0] + 1, given[0] + 11)) and scored[-1] < count
    assert [windows[5, i] for i in range(2 if count > 11 else 1)] == [
        Windows(range(count), 10, seed=3)[5, i] for i in range(2 if count > 11 else 1)
    ]


def test_texts_shorter_than_a_window_say_so():
    with pytest.raises(DataError, match=r"10 tokens of text are fewer than a window of --data.context 10"):
        Windows(range(10), 10)


def test_a_sets_texts_never_come_twice_and_end_with_their_end():
    read = open_text_set("digits-sum:digits=3,worked=1")
    texts = SetTexts(read, "train", lambda text: [ord(character) for character in text], 7, length=5)
    prompt, completion = read.text("train", 13)
    assert texts[2, 3] == ([ord(c) for c in prompt], [*map(ord, completion), 7]) and len(texts) == 5


def test_sets_are_named_with_their_options():
    assert is_text_set("digits-sum") and is_text_set("countdown:target=9") and not is_text_set("digits.txt")
    for path in ("digits-sum:digits=4,worked=0.5,slips=0,seed=2", "countdown:largest=5,target=20,attempts=3,seed=4"):
        read = open_text_set(path)
        assert open_text_set(read.name) == read, "a set's name says all that it is"


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("path", "message"), [
    ("digit-sums", "no embedded set of texts 'digit-sums'; there are digits-sum"),
    ("digits-sum:digit=3", "digits-sum has no option 'digit'; it has digits, worked, slips, seed"),
    ("digits-sum:digits=many", "digits is 'many', which is no int"),
    ("digits-sum:digits=1", "digits-sum: want digits >= 2"),
])  # fmt: skip
def test_sets_and_options_that_are_not_there_are_named(path, message):
    with pytest.raises(DataError, match=message):
        open_text_set(path)


def test_options_of_files_are_refused_for_sets():
    TextData("book.txt", context=64, heldout=0.5).check()
    with pytest.raises(RecipeError, match=r"--data.context is for files: the texts of countdown have their own ends"):
        TextData("countdown", context=64).check()
