"""timm's EfficientNets, `tf_efficientnet_b*` and `efficientnet_b*`.

Notable: the two have the same names and shapes, and differ in padding and epsilon. The configuration beside the weights
(`architecture`) tells, or the file's name, or the caller; otherwise `tf` is taken, and said: timm has it for all of B0
… B7, in several trainings, and the other for B0 … B5.
Source: timm 1.0 `models/efficientnet.py`, `_efficientnet_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.nn.efficientnet_sizes import CONVENTIONS
from odonata.weights.efficientnet_names import (
    IMAGENET,
    Names,
    classes_of,
    convention_of,
    infer,
    is_counted,
    key_map,
    require_strides,
    size_of,
)
from odonata.weights.layout import Files, Plain, require
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

_SQUEEZE = {"squeeze_reduce": "se.conv_reduce", "squeeze_expand": "se.conv_expand"}
NAMES = Names(
    stem=("conv_stem", "bn1"),
    top=("conv_head", "bn2"),
    head="classifier",
    pattern=r"blocks\.(\d+)\.(\d+)\.",
    block=lambda stage, number, total: f"blocks.{stage}.{number}.",
    parts={
        "expand": "conv_pw",
        "expand_norm": "bn1",
        "depthwise": "conv_dw",
        "depthwise_norm": "bn2",
        "project": "conv_pwl",
        "project_norm": "bn3",
        **_SQUEEZE,
    },
    plain_parts={
        "depthwise": "conv_dw",
        "depthwise_norm": "bn1",
        "project": "conv_pw",
        "project_norm": "bn2",
        **_SQUEEZE,
    },
    expands="conv_pwl",
)


def recognises(raw: Raw) -> bool:
    """timm's names of stem, top and a depthwise block with squeeze-and-excitation."""
    wanted = {"conv_stem.weight", "conv_head.weight", "blocks.0.0.conv_dw.weight", "blocks.0.0.se.conv_reduce.weight"}
    return wanted <= raw.state.keys()


def _convention(raw: Raw, hints: Hints) -> tuple[str, str]:
    """Returns the convention and how it is known."""
    if hints.convention is not None:
        require(hints.convention in CONVENTIONS, f"convention {hints.convention!r} is unknown; it is tf or torch")
        return hints.convention, "as the caller says"
    architecture = str((raw.config or {}).get("architecture", ""))
    for name, where in ((architecture, "config.json"), (raw.path.stem, "the file's name")):
        if name.startswith("tf_efficientnet"):
            return "tf", f"as {where} says"
        if name.startswith("efficientnet"):
            return "torch", f"as {where} says"
    return "tf", "the likelier: the file does not tell; say `torch` if it is one of timm's `efficientnet_b*`"


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    convention, known = _convention(raw, hints)
    config = infer(raw.state, NAMES, raw.path) | CONVENTIONS[convention]
    classes = classes_of(raw.state, NAMES)
    notes = [f"convention: {convention} (padding {config['padding']}, epsilon {config['norm_eps']:g}), {known}"]
    preprocess = _preprocess(config, (raw.config or {}).get("pretrained_cfg") or {})
    source = f"timm {'tf_' if convention == 'tf' else ''}efficientnet"
    return TowerPlan(
        config, key_map(NAMES, config, classes, is_counted(raw.state)), source, classes, preprocess, (), notes
    )


def _preprocess(config: Plain, theirs: Plain) -> Plain | None:
    """Bicubic, and the authors' crop: 32 pixels narrower than the shorter side, unless the configuration differs."""
    if not theirs and size_of(config) is None:
        return None
    size = int((theirs.get("input_size") or (3, config.get("resolution", 224)))[-1])
    crop = theirs.get("crop_pct")
    return {
        "size": size,
        "resize_size": int(size / crop) if crop else size + 32,
        "interpolation": theirs.get("interpolation", "bicubic"),
        "mean": list(theirs.get("mean", IMAGENET["mean"])),
        "std": list(theirs.get("std", IMAGENET["std"])),
    }


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns safetensors and the `config.json` that timm writes, which says the convention."""
    require_strides(config, "timm")
    convention, size = convention_of(config), size_of(config)
    require(convention is not None, f"timm layout: padding {config['padding']!r} with epsilon {config['norm_eps']:g}")
    require(size is not None, "timm layout: timm has B0 … B7, and this tower is none of them")
    described: Plain = {
        "architecture": f"{'tf_' if convention == 'tf' else ''}efficientnet_{size}",
        "num_classes": classes,
    }
    if preprocess:
        side = preprocess["size"]
        described["pretrained_cfg"] = {
            "input_size": [config["channels"], side, side],
            "interpolation": preprocess["interpolation"],
            "crop_pct": side / (preprocess.get("resize_size") or side),
            "mean": preprocess["mean"],
            "std": preprocess["std"],
        }
    return Files("model.safetensors", key_map(NAMES, config, classes).from_ours(state), {"config.json": described})


TOWER = TowerLayout("timm", "efficientnet", recognises, plan, write)
