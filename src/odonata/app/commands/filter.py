"""`odonata filter`: DFN as a command."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import Progress

from odonata.app.commands.arguments import at_least, parse
from odonata.errors import DataError


@dataclass(frozen=True)
class FilterArguments:
    """Keep the best pairs: `odonata filter runs/dfn pairs.jsonl --keep 0.2 -o kept.jsonl`.

    The score is the cosine that a two-tower model gives a pair; of a DFN run, its filtering network is asked.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    pairs: Annotated[str, tyro.conf.Positional]
    """Pictures with captions: what --data.path takes."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """JSON lines to write: {image, captions, score}, in the order of the input; itself a manifest."""
    keep: float = 0.2
    """Share of the pairs that is kept."""
    images: Path | None = None
    """Folder that picture names are relative to."""
    split: str | None = None
    """Only this split of the pairs."""
    scores: Path | None = None
    """Also write the score of every pair here."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad row."""
    batch_size: int = 64
    """Pictures encoded at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def filter_pairs(arguments: Sequence[str]) -> None:
    """Score, choose, write."""
    options = parse(FilterArguments, "filter", arguments)
    import torch

    from odonata.align.dfn import best_share, check_share, score_pairs
    from odonata.align.dfn_filter import open_filter
    from odonata.data.sample import ImageText
    from odonata.data.sources import open_image_text

    check_share(options.keep)
    at_least(1, batch_size=options.batch_size)
    if options.out.exists():
        raise DataError(f"{options.out} is there already; choose another -o")
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    scorer = open_filter(options.model, device)
    source = open_image_text(options.pairs, images=options.images, split=options.split, on_error=options.on_error)
    for problem in source.problems:
        print(f"skipped {problem}", file=sys.stderr)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=len(source))
        scores = score_pairs(scorer, source, options.batch_size, lambda done: bar.advance(task, done))
    kept = best_share(scores, options.keep)

    def line(sample: ImageText, score: float) -> str:
        name = (
            str(sample.image.path.resolve()) if sample.image.path and sample.image.offset is None else sample.image.name
        )
        return json.dumps(
            {"image": name, "captions": list(sample.captions), "score": round(score, 6)}, ensure_ascii=False
        )

    _write(options.out, [line(source[i], float(scores[i])) for i in kept.tolist()])
    if options.scores:
        _write(options.scores, [line(sample, score) for sample, score in zip(source, scores.tolist(), strict=True)])
    print(f"kept {len(kept)} of {len(source)} pairs, cosine ≥ {scores[kept].min():.3f} → {options.out}")


def _write(path: Path, lines: Sequence[str]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    partial.replace(path)
