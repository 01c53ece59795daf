"""Learns a byte-level BPE vocabulary from captions.

The algorithm of Sennrich et al. (arXiv:1508.07909, algorithm 1) over the bytes of words: join the most frequent pair of
neighbouring symbols, again and again. Two things make it quick: words are counted once, and a merge touches only the
words that hold its pair. Ties go to the pair that comes first in the alphabet, so the result depends on nothing but
the multiset of captions.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from odonata.errors import DataError, RecipeError
from odonata.text.cleaning import Cleaning, clean
from odonata.text.families import byte_alphabet
from odonata.text.tokenizer import Tokenizer, TokenizerRules

_PAD, _BOS, _EOS = "<|padding|>", "<|startoftext|>", "<|endoftext|>"

Pair = tuple[str, str]


def train_bpe(
    captions: Iterable[str], vocab_size: int = 4096, context_length: int = 32, lowercase: bool = True
) -> Tokenizer:
    """Learn a tokenizer from captions.

    Args:
        captions: the texts; only how often each word occurs matters, not their order.
        vocab_size: ids at most, 259 or more: 256 bytes, padding (0), start, and end, which is the largest id, as
            CLIP's pooling by argmax wants it. Fewer where the captions run out of pairs that occur twice.
        context_length: ids per caption.
        lowercase: lower-case the captions.

    Raises:
        RecipeError: ``vocab_size`` cannot hold the bytes.
        DataError: there is no word in the captions.

    >>> tokenizer = train_bpe(["a red cat", "a red dog", "a cat"], vocab_size=300)
    >>> tokenizer.decode(tokenizer.encode(["A red dog"])[0])
    'a red dog'
    """
    alphabet = byte_alphabet()
    room = vocab_size - len(alphabet) - 3
    if room < 0:
        raise RecipeError(f"vocab_size {vocab_size} is too small: 256 bytes and three special tokens need 259")
    cleaning: Cleaning = "lower" if lowercase else "whitespace"
    split = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words: Counter[str] = Counter()
    for caption in captions:
        words.update(word for word, _ in split.pre_tokenize_str(clean(caption, cleaning)))
    if not words:
        raise DataError("train_bpe: the captions hold no word")
    merges = learn_merges(words, room)
    tokens = [_PAD, *alphabet, *dict.fromkeys(left + right for left, right in merges), _BOS, _EOS]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = split
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, TokenizerRules(cleaning, context_length, vocab[_EOS], vocab[_PAD], vocab[_BOS]))


def learn_merges(words: Counter[str], count: int) -> list[Pair]:
    """Return the merges in the order in which they are learnt.

    Args:
        words: how often each word occurs; a word is a string of symbols of one character.
        count: merges at most; learning stops where no pair occurs twice.
    """
    spelt = [list(word) for word in words]
    weights = list(words.values())
    pairs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, symbols in enumerate(spelt):
        for pair in itertools.pairwise(symbols):
            pairs[pair] += weights[index]
            where[pair].add(index)
    queue = [(-total, pair) for pair, total in pairs.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    while queue and len(merges) < count:
        total, best = heapq.heappop(queue)
        if -total != pairs[best]:
            continue  # counted again since; the present count has its own entry
        if -total < 2:
            break
        merges.append(best)
        changed: set[Pair] = set()
        for index in where.pop(best):
            changed |= _merge_in_word(spelt, index, best, weights[index], pairs, where)
        pairs.pop(best, None)
        for pair in changed - {best}:
            heapq.heappush(queue, (-pairs[pair], pair))
    return merges


def _merge_in_word(
    spelt: list[list[str]],
    index: int,
    best: Pair,
    weight: int,
    pairs: Counter[Pair],
    where: defaultdict[Pair, set[int]],
) -> set[Pair]:
    """Join the pair throughout one word and return the pairs whose counts changed."""
    before = spelt[index]
    after: list[str] = []
    at = 0
    while at < len(before):
        if at + 1 < len(before) and (before[at], before[at + 1]) == best:
            after.append(best[0] + best[1])
            at += 2
        else:
            after.append(before[at])
            at += 1
    spelt[index] = after
    changes: Counter[Pair] = Counter(itertools.pairwise(after))
    changes.subtract(itertools.pairwise(before))
    for pair, change in changes.items():
        if change:
            pairs[pair] += change * weight
            where[pair].add(index)
    return {pair for pair, change in changes.items() if change}
