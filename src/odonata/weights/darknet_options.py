"""Which sections and options of a `.cfg` are understood, and what the options that matter say, typed.

Notable:
- An option is understood, or it steers training only and is let pass, or it would make another network. Of the last
  kind, values that switch nothing on are let pass; the others are errors, and so is an option that darknet has not got.
- The fields of `[net]` and of the heads are not checked here. Who trains or decodes reads them.

Sources: pjreddie/darknet and AlexeyAB/darknet `src/parser.c`, `src/activations.c`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from odonata.weights.darknet_cfg import Section

ACTIVATIONS = (
    *("linear", "leaky", "relu", "relu6", "logistic", "tanh", "elu", "selu", "gelu", "swish", "mish", "hard_mish"),
    *("relie", "ramp", "hardtan", "loggy", "revleaky"),
)
"""Activations that are understood."""
HEADS = ("detection", "region", "yolo")
"""Sections that turn a map into boxes: YOLO's first, second and third version."""
IDLE = ("crop", "softmax", "cost")
"""Sections that are passed over: cropping is preprocessing, and classifiers give logits."""

_UNDERSTOOD: dict[str, tuple[str, ...]] = {
    "convolutional": (
        *("filters", "size", "stride", "stride_x", "stride_y", "pad", "padding", "groups", "dilation"),
        *("activation", "batch_normalize", "flipped"),
    ),
    "connected": ("output", "activation", "batch_normalize"),
    "local": ("filters", "size", "stride", "pad", "activation"),
    "maxpool": ("size", "stride", "stride_x", "stride_y", "padding"),
    "avgpool": (),
    "dropout": ("probability",),
    "route": ("layers", "groups", "group_id"),
    "shortcut": ("from", "activation", "alpha", "beta"),
    "upsample": ("stride", "scale"),
    "reorg": ("stride", "reverse"),
}
"""Kinds of layers and the options that say what they compute."""
_LEARNING = (
    *("learning_rate", "stopbackward", "onlyforward", "dont_update", "burnin_update", "train_only_bn", "clip", "dot"),
    *("dynamic_minibatch", "grad_centr", "stream", "wait_stream", "angle", "eps", "dropblock", "dropblock_size_rel"),
    *("dropblock_size_abs",),
)
"""Options of any layer that steer training or memory only."""
_NEUTRAL: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("binary", "xnor", "bin_output", "cbn", "antialiasing", "assisted_excitation"), ("0",)),
    **dict.fromkeys(("sway", "rotate", "stretch", "stretch_sway", "coordconv", "dontload", "dontloadscales"), ("0",)),
    **dict.fromkeys(("maxpool_depth", "maxpool_zero_nonmax", "flatten", "extra", "numload"), ("0",)),
    "share_index": ("-1000000000",),
    "out_channels": ("1",),
    "weights_type": ("none",),
    "weights_normalization": ("none",),
}
"""Options that would make another network → the values with which they do not."""


@dataclass(frozen=True)
class Convolutional:
    """A convolution, its normalisation or bias, and its activation."""

    filters: int
    size: int
    stride: int
    padding: int
    dilation: int
    groups: int
    activation: str
    normalized: bool
    flipped: bool
    """Whether its weights are stored with the filters along the last axis."""


@dataclass(frozen=True)
class Connected:
    """A linear map of all that comes in."""

    output: int
    activation: str
    normalized: bool


@dataclass(frozen=True)
class Local:
    """A convolution with weights of its own at each place."""

    filters: int
    size: int
    stride: int
    padding: int
    activation: str


@dataclass(frozen=True)
class MaxPool:
    """The maximum in a window; `padding` is the sum of both sides."""

    size: int
    stride: int
    padding: int


@dataclass(frozen=True)
class AvgPool:
    """The mean over the map."""


@dataclass(frozen=True)
class Dropout:
    """Zeros in training."""

    probability: float


@dataclass(frozen=True)
class Route:
    """Maps of earlier layers side by side, or one group of their channels."""

    groups: int
    group_id: int


@dataclass(frozen=True)
class Shortcut:
    """alpha · (the map before) + beta · (earlier maps), in the channels that both have."""

    activation: str
    alpha: float
    beta: float


@dataclass(frozen=True)
class Upsample:
    """Each cell repeated, times `scale`."""

    stride: int
    scale: float


@dataclass(frozen=True)
class Reorg:
    """Cells into channels, in darknet's order."""

    stride: int
    reverse: bool


@dataclass(frozen=True)
class Head:
    """A detector's last section; its map goes out raw."""

    kind: str


