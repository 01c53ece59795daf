"""`odonata embed` and `odonata search`: pictures to vectors, and words or a picture to the nearest of them.

`odonata search` is also what searches the answers of a language model; which of both is meant, its arguments say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from odonata.app.commands.arguments import at_least, parse, pictures_in, print_json, print_table
from odonata.app.commands.search_answers import OPTIONS, is_model, search_answers
from odonata.errors import DataError, RecipeError


@dataclass(frozen=True)
class EmbedArguments:
    """Embed pictures: `odonata embed RUN photos/ -o vectors`."""

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Pictures, or folders of them."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder to write: vectors.npy (one unit-length row a picture) and items.jsonl."""
    batch_size: int = 64
    """Pictures encoded at a time."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a picture that cannot be read."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 takes about half the time on CPUs with AVX512-BF16; cosines with fp32 stay above 0.999."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def embed(arguments: Sequence[str]) -> None:
    """Write a folder of vectors."""
    options = parse(EmbedArguments, "embed", arguments)
    at_least(1, batch_size=options.batch_size)
    pictures = pictures_in(options.pictures)
    from odonata.app.api import load
    from odonata.app.vectors import Vectors, embed_files

    if options.out.exists() and any(options.out.iterdir() if options.out.is_dir() else [1]):
        raise DataError(f"{options.out} is there already; choose another -o")
    model = load(options.model, device=options.device)
    parts = embed_files(model, pictures, options.batch_size, options.on_error, options.precision)
    total = -(-len(pictures) // options.batch_size)
    found = Vectors.collect(
        track(parts, "embedding", total, console=Console(stderr=True)), str(options.model.resolve())
    )
    found.save(options.out)
    skipped = len(pictures) - len(found.names)
    print(
        f"{len(found.names)} vectors of {found.vectors.shape[1]} → {options.out}"
        + (f"; {skipped} skipped" * bool(skipped))
    )


@dataclass(frozen=True)
class SearchArguments:
    """Find pictures: `odonata search vectors "a red bus"`, or `odonata search vectors --image photo.jpg`."""

    vectors: Annotated[Path, tyro.conf.Positional]
    """What `odonata embed` wrote."""
    query: Annotated[str | None, tyro.conf.Positional] = None
    """Words."""
    image: Path | None = None
    """Instead of words: a picture."""
    top: int = 10
    """How many to show."""
    model: Path | None = None
    """The model that made the vectors, where it has moved."""
    tokenizer: Path | None = None
    """The tokenizer's file, for published weights that come without it."""
    json: bool = False
    """For programs: a list of {image, cosine}."""


USAGE = """usage: odonata search VECTORS "words" | VECTORS --image PICTURE
       odonata search MODEL TASK --by WAYS --budget N

Searches one of two things; what comes first says which.
  vectors, as `odonata embed` writes them   the pictures nearest to words or to a picture
  a language model                          answers to questions: greedy, samples, beams, best of n, votes, process
                                            rewards, trees; how many are right, by the answers that each may take

`odonata search VECTORS --help` and `odonata search MODEL --help` list the options of either."""


def search(arguments: Sequence[str]) -> None:
    """Search vectors for pictures, or the answers of a language model."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        if not arguments:
            raise RecipeError("search what? Name vectors, or a language model")
    elif _is_about_answers(arguments):
        search_answers(arguments)
    else:
        search_vectors(arguments)


def _is_about_answers(arguments: Sequence[str]) -> bool:
    """Whether a language model is searched: it comes first; or an option says so that vectors do not have."""
    if not arguments[0].startswith("-") and Path(arguments[0]).exists():
        return is_model(Path(arguments[0])) or _named(arguments)
    return _named(arguments) or any(is_model(Path(part)) for part in arguments if not part.startswith("-"))


def _named(arguments: Sequence[str]) -> bool:
    return any(part.partition("=")[0] in OPTIONS for part in arguments)


def search_vectors(arguments: Sequence[str]) -> None:
    """Print the nearest pictures."""
    options = parse(SearchArguments, "search", arguments)
    at_least(1, top=options.top)
    if (options.query is None) == (options.image is None):
        raise RecipeError('search takes either words, "a red bus", or --image photo.jpg')
    from odonata.app.api import load
    from odonata.app.vectors import Vectors

    vectors = Vectors.load(options.vectors)
    more: dict[str, Any] = {"tokenizer": options.tokenizer} if options.tokenizer else {}
    model = load(options.model or vectors.model, **more)
    query = model.embed_text(options.query) if options.query is not None else model.embed_image(options.image)
    found = vectors.nearest(query[0], options.top)
    if options.json:
        print_json([{"image": name, "cosine": cosine} for name, cosine in found])
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("cosine", justify="right")
    table.add_column("picture")
    for name, cosine in found:
        table.add_row(f"{cosine:.3f}", name)
    print_table(table)
