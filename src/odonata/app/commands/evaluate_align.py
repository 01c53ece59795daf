"""`odonata evaluate` of the room `align`: retrieval, zero-shot, linear probe and kNN."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from odonata.app.commands.arguments import at_least
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.align.measures import Figure


@dataclass(frozen=True)
class AlignArguments:
    """Measure a model: `odonata evaluate RUN --retrieval captions.json --zeroshot cifar10/test --probe cifar10`.

    Every figure has a 95 % bootstrap interval over the pictures. Without a question, a run answers its own recipe's.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    retrieval: str = ""
    """Pictures with captions: R@1, 5, 10 both ways and the median rank. `heldout`: what the run held back."""
    split: str | None = None
    """Split of those pairs: by default `test`, else `val`, where there is one, else all."""
    zeroshot: str = ""
    """Folder of classes: top-1 and top-5 by the nearest class prompt."""
    templates: Path | None = None
    """File with one prompt a line, `{}` for the class name; their embeddings are averaged."""
    probe: str = ""
    """Folder of classes, with train and test inside where it has them: logistic regression on frozen features."""
    knn: str = ""
    """Folder of classes, likewise: weighted nearest neighbours (DINO's protocol)."""
    most: int = 5000
    """Pictures used at most from each set."""
    batch_size: int = 64
    """Pictures encoded at a time."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    tokenizer: Path | None = None
    """The tokenizer's file, for published weights that come without it."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Also write the figures here as JSON; a run keeps them in evaluation.json anyway."""
    json: bool = False
    """For programs: {name: {value, low, high, count}}."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def evaluate_align(options: AlignArguments) -> dict[str, Any]:
    """Return figures by name, each {value, low, high, count}; a run folder keeps them in evaluation.json.

    Raises:
        OdonataError: the model or the data cannot be used, or nothing is asked.
    """
    from odonata.align import measures
    from odonata.app.api import load, read_run_recipe

    at_least(1, most=options.most, batch_size=options.batch_size)
    is_run = (options.model / "config.yaml").is_file()
    more: dict[str, Any] = {"which": options.which} if is_run else {}
    if options.tokenizer:
        more["tokenizer"] = options.tokenizer
    model = load(options.model, device=options.device, **more)
    asked = [options.retrieval, options.zeroshot, options.probe, options.knn]
    retrieval = options.retrieval or ("heldout" if is_run and not any(asked) else "")
    if not retrieval and not any(asked):
        raise RecipeError("ask for something: --retrieval, --zeroshot, --probe or --knn, each with a path")
    figures: dict[str, Figure] = {}
    if retrieval:
        source = (
            measures.heldout_of(read_run_recipe(options.model).data)
            if retrieval == "heldout" and is_run
            else measures.pairs(retrieval, options.split)
        )
        figures |= measures.retrieval_figures(model, source, options.most, options.batch_size)
    if options.zeroshot:
        figures |= measures.zeroshot_figures(
            model, options.zeroshot, options.templates, options.most, options.batch_size
        )
    if options.probe:
        figures |= measures.probe_figures(model, options.probe, options.most, options.batch_size)
    if options.knn:
        figures |= measures.knn_figures(model, options.knn, options.most, options.batch_size)
    return {name: figure.to_dict() for name, figure in figures.items()}
