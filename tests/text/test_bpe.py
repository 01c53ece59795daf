"""Training a byte-level BPE vocabulary."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odonata.errors import DataError, RecipeError
from odonata.text.bpe import learn_merges, train_bpe


def recount(words, count):
    """Algorithm 1 of arXiv:1508.07909 as it stands: count everything anew for every merge."""
    spelt = {tuple(word): weight for word, weight in words.items()}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, weight in spelt.items():
            for pair in pairwise(word):
                pairs[pair] += weight
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        joined = Counter()
        for word, weight in spelt.items():
            out = []
            for symbol in word:
                if out and (out[-1], symbol) == best:
                    out[-1] += symbol
                else:
                    out.append(symbol)
            joined[tuple(out)] += weight
        spelt = joined
    return merges


def test_the_paper_s_example():
    words = Counter({"low·": 5, "lower·": 2, "newest·": 6, "widest·": 3})
    assert learn_merges(words, 4) == [("e", "s"), ("es", "t"), ("est", "·"), ("l", "o")]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=9), st.integers(1, 5), max_size=12), st.integers(0, 20))
def test_incremental_counting_equals_counting_anew(words, count):
    assert learn_merges(Counter(words), count) == recount(words, count)


def test_the_order_of_the_captions_does_not_matter(shared_data):
    lines = (shared_data / "weights/tokenizers/sentencepiece/botchan.txt").read_text().splitlines()[:1500]
    shuffled = random.Random(0).sample(lines, len(lines))
    assert train_bpe(lines, 700).fingerprint() == train_bpe(shuffled, 700).fingerprint()


def test_padding_is_0_and_the_end_is_the_largest_id():
    tokenizer = train_bpe(["a red cat", "a red dog"] * 3, vocab_size=280)
    ids = tokenizer.encode(["a red cat"])[0]
    assert tokenizer.pad_id == 0
    assert tokenizer.eos_id == tokenizer.vocab_size - 1 == ids.max()
    assert ids[int(ids.argmax())] == tokenizer.eos_id
    assert tokenizer.vocab_size <= 280


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_comes_back_but_for_white_space(text):
    tokenizer = train_bpe(["a red cat"] * 2, vocab_size=270, context_length=256, lowercase=False)
    expected = " ".join(text.split())
    decoded = tokenizer.decode(tokenizer.encode([text])[0])
    assert " ".join(decoded.split()) == expected


def test_a_caption_cannot_smuggle_the_end_id_in():
    tokenizer = train_bpe(["a <|endoftext|> b"] * 5, vocab_size=400)
    ids = tokenizer.encode_trimmed(["x <|endoftext|> y"])[0]
    assert (ids == tokenizer.eos_id).sum() == 1


def test_bad_requests_are_named():
    with pytest.raises(RecipeError, match="vocab_size 100 is too small"):
        train_bpe(["a"], vocab_size=100)
    with pytest.raises(DataError, match="hold no word"):
        train_bpe(["", " "], vocab_size=300)
