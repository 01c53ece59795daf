"""Rows of text as tokens: prompts, completions, what is held back, and what does not fit."""

import pytest
import tokenizers
from tokenizers import models
from tokenizers.processors import TemplateProcessing

from odonata.data.dialogues import Prompt, Turn, read_exchanges, read_questions
from odonata.errors import DataError
from odonata.posttrain.options import DialogueData
from odonata.posttrain.rows import Encoder, cut_pair, encoded, pair_length, read_parts
from odonata.text.text_bpe import train_text_bpe
from odonata.text.text_tokenizer import TextTokenizer, characters, from_backend
from posttrain.offline_setting import ALPHABET, write_jsonl

WORDS = characters(ALPHABET.replace("_", ""))
ASKED = Prompt(turns=(Turn("user", "2+2?".replace("+", " ")),))


def text(value: str) -> Prompt:
    return Prompt(text=value)


def test_text_is_encoded_as_it_stands_and_turns_through_the_template():
    encoder = Encoder(WORDS, "chatml")
    assert WORDS.decode(encoder.prompt(text("12="))) == "12="
    assert encoder.text(text("12=")) == "12="
    shown = encoder.text(ASKED)
    assert shown == WORDS.decode(encoder.prompt(ASKED), skip_special=False)
    assert shown.startswith("<|im_start|>user\n2 2?") and shown.endswith("<|im_start|>assistant\n")


def test_a_completion_ends_with_one_end_token():
    for encoder in (Encoder(WORDS), Encoder(WORDS, "plain")):
        for prompt in (text("12="), ASKED):
            ids = encoder.completion(prompt, "three")
            assert ids[-1] == WORDS.end() and ids.count(WORDS.end()) == 1
            assert "three" in WORDS.decode(ids)


def test_what_stands_behind_the_end_token_of_a_template_is_not_learned():
    tokenizer = train_text_bpe(["what is that? that is it."] * 4, 300)
    config = b'{"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}'
    tokenizer.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    files = {"tokenizer.json": tokenizer.backend.to_str().encode(), "tokenizer_config.json": config}
    chat = TextTokenizer(files)
    ids = Encoder(chat, "chatml").completion(ASKED, "four")
    assert chat.decode(ids, skip_special=False) == "four<|im_end|>", "not the line's end that chatml writes after it"


def test_an_end_that_the_tokenizer_adds_of_its_own_is_no_part_of_a_prompt():
    tokenizer = characters("0123456789=", eos=".")
    tokenizer.backend.post_processor = TemplateProcessing(single="$A .", special_tokens=[(".", tokenizer.end())])
    assert tokenizer.encode("12=", special=True)[-1] == tokenizer.end()
    assert Encoder(tokenizer).prompt(text("12=")) == tokenizer.encode("12=")


def test_a_prompt_without_a_token_is_refused():
    letters = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<end>": 2}, merges=[]))
    small = Encoder(from_backend(letters, eos="<end>", pad="<end>"))
    assert small.prompt(text("ab")) == [0, 1]
    with pytest.raises(DataError, match="the prompt has no token"):
        small.prompt(text("12"))


def test_rows_that_are_too_long_are_treated_as_the_options_say(tmp_path):
    rows = [{"prompt": "1" * n, "completion": "2" * m} for n, m in ((2, 2), (2, 9), (9, 2), (3, 4))]
    read = read_exchanges(write_jsonl(tmp_path / "rows.jsonl", rows))
    encoder = Encoder(WORDS)

    def encode(item):
        return tuple(encoder.prompt(item.prompt)), tuple(encoder.completion(item.prompt, item.completion))

    def lengths(**options) -> tuple[list[tuple[int, int]], list[str]]:
        notes: list[str] = []
        data = DialogueData(path="rows.jsonl", max_length=8, **options)
        found = encoded(read.items, encode, pair_length, cut_pair, data, notes)
        return [(len(given), len(learned)) for given, learned in found], notes

    kept, notes = lengths()
    assert kept == [(2, 3), (3, 5)] and "left out 2 rows of more than 8 tokens, first:" in notes[0]
    kept, notes = lengths(too_long="cut")
    assert kept == [(2, 3), (2, 6), (3, 5)] and notes[0].startswith("cut 2 rows"), (
        "a prompt that fills it leaves nothing"
    )
    with pytest.raises(DataError, match=r"rows.jsonl:2: 12 tokens are more than --data.max-length 8; raise it"):
        lengths(too_long="stop")
    with pytest.raises(DataError, match=r"no row has at most 2 tokens"):
        encoded(read.items, encode, pair_length, cut_pair, DialogueData(path="x", max_length=2), [])


def test_rows_that_cannot_be_encoded_stop_or_are_counted(tmp_path):
    small = Encoder(characters("0123456789="))
    read = read_questions(write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1="}, {"prompt": "é"}, {"prompt": "2="}]))

    def keep(on_error: str, notes: list[str]):
        data = DialogueData(path="rows.jsonl", on_error=on_error)
        return encoded(read.items, lambda item: small.prompt(item.prompt), len, lambda row, most: row, data, notes)

    with pytest.raises(DataError, match=r"rows.jsonl:2: .*has no token for 'é'"):
        keep("stop", [])
    notes: list[str] = []
    assert len(keep("skip", notes)) == 2 and "left out 1 rows that cannot be encoded, first:" in notes[0]


def test_prompts_are_held_back_by_what_they_say_and_a_folder_says_it_itself(tmp_path):
    rows = [{"prompt": f"{i}=", "answer": str(i)} for i in range(200) for _ in range(2)]
    data = DialogueData(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)), heldout=0.2)
    parts = read_parts(read_questions, data, 0)
    held, kept = ({item.prompt.text for item in part.items} for part in (parts.heldout, parts.train))
    assert not held & kept and len(held | kept) == 200 and 20 <= len(held) <= 60
    assert f"{len(parts.train)} rows to train on, {len(parts.heldout)} held back" in parts.notes[0]
    assert read_parts(read_questions, DialogueData(path=data.path, heldout=0.0), 0).heldout is None
    limited = read_parts(read_questions, DialogueData(path=data.path, heldout=0.2, limit=30), 0)
    again = read_parts(read_questions, DialogueData(path=data.path, heldout=0.2, limit=30), 7)
    assert len(limited.train) == len(again.train) == 30
    folder = tmp_path / "named"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", rows[:10])
    write_jsonl(folder / "test.jsonl", rows[10:16])
    named = read_parts(read_questions, DialogueData(path=str(folder)), 0)
    assert (len(named.train), len(named.heldout)) == (10, 6)
