"""YOLO as darknet keeps it: a `.weights` file, its `.cfg`, and the names of the classes in a `.names` file beside them.

Notable:
- The `.weights` file names nothing. The cfg says what it holds, and its heads say which version of YOLO it is.
- pjreddie's darknet fits pictures into the frame for the second and third version and fills the margins with grey, and
  squashes them for the first. AlexeyAB's squashes them unless the cfg says `letter_box=1`. A cfg with an option that
  only AlexeyAB's has is taken for his.
- The header (version, and pictures seen in training) goes back out as it came in, so that files come back bit-equal.
- Where there are no names, 80 classes are COCO's, and others are numbered.

Sources: pjreddie/darknet `src/parser.c`, `src/image.c` (`letterbox_image`), `examples/{yolo,detector}.c`;
AlexeyAB/darknet `src/detector.c` (`test_detector`), `src/parser.c`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights.coco_names import COCO_80
from odonata.weights.darknet_cfg import DarknetCfg, Section, parse_cfg
from odonata.weights.darknet_edit import heads_of
from odonata.weights.detectors import ModelLayout, ModelPlan
from odonata.weights.layout import Files, Plain, require
from odonata.weights.maps import KeyMap, Rule, rename
from odonata.weights.read import Raw

METHODS = ("yolo-v1", "yolo-v2", "yolo-v3", "yolo-v3-spp")
_ALEXEYAB = (
    *("scale_x_y", "iou_loss", "iou_thresh", "iou_normalizer", "cls_normalizer", "nms_kind", "beta_nms", "max_delta"),
    *("new_coords", "objectness_smooth", "counters_per_class", "label_smooth_eps", "resize", "focal_loss"),
    *("letter_box", "mosaic", "cutmix", "mixup", "blur", "max_chart_loss", "optimized_memory", "ema_alpha"),
)
"""Options of heads and of [net] that only AlexeyAB's darknet has."""


def method_of(cfg: DarknetCfg) -> str | None:
    """Returns which YOLO a cfg is, or None where it has no head, or heads of several kinds."""
    kinds = {head.kind for head in heads_of(cfg)}
    if kinds == {"detection"}:
        return "yolo-v1"
    if kinds == {"region"}:
        return "yolo-v2"
    if kinds != {"yolo"}:
        return None
    pools = [s for s in cfg.layers if s.kind == "maxpool" and s.integer("stride", 1) == 1 and s.integer("size", 1) > 2]
    return "yolo-v3-spp" if len(pools) >= 2 else "yolo-v3"


def framing_of(cfg: DarknetCfg) -> Plain:
    """Returns the fields of the framing that a cfg asks for.

    Raises:
        WeightsError: the image is not square and a layer binds the network to its size.
    """
    width, height = cfg.net.integer("width", 0), cfg.net.integer("height", 0)
    bound = any(section.kind in ("connected", "local") for section in cfg.layers)
    if width != height and bound:
        raise cfg.net.wrong(f"images of {width} × {height}: only square ones are known here")
    size = max(width, height)
    return {
        "resize": "letterbox" if _letterboxes(cfg) else "squash",
        "size": size,
        "max_size": 0,
        "divisor": 32,
        "corners": True,
        "antialias": False,
        "fill": 127.5,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "order": "rgb",
    }


def _letterboxes(cfg: DarknetCfg) -> bool:
    if "letter_box" in cfg.net.options:
        return cfg.net.integer("letter_box", 0) != 0
    sections = (cfg.net, *heads_of(cfg))
    alexeyab = any(option in section.options for section in sections for option in _ALEXEYAB)
    return not alexeyab and method_of(cfg) != "yolo-v1"


def _nms_power(head: Section) -> float:
    """AlexeyAB's `greedynms` takes the distance of centres off the overlap, always to this power."""
    powers = {"greedynms": 0.6, "diounms": head.number("beta_nms", 0.6)}
    return powers.get(head.text("nms_kind", "default"), 0.0)


