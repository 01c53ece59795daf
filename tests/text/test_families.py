"""Ids against transformers and sentencepiece, on the published vocabularies."""

import gzip
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from odonata.errors import DataError
from odonata.text.cleaning import clean
from odonata.text.families import (
    byte_alphabet,
    clip_tokenizer,
    sentencepiece_tokenizer,
    tokenizer_json,
    wordpiece_tokenizer,
)

CAPTIONS = [
    "a photo of a cat",
    "Two dogs, running -- in 1998's park!!",
    "it's they're we'll i'd don't",
    "naïve café façade, 東京 の 猫 🐈‍⬛",
    "x" * 300,
    "  many   spaces\tand\nlines ",
    "<|startoftext|>a<|endoftext|>b",
    "½ Ⅷ ①2 ٣",
    "",
]
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def folder(shared_data):
    return shared_data / "weights" / "tokenizers"


@pytest.fixture(scope="session")
def clip_pair(folder):
    transformers = pytest.importorskip("transformers")
    path = folder / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in merges]
    tokens = [*byte_alphabet(), *(symbol + "</w>" for symbol in byte_alphabet()), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    theirs = transformers.CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    return clip_tokenizer(path), theirs


def until_end(row, end):
    row = row.tolist()
    return row[: row.index(end) + 1]


def test_clip_ids_known_from_the_original(clip_pair):
    ours, _ = clip_pair
    ids = ours.encode(["a photo of a cat", "hello world!"])
    assert ids.shape == (2, 77)
    assert ids[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert ids[1, :5].tolist() == [49406, 3306, 1002, 256, 49407]
    assert ids[:, 7:].eq(0).all()
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.pad_id) == (49408, 49406, 49407, 0)


@pytest.mark.parametrize("text", CAPTIONS)
def test_clip_ids_are_those_of_transformers(clip_pair, text):
    ours, theirs = clip_pair
    assert (
        ours.encode_trimmed([text])[0].tolist()
        == theirs(clean(text, "clip"), truncation=True, max_length=77)["input_ids"]
    )


@quick
@given(text=st.text(max_size=60))
def test_clip_ids_of_any_text_are_those_of_transformers(clip_pair, text):
    ours, theirs = clip_pair
    cleaned = clean(text, "clip")
    assert ours.encode_trimmed([text])[0].tolist() == theirs(cleaned, truncation=True, max_length=77)["input_ids"]


@pytest.mark.slow
def test_clip_ids_of_a_whole_book_are_those_of_transformers(clip_pair, folder):
    ours, theirs = clip_pair
    lines = (folder / "sentencepiece" / "botchan.txt").read_text().splitlines()
    expected = theirs([clean(line, "clip") for line in lines], truncation=True, max_length=77)["input_ids"]
    assert [until_end(row, 49407) for row in ours.encode(lines)] == expected


def test_clip_decodes_what_it_encodes(clip_pair):
    ours, _ = clip_pair
    text = "naïve café , 東京 の 猫"
    assert ours.decode(ours.encode([text])[0]) == text


def test_ten_thousand_words_are_cut_to_the_context_with_the_end_id_last(clip_pair):
    ours, _ = clip_pair
    row = ours.encode(["cat " * 10_000])[0]
    assert row.tolist() == [49406, *[2368] * 75, 49407]


def test_damaged_clip_merges_are_refused(tmp_path):
    (tmp_path / "merges.txt").write_text("#version\na b\n")
    with pytest.raises(DataError, match=r"merges.txt: CLIP's vocabulary has 48894 merges, this file gives 1"):
        clip_tokenizer(tmp_path / "merges.txt")
    with pytest.raises(DataError, match=r"absent.gz: cannot be read"):
        clip_tokenizer(tmp_path / "absent.gz")


@pytest.fixture(scope="session")
def bert_pair(folder):
    transformers = pytest.importorskip("transformers")
    path = folder / "bert" / "google_uncased_en_vocab.txt"
    vocab = {token: i for i, token in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1])}
    return wordpiece_tokenizer(path, context_length=64), transformers.BertTokenizer(vocab=vocab)


@pytest.mark.parametrize("text", CAPTIONS)
def test_bert_ids_are_those_of_transformers(bert_pair, text):
    ours, theirs = bert_pair
    expected = theirs(text, truncation=True, max_length=64, padding="max_length")["input_ids"]
    assert ours.encode([text])[0].tolist() == expected


@quick
@given(text=st.text(max_size=60))
def test_bert_ids_of_any_text_are_those_of_transformers(bert_pair, text):
    ours, theirs = bert_pair
    expected = theirs(text, truncation=True, max_length=64)["input_ids"]
    if not text.strip():
        expected = [ours.bos_id, ours.eos_id]
    assert ours.encode_trimmed([text])[0].tolist() == expected


