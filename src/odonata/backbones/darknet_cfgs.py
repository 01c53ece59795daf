"""The `.cfg` of YOLO's first three versions, written from their papers for any number of classes, size and width.

Notable:
- Text comes out, because a run and a checkpoint of darknet keep that; `DarknetNetwork` reads it, and so does darknet.
- `width_multiple` scales the filters of all layers but the last before a head, rounded to multiples of 8, and
  `depth_multiple` the number of times that a group of layers is repeated. The `-small` ones train on a laptop.
- The first version is the paper's: 24 convolutions and 2 connected layers, 2 boxes a cell. What is published as
  `yolov1.cfg` has a local layer and 3 boxes. The paper has no batch normalisation; here there is, as in what is
  published, since without it the network has to be trained on ImageNet first.

Sources: Redmon et al. 2015 (1506.02640), fig. 3; Redmon and Farhadi 2016 (1612.08242), table 6 and sec. 2; Redmon and
Farhadi 2018 (1804.02767), table 1 and sec. 2. For the tiny ones, for SPP (He et al. 2014, 1406.4729, sec. 2.3), and for
the fields of the heads: pjreddie/darknet `cfg/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from odonata.errors import RecipeError

Number = int | float
V2_ANCHORS = (0.57273, 0.677385, 1.87446, 2.06253, 3.33843, 5.47434, 7.88282, 3.52778, 9.77052, 9.16828)
"""Widths and heights in cells of 32 pixels, of COCO's boxes at 416 pixels."""
V3_ANCHORS = (10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326)
"""Widths and heights in pixels, likewise."""
V3_TINY_ANCHORS = (10, 14, 23, 27, 37, 58, 81, 82, 135, 169, 344, 319)
"""Those of the network with two heads."""


class _Writer:
    """Writes sections one after another. Each layer is known by its number."""

    def __init__(self, design: Design, classes: int, anchors: Sequence[Number], width: int, height: int) -> None:
        self.design, self.classes, self.anchors, self.size = design, classes, tuple(anchors), (width, height)
        self.sections = [
            _section("net", batch=64, subdivisions=16, width=width, height=height, channels=3)
            + "momentum=0.9\ndecay=0.0005\nlearning_rate=0.001\nburn_in=1000\n"
        ]

    def add(self, kind: str, **options: object) -> int:
        """Adds a layer and returns its number."""
        self.sections.append(_section(kind, **options))
        return len(self.sections) - 2

    def conv(self, filters: int, size: int, stride: int = 1) -> int:
        """A normalised convolution with a leaky activation."""
        shape = {"filters": self.scaled(filters), "size": size, "stride": stride, "pad": 1}
        return self.add("convolutional", batch_normalize=1, **shape, activation="leaky")

    def convs(self, *filters: int) -> int:
        """Convolutions of 1 × 1 and 3 × 3 in turn, the last of 3 × 3 if their number is even."""
        for number, count in enumerate(filters):
            self.conv(count, 3 if number % 2 else 1)
        return self.last

    def maxpool(self, size: int = 2, stride: int = 2) -> int:
        return self.add("maxpool", size=size, stride=stride)

    def route(self, *layers: int) -> int:
        return self.add("route", layers=",".join(str(layer) for layer in layers))

    def outputs(self, filters: int) -> int:
        """The convolution before a head."""
        return self.add("convolutional", filters=filters, size=1, stride=1, pad=1, activation="linear")

    def yolo(self, mask: Sequence[int]) -> int:
        """The third version's head, with its convolution."""
        self.outputs(len(mask) * (5 + self.classes))
        return self.add(
            "yolo",
            mask=_listed(mask),
            anchors=_listed(self.anchors),
            classes=self.classes,
            num=len(self.anchors) // 2,
            jitter=0.3,
            ignore_thresh=0.7,
            truth_thresh=1,
            random=1,
        )

    def region(self) -> int:
        """The second version's head, with its convolution."""
        boxes = len(self.anchors) // 2
        self.outputs(boxes * (5 + self.classes))
        fields = {"bias_match": 1, "classes": self.classes, "coords": 4, "num": boxes, "softmax": 1, "jitter": 0.3}
        costs = {"rescore": 1, "object_scale": 5, "noobject_scale": 1, "class_scale": 1, "coord_scale": 1}
        return self.add("region", anchors=_listed(self.anchors), **fields, **costs, absolute=1, thresh=0.6, random=1)

    def detection(self, side: int) -> int:
        """The first version's head, with its connected layer."""
        self.add("connected", output=side * side * (2 * 5 + self.classes), activation="linear")
        fields = {"classes": self.classes, "coords": 4, "rescore": 1, "side": side, "num": 2, "softmax": 0, "sqrt": 1}
        costs = {"object_scale": 1, "noobject_scale": 0.5, "class_scale": 1, "coord_scale": 5}
        return self.add("detection", **fields, jitter=0.2, **costs)

    @property
    def last(self) -> int:
        """Number of the layer that was added last."""
        return len(self.sections) - 2

    def scaled(self, filters: int) -> int:
        """Filters at the design's width."""
        multiple = self.design.width_multiple
        return filters if multiple == 1 else max(8, round(filters * multiple / 8) * 8)

    def repeated(self, times: int) -> int:
        """Repetitions at the design's depth."""
        return max(1, round(times * self.design.depth_multiple))


