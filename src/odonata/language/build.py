"""From a recipe of this room to what the engine trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from odonata.data.loader import Batches, Shuffled
from odonata.data.text_sets import TextSet
from odonata.data.texts import TextData, Texts
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.errors import RecipeError
from odonata.language.assets import DecoderAssets, adapt
from odonata.language.corpus import Pair, divide, open_corpus
from odonata.language.decoder import Decoder, variant
from odonata.language.evaluation import TextEvaluator
from odonata.language.language_model import open_model
from odonata.language.next_token import DecoderOptions, NextToken
from odonata.language.sequences import Sequences, pad_sequences
from odonata.text.text_bpe import train_text_bpe
from odonata.text.text_tokenizer import TextTokenizer, characters


def build(recipe: Recipe, folder: Path | None = None) -> Task:
    """Return the task of a recipe.

    Args:
        recipe: of this room's method.
        folder: the `assets/` of a run that is resumed.

    Raises:
        OdonataError: the data, weights or options cannot be used.
    """
    config: DecoderOptions = recipe.method
    data: TextData = recipe.data
    config.check()
    data.check()
    recipe.evaluation.check()
    read = open_corpus(data.path)
    start = starting_point(config, read, recipe, folder)
    tokenizer = start.assets.tokenizer
    corpus = divide(read, data, tokenizer, seed=recipe.seed, measured=recipe.evaluation.sequences)
    evaluator = TextEvaluator(corpus.heldout, tokenizer.pad_id, corpus.bytes_per_token, recipe.evaluation)
    return Task(
        method=NextToken(start.decoder),
        batches=Batches(
            corpus.train, Shuffled(len(corpus.train), data.batch_size, recipe.seed), PadPairs(tokenizer.pad_id),
            data.workers, recipe.seed,
        ),
        batch_size=data.batch_size,
        fingerprint=read.fingerprint() if isinstance(read, Texts) else read.name,
        evaluate=evaluator.measure if corpus.heldout else None,
        goal="nats" if corpus.heldout else "",
        better="lower",
        save_assets=start.assets.save,
        assets=start.assets,
        notes=[*start.notes, *corpus.notes],
    )  # fmt: skip


@dataclass
class StartingPoint:
    """A decoder before training, and what belongs to it."""

    decoder: Decoder
    assets: DecoderAssets
    notes: list[str]


def starting_point(config: DecoderOptions, read: Texts | TextSet, recipe: Recipe, folder: Path | None) -> StartingPoint:
    """Return the decoder that a recipe begins with: new, from weights, or of the run that is resumed.

    Raises:
        OdonataError: the weights cannot be used, or the texts are too few for a vocabulary.
    """
    if not isinstance(read, Texts) and config.vocab_size != DecoderOptions.vocab_size:
        raise RecipeError(f"--vocab-size is for files: {recipe.data.path} is read by the character")
    if folder is not None:
        assets = DecoderAssets.load(folder)
        return StartingPoint(assets.make(), assets, [])
    if config.model:
        decoder, assets, notes = open_model(config.model)
        if config.lora.rank:
            adapted = adapt(decoder, config.lora)
            notes.append(f"LoRA: rank {config.lora.rank} beside {len(adapted)} matrices; the rest is frozen")
            assets = replace(assets, lora=config.lora)
        return StartingPoint(decoder, assets, notes)
    tokenizer = tokenizer_for(read, config.vocab_size)
    context = recipe.data.context if isinstance(read, Texts) else 16 + read.longest
    architecture = variant(config.variant, tokenizer.vocab_size, max(256, context), config.dropout)
    decoder = Decoder(architecture, config.initialisation)
    count = sum(parameter.numel() for parameter in decoder.parameters())
    note = f"a new decoder, {config.variant}: {count:,} weights, {tokenizer.vocab_size} tokens"
    return StartingPoint(decoder, DecoderAssets(architecture, tokenizer), [note])


def tokenizer_for(read: Texts | TextSet, vocab_size: int) -> TextTokenizer:
    """Return a tokenizer for texts: characters for an embedded set, a BPE learned from files."""
    if isinstance(read, Texts):
        return train_text_bpe(read.documents, vocab_size)
    return characters(read.alphabet)


@dataclass(frozen=True)
class PadPairs:
    """Makes a batch of pairs of ids."""

    pad_id: int

    def __call__(self, items: Sequence[Pair]) -> Sequences:
        """Return the batch."""
        return pad_sequences([prompt for prompt, _ in items], [completion for _, completion in items], self.pad_id)
