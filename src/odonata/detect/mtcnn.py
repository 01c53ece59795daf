"""MTCNN: three small networks, one after the other, each asked only about what the one before it let pass.

P-Net slides over a pyramid of the picture and rejects nearly everything; R-Net looks at what is left, cut out at 24
pixels; O-Net at the rest at 48 pixels, and places five landmarks. Each answers whether a window holds a face, and how
far the face's sides are from those of the window. The cascade itself stands in `mtcnn_cascade.py`, what the networks
learn from in `mtcnn_training.py`.

Reference: Zhang, Zhang, Li and Qiao, Joint Face Detection and Alignment using Multi-task Cascaded Convolutional
Networks, arXiv:1604.02878; the numbers that the paper leaves open are those of kpzhang93/MTCNN_face_detection_alignment
and of its ports, davidsandberg/facenet and timesler/facenet-pytorch.

Differences:
- P-Net and R-Net have no output of landmarks: the paper trains one and the published weights have none.
- `--origin 1` counts pixels as the original's Matlab does, from 1: crops, sides and the last suppression are then one
  pixel off, and so are boxes. Published weights are read so; our own start at 0.
- Windows that lie wholly outside the picture are dropped. facenet-pytorch drops their pixels and keeps their boxes,
  which then belong to other windows' answers.
- What lies outside the picture is cut off and the rest stretched (facenet-pytorch); the original fills up with zeros.
- One run trains all three networks at once, R-Net and O-Net also on what the ones before them let pass; the paper
  trains them one after the other (`--stage pnet`, then `--stage rnet --init …`, then `--stage onet --init …`).
- It finds one class: sets with several are read with `--data.one-class NAME`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from odonata.data.detections import Detections
from odonata.data.framing import Framing
from odonata.data.object_batches import ObjectBatch
from odonata.detect import mtcnn_cascade, mtcnn_training
from odonata.detect.detector import Detector, DetectorOptions, found
from odonata.errors import RecipeError

Stage = Literal["all", "pnet", "rnet", "onet"]
STAGES = ("pnet", "rnet", "onet")
SIDES = {"pnet": 12, "rnet": 24, "onet": 48}
"""What each network looks at, in pixels."""
PASSED = 500
"""Windows of a level that are kept in training."""


@dataclass(frozen=True)
class MTCNNConfig(DetectorOptions):
    """MTCNN; `--preset published` counts pixels as the published weights do."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"published": {"origin": 1}}

    backbone: str = ""
    """None: the three networks are its own."""
    framing: Framing = field(
        default_factory=lambda: Framing("keep", divisor=1, mean=(0.5, 0.5, 0.5), std=(128 / 255, 128 / 255, 128 / 255))
    )
    """Pictures are not scaled: the pyramid follows from --min-face; values become (x − 127.5) / 128."""
    stage: Stage = "all"
    """Which network learns; the others stay. Prediction goes as far as this one."""
    min_face: float = 20.0
    """Side of the smallest face that is looked for, in pixels."""
    factor: float = 0.709
    """Side of each level of the pyramid by that of the one before."""
    proposal_threshold: float = 0.6
    """Least probability that P-Net lets pass."""
    refine_threshold: float = 0.7
    """What R-Net's probability must be above; O-Net's is the score threshold."""
    score_threshold: float = 0.7
    """What the last network's probability must be above, 0 to 1."""
    level_nms: float = 0.5
    """Overlap above which the less sure of two windows of one level is dropped."""
    proposal_nms: float = 0.7
    """The same for windows of different levels."""
    refine_nms: float = 0.7
    """The same after R-Net, before its regression."""
    nms_threshold: float = 0.7
    """Share of the smaller of two faces above which the less sure is dropped."""
    pre_nms: int = 100_000
    """Windows kept of each level before suppression."""
    max_detections: int = 1000
    """Faces kept of a picture."""
    origin: Literal[0, 1] = 0
    """Number of the first pixel: 1 as in the original's Matlab."""
    windows: int = 30
    """Windows that each network learns from in a picture: to 3 without a face, 1 with one and 1 with a part of one."""
    overlap: Literal["box", "square"] = "box"
    """What a window's overlap with a face is measured by: the face's box (the paper), or the square about it, for
    objects so narrow that no square window overlaps their box enough."""
    positive: float = 0.65
    """Least IoU with a face of a window that holds one."""
    part: float = 0.4
    """Least IoU of a window that teaches sides only."""
    negative: float = 0.3
    """What the IoU of a window without a face is below."""
    hard: float = 0.7
    """Share of a batch's windows, those with the greatest loss, that teach face or not."""
    box_weight: float = 0.5
    """Weight of the loss of the sides; that of face or not is 1."""
    point_weight: float = 1.0
    """Weight of O-Net's loss of the landmarks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone or self.freeze:
            raise RecipeError("--backbone and --freeze are not for MTCNN: its three networks are its own; see --stage")
        if self.scale_policy not in ("single", "tiles"):
            raise RecipeError(f"--scale-policy {self.scale_policy} is not for MTCNN, which has a pyramid of its own")
        if self.min_face <= 0 or not 0 < self.factor < 1:
            raise RecipeError(
                f"--min-face {self.min_face} wants more than 0, --factor {self.factor} 0 to 1, both excluded"
            )
        for name in ("proposal_threshold", "refine_threshold", "level_nms", "proposal_nms", "refine_nms", "hard"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it lies in [0, 1]")
        if not 0 <= self.negative <= self.part <= self.positive <= 1:
            raise RecipeError(
                f"--negative {self.negative}, --part {self.part}, --positive {self.positive} must rise within [0, 1]"
            )
        if self.stage in ("rnet", "onet") and not self.init:
            raise RecipeError(f"--stage {self.stage} needs the networks before it: --init a former run or weights")


class MTCNN(Detector):
    """The three networks.

    Args:
        config: its options.
        num_classes: 1.

    Raises:
        RecipeError: more than one class.
    """

    def __init__(self, config: MTCNNConfig, num_classes: int) -> None:
        super().__init__(config, num_classes)
        if num_classes != 1:
            raise RecipeError(
                f"MTCNN finds one class, and the set has {num_classes}; name it with --data.one-class face"
            )
        self.config = config
        self.pnet, self.rnet, self.onet = ProposalNet(), refine_net(), output_net()
        for name in STAGES:
            self.get_submodule(name).requires_grad_(config.stage in ("all", name))

    @property
    def tower(self) -> nn.Module:
        """See `Detector.tower`; here the first network."""
        return self.pnet

    @property
    def last(self) -> str:
        """The network whose answer is the cascade's."""
        return "onet" if self.config.stage == "all" else self.config.stage

    def cascade(self, pixels: Float[Tensor, "3 height width"]) -> mtcnn_cascade.Faces:
        """What the cascade finds in one picture, values from 0 to 255; how many windows reached each network too."""
        nets = [self.get_submodule(name) for name in STAGES[: STAGES.index(self.last) + 1]]
        options = self.options
        assert isinstance(options, MTCNNConfig)
        return mtcnn_cascade.find(nets, pixels, options)

    def predict(self, batch: ObjectBatch) -> list[Detections]:
        """See `Detector.predict`. The landmarks are two eyes, nose and two corners of the mouth, left before right."""
        answers: list[Detections] = []
        for image, size in zip(batch.images, batch.sizes.tolist(), strict=True):
            faces = self.cascade(image[:, : size[0], : size[1]])
            labels = torch.zeros(len(faces.boxes), dtype=torch.int64, device=faces.boxes.device)
            answers.append(found(faces.boxes, faces.scores, labels, size, points=faces.points))
        return answers

    @torch.no_grad()
    def cascade_counts(self, image: UInt8[Tensor, "3 height width"]) -> dict[str, int]:
        """How many windows of a picture are left after each step.

        Returns:
            `windows` that P-Net looks at; `proposed`: those above its threshold; `rnet` and `onet`: those that R-Net
            and O-Net look at, after suppression; `faces`.
        """
        return self.cascade(image.to(next(self.parameters()).device).float()).counts

    def loss(self, batch: ObjectBatch) -> dict[str, Tensor]:
        """Return the loss of the networks that learn (eq. 4): of face or not, of the sides, of O-Net's landmarks."""
        learning = STAGES if self.config.stage == "all" else (self.config.stage,)
        pictures = [
            mtcnn_training.picture_of(batch, number, self.passed(batch, number, learning))
            for number in range(len(batch))
        ]
        parts: dict[str, Tensor] = {}
        for name in learning:
            chosen = [mtcnn_training.choose(picture, name, self.config) for picture in pictures]
            crops = [
                mtcnn_cascade.crops(picture.table, samples.windows, SIDES[name], self.config)
                for picture, samples in zip(pictures, chosen, strict=True)
            ]
            answers = self.get_submodule(name)(torch.cat(crops))
            parts |= mtcnn_training.losses(name, answers, mtcnn_training.joined(chosen), self.config)
        weights = {"face": 1.0, "box": self.config.box_weight, "points": self.config.point_weight}
        total = [value * weights[name.rsplit("_", 1)[1]] for name, value in parts.items()]
        return {"loss": torch.stack(total).sum(), **parts}

    @torch.no_grad()
    def passed(self, batch: ObjectBatch, number: int, learning: Sequence[str]) -> dict[str, Tensor]:
        """The windows of one picture that the networks before R-Net and O-Net let pass, for those that learn."""
        before = STAGES[: max(STAGES.index(name) for name in learning)]
        if not before:
            return {}
        height, width = batch.sizes[number].tolist()
        # A network that knows nothing yet lets very many windows pass.
        options = dataclasses.replace(self.config, pre_nms=PASSED)
        nets = [self.get_submodule(name) for name in before]
        return mtcnn_cascade.find(nets, batch.images[number, :, :height, :width], options).windows


