"""Swin Transformers under the names of microsoft/Swin-Transformer, which MoBY's files hold as well.

Notable: heads and windows are read from the tables of position biases, so nothing is left open. Stored
`relative_position_index` and `attn_mask` are computed anew; they are not written, and the original leaves them out when
it reads pretrained weights. A stage merges its patches at its end there, at the start of the next one here.

In MoBY's training checkpoints the online network stands under `encoder.`; see `odonata.weights.nested`.

Source: microsoft/Swin-Transformer `models/swin_transformer.py`, `utils.py` (`load_pretrained`), `data/build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from odonata.weights.layout import Files, Plain, require, shape_of, square_side
from odonata.weights.maps import KeyMap, Rule, depth_of, packed_attention, pair, rename
from odonata.weights.read import Raw
from odonata.weights.towers import Hints, TowerLayout, TowerPlan

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COMPUTED = ("*.relative_position_index", "*.attn_mask")
"""Buffers that follow from the sizes."""


def recognises(raw: Raw) -> bool:
    """Tables of position biases in `layers`, and merging at the end of the first of them."""
    return _TABLE in raw.state and (
        "layers.0.downsample.reduction.weight" in raw.state or "layers.1.blocks.0.norm1.weight" not in raw.state
    )


_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


def key_map(config: Plain, classes: int, merges_first: bool = False, head: str = "head") -> KeyMap:
    """Returns the map for a plain `SwinConfig`.

    Args:
        config: the tower.
        classes: whether there is a classifier.
        merges_first: whether a stage begins with merging, as in timm.
        head: name of the classifier.
    """
    rules = [*pair("patch_embed.proj", "patch_embed"), *pair("patch_embed.norm", "patch_norm")]
    for stage, depth in enumerate(config["depths"]):
        for number in range(depth):
            rules += block(f"layers.{stage}.blocks.{number}", f"stages.{stage}.layers.{number}")
        if stage:
            rules += merging(f"layers.{stage if merges_first else stage - 1}.downsample", f"stages.{stage}.merge")
    rules += pair("norm", "norm")
    return KeyMap(rules + (pair(head, "head") if classes else []), COMPUTED)


def block(theirs: str, ours: str, fc1: str = "mlp.fc1", fc2: str = "mlp.fc2") -> list[Rule]:
    """One block; torchvision's differs in the names of the MLP's layers."""
    table = "attn.relative_position_bias_table"
    return [
        *pair(f"{theirs}.norm1", f"{ours}.norm1"),
        rename(f"{theirs}.{table}", f"{ours}.{table}"),
        *packed_attention(f"{theirs}.attn", f"{ours}.attn", "qkv.{part}", "proj"),
        *pair(f"{theirs}.norm2", f"{ours}.norm2"),
        *pair(f"{theirs}.{fc1}", f"{ours}.mlp.fc1"),
        *pair(f"{theirs}.{fc2}", f"{ours}.mlp.fc2"),
    ]


def merging(theirs: str, ours: str) -> list[Rule]:
    """One merging of patches."""
    return [*pair(f"{theirs}.norm", f"{ours}.norm"), rename(f"{theirs}.reduction.weight", f"{ours}.reduction.weight")]


def infer(raw: Raw, starts: Sequence[str], patch: str = "patch_embed.proj", fc1: str = "mlp.fc1") -> Plain:
    """Returns the configuration that names and shapes tell.

    Args:
        raw: the checkpoint.
        starts: how the names of each stage's blocks begin, before their number.
        patch: name of the patch embedding.
        fc1: name of a block's first MLP layer.

    Raises:
        WeightsError: tensors are missing, windows are not square, or it is a Swin Transformer V2.
    """
    state, where = raw.state, raw.path
    v2 = any(name.endswith((".logit_scale", ".cpb_mlp.0.weight")) for name in state)
    require(not v2, f"{where}: a Swin Transformer V2; the tower here is the first version")
    heads: list[int] = []
    windows: list[int] = []
    for start in starts:
        name = f"{start}0.attn.relative_position_bias_table"
        rows, count = shape_of(state, name, where)
        heads.append(count)
        windows.append((square_side(rows, name, where) + 1) // 2)
    width, channels, patch_size, _ = shape_of(state, f"{patch}.weight", where)
    return {
        "family": "swin",
        "embed_dim": width,
        "depths": [depth_of(state, start) for start in starts],
        "num_heads": heads,
        "windows": windows,
        "patch_size": patch_size,
        "mlp_ratio": shape_of(state, f"{starts[0]}0.{fc1}.weight", where)[0] / width,
        "channels": channels,
    }


def stages_of(raw: Raw) -> list[str]:
    """Returns how the names of each stage's blocks begin."""
    return [f"layers.{stage}.blocks." for stage in range(depth_of(raw.state, "layers."))]


def classes_of(raw: Raw, head: str) -> int:
    """Returns the rows of the classifier; 0: there is none."""
    weight = raw.state.get(f"{head}.weight")
    return 0 if weight is None else weight.shape[0]


def preprocess_of(config: Plain, resize_size: int) -> Plain:
    """Returns the preprocessing of the sizes with windows of 7 (224 pixels, resized to `resize_size`) and 12 (384)."""
    plain: Plain = {"interpolation": "bicubic", "mean": MEAN, "std": STD}
    if config["windows"][0] == 12:
        return plain | {"size": 384, "resize": "squash"}
    return plain | {"size": 224, "resize_size": resize_size}


def plan(raw: Raw, hints: Hints) -> TowerPlan:
    """Returns how to read the checkpoint."""
    config = infer(raw, stages_of(raw))
    classes = classes_of(raw, "head")
    notes = ["odd map sizes: as the official code", f"windows of {', '.join(map(str, config['windows']))} cells"]
    source = "Swin Transformer (microsoft's names)"
    return TowerPlan(config, key_map(config, classes), source, classes, preprocess_of(config, 256), (), notes)


def write(state: Mapping[str, Tensor], config: Plain, classes: int, preprocess: Plain | None) -> Files:
    """Returns the file that the original reads as pretrained weights, but for its entry `model`."""
    return Files("model.safetensors", key_map(config, classes).from_ours(state))


TOWER = TowerLayout("official", "swin", recognises, plan, write)
