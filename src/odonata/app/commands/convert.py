"""`odonata convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from odonata.app.commands.arguments import parse


@dataclass(frozen=True)
class ConvertArguments:
    """Write a model in another layout: `odonata convert openai-clip.pt out/ --to hf`.

    Reads runs, Odonata's folders, and published weights of OpenAI, open_clip, transformers (CLIP, SigLIP, SigLIP 2, and
    ViT classifiers as CatLIP) and big_vision. Says what it inferred. Nothing half-written stays behind.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it must not hold anything."""
    to: Literal["odonata", "hf", "openai", "open_clip", "big_vision"] = "hf"
    """The layout."""
    layout: str | None = None
    """The layout of the source, where it is not to be found out."""
    tokenizer: Path | None = None
    """The tokenizer's file, where it does not lie beside the weights."""
    quick_gelu: bool | None = None
    """For bare open_clip weights: whether they were trained with QuickGELU, which the file does not tell."""
    allow_torchscript: bool = False
    """Read an archive that carries code, such as OpenAI's originals. Only for files that you trust."""


def convert(arguments: Sequence[str]) -> None:
    """Convert and print what was inferred and written."""
    options = parse(ConvertArguments, "convert", arguments)
    from odonata.app.api import load

    published = not (options.source / "config.yaml").is_file() and not (options.source / "model.json").is_file()
    more = {
        "layout": options.layout,
        "tokenizer": options.tokenizer,
        "quick_gelu": options.quick_gelu,
        "allow_torchscript": options.allow_torchscript,
    }
    model = load(options.source, device="cpu", **(more if published else {}))
    for note in model.notes:
        print(f"- {note}")
    for path in model.convert(options.out, options.to):
        print(path)
