"""A small byte-level BPE for models that write, learned from texts.

Notable: every text can be written, since all 256 bytes are tokens; digits stand alone, so that numbers are read by
place; the tokens of ChatML are in it, so that the model can later be taught to talk.

Source: Sennrich et al. 2016, algorithm 1 (`odonata.text.bpe`); Radford et al. 2019 (bytes, and the split into words).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from odonata.errors import DataError, RecipeError
from odonata.text.bpe import learn_merges
from odonata.text.chat import TEMPLATES
from odonata.text.families import byte_alphabet
from odonata.text.text_tokenizer import TextTokenizer, from_backend

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def train_text_bpe(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Learn a tokenizer from texts.

    Args:
        texts: what is counted.
        vocab_size: entries at most: 256 bytes, three special tokens, and merges.

    Raises:
        RecipeError: `vocab_size` cannot hold the bytes.
        DataError: there is no word in the texts.
    """
    alphabet = byte_alphabet()
    room = vocab_size - len(alphabet) - len(_SPECIAL)
    if room < 0:
        raise RecipeError(f"--vocab-size {vocab_size} is too small: 256 bytes and three special tokens need 259")
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(text))
    if not words:
        raise DataError("the texts hold no word to learn a vocabulary from")
    merges = learn_merges(words, room)
    tokens = [*_SPECIAL, *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    parts = cast(Any, backend)
    parts.pre_tokenizer, parts.decoder = split, decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    return from_backend(backend, eos=_SPECIAL[0], pad=_SPECIAL[0], template=TEMPLATES["chatml"])