@dataclass(frozen=True)
class Design:
    """One network by its name."""

    layers: Callable[[_Writer], None]
    """Writes its layers."""
    size: int
    """Side of the image, in pixels, where nothing else is asked for."""
    anchors: tuple[Number, ...] = ()
    """Likewise; the first version has none."""
    classes: int = 80
    """Likewise."""
    heads: int = 1
    """At how many strides boxes come out."""
    coarsest: int = 32
    """The image's sides are multiples of this."""
    width_multiple: Number = 1
    depth_multiple: Number = 1


def yolo_cfg(
    name: str,
    classes: int | None = None,
    anchors: Sequence[Number] | None = None,
    width: int | None = None,
    height: int | None = None,
    width_multiple: Number | None = None,
    depth_multiple: Number | None = None,
) -> str:
    """Returns the text of a YOLO's `.cfg`.

    Args:
        name: one of `DESIGNS`.
        classes: how many; COCO's 80 where it is None, VOC's 20 in the first version.
        anchors: width and height in turn, small ones first: in cells of 32 pixels in the second version, in pixels in
            the third; None takes the published ones.
        width: of the image, in pixels.
        height: likewise; None: as wide.
        width_multiple: scales the filters; None takes that of the name.
        depth_multiple: scales the repetitions in the trunk; likewise.

    Raises:
        RecipeError: no such name, or a number that it cannot have.

    >>> yolo_cfg("yolov3-tiny", classes=2).count("[yolo]")
    2
    """
    if name not in DESIGNS:
        raise RecipeError(f"no YOLO {name!r}; there are {', '.join(DESIGNS)}")
    known = DESIGNS[name]
    design = Design(
        known.layers,
        known.size,
        known.anchors,
        known.classes,
        known.heads,
        known.coarsest,
        known.width_multiple if width_multiple is None else width_multiple,
        known.depth_multiple if depth_multiple is None else depth_multiple,
    )
    classes = known.classes if classes is None else classes
    anchors = known.anchors if anchors is None else tuple(anchors)
    width = width or height or known.size
    height = height or width
    _check(name, design, classes, anchors, width, height)
    writer = _Writer(design, classes, anchors, width, height)
    design.layers(writer)
    return "\n".join(writer.sections)


def _check(name: str, design: Design, classes: int, anchors: Sequence[Number], width: int, height: int) -> None:
    if classes < 1:
        raise RecipeError(f"{name}: classes={classes} wants 1 or more")
    if min(width, height) < 1 or width % design.coarsest or height % design.coarsest:
        raise RecipeError(f"{name}: an image of {width} × {height} wants multiples of {design.coarsest}")
    if not design.anchors:
        if anchors:
            raise RecipeError(f"{name} has no anchors")
        if width != height:
            raise RecipeError(f"{name}: an image of {width} × {height} wants the same side twice")
    elif not anchors or len(anchors) % (2 * design.heads) or min(anchors) <= 0:
        raise RecipeError(
            f"{name}: {len(anchors)} numbers for anchors; it wants a width and a height above 0 each, as many for each "
            f"of its {design.heads} heads"
        )
    if design.width_multiple <= 0 or design.depth_multiple <= 0:
        raise RecipeError(f"{name}: width_multiple and depth_multiple want numbers above 0")


