"""Tokenizers of models that write: GPT-2's published one, those of directories, and the small ones made here."""

import json
import shutil

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.data.digit_sums import ALPHABET
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.text.text_bpe import train_text_bpe
from odonata.text.text_tokenizer import TextTokenizer, characters

TEXTS = (
    "Hello, world!  Two  spaces, a\ttab,\r\n\r\n and  lines.\n",
    "It's the users' 1234567 items: 3.14e-10, don't we'll I'd",
    "naïve café, Straße, 東京タワー, Привет, مرحبا, 👩‍👩‍👧‍👦🏳️‍🌈, e\u0301\u0327, \u2028, \x00\x07",
    "def f(x):\n    return x**2  # ok\n\n\n\t\tif x: pass",
    "<|endoftext|>between<|endoftext|>",
    "", " ", "\n\n\n", "ﬁ ½ Ⅷ ²",
)  # fmt: skip
CORPUS = [
    "The cat sat on the mat. The cats sat on mats. The cat, the cat, the cat.",
    "12 cats and 345 dogs sat; naïve café!",
    "a\nb\n\n  c",
]
BPE = train_text_bpe(CORPUS, 330)


@pytest.fixture(scope="module")
def gpt2_folder(shared_data, tmp_path_factory):
    """GPT-2's own two files under the names that transformers gives them."""
    folder = tmp_path_factory.mktemp("gpt2")
    source = shared_data / "weights" / "tokenizers" / "gpt2"
    shutil.copy(source / "encoder.json", folder / "vocab.json")
    shutil.copy(source / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.mark.shows("decoder", "parity")
@pytest.mark.parametrize("form", ["vocab and merges", "tokenizer.json"])
def test_gpt2s_published_files_are_read_as_transformers_reads_them(gpt2_folder, tmp_path, form):
    reference = transformers.GPT2Tokenizer.from_pretrained(gpt2_folder)
    folder = gpt2_folder
    if form == "tokenizer.json":
        reference.save_pretrained(tmp_path)
        folder = tmp_path
    found = TextTokenizer.load(folder, [50256])
    assert found.eos_ids == (50256,) and found.pad_id == 50256 and found.vocab_size == 50257
    assert found.tokens["eos_token"] == "<|endoftext|>"
    for text in (*TEXTS, *CORPUS):
        ids = found.encode(text)
        assert ids == reference(text)["input_ids"], text
        assert found.decode(ids, skip_special=False) == text
        assert found.decode(ids) == reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_every_text_can_be_written_by_a_small_bpe(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids, skip_special=False) == text
    assert all(0 <= i < BPE.vocab_size for i in ids)


def test_a_small_bpe_learns_words_keeps_digits_apart_and_knows_chatml():
    assert len(BPE.encode(" cat")) == 1 and len(BPE.encode("The")) == 1
    assert len(BPE.encode("345")) == 3
    assert BPE.encode("<|im_start|>") == [1] and BPE.encode("<|im_end|>") == [2]
    assert BPE.end() == BPE.pad_id == 0 and BPE.bos_id is None
    talk = BPE.chat([{"role": "user", "content": "cat?"}])
    assert talk == "<|im_start|>user\ncat?<|im_end|>\n<|im_start|>assistant\n"
    assert BPE.decode(BPE.encode(talk)) == "user\ncat?\nassistant\n", "special tokens are left out of what is said"


def test_a_small_bpe_is_read_by_transformers(tmp_path):
    BPE.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *CORPUS):
        assert reference(text)["input_ids"] == BPE.encode(text)
    talk = [{"role": "user", "content": "cat?"}, {"role": "assistant", "content": "mat."}]
    for asks in (False, True):
        assert reference.apply_chat_template(talk, tokenize=False, add_generation_prompt=asks) == BPE.chat(
            talk, add_generation_prompt=asks
        )


@pytest.mark.parametrize(("size", "words", "error", "message"), [
    (258, CORPUS, RecipeError, "--vocab-size 258 is too small: 256 bytes and three special tokens need 259"),
    (300, [""], DataError, "the texts hold no word to learn a vocabulary from"),
])  # fmt: skip
def test_a_vocabulary_that_cannot_be_learned_says_why(size, words, error, message):
    with pytest.raises(error, match=message):
        train_text_bpe(words, size)


def test_merges_stop_where_nothing_is_left_to_merge():
    assert train_text_bpe(["ab ab"], 1000).vocab_size == 260, "pairs that come once are not learned"


