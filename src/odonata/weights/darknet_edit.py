"""Changes to the text of a darknet `.cfg` that its users make by hand: other classes, anchors, another size of image.

Lines that are not concerned stay as they were, remarks included. Who changes the number of classes has to change the
layer before each head as well; here both go together.

Source: pjreddie/darknet `src/parser.c` (`parse_detection`, `parse_region`, `parse_yolo`).
"""

from __future__ import annotations

from collections.abc import Sequence

from odonata.weights.darknet_cfg import DarknetCfg, Section, parse_cfg
from odonata.weights.darknet_options import HEADS

Changes = dict[tuple[int, str], str]
"""(number of the layer, -1 for [net]; option) → its new value."""


def heads_of(cfg: DarknetCfg) -> list[Section]:
    """Returns the sections of a cfg that give boxes."""
    return [section for section in cfg.layers if section.kind in HEADS]


def boxes_per_cell(section: Section) -> int:
    """Returns how many boxes a head gives for each cell."""
    masked = len(section.integers("mask")) if section.kind == "yolo" else 0
    return masked or section.integer("num", 1)


def with_options(cfg: DarknetCfg, changes: Changes) -> DarknetCfg:
    """Returns a cfg with options changed in their lines, or added below the section's first line."""
    byte_order_mark = "\ufeff"
    lines = cfg.text.lstrip(byte_order_mark).splitlines()
    added: list[tuple[int, str]] = []
    for section in (cfg.net, *cfg.layers):
        for (index, option), value in changes.items():
            if index != section.index:
                continue
            if option in section.lines:
                lines[section.lines[option] - 1] = f"{option}={value}"
            else:
                added.append((section.line, f"{option}={value}"))
    for line, text in sorted(added, key=lambda one: one[0], reverse=True):
        lines.insert(line, text)
    return parse_cfg("\n".join(lines) + "\n", cfg.source)


def with_classes(cfg: DarknetCfg, classes: int) -> DarknetCfg:
    """Returns a cfg whose heads have so many classes, and whose layers before them give as many numbers as that takes.

    Raises:
        WeightsError: the layer before a head is none whose outputs can be counted anew.
    """
    changes: Changes = {}
    for head in heads_of(cfg):
        boxes, before = boxes_per_cell(head), cfg.layers[head.index - 1] if head.index else None
        changes[head.index, "classes"] = str(classes)
        if before is not None and before.kind == "connected" and head.kind == "detection":
            outputs = head.integer("side", 7) ** 2 * (5 * boxes + classes)
            changes[before.index, "output"] = str(outputs)
        elif before is not None and before.kind == "convolutional" and head.kind != "detection":
            changes[before.index, "filters"] = str(boxes * (5 + classes))
        else:
            kind = before.kind if before is not None else "net"
            raise head.wrong(f"the [{kind}] before it cannot be given other outputs for {classes} classes")
    return with_options(cfg, changes)


def with_anchors(cfg: DarknetCfg, anchors: Sequence[float]) -> DarknetCfg:
    """Returns a cfg with other anchors in all heads.

    Args:
        cfg: the network.
        anchors: width and height in turn, as many as it has.

    Raises:
        WeightsError: it has another number of them, or none.
    """
    changes: Changes = {}
    for head in heads_of(cfg):
        count = head.integer("num", 1)
        if head.kind == "detection":
            raise head.wrong("the first version has no anchors")
        if len(anchors) != 2 * count:
            raise head.wrong(f"num={count} anchors want {2 * count} numbers; there are {len(anchors)}", "num")
        changes[head.index, "anchors"] = ",".join(f"{number:.10g}" for number in anchors)
    return with_options(cfg, changes)


def with_size(cfg: DarknetCfg, side: int) -> DarknetCfg:
    """Returns a cfg for square images of this side."""
    return with_options(cfg, {(-1, "width"): str(side), (-1, "height"): str(side)})
