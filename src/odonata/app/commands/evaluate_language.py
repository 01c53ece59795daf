"""`odonata evaluate` of language models: how well they foresee texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from odonata.app.commands.arguments import at_least
from odonata.app.commands.language_models import Precision, open_language_model
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.language.corpus import Corpus
    from odonata.language.language_model import LanguageModel

_CONTEXT = 512


@dataclass(frozen=True)
class TextsToMeasure:
    """Texts to measure on."""

    path: str = ""
    """A .txt, .md or .jsonl file, a folder of them, or an embedded set, of which the test part is measured; empty: what
    the run held back."""
    context: int = 0
    """Tokens of a window of a file (0 = as the run was trained; 512 for published weights, or their positions)."""


@dataclass(frozen=True)
class LanguageArguments:
    """Measure a language model: `odonata evaluate MODEL --data.path book.txt`.

    Prints nats a token and perplexity, and of files bits a byte, which models with other tokenizers can be compared by.
    Intervals are 95 % bootstrap intervals over windows or texts.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a directory of published weights."""
    data: TextsToMeasure = field(default_factory=TextsToMeasure)
    sequences: int = 1024
    """Windows or texts measured at most."""
    batch_size: int = 32
    """Windows or texts read at a time."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Also write the figures here as JSON; a run keeps them in evaluation.json anyway."""
    json: bool = False
    """For programs: {name: {value, low, high, count}}."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    dtype: Precision = "fp32"
    """Precision of weights and states; bf16 halves the memory and rounds."""


def evaluate_language(options: LanguageArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}.

    Raises:
        OdonataError: the model or the texts cannot be used.
    """
    from odonata.language.evaluation import text_figures

    at_least(1, sequences=options.sequences, batch_size=options.batch_size)
    at_least(0, **{"data.context": options.data.context})
    model = open_language_model(options.model, device=options.device, dtype=options.dtype, which=options.which)
    corpus = _corpus(options, model)
    if not corpus.heldout:
        raise RecipeError("the run held nothing back to measure on: name texts with --data.path")
    figures = text_figures(
        model.decoder, corpus.heldout, model.tokenizer.pad_id, corpus.bytes_per_token, options.batch_size
    )
    return {name: figure.to_dict() for name, figure in figures.items()}


def _corpus(options: LanguageArguments, model: LanguageModel) -> Corpus:
    from odonata.app.api import read_run_recipe
    from odonata.data.text_sets import is_text_set
    from odonata.language.corpus import divide, open_corpus, whole

    is_run = (options.model / "config.yaml").is_file()
    if not options.data.path and not is_run:
        raise RecipeError("published weights come without texts: name some with --data.path")
    if not options.data.path:
        if options.data.context:
            raise RecipeError(
                "--data.context cuts the texts of --data.path: what a run held back is cut as in training"
            )
        recipe = read_run_recipe(options.model)
        return divide(
            open_corpus(recipe.data.path), recipe.data, model.tokenizer, seed=recipe.seed, measured=options.sequences
        )
    if options.data.context and is_text_set(options.data.path):
        raise RecipeError(f"--data.context is for files: the texts of {options.data.path} have their own ends")
    config = model.decoder.config
    context = options.data.context or (read_run_recipe(options.model).data.context if is_run else _CONTEXT)
    if config.positions == "learned" and not options.data.context:
        context = min(context, config.max_position_embeddings)
    return whole(open_corpus(options.data.path), context, model.tokenizer, options.sequences)