def _yolov1(net: _Writer) -> None:
    """Fig. 3. The dropout is sec. 2.2's."""
    net.conv(64, 7, 2)
    net.maxpool()
    net.conv(192, 3)
    net.maxpool()
    net.convs(128, 256, 256, 512)
    net.maxpool()
    net.convs(*(256, 512) * net.repeated(4), 512, 1024)
    net.maxpool()
    net.convs(*(512, 1024) * net.repeated(2))
    for stride in (1, 2, 1, 1):
        net.conv(1024, 3, stride)
    net.add("connected", output=net.scaled(4096), activation="leaky")
    net.add("dropout", probability=0.5)
    net.detection(net.size[0] // 64)


def _yolov1_tiny(net: _Writer) -> None:
    for filters in (16, 32, 64, 128, 256, 512):
        net.conv(filters, 3)
        net.maxpool()
    net.conv(1024, 3)
    net.conv(256, 3)
    net.detection(net.size[0] // 64)


def _yolov2(net: _Writer) -> None:
    """Darknet-19 (table 6), and what sec. 2 puts on it: the passthrough brings 26 × 26 cells to 13 × 13."""
    net.conv(32, 3)
    net.maxpool()
    net.conv(64, 3)
    for filters, pairs in ((128, 1), (256, 1), (512, 2), (1024, 2)):
        fine = net.maxpool() - 1
        net.conv(filters, 3)
        net.convs(*(filters // 2, filters) * net.repeated(pairs))
    net.conv(1024, 3)
    coarse = net.conv(1024, 3)
    net.route(fine)
    net.conv(64, 1)
    passed = net.add("reorg", stride=2)
    net.route(passed, coarse)
    net.conv(1024, 3)
    net.region()


def _tiny_trunk(net: _Writer) -> int:
    """Six poolings, the last with stride 1. Returns the last layer with stride 16."""
    for filters in (16, 32, 64, 128):
        net.conv(filters, 3)
        net.maxpool()
    fine = net.conv(256, 3)
    net.maxpool()
    net.conv(512, 3)
    net.maxpool(2, 1)
    net.conv(1024, 3)
    return fine


def _yolov2_tiny(net: _Writer) -> None:
    _tiny_trunk(net)
    net.conv(512, 3)
    net.region()


def _darknet53(net: _Writer) -> list[int]:
    """Table 1 up to the mean. Returns the last layer of each of the five stages."""
    net.conv(32, 3)
    ends: list[int] = []
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        net.conv(filters, 3, 2)
        for _ in range(net.repeated(blocks)):
            net.convs(filters // 2, filters)
            net.add("shortcut", **{"from": -3, "activation": "linear"})
        ends.append(net.last)
    return ends


def _yolov3(net: _Writer, pools: Sequence[int] = ()) -> None:
    """Heads at strides 32, 16 and 8, the finer ones on the coarser ones' maps (sec. 2.3)."""
    *_, fine, middle, _ = _darknet53(net)
    each = len(net.anchors) // 6
    for level, (filters, beside) in enumerate(((512, None), (256, middle), (128, fine))):
        if beside is not None:
            net.conv(filters, 1)
            up = net.add("upsample", stride=2)
            net.route(up, beside)
        net.convs(filters, 2 * filters, filters)
        if pools and level == 0:
            _spp(net, pools)
            net.conv(filters, 1)
        net.conv(2 * filters, 3)
        last = net.conv(filters, 1)
        net.conv(2 * filters, 3)
        net.yolo(range((2 - level) * each, (3 - level) * each))
        if level < 2:
            net.route(last)


def _spp(net: _Writer, pools: Sequence[int]) -> None:
    """Maxima in windows of several sizes beside the map itself, the largest window first."""
    source = net.last
    made: list[int] = []
    for size in pools:
        if made:
            net.route(source)
        made.append(net.maxpool(size, 1))
    net.route(*reversed(made), source)


def _yolov3_spp(net: _Writer) -> None:
    _yolov3(net, (5, 9, 13))


def _yolov3_tiny(net: _Writer) -> None:
    fine = _tiny_trunk(net)
    each = len(net.anchors) // 4
    last = net.conv(256, 1)
    net.conv(512, 3)
    net.yolo(range(each, 2 * each))
    net.route(last)
    net.conv(128, 1)
    up = net.add("upsample", stride=2)
    net.route(up, fine)
    net.conv(256, 3)
    net.yolo(range(each))


def _section(kind: str, **options: object) -> str:
    return f"[{kind}]\n" + "".join(f"{name}={value}\n" for name, value in options.items())


def _listed(numbers: Sequence[Number]) -> str:
    return ",".join(f"{number:.10g}" for number in numbers)


DESIGNS: dict[str, Design] = {
    "yolov1": Design(_yolov1, 448, classes=20, coarsest=64),
    "yolov1-tiny": Design(_yolov1_tiny, 448, classes=20, coarsest=64),
    "yolov1-small": Design(_yolov1_tiny, 256, classes=20, coarsest=64, width_multiple=0.5),
    "yolov2": Design(_yolov2, 416, V2_ANCHORS),
    "yolov2-tiny": Design(_yolov2_tiny, 416, V2_ANCHORS),
    "yolov2-small": Design(_yolov2, 192, V2_ANCHORS, width_multiple=0.25),
    "yolov3": Design(_yolov3, 416, V3_ANCHORS, heads=3),
    "yolov3-spp": Design(_yolov3_spp, 608, V3_ANCHORS, heads=3),
    "yolov3-tiny": Design(_yolov3_tiny, 416, V3_TINY_ANCHORS, heads=2),
    "yolov3-small": Design(_yolov3, 192, V3_ANCHORS, heads=3, width_multiple=0.25, depth_multiple=0.25),
    "yolov3-spp-small": Design(_yolov3_spp, 192, V3_ANCHORS, heads=3, width_multiple=0.25, depth_multiple=0.25),
}
"""The published networks by name, and small ones."""
