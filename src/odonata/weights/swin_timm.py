"""timm's Swin Transformers, from 0.9 on.

Notable: `layers.N.downsample` stands at the start of stage N since 0.9; before, and in the original, at the end of
stage N - 1, so that the same name is another tensor. Files of older versions have the original's names.

Source: timm 1.0.31 `models/swin_transformer.py` (`checkpoint_filter_fn`, `_cfg`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from odonata.weights.layout import Files, Plain
from odonata.weights.read import Raw
from odonata.weights.swin_official import classes_of, infer, key_map, preprocess_of, stages_of
from odonata.weights.towers import Hints, TowerLayout, TowerPlan


def recognises(raw: Raw) -> bool:
    """Tables of position biases in `layers`, and no merging in the first of them; or the name of timm's classifier."""
    state = raw.state
    if "layers.0.blocks.0.attn.relative_position_bias_table" not in state:
        return False
    return "layers.0.downsample.reduction.weight" not in state and (
        "layers.1.downsample.reduction.weight" in state or "head.fc.weight" in state
    )


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config = infer(raw, stages_of(raw)) | {"convention": "timm"}
    classes = classes_of(raw, "head.fc")
    notes = ["merging at the start of a stage (timm 0.9 and later)", "odd map sizes: as timm built for that size"]
    rules = key_map(config, classes, merges_first=True, head="head.fc")
    # crop_pct 0.9: floor(224 / 0.9).
    return TowerPlan(config, rules, "timm Swin Transformer", classes, preprocess_of(config, 248), (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that timm's `SwinTransformer.load_state_dict` reads."""
    return Files("model.safetensors", key_map(config, classes, merges_first=True, head="head.fc").from_ours(state))


TOWER = TowerLayout("timm", "swin", recognises, plan, write)
