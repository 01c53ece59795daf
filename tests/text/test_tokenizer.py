"""What holds for a tokenizer of any family."""

import pytest
import torch

from odonata.errors import DataError
from odonata.text.bpe import train_bpe
from odonata.text.families import clip_tokenizer, sentencepiece_tokenizer, wordpiece_tokenizer
from odonata.text.tokenizer import Tokenizer

TEXTS = ["a cat on a mat", "", "two dogs & 3 birds é", "word " * 300]


@pytest.fixture(params=["clip", "bert", "siglip", "trained"])
def tokenizer(request, shared_data):
    folder = shared_data / "weights" / "tokenizers"
    match request.param:
        case "clip":
            return clip_tokenizer(folder / "clip" / "bpe_simple_vocab_16e6.txt.gz")
        case "bert":
            return wordpiece_tokenizer(folder / "bert" / "google_uncased_en_vocab.txt")
        case "siglip":
            return sentencepiece_tokenizer(folder / "sentencepiece" / "test_model.model")
        case _:
            return train_bpe(TEXTS, vocab_size=300)


def test_every_row_fits_the_context_ends_with_the_end_id_and_fits_the_vocabulary(tokenizer):
    ids = tokenizer.encode(TEXTS)
    assert ids.shape == (4, tokenizer.context_length)
    assert ids.dtype == torch.int64
    assert (ids == tokenizer.eos_id).any(1).all()
    assert ids[3, -1] == tokenizer.eos_id
    assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


def test_trimmed_ids_are_a_prefix_of_the_padded_ones(tokenizer):
    trimmed, padded = tokenizer.encode_trimmed(TEXTS[:3]), tokenizer.encode(TEXTS[:3])
    assert trimmed.shape[1] < padded.shape[1]
    assert torch.equal(trimmed, padded[:, : trimmed.shape[1]])
    assert (padded[:, trimmed.shape[1] :] == tokenizer.pad_id).all()


def test_an_empty_caption_is_start_and_end(tokenizer):
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert tokenizer.encode_trimmed([" "])[0].tolist() == [*start, tokenizer.eos_id]
    assert tokenizer.decode(tokenizer.encode([""])[0]) == ""
    assert tokenizer.encode([]).shape == (0, tokenizer.context_length)


def test_saving_and_loading_changes_nothing(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "deep" / "folder")
    loaded = Tokenizer.load(tmp_path / "deep" / "folder")
    assert torch.equal(loaded.encode(TEXTS), tokenizer.encode(TEXTS))
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert (loaded.rules, loaded.vocab_size) == (tokenizer.rules, tokenizer.vocab_size)
    assert loaded.decode(loaded.encode(["a cat"])[0]) == "a cat"


def test_the_fingerprint_tells_context_and_vocabulary_apart():
    prints = {
        train_bpe(["abcdefghijklmnopqrstuvwxyz" * 2], vocab_size=size, context_length=length).fingerprint()
        for size, length in ((270, 32), (265, 32), (270, 16))
    }
    assert len(prints) == 3


def test_what_is_not_text_is_named():
    tokenizer = train_bpe(TEXTS, vocab_size=300)
    with pytest.raises(DataError, match="caption 1 is None, a NoneType, not a string"):
        tokenizer.encode(["a", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"write encode\(\[text\]\)"):
        tokenizer.encode("a cat")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"odonata_tokenizer.json: cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_context_without_room_for_a_word_is_refused():
    with pytest.raises(DataError, match="context length of 2 leaves no room"):
        train_bpe(TEXTS, vocab_size=300, context_length=2)