@dataclass(frozen=True)
class Idle:
    """A section that is passed over."""


Settings = (
    Convolutional | Connected | Local | MaxPool | AvgPool | Dropout | Route | Shortcut | Upsample | Reorg | Head | Idle
)
"""What one section says."""


def read_settings(section: Section) -> Settings:
    """Returns what a section says.

    Raises:
        WeightsError: its kind, an option, or a value of it is unknown; names file, line and layer.
    """
    if section.kind in HEADS:
        return Head(section.kind)
    if section.kind in IDLE:
        return Idle()
    if section.kind not in _UNDERSTOOD:
        raise section.wrong(f"this kind of layer is unknown; known are {', '.join((*_UNDERSTOOD, *HEADS, *IDLE))}")
    _check_options(section)
    return _settings(section)


def _check_options(section: Section) -> None:
    understood = _UNDERSTOOD[section.kind]
    for name, value in section.options.items():
        if name in understood or name in _LEARNING:
            continue
        if name not in _NEUTRAL:
            near = difflib.get_close_matches(name, understood, 1)
            meant = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(understood) or 'none'}"
            raise section.wrong(f"option {name!r} is unknown{meant}", name)
        if value not in _NEUTRAL[name]:
            raise section.wrong(f"{name}={value} makes another network, which is not known here", name)


def _settings(section: Section) -> Settings:
    match section.kind:
        case "convolutional":
            return _convolutional(section)
        case "connected":
            return Connected(_positive(section, "output"), _activation(section), _flag(section, "batch_normalize"))
        case "local":
            return _local(section)
        case "maxpool":
            stride = _stride(section)
            size = _positive(section, "size", stride)
            return MaxPool(size, stride, _positive(section, "padding", size - 1, least=0))
        case "avgpool":
            return AvgPool()
        case "dropout":
            return _dropout(section)
        case "route":
            return _route(section)
        case "shortcut":
            return Shortcut(_activation(section, "linear"), section.number("alpha", 1), section.number("beta", 1))
        case "upsample":
            return Upsample(_positive(section, "stride", 2), section.number("scale", 1))
        case _:
            return Reorg(_positive(section, "stride"), _flag(section, "reverse"))


def _convolutional(section: Section) -> Convolutional:
    size = _positive(section, "size")
    padding = size // 2 if _flag(section, "pad") else _positive(section, "padding", 0, least=0)
    return Convolutional(
        filters=_positive(section, "filters"),
        size=size,
        stride=_stride(section),
        padding=padding,
        dilation=_positive(section, "dilation") if size > 1 else 1,
        groups=_positive(section, "groups"),
        activation=_activation(section),
        normalized=_flag(section, "batch_normalize"),
        flipped=_flag(section, "flipped"),
    )


def _local(section: Section) -> Local:
    size, padding = _positive(section, "size"), _positive(section, "pad", 0, least=0)
    if padding and (padding, size) != (1, 3):
        # The original counts its places as if `pad` kept the size, and pads by `pad` cells: both hold for 3 × 3 only.
        raise section.wrong(f"pad={padding} with size={size}: only pad=1 with size=3 has a meaning in darknet", "pad")
    return Local(_positive(section, "filters"), size, _positive(section, "stride"), padding, _activation(section))


def _dropout(section: Section) -> Dropout:
    probability = section.number("probability", 0.5)
    if not 0 <= probability < 1:
        raise section.wrong(f"probability={probability:g} wants a number from 0 up to 1", "probability")
    return Dropout(probability)


def _route(section: Section) -> Route:
    groups, group = _positive(section, "groups"), _positive(section, "group_id", 0, least=0)
    if group >= groups:
        raise section.wrong(f"group_id={group} wants a number below groups={groups}", "group_id")
    return Route(groups, group)


def _positive(section: Section, name: str, default: int = 1, least: int = 1) -> int:
    value = section.integer(name, default)
    if value < least:
        raise section.wrong(f"{name}={value} wants {least} or more", name)
    return value


def _flag(section: Section, name: str) -> bool:
    return section.integer(name, 0) != 0


def _stride(section: Section) -> int:
    stride = _positive(section, "stride")
    across, down = _positive(section, "stride_x", stride), _positive(section, "stride_y", stride)
    if across != down:
        raise section.wrong(f"stride_x={across} and stride_y={down} differ, which is not known here", "stride_x")
    return across


def _activation(section: Section, default: str = "logistic") -> str:
    name = section.text("activation", default)
    if name not in ACTIVATIONS:
        raise section.wrong(f"activation={name} is unknown; known are {', '.join(ACTIVATIONS)}", "activation")
    return name
