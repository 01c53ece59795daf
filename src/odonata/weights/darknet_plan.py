"""How the layers of a `.cfg` fit together: what each reads, the shape that it gives, and the tensors that it holds.

Notable:
- Sizes follow from `[net]`'s width and height, as darknet computes them. They fix the weights of connected and local
  layers only; everything else runs at other sizes too.
- A head (`[detection]`, `[region]`, `[yolo]`) passes its map out raw, so no layer may read what it gives.
- Tensors are listed in the order of the `.weights` file, under the names of `odonata.backbones.darknet_network`.

Source: pjreddie/darknet `src/parser.c` (`parse_…`, `load_…_weights`) and the layers' `make_…_layer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from odonata.weights.darknet_cfg import DarknetCfg, Section
from odonata.weights.darknet_options import (
    AvgPool,
    Connected,
    Convolutional,
    Head,
    Local,
    MaxPool,
    Reorg,
    Route,
    Settings,
    Shortcut,
    Upsample,
    read_settings,
)

Shape = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True)
class Layer:
    """One layer in its place."""

    section: Section
    """Where it stands."""
    settings: Settings
    """What it says."""
    inputs: tuple[int, ...]
    """Layers that it reads; -1 is the image."""
    before: Shape
    """Shape of what it reads first."""
    shape: Shape
    """Shape of what it gives."""
    stride: int
    """Pixels of the image from one of its cells to the next; 0 where it has no cells: after a mean or a linear map."""

    @property
    def index(self) -> int:
        """Its number, counted from 0."""
        return self.section.index


@dataclass(frozen=True)
class Stored:
    """One tensor of a layer, as it lies in the file."""

    name: str
    """In a state dict."""
    shape: tuple[int, ...]
    """As PyTorch wants it."""
    transposed: bool = False
    """Whether the file has it as a matrix the other way round."""

    @property
    def size(self) -> int:
        """How many floats it has."""
        count = 1
        for side in self.shape:
            count *= side
        return count


def plan_layers(cfg: DarknetCfg, size: tuple[int, int] | None = None) -> tuple[Layer, ...]:
    """Returns the layers of a network in their places.

    Args:
        cfg: the network.
        size: height and width of the image; None takes those of `[net]`.

    Raises:
        WeightsError: a layer or option is unknown, or layers do not fit together; names file, line and layer.
    """
    net = cfg.net
    height, width = size or (net.integer("height", 0), net.integer("width", 0))
    shape = (net.integer("channels", 3), height, width)
    if min(shape) < 1:
        raise net.wrong(f"width={shape[2]}, height={shape[1]} and channels={shape[0]} want numbers above 0")
    layers: list[Layer] = []
    for section in cfg.layers:
        layers.append(_place(section, read_settings(section), layers, shape))
    return tuple(layers)


def stored_tensors(layer: Layer, legacy: bool = False) -> Iterator[Stored]:
    """Yields the tensors of a layer in the order of the file.

    Args:
        layer: of a plan.
        legacy: whether the header says that connected layers are the other way round.
    """
    name, kind = f"layers.{layer.index}", layer.settings
    if isinstance(kind, Convolutional):
        weight = (kind.filters, layer.before[0] // kind.groups, kind.size, kind.size)
        yield from _bias_and_norm(f"{name}.conv", f"{name}.norm", kind.filters, kind.normalized)
        yield Stored(f"{name}.conv.weight", weight, kind.flipped)
    elif isinstance(kind, Connected):
        channels, height, width = layer.before
        weight = Stored(f"{name}.linear.weight", (kind.output, channels * height * width), legacy)
        bias, *norm = _bias_and_norm(f"{name}.linear", f"{name}.norm", kind.output, kind.normalized)
        yield from (bias, weight, *norm)
    elif isinstance(kind, Local):
        filters, height, width = layer.shape
        yield Stored(f"{name}.bias", layer.shape)
        yield Stored(f"{name}.weight", (height * width, filters, layer.before[0] * kind.size**2))


def _bias_and_norm(plain: str, norm: str, channels: int, normalized: bool) -> Iterator[Stored]:
    """Where a layer is normalised, the bias is the normalisation's, and there is no other."""
    if not normalized:
        yield Stored(f"{plain}.bias", (channels,))
        return
    for part in ("bias", "weight", "running_mean", "running_var"):
        yield Stored(f"{norm}.{part}", (channels,))


def _place(section: Section, kind: Settings, layers: list[Layer], image: Shape) -> Layer:
    inputs = _inputs(section, kind, layers)
    shapes = [image if i < 0 else layers[i].shape for i in inputs]
    stride = 1 if inputs[0] < 0 else layers[inputs[0]].stride
    for i in inputs:
        if i >= 0 and isinstance(layers[i].settings, Head):
            raise section.wrong(f"reads layer {i} [{layers[i].section.kind}], which gives boxes and no map")
    shape = _shape(section, kind, shapes)
    if min(shape) < 1:
        raise section.wrong(f"a map of {_text(shapes[0])} is too small for it")
    if isinstance(kind, Head):
        _check_head(section, shapes[0])
    return Layer(section, kind, inputs, shapes[0], shape, _pixels(section, kind, stride))


