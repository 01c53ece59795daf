"""Nouns of a caption, for CatLIP's targets: a small, readable stand-in for a tagger, and the place to put another.

CatLIP (2404.15653, sec. 3.1) tags parts of speech, lemmatises the nouns and maps each to its first WordNet synset.
Tagger and WordNet are large downloads; here a noun is what is left when function words, common adjectives, verbs and
adverbs are taken away and plurals are undone. On plain descriptive captions that keeps the nouns and a few words too
many; rare ones fall out because only words with a minimum count become targets. Whoever has a tagger gives its result
as a vocabulary file, or any function from a caption to a list of nouns.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from odonata.errors import DataError

NounFinder = Callable[[str], Sequence[str]]
"""From a caption to its nouns as lemmas, in order, repetitions allowed."""

_WORD = re.compile(r"[a-z0-9]+(?:-[a-z]+)*")
_FUNCTION = frozenset(
    """a an the this that these those my your his her its our their some any each every both all no not another other
    and or but nor so yet if while as than then when where which who whose what how because of in on at by to
    from with without within into onto over under above below behind beside besides between among near next
    through across along around about against during before after off out up down inside outside toward towards
    upon per via for left right top bottom i you he she it we they me him them us one ones itself himself
    herself themselves there here is are was were be been being am has have had having do does did doing done
    can could will would shall should may might must let lets get gets got getting very too also just only still
    even again ever never always often together away back forth apart aside two three four five six seven eight
    nine ten several many few most more less much lot lots couple pair bunch various""".split()
)
_ADJECTIVES = frozenset(
    """red green blue yellow purple cyan orange white black brown grey gray pink golden dark bright light colorful
    colourful big small large little tiny huge tall short long wide narrow thin thick old young new fresh clean
    dirty wet dry hot cold warm cool empty full open closed nice good great beautiful pretty cute happy sad busy
    quiet different same similar first second last main front high low deep wooden plastic metal round square
    flat hard soft male female asian american many own whole half double single ready available assorted""".split()
)
_VERBS = frozenset(
    """sit sits sat stand stands stood walk walks ride rides rode hold holds held look looks wear wears play plays eat
    eats fly flies run runs ran lie lies lay lays hang hangs hung drive drives drove take takes took show shows
    shown make makes made use uses used go goes went gone come comes came put puts see sees seen say says try
    tries prepare prepares cut cuts carry carries pose poses jump jumps swing swings throw throws catch catches
    hit hits wait waits pull pulls push pushes watch watches talk talks smile smiles work works sleep sleeps
    surround surrounds cover covers fill fills sleeps give gives keep keeps set sets reach reaches lean leans
    rest rests perform performs move moves turn turns""".split()
)
_KEPT_ING = frozenset(
    "building ceiling railing string ring king wing spring evening morning clothing swing painting".split()
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "wives": "wife", "lives": "life", "leaves": "leaf",
    "loaves": "loaf", "shelves": "shelf", "halves": "half", "calves": "calf", "wolves": "wolf", "skis": "ski",
    "buses": "bus", "dishes": "dish", "glasses": "glass", "sheep": "sheep", "series": "series",
}  # fmt: skip


def lemma(word: str) -> str:
    """Return the singular of an English noun by rule.

    >>> [lemma(w) for w in ("dogs", "buses", "berries", "women", "glass", "boxes")]
    ['dog', 'bus', 'berry', 'woman', 'glass', 'box']
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def find_nouns(caption: str) -> list[str]:
    """Return the words of a caption that are probably nouns, as lemmas.

    >>> find_nouns("Two brown dogs are running quickly behind a red 3")
    ['dog', '3']
    """
    found: list[str] = []
    for word in _WORD.findall(caption.lower()):
        if word in _FUNCTION or word in _ADJECTIVES or word in _VERBS or (len(word) < 2 and not word.isdigit()):
            continue
        if word.endswith("ly") or (len(word) > 4 and word.endswith("ed")):
            continue
        if len(word) > 4 and word.endswith("ing") and word not in _KEPT_ING:
            continue
        found.append(lemma(word))
    return found


def noun_vocabulary(
    captions: Iterable[str], most: int, min_count: int = 1, find: NounFinder = find_nouns
) -> tuple[str, ...]:
    """Return the most frequent nouns, ties in order of the alphabet.

    Args:
        captions: all of them.
        most: how many at most (CatLIP: 24,320).
        min_count: captions that must name it.
        find: what finds the nouns of one caption.

    Raises:
        DataError: no caption holds a noun often enough.
    """
    counts = Counter(noun for caption in captions for noun in set(find(caption)))
    ordered = sorted((noun for noun, count in counts.items() if count >= min_count), key=lambda n: (-counts[n], n))
    if not ordered:
        raise DataError(
            f"no noun occurs in {min_count} captions or more: lower --min-count, or give --nouns a vocabulary"
        )
    return tuple(ordered[:most])


def read_vocabulary(path: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Read targets from a file: a line is a target's name and, after tabs, the words that stand for it.

    Returns:
        the targets' names, and word → index of its target. The name stands for itself.

    Raises:
        DataError: the file is missing or empty, or two targets claim one word; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the vocabulary: {error}") from error
    names: list[str] = []
    index: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = [word.strip().lower() for word in line.split("\t") if word.strip()]
        for word in words:
            if index.setdefault(word, len(names)) != len(names):
                raise DataError(f"{path}:{number}: {word!r} stands for {names[index[word]]!r} already")
        if words:
            names.append(words[0])
    if not names:
        raise DataError(f"{path}: the vocabulary is empty")
    return tuple(names), index