def test_a_file_that_is_no_bert_vocabulary_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n[CLS]\n")
    with pytest.raises(DataError, match=r"vocab.txt: not a BERT vocabulary: it lacks \[PAD\], \[UNK\], \[SEP\]"):
        wordpiece_tokenizer(tmp_path / "vocab.txt")


@pytest.fixture(scope="session")
def unigram(folder):
    return folder / "sentencepiece" / "test_model.model"


def sentencepiece_ids(path, texts):
    package = pytest.importorskip("sentencepiece")
    return package.SentencePieceProcessor(model_file=str(path)).encode(texts)


def test_unigram_ids_of_a_whole_book_are_those_of_sentencepiece(folder, unigram):
    lines = (folder / "sentencepiece" / "botchan.txt").read_text(encoding="utf-8").splitlines()
    ours = sentencepiece_tokenizer(unigram, family="none", context_length=4096)
    rows = [row[:-1] for row in (until_end(row, ours.eos_id) for row in ours.encode_trimmed(lines))]
    assert rows == sentencepiece_ids(unigram, lines)


@pytest.mark.parametrize("text", [*CAPTIONS[:-1], "ﬁne Ｆｕｌｌ①", "</s> <s> <unk>", "\u3000x\u00a0y"])
def test_unigram_ids_of_odd_text_are_those_of_sentencepiece(unigram, text):
    ours = sentencepiece_tokenizer(unigram, family="none", context_length=4096)
    assert until_end(ours.encode([text])[0], ours.eos_id)[:-1] == sentencepiece_ids(unigram, text)


def test_siglip_strips_punctuation_and_pads_with_the_end_id_to_64(unigram):
    ours = sentencepiece_tokenizer(unigram)
    row = ours.encode(["A Photo, of: the cat!"])[0].tolist()
    words = sentencepiece_ids(unigram, "a photo of the cat")
    assert row == [*words, *[ours.eos_id] * (64 - len(words))]
    assert ours.encode(["cat " * 200])[0, -1] == ours.eos_id


@pytest.mark.parametrize("fallback", [False, True])
def test_bpe_ids_are_those_of_sentencepiece(folder, tmp_path, fallback):
    package = pytest.importorskip("sentencepiece")
    book = folder / "sentencepiece" / "botchan.txt"
    package.SentencePieceTrainer.train(
        input=str(book), model_prefix=str(tmp_path / "m"), vocab_size=800, model_type="bpe", byte_fallback=fallback,
        normalization_rule_name="identity", add_dummy_prefix=False, remove_extra_whitespaces=False, pad_id=3,
        minloglevel=2, user_defined_symbols=["<image>"],
    )  # fmt: skip
    ours = sentencepiece_tokenizer(tmp_path / "m.model", family="siglip2", context_length=4096)
    lines = [*book.read_text(encoding="utf-8").lower().splitlines()[:400], "an <image> here", "naïve 東京", "a  b"]
    rows = [until_end(row, ours.eos_id)[:-1] for row in ours.encode_trimmed(lines)]
    assert rows == [
        ids if line.strip() else []
        for line, ids in zip(lines, sentencepiece_ids(tmp_path / "m.model", lines), strict=True)
    ]
    assert ours.pad_id == 3


def test_a_file_that_is_no_sentencepiece_model_is_named(tmp_path, unigram):
    (tmp_path / "x.model").write_bytes(b"\x0a\xff not this")
    with pytest.raises(DataError, match=r"x.model: not a SentencePiece model"):
        sentencepiece_tokenizer(tmp_path / "x.model")
    (tmp_path / "cut.model").write_bytes(unigram.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cut.model: not a SentencePiece model"):
        sentencepiece_tokenizer(tmp_path / "cut.model")


def test_a_tokenizer_json_of_another_library_gives_its_ids(bert_pair, tmp_path):
    ours, theirs = bert_pair
    theirs.save_pretrained(tmp_path)
    tokens = {"bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    read = tokenizer_json(tmp_path / "tokenizer.json", context_length=64, **tokens)
    assert torch.equal(read.encode(CAPTIONS), ours.encode(CAPTIONS))
    with pytest.raises(DataError, match=r"tokenizer.json: the vocabulary has no token '<end>'"):
        tokenizer_json(tmp_path / "tokenizer.json", context_length=64, eos_token="<end>")
    (tmp_path / "bad.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(DataError, match=r"bad.json: not a tokenizer.json"):
        tokenizer_json(tmp_path / "bad.json", context_length=64, eos_token="[SEP]")