class Block(nn.Module):
    """A convolution without padding, a rectifier with a learned slope a channel, and maximum pooling where asked.

    Args:
        inputs, outputs: channels.
        kernel: side of the convolution.
        pool: side of the pooling, always by strides of 2, the last window cut off at the edge; 0: none.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, pool: int = 0) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(inputs, outputs, kernel), nn.PReLU(outputs)
        self.pool = nn.MaxPool2d(pool, 2, ceil_mode=True) if pool else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch channels _height _width"]
    ) -> Float[Tensor, "batch outputs _rows _columns"]:
        """Convolve, rectify, pool."""
        return self.pool(self.prelu(self.conv(x)))


class ProposalNet(nn.Module):
    """P-Net: every 12 pixels of a picture of any size, at a stride of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(Block(3, 10, 3, 2), Block(10, 16, 3), Block(16, 32, 3))
        self.face, self.box = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(
        self, x: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 2 rows columns"], Float[Tensor, "batch 4 rows columns"]]:
        """Logits of no face and face, and how far the face's sides are off, in sides of the window."""
        x = self.trunk(x)
        return self.face(x), self.box(x)


class WindowNet(nn.Module):
    """R-Net and O-Net: windows of one size.

    Args:
        blocks: the convolutional layers.
        features: what they end with, channels times positions.
        hidden: width of the layer after them.
        points: landmarks; 0: no such output.
    """

    def __init__(self, blocks: Sequence[Block], features: int, hidden: int, points: int = 0) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*blocks)
        self.hidden, self.prelu = nn.Linear(features, hidden), nn.PReLU(hidden)
        self.face, self.box = nn.Linear(hidden, 2), nn.Linear(hidden, 4)
        if points:
            self.points = nn.Linear(hidden, 2 * points)

    def forward(self, x: Float[Tensor, "batch 3 side side"]) -> tuple[Float[Tensor, "batch _outputs"], ...]:
        """Logits of no face and face, offsets of the sides, and, for O-Net, all x and then all y of the landmarks.

        Offsets and landmarks are in sides of the window.
        """
        # Column by column: the published weights come from Matlab.
        x = self.trunk(x).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu(self.hidden(x))
        answers = self.face(x), self.box(x)
        return (*answers, self.points(x)) if hasattr(self, "points") else answers


def refine_net() -> WindowNet:
    """R-Net, for windows of 24 pixels."""
    return WindowNet([Block(3, 28, 3, 3), Block(28, 48, 3, 3), Block(48, 64, 2)], 576, 128)


def output_net() -> WindowNet:
    """O-Net, for windows of 48 pixels."""
    blocks = [Block(3, 32, 3, 3), Block(32, 64, 3, 3), Block(64, 64, 3, 2), Block(64, 128, 2)]
    return WindowNet(blocks, 1152, 256, points=5)
