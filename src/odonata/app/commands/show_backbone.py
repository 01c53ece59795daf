"""`odonata show` of backbones."""

from __future__ import annotations

import dataclasses
import math

from rich.console import Console
from rich.table import Table

from odonata.app.commands.arguments import print_json, print_table
from odonata.backbones import FAMILIES


def is_backbone(name: str) -> bool:
    """Whether a name is that of a backbone; options after a colon are left out."""
    return any(name.partition(":")[0] in family.names for family in FAMILIES.values())


def show_families(json: bool) -> None:
    """Print every family with its variants."""
    if json:
        print_json({name: {"summary": f.summary, "paper": f.paper, "names": f.names} for name, f in FAMILIES.items()})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("family", "what it is", "variants"):
        table.add_column(column)
    for name, family in FAMILIES.items():
        table.add_row(name, family.summary, " ".join(family.names))
    print_table(table)


def show_backbone(name: str, image_size: int, json: bool) -> None:
    """Print what a tower is and costs, and what its layers give.

    Raises:
        RecipeError: no such option.
    """
    import torch

    from odonata.backbones.create import build, family_of, variant
    from odonata.backbones.measure import count, receptive_field

    config = variant(name)
    family = FAMILIES[family_of(name.partition(":")[0])]
    size = image_size or int(getattr(config, "image_size", 224))
    with torch.device("meta"):
        tower = build(config)
    counts = count(tower, size)
    layers = [{"layer": i, "channels": tap.channels, "stride": tap.stride} for i, tap in enumerate(tower.taps)]
    attends = family.module.endswith(".vit")  # to everything at once: nothing to find out
    field = math.inf if attends else receptive_field(build(config), len(layers) - 1)
    if json:
        print_json({
            "name": name, "family": family.summary, "paper": family.paper, "config": dataclasses.asdict(config),
            "features": tower.num_features, "parameters": counts.parameters, "macs": counts.macs,
            "activations": counts.activations, "image_size": size, "layers": layers,
            "receptive_field": None if math.isinf(field) else field,
        })  # fmt: skip
        return
    console = Console(highlight=False)
    console.print(f"[bold]{name}[/bold]  {family.summary}")
    console.print(family.paper)
    sees = "the whole picture" if math.isinf(field) else f"{field:g} pixels"
    console.print(
        f"{counts.parameters / 1e6:.2f} M parameters, {counts.macs / 1e9:.3f} G multiply-adds and "
        f"{counts.activations / 1e6:.2f} M activations at {size} pixels, without a classifier"
    )
    console.print(f"pooled features: {tower.num_features}; a cell of the last layer sees {sees}")
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "channels", "stride"):
        table.add_column(column, justify="right")
    for layer in layers:
        table.add_row(*(str(value) for value in layer.values()))
    print_table(table)
    changed = ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items())
    console.print(f"options, as in --backbone {name.partition(':')[0]}:option=value: {changed}")
