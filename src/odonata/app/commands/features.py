"""`odonata features`: what a tower sees, layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table

from odonata.app.commands.arguments import parse, pictures_in, print_json, print_table
from odonata.errors import DataError, RecipeError


@dataclass(frozen=True)
class FeaturesArguments:
    """Take features of pictures from any layer: `odonata features RUN photo.jpg --layers 3 6 9 --draw`.

    A layer is a block of a plain transformer, and a stage of a tower that has stages; negative numbers count back.
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder, or published weights of a tower."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Pictures, or folders of them."""
    layers: tuple[int, ...] = (-1,)
    """Which layers."""
    format: Literal["nchw", "nlc"] = "nchw"
    """Maps [channels, height, width], or cells [cells, channels] row by row; class and register tokens are left out."""
    draw: bool = False
    """Write NAME.features.png: each layer's three main directions as colours, and of transformers the attention."""
    save: bool = False
    """Write NAME.npz, with an array `layer_N` for each layer."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("features")
    """Folder for what is written."""
    num_heads: int | None = None
    """For published transformers whose file does not tell."""
    json: bool = False
    """For programs: shapes and statistics."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""


def features(arguments: Sequence[str]) -> None:
    """Print a table of shapes; write arrays and pictures where asked."""
    options = parse(FeaturesArguments, "features", arguments)
    pictures = pictures_in(options.pictures)
    from odonata.app.api import load, room_of

    if room_of(options.model) == "align":
        raise RecipeError(f"{options.model}: layers are shown of towers that learned from pictures alone")
    if options.out.is_file():
        raise DataError(f"{options.out} is a file; name a folder")
    hints = {"num_heads": options.num_heads} if options.num_heads else {}
    model = load(options.model, device=options.device, **hints)
    rows: list[dict[str, object]] = []
    for picture in pictures:
        try:
            found = model.features(picture, options.layers, options.format)
        except ValueError as error:
            raise RecipeError(f"--layers: {error}") from error
        for layer, tensor in zip(options.layers, found, strict=True):
            rows.append(
                {
                    "picture": str(picture),
                    "layer": layer,
                    "shape": list(tensor.shape[1:]),
                    "mean": round(float(tensor.mean()), 5),
                    "deviation": round(float(tensor.std()), 5),
                }
            )
        if options.save:
            _write(options.out, picture, options.layers, found)
        if options.draw:
            from odonata.represent.drawing import draw_features

            options.out.mkdir(parents=True, exist_ok=True)
            drawn = draw_features(model, picture, options.layers, options.out)
            print(drawn, file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("picture", "layer", "shape", "mean", "deviation"):
        table.add_column(column, justify="left" if column in ("picture", "shape") else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    print_table(table)


def _write(folder: Path, picture: Path, layers: Sequence[int], found: list[object]) -> None:
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"layer_{layer}": tensor[0].float().cpu().numpy() for layer, tensor in zip(layers, found, strict=True)}  # pyright: ignore[reportIndexIssue]
    partial = folder / f"{picture.stem}.partial.npz"
    np.savez(partial, **arrays)
    partial.replace(folder / f"{picture.stem}.npz")