def _inputs(section: Section, kind: Settings, layers: list[Layer]) -> tuple[int, ...]:
    """Which layers are read. Negative numbers count back from this one, others from the start."""
    here = len(layers)
    if isinstance(kind, Head) and here and isinstance(layers[-1].settings, Head):
        raise section.wrong("two heads in a row: each wants a layer of its own before it")
    if not isinstance(kind, Route | Shortcut):
        return (here - 1,)
    option = "layers" if isinstance(kind, Route) else "from"
    named = section.integers(option)
    if not named:
        raise section.wrong(f"{option} is missing: it says which layers are read")
    found = tuple(i if i >= 0 else here + i for i in named)
    for given, i in zip(named, found, strict=True):
        if not 0 <= i < here:
            raise section.wrong(f"{option}={given}: there is no such layer before layer {here}", option)
    return found if isinstance(kind, Route) else (here - 1, *found)


def _shape(section: Section, kind: Settings, shapes: list[Shape]) -> Shape:
    channels, height, width = shapes[0]
    if isinstance(kind, Convolutional):
        if channels % kind.groups or kind.filters % kind.groups:
            raise section.wrong(f"groups={kind.groups} does not divide {channels} channels and {kind.filters} filters")
        reach = kind.dilation * (2 * kind.padding - kind.size + 1) - 1
        return kind.filters, (height + reach) // kind.stride + 1, (width + reach) // kind.stride + 1
    if isinstance(kind, Local):
        reach = 2 * kind.padding - kind.size
        return kind.filters, (height + reach) // kind.stride + 1, (width + reach) // kind.stride + 1
    if isinstance(kind, MaxPool):
        reach = kind.padding - kind.size
        return channels, (height + reach) // kind.stride + 1, (width + reach) // kind.stride + 1
    if isinstance(kind, Connected):
        return kind.output, 1, 1
    if isinstance(kind, AvgPool):
        return channels, 1, 1
    if isinstance(kind, Upsample):
        return channels, height * kind.stride, width * kind.stride
    if isinstance(kind, Reorg):
        return _reorganised(section, kind, shapes[0])
    if isinstance(kind, Route | Shortcut):
        return _joined(section, kind, shapes)
    return shapes[0]


def _reorganised(section: Section, kind: Reorg, shape: Shape) -> Shape:
    channels, height, width = shape
    stride, square = kind.stride, kind.stride**2
    # The original cuts the channels into square groups whichever way it goes; other numbers read beyond its memory.
    if channels % square or (not kind.reverse and (height % stride or width % stride)):
        raise section.wrong(f"stride={stride} does not divide a map of {_text(shape)}", "stride")
    if kind.reverse:
        return channels // square, height * stride, width * stride
    return channels * square, height // stride, width // stride


def _joined(section: Section, kind: Route | Shortcut, shapes: list[Shape]) -> Shape:
    _, height, width = shapes[0]
    # A shortcut takes every second cell, and so on, of a finer map.
    finer = [(shape[1] // height, shape[2] // width) for shape in shapes]
    fits = all(down == across >= 1 for down, across in finer) if isinstance(kind, Shortcut) else False
    if not fits and any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise section.wrong(f"the maps that it joins have different sizes: {', '.join(map(_text, shapes))}")
    if isinstance(kind, Shortcut):
        return shapes[0]
    channels = [shape[0] for shape in shapes]
    if any(count % kind.groups for count in channels):
        raise section.wrong(f"groups={kind.groups} does not divide {channels} channels", "groups")
    return sum(channels) // kind.groups, *shapes[0][1:]


def _pixels(section: Section, kind: Settings, stride: int) -> int:
    if isinstance(kind, AvgPool | Connected):
        return 0
    if isinstance(kind, Convolutional | Local | MaxPool):
        return stride * kind.stride
    if isinstance(kind, Upsample) or (isinstance(kind, Reorg) and kind.reverse):
        if stride % kind.stride:
            raise section.wrong(f"stride={kind.stride}: the map becomes finer than the image", "stride")
        return stride // kind.stride
    return stride * kind.stride if isinstance(kind, Reorg) else stride


def _check_head(section: Section, shape: Shape) -> None:
    """The map before a head must have one channel for each number that the head reads."""
    classes = section.integer("classes", 20)
    if section.kind == "detection":
        side, boxes = section.integer("side", 7), section.integer("num", 1)
        found, wanted = shape[0] * shape[1] * shape[2], side * side * (boxes * 5 + classes)
        reason = f"side={side} squared times (num={boxes} · 5 + classes={classes})"
    else:
        boxes = section.integer("num", 1)
        if section.kind == "yolo":
            boxes = len(section.integers("mask")) or boxes
        found, wanted = shape[0], boxes * (5 + classes)
        reason = f"{boxes} anchors times (5 + classes={classes})"
    if found != wanted:
        raise section.wrong(f"the layer before it gives {found} channels and it wants {wanted}: {reason}")


def _text(shape: Shape) -> str:
    return f"{shape[0]} × {shape[1]} × {shape[2]}"
