"""Any network of darknet's, from the text of its `.cfg`.

Notable:
- The number of a layer in the cfg is its number in the state dict: `layers.79.conv.weight` is that of layer 79.
- Heads give their maps raw. What they mean (anchors, classes, how to decode) is in their sections: `network.heads`.
- A map is let go as soon as no later layer reads it.
- Networks without connected and local layers run at every size at which their maps fit together, as darknet's do when
  they are resized: at any multiple of `divisor`, and at some others.

Source: pjreddie/darknet `src/parser.c`, `src/network.c`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.backbones.darknet_layers import Numerics, build_layer
from odonata.backbones.interface import channels_last
from odonata.errors import DataError, WeightsError
from odonata.nn.transformer import wanted_layers
from odonata.weights.darknet import Header, cfg_beside, read_weights, write_weights
from odonata.weights.darknet_cfg import DarknetCfg, Section, parse_cfg, read_cfg
from odonata.weights.darknet_options import Connected, Convolutional, Local, MaxPool, Reorg, Route, Shortcut
from odonata.weights.darknet_options import Head as HeadSettings
from odonata.weights.darknet_plan import Layer, plan_layers
from odonata.weights.maps import check_fit


@dataclass(frozen=True)
class Head:
    """Where boxes come out."""

    kind: str
    """`detection` (YOLO's first version), `region` (second) or `yolo` (third)."""
    section: Section
    """Its fields: anchors, mask, classes, thresholds."""
    shape: tuple[int, int, int]
    """Channels, height and width of its map at the cfg's size of image."""
    stride: int
    """Pixels of the image from one cell to the next; 0 after a connected layer."""


class DarknetNetwork(nn.Module):
    """A network built from a cfg, with darknet's random weights.

    Args:
        cfg: the text of a `.cfg`, or what `parse_cfg` made of it.
        numerics: `gpu` normalises as darknet's GPU code does, `cpu` as its CPU code.

    Raises:
        WeightsError: the cfg is wrong, or has layers that are not known.

    >>> text = "[net]\\nwidth=8\\nheight=8\\n[convolutional]\\nfilters=4\\nsize=3\\npad=1\\nactivation=leaky"
    >>> [name for name, _ in DarknetNetwork(text).named_parameters()]
    ['layers.0.conv.weight', 'layers.0.conv.bias']
    """

    def __init__(self, cfg: DarknetCfg | str, numerics: Numerics = "gpu") -> None:
        super().__init__()
        self.cfg = parse_cfg(cfg) if isinstance(cfg, str) else cfg
        self.plan = plan_layers(self.cfg)
        self.header = Header()
        self.layers = nn.ModuleList(build_layer(layer, numerics) for layer in self.plan)
        self.heads = tuple(_head(layer) for layer in self.plan if isinstance(layer.settings, HeadSettings))
        self.divisor = _divisor(self.plan)
        self._free_after = _free_after(self.plan)
        self._sizes = {self.image_size}

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return self.cfg.net.integer("channels", 3)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the image in the cfg."""
        return self.cfg.net.integer("height", 0), self.cfg.net.integer("width", 0)

    @property
    def fixed_size(self) -> bool:
        """Whether a connected or local layer binds it to that size."""
        return any(isinstance(layer.settings, Connected | Local) for layer in self.plan)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> list[Float[Tensor, "batch outputs"] | Float[Tensor, "batch outputs map_height map_width"]]:
        """Returns the raw map of each head, in the cfg's order; of a network without heads what its last layer gives.

        What a `[detection]` head gets is one vector an image, in the order of memory: channel, row, column.

        Args:
            images: RGB from 0 to 1.

        Raises:
            DataError: the network cannot take images of this size.
        """
        wanted = [layer.index for layer in self.plan if isinstance(layer.settings, HeadSettings)]
        maps = self._run(images, wanted or [len(self.plan) - 1])
        kinds = [head.kind for head in self.heads] or ["classifier"]
        return [x.flatten(1) if kind == "detection" else x for x, kind in zip(maps, kinds, strict=True)]

    def features(
        self, images: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> list[Float[Tensor, "batch dim map_height map_width"]]:
        """Returns what the named layers of the cfg give; negative numbers count back. Later layers are not computed.

        Raises:
            ValueError: a layer does not exist.
            DataError: the network cannot take images of this size.
        """
        return self._run(images, wanted_layers(layers, len(self.plan)))

    def save(self, path: str | Path) -> None:
        """Writes `.weights`, and the `.cfg` beside it, as darknet reads them."""
        write_weights(path, self.cfg, self.state_dict(), self.header)

    def load_weights(self, path: str | Path, layers: int | None = None) -> None:
        """Reads a `.weights` file into this network.

        Args:
            path: the file.
            layers: how many layers it has, where it is the first part of a network (`darknet53.conv.74` has 74); the
                others keep the weights that they have.

        Raises:
            WeightsError: it is shorter or longer than this network wants.
        """
        read = read_weights(path, self.cfg, layers)
        self.header = read.header
        check_fit(self.state_dict() | read.state, self.state_dict(), str(path))
        self.load_state_dict(read.state, strict=False)

    def _run(self, images: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        self._check_size(images)
        held: dict[int, Tensor] = {-1: channels_last(images)}
        found: dict[int, Tensor] = {}
        for layer, module in zip(self.plan[: max(wanted, default=-1) + 1], self.layers, strict=False):
            x = module(*(held[i] for i in layer.inputs))
            held[layer.index] = x
            if layer.index in wanted:
                found[layer.index] = x
            for i in self._free_after[layer.index]:
                del held[i]
        return [found[i] for i in wanted]

    def _check_size(self, images: Tensor) -> None:
        channels, (height, width) = images.shape[1], images.shape[2:]
        if channels != self.channels:
            raise DataError(f"the images have {channels} channels and the network wants {self.channels}")
        if self.fixed_size and (height, width) != self.image_size:
            wanted = f"{self.image_size[0]} × {self.image_size[1]}"
            raise DataError(f"the images are {height} × {width} and a connected or local layer wants {wanted}")
        if torch.compiler.is_compiling() or (height, width) in self._sizes:
            return
        try:
            plan_layers(self.cfg, (height, width))
        except WeightsError as error:
            advice = f"; sides that are multiples of {self.divisor} fit" if self.divisor > 1 else ""
            raise DataError(f"images of {height} × {width} do not fit the network: {error}{advice}") from error
        self._sizes.add((height, width))


def load_darknet(
    weights: str | Path, cfg: DarknetCfg | str | Path | None = None, numerics: Numerics = "gpu"
) -> DarknetNetwork:
    """Returns a network with the weights of a `.weights` file, in evaluation mode.

    Args:
        weights: the file.
        cfg: its `.cfg`; None takes the one beside it.
        numerics: see `DarknetNetwork`.

    Raises:
        WeightsError: a file is missing, wrong, or does not fit the other.
    """
    layers = None
    if cfg is None:
        cfg, layers = cfg_beside(weights)
    network = DarknetNetwork(cfg if isinstance(cfg, DarknetCfg) else read_cfg(cfg), numerics)
    network.load_weights(weights, layers)
    return network.eval()


def _head(layer: Layer) -> Head:
    return Head(layer.section.kind, layer.section, layer.shape, layer.stride)


def _divisor(plan: Sequence[Layer]) -> int:
    """Returns a number whose multiples are sides that fit.

    Maps are rounded as they become coarser, which does no harm until finer or other ones are put beside them.
    """
    kinds = {layer.section.kind for layer in plan}
    joins = any(isinstance(layer.settings, Route | Shortcut) and len(layer.inputs) > 1 for layer in plan)
    if "reorg" not in kinds and not ("upsample" in kinds and joins):
        return 1
    strides = [layer.stride for layer in plan if isinstance(layer.settings, Convolutional | MaxPool | Local | Reorg)]
    return math.lcm(*(stride for stride in strides if stride))


def _free_after(plan: Sequence[Layer]) -> list[list[int]]:
    """For each layer, the maps that no layer after it reads."""
    last = {layer.index: layer.index for layer in plan}
    for layer in plan:
        for i in layer.inputs:
            last[i] = layer.index
    return [[i for i, end in last.items() if end == layer.index] for layer in plan]