def test_characters_are_tokens_and_those_that_are_lacking_are_named(tmp_path):
    found = characters(ALPHABET)
    assert found.encode("31=#4") == [5, 3, 12, 13, 6] and found.decode([5, 3, 12, 1]) == "31="
    assert (found.pad_id, found.end(), found.vocab_size) == (0, 1, 14)
    with pytest.raises(DataError, match=r"has no token for 'ab '; it knows the characters #\$0123456789=_"):
        found.encode("3ab ba=")
    found.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.encode("31=#4$") == [5, 3, 12, 13, 6, 1]
    with pytest.raises(DataError, match="has no token for 'x'"):
        again.encode("x")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("31=#4")["input_ids"] == [5, 3, 12, 13, 6]


def files(**changes) -> dict[str, bytes]:
    """A small BPE's files, its configuration changed; None takes a file away."""
    config = json.loads(BPE.files["tokenizer_config.json"]) | changes.pop("config", {})
    plain = {**BPE.files, "tokenizer_config.json": json.dumps(config).encode()}
    plain |= {name.replace("__", "."): content for name, content in changes.items()}
    return {name: content for name, content in plain.items() if content is not None}


def test_special_tokens_stand_as_text_or_objects_or_in_a_file_of_their_own():
    assert TextTokenizer(files(config={"eos_token": {"content": "<|im_end|>"}})).end() == 2
    older = files(config={"eos_token": None, "pad_token": None})
    config = {k: v for k, v in json.loads(older["tokenizer_config.json"]).items() if v is not None}
    older["tokenizer_config.json"] = json.dumps(config).encode()
    with pytest.raises(DataError, match="names no end token"):
        TextTokenizer(older).end()
    older["special_tokens_map.json"] = b'{"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}'
    found = TextTokenizer(older)
    assert (found.end(), found.bos_id, found.pad_id) == (2, 1, 2)


def test_all_files_that_name_an_end_are_heard_and_padding_falls_back_on_it():
    found = TextTokenizer(files(config={"eos_token": "<|im_end|>", "pad_token": None}), [0, 2, 1])
    assert found.eos_ids == (2, 0, 1) and found.pad_id == 2


def test_a_template_comes_from_its_own_file_first_or_from_a_list_by_name():
    talk, form = [{"role": "user", "content": "x"}], "{{ messages[0].content }}!"
    both = files(config={"chat_template": "old"}, chat_template__jinja=form.encode())
    assert TextTokenizer(both).chat(talk) == "x!"
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": form}]
    assert TextTokenizer(files(config={"chat_template": several})).chat(talk) == "x!"
    assert TextTokenizer(files(chat_template__json=json.dumps({"chat_template": form}).encode())).chat(talk) == "x!"
    bare = TextTokenizer(files(config={"chat_template": None}))
    assert bare.template is None and bare.chat(talk) == "User: x\nAssistant:"
    assert bare.chat(talk, "chatml").startswith("<|im_start|>user")
    with pytest.raises(DataError, match=r"no chat template 'chatlm'; there are auto \(the model's own\) and chatml, "):
        bare.chat(talk, "chatlm")


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("changes", "message"), [
    ({"tokenizer__json": b"{}"}, "tokenizer.json is not a tokenizer"),
    ({"tokenizer__json": b"\xff\xfe"}, "tokenizer.json is not UTF-8"),
    ({"tokenizer_config__json": b"[1, 2]"}, "tokenizer_config.json is not a JSON object"),
    ({"tokenizer_config__json": b"{"}, "tokenizer_config.json is not a JSON object"),
    ({"config": {"chat_template": [{"name": "default"}]}}, "chat_template is no list of names and templates"),
    ({"config": {"chat_template": 7}}, "chat_template is no text"),
    ({"tokenizer__json": None, "vocab__json": b'{"a": 0}', "merges__txt": b"#version: 0.2\na b\n"},
     "vocab.json and merges.txt do not belong together"),
])  # fmt: skip
def test_files_that_are_wrong_are_named(changes, message):
    with pytest.raises(WeightsError, match=message):
        TextTokenizer(files(**changes), where="some-model")


@pytest.mark.shows("decoder", "manners")
def test_a_directory_without_a_tokenizer_names_the_file(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"lacks tokenizer.json \(or vocab.json and merges.txt\)"):
        TextTokenizer.load(tmp_path)


def test_files_are_written_again_byte_for_byte(tmp_path):
    odd = files(config={"unknown_key": [1]}, special_tokens_map__json=b'{"eos_token":  "<|im_end|>"}\r\n')
    (tmp_path / "a").mkdir()
    for name, content in odd.items():
        (tmp_path / "a" / name).write_bytes(content)
    (tmp_path / "b").mkdir()
    TextTokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == odd
