"""`odonata convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from odonata.app.commands.arguments import parse
from odonata.errors import RecipeError


@dataclass(frozen=True)
class ConvertArguments:
    """Write a model in another layout: `odonata convert openai-clip.pt out/ --to hf`.

    Reads runs, Odonata's folders, and published weights: two towers of OpenAI, open_clip, transformers and big_vision;
    backbones of torchvision, timm, transformers and the papers' own repositories, training checkpoints included. Says
    what it inferred. Nothing half-written stays behind.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it must not hold anything."""
    to: str = "hf"
    """The layout: odonata, hf; openai, open_clip, big_vision for two towers; timm, torchvision, … for backbones; peft
    for a language model's adapters alone."""
    layout: str | None = None
    """The layout of the source, where it is not to be found out."""
    tokenizer: Path | None = None
    """The tokenizer's file, where it does not lie beside the weights."""
    quick_gelu: bool | None = None
    """For bare open_clip weights: whether they were trained with QuickGELU, which the file does not tell."""
    allow_torchscript: bool = False
    """Read an archive that carries code, such as OpenAI's originals. Only for files that you trust."""
    num_heads: int | None = None
    """For bare transformers: attention heads, which shapes do not tell."""
    part: str | None = None
    """Which network of a training checkpoint: teacher, student, encoder_q, …"""
    convention: str | None = None
    """For bare EfficientNets: tf or torch padding and epsilon, which the file does not tell."""


_PAIR_OPTIONS = ("layout", "tokenizer", "quick_gelu", "allow_torchscript")
_ROOMS_OF_WORDS = ("language", "posttrain")
_TOWER_OPTIONS = ("num_heads", "part", "convention")


def convert(arguments: Sequence[str]) -> None:
    """Convert and print what was inferred and written."""
    options = parse(ConvertArguments, "convert", arguments)
    from odonata.app.api import load, room_of

    published = not (options.source / "config.yaml").is_file() and not (options.source / "model.json").is_file()
    room = "align" if options.layout else room_of(options.source) if published else ""
    names = {"align": _PAIR_OPTIONS, **dict.fromkeys(_ROOMS_OF_WORDS, ())}.get(room, _TOWER_OPTIONS)
    if room in _ROOMS_OF_WORDS:
        for name in (*_PAIR_OPTIONS, *_TOWER_OPTIONS):
            if getattr(options, name):
                raise RecipeError(f"--{name.replace('_', '-')} tells of pictures' models; {options.source} is of words")
    more = {name: getattr(options, name) for name in names} if published else {}
    model = load(options.source, device="cpu", **more)
    for note in model.notes:
        print(f"- {note}")
    for path in model.convert(options.out, options.to):
        print(path)