def names_beside(file: Path, classes: int) -> tuple[list[str] | None, str]:
    """Returns the names of classes that stand beside a cfg, and a line that says where they are from.

    Args:
        file: the cfg or the weights: `name.names` is asked first, then the only `.names` file of the folder that fits.
        classes: how many there are.

    Raises:
        WeightsError: `name.names` has another number of names.
    """
    own = file.with_suffix(".names")
    if own.is_file():
        names = _lines(own)
        require(len(names) == classes, f"{own}: {len(names)} names for {classes} classes")
        return names, f"names of classes from {own.name}"
    others = [(path, _lines(path)) for path in sorted(file.parent.glob("*.names"))]
    fitting = [(path, names) for path, names in others if len(names) == classes]
    if len(fitting) == 1:
        return fitting[0][1], f"names of classes from {fitting[0][0].name}"
    if classes == len(COCO_80):
        return None, f"no {own.name}: 80 classes are taken for COCO's"
    return [f"class {number}" for number in range(classes)], f"no {own.name}: classes are numbered"


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def categories_of(names: Sequence[str] | None, classes: int) -> list[tuple[int | str, str]]:
    """Returns the table: COCO's ids where the 80 names are COCO's, however spelled; else the classes' own numbers."""
    if names is None:
        return list(COCO_80)
    if classes == len(COCO_80) and (names[0], names[-1]) == (COCO_80[0][1], COCO_80[-1][1]):
        return [(id_, name) for (id_, _), name in zip(COCO_80, names, strict=True)]
    return list(enumerate(names))


def _parsed(raw: Raw) -> DarknetCfg:
    config = raw.config or {}
    return parse_cfg(str(config["cfg"]), str(raw.path.with_name(str(raw.config_name))))


def _recognises(method: str, raw: Raw) -> bool:
    if raw.kind != "darknet" or raw.config is None or raw.config.get("layers") is not None:
        return False
    return method_of(_parsed(raw)) == method


def _plan(raw: Raw) -> ModelPlan:
    cfg = _parsed(raw)
    heads = heads_of(cfg)
    counts = {head.integer("classes", 1 if head.kind == "detection" else 20) for head in heads}
    require(len(counts) == 1, f"{cfg.source}: its heads have different numbers of classes: {sorted(counts)}")
    classes = counts.pop()
    names, where = names_beside(raw.path, classes)
    major, minor, revision, seen = (raw.config or {}).get("header", (0, 2, 0, 0))
    framing = framing_of(cfg)
    config: Plain = {
        "cfg": cfg.text,
        "framing": framing,
        "score_threshold": 0.25,
        "nms_threshold": 0.45,
        "nms_power": _nms_power(heads[-1]),
        "version": [major, minor, revision],
    }
    notes = [
        where,
        f"pictures are {'fitted into the frame' if framing['resize'] == 'letterbox' else 'squashed'} to "
        f"{framing['size']} px; threshold 0.25 and NMS 0.45, as AlexeyAB's program has them",
    ]
    if cfg.net.integer("width", 0) != cfg.net.integer("height", 0):
        notes.append("the cfg's image is not square; the longer side is used for both")
    if any(head.text("iou_loss", "mse") != "mse" for head in heads):
        notes.append("trained with AlexeyAB's IoU loss; trained further, it has the third version's own loss")
    rules = [rename(name, f"network.{name}") for name in raw.state]
    rules.append(Rule((), ("seen",), lambda _: [torch.tensor(seen)], lambda _: []))
    return ModelPlan(config, KeyMap(rules), "darknet", classes, categories_of(names, classes), notes=notes)


def _write(state: Mapping[str, Tensor], config: Any, categories: Sequence[tuple[int | str, str]]) -> Files:
    """Returns the `.weights`, `.cfg` and `.names` that darknet reads."""
    require(bool(config.cfg), "darknet layout: the network has no cfg yet; train it, or load it from weights")
    prefix = "network."
    ours = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    theirs = {k: v for k, v in ours.items() if not k.endswith("num_batches_tracked")}
    theirs["header"] = torch.tensor([*config.version, int(state["seen"])])
    names = "".join(f"{name}\n" for _, name in categories)
    return Files("model.weights", theirs, {"model.cfg": config.cfg, "model.names": names})


def _layout(method: str) -> ModelLayout:
    return ModelLayout("darknet", method, lambda raw: _recognises(method, raw), _plan, _write)


MODEL = tuple(_layout(method) for method in METHODS)
