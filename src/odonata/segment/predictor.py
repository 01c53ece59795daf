"""What people touch: a segmenter with its conventions and its table of classes, ready for pictures of any size.

A picture is looked at whole or in overlapping windows, at one size or several, mirrored too where that is asked for.
Probabilities are averaged over all looks, and brought to the size of the picture as it lies on disk before the surest
class of each pixel is taken. A picture's answer does not depend on the pictures beside it: only pictures of the same
size are computed together.

Source: hszhao/semseg `tool/test.py`, whose windows overlap by a third, the last ones moved back to the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from odonata.data.any_picture import Picture, as_tensor, is_one, name_of, parts_of, several
from odonata.data.class_map import ClassMap
from odonata.data.framing import Framing
from odonata.data.semantic import VOID, Colour, voc_palette
from odonata.data.semantic_batches import SemanticBatch
from odonata.engine.checkpoint import weights_file
from odonata.engine.config_file import from_plain
from odonata.errors import OdonataError, RecipeError, WeightsError
from odonata.segment.assets import SegmenterAssets
from odonata.segment.methods import CONFIG_OF
from odonata.segment.segmenter import Segmenter
from odonata.weights.detectors import is_model, read_model, write_model
from odonata.weights.layout import Files
from odonata.weights.maps import check_fit
from odonata.weights.published import write_folder
from odonata.weights.read import read_json, read_state


@dataclass(frozen=True)
class Looks:
    """How a picture is looked at; see `SegmenterOptions`."""

    window: int
    overlap: float
    flip: bool
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.window < 0 or not 0 <= self.overlap < 1:
            raise RecipeError(f"tile is {self.window} and overlap {self.overlap}; want tile >= 0, overlap in [0, 1)")
        if not self.scales or min(self.scales) <= 0:
            raise RecipeError(f"scales are {self.scales}; want one factor above 0, or several")


@dataclass
class SegmenterPredictor:
    """A segmenter in evaluation mode.

    Args:
        segmenter: the network.
        assets: its conventions and classes.
        device: where it is.
        name: of the method, or the source of the weights.
        notes: what was inferred in reading.
    """

    segmenter: Segmenter
    assets: SegmenterAssets
    device: torch.device
    name: str = ""
    notes: list[str] = field(default_factory=list[str])

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.assets.classes

    @property
    def palette(self) -> tuple[Colour, ...]:
        """Their colours."""
        return self.assets.palette

    @property
    def framing(self) -> Framing:
        """What pictures are scaled to."""
        return self.assets.config.framing

    def predict(self, pictures: Picture | Sequence[Picture], **options: Any) -> Any:
        """Return the `ClassMap` of one picture, or a list of them for several; the options are those of `find`."""
        answers = list(self.find(several(pictures), **options))
        return answers[0] if is_one(pictures) else answers

    def find(
        self,
        pictures: Sequence[Picture],
        *,
        batch_size: int = 4,
        precision: Literal["fp32", "bf16"] = "fp32",
        tile: int = 0,
        overlap: float | None = None,
        flip: bool | None = None,
        scales: tuple[float, ...] = (),
        with_scores: bool = False,
        score: float | None = None,
        merge: str = "nms",
    ) -> Iterator[ClassMap]:
        """Yield the map of each picture, as large as the picture as it lies on disk.

        Args:
            pictures: of any size.
            batch_size: pictures of one size that are computed together.
            precision: autocast type.
            tile: side of windows in the frame's pixels (0 = as the model has it).
            overlap: share of a window that the next repeats, 0 to below 1; None: as the model has it.
            flip: also look at the mirrored picture; None: as the model has it.
            scales: factors that the picture is looked at with; empty: as the model has them.
            with_scores: keep the probability of each pixel's class.
            score: detectors have a threshold; segmenters have none, so this must stay None.
            merge: how detectors join windows; segmenters always average them, whatever it says.

        Raises:
            RecipeError: a score is given, or an impossible window.
            DataError: a picture cannot be read.
        """
        del merge
        if score is not None:
            raise RecipeError(f"--score is {score}; every pixel gets its surest class, so segmenters have no threshold")
        if batch_size < 1:
            raise RecipeError(f"the batch size is {batch_size}; it must be at least 1")
        config = self.assets.config
        looks = Looks(
            tile or config.window,
            config.window_overlap if overlap is None else overlap,
            config.flip if flip is None else flip,
            scales or config.test_scales,
        )
        number = 0
        for part in parts_of(pictures, batch_size):
            images = [as_tensor(picture) for picture in part]
            alike = len({image.shape for image in images}) == 1
            for group in [images] if alike else [[image] for image in images]:
                for probabilities in self.probabilities(group, looks, precision):
                    best = probabilities.max(0)
                    yield ClassMap(
                        best.indices.to("cpu", torch.uint8),
                        self.classes,
                        self.palette,
                        best.values.cpu() if with_scores else None,
                        name_of(pictures[number], number),
                    )
                    number += 1

    def probabilities(
        self, images: Sequence[UInt8[Tensor, "3 height width"]], looks: Looks, precision: str = "fp32"
    ) -> Float[Tensor, "batch classes height width"]:
        """The probability of each class at every pixel of pictures of one size."""
        size = (images[0].shape[-2], images[0].shape[-1])
        total: Tensor | None = None
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.no_grad(), cast:
            for scale in looks.scales:
                frames = torch.stack([scaled_frame(image, self.framing, scale) for image in images]).to(self.device)
                part = self._windows(frames, looks)
                if part.shape[-2:] != size:
                    part = F.interpolate(part, size, mode="bilinear", align_corners=False)
                total = part if total is None else total + part
        assert total is not None
        return total / len(looks.scales)

    def _windows(self, frames: Float[Tensor, "batch 3 height width"], looks: Looks) -> Tensor:
        """The mean of the answers of all windows that show a pixel."""
        height, width = frames.shape[-2:]
        if not looks.window:
            return self._look(frames, looks.flip, 0)
        total = frames.new_zeros((len(frames), self.segmenter.num_classes, height, width))
        count = frames.new_zeros((height, width))
        for top in starts(height, looks.window, looks.overlap):
            for left in starts(width, looks.window, looks.overlap):
                rows, columns = slice(top, top + looks.window), slice(left, left + looks.window)
                total[:, :, rows, columns] += self._look(frames[:, :, rows, columns], looks.flip, looks.window)
                count[rows, columns] += 1
        return total / count

    def _look(self, frames: Float[Tensor, "batch 3 height width"], flip: bool, side: int) -> Tensor:
        """Probabilities of frames, padded to a side where they are smaller; the mean with the mirrored ones."""
        height, width = frames.shape[-2:]
        padding = (0, max(0, side - width), 0, max(0, side - height))
        answers = [self._answer(frames, padding)]
        if flip:
            answers.append(self._answer(frames.flip(-1), padding).flip(-1))
        return answers[0] if len(answers) == 1 else (answers[0] + answers[1]) / 2

    def _answer(self, frames: Float[Tensor, "batch 3 height width"], padding: tuple[int, int, int, int]) -> Tensor:
        count, (height, width) = len(frames), frames.shape[-2:]
        padded = F.pad(frames, padding)
        batch = SemanticBatch(
            images=padded,
            maps=torch.full((count, *padded.shape[-2:]), VOID, dtype=torch.int64, device=frames.device),
            sizes=torch.tensor([[height, width]] * count, device=frames.device),
            indices=torch.arange(count, device=frames.device),
        )
        return self.segmenter.predict(batch)[:, :, :height, :width]

    def convert(self, folder: Path, layout: str) -> list[Path]:
        """Write the segmenter in a published layout, or in Odonata's own; return the files.

        Raises:
            WeightsError: the layout cannot say what this segmenter is, or the folder is not empty.
        """
        state = dict(self.segmenter.state_dict())
        if layout == "odonata":
            return write_folder(folder, Files("model.safetensors", state, {"model.json": self.assets.to_plain()}))
        table: list[tuple[int | str, str]] = list(enumerate(self.classes))
        return write_folder(folder, write_model(state, self.assets.method, self.assets.config, table, layout))


def scaled_frame(
    image: UInt8[Tensor, "3 height width"], framing: Framing, scale: float
) -> Float[Tensor, "3 new_height new_width"]:
    """A picture in its frame, scaled once more by a factor; values from 0 to 255."""
    if scale == 1:
        return framing.frame(image)[0]
    height, width = framing.scaled_size(image.shape[-2], image.shape[-1])
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along a side; the last one ends at the edge.

    Args:
        length: of the side in pixels.
        window: of a window.
        overlap: share of it that the next repeats at least.

    >>> starts(100, 60, 1 / 3)
    [0, 40]
    """
    step = max(1, -int(-window * (1 - overlap) // 1))
    count = max(0, -(-(length - window) // step)) + 1
    return [max(0, min(number * step, length - window)) for number in range(count)]


def recognises(path: Path) -> bool:
    """Whether a folder of Odonata's, or published weights, hold a segmenter.

    Raises:
        WeightsError: the file cannot be read.
    """
    if (path / "model.json").is_file():
        return "segmenter" in read_json(path / "model.json")
    return is_model(path, "segment")


def load(path: Path, method: str | None, device: torch.device, **options: Any) -> SegmenterPredictor:
    """Return what segments with a run of this room, a folder of Odonata's, or a published segmenter.

    Args:
        path: run folder, or weights.
        method: name of the run's method; None for weights.
        device: where to.
        options: `which` checkpoint of a run (`best`, `last`).

    Raises:
        WeightsError: nothing that this room can read.
    """
    if method is not None:
        which = options.get("which", "best")
        return _filled(SegmenterAssets.load(path / "assets"), weights_file(path, which), path, device, which)
    if (path / "model.json").is_file():
        return _filled(SegmenterAssets.load(path), path / "model.safetensors", path, device, "")
    published = read_model(path, "segment")
    try:
        config = from_plain(published.plan.config, CONFIG_OF[published.method](), str(path))
    except OdonataError as error:
        raise WeightsError(str(error)) from error
    count = published.plan.classes
    table = published.plan.categories or [(number, f"class {number}") for number in range(count)]
    assets = SegmenterAssets(published.method, config, tuple(name for _, name in table), voc_palette(count))
    segmenter = assets.build()
    # Old files do not count batches; the counter starts at 0, which changes no answer.
    wanted = segmenter.state_dict()
    state = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | published.state
    check_fit(state, wanted, str(path))
    segmenter.load_state_dict(state)
    source = published.plan.source
    return SegmenterPredictor(segmenter.eval().to(device), assets, device, source, published.notes)


def _filled(assets: SegmenterAssets, file: Path, where: Path, device: torch.device, which: str) -> SegmenterPredictor:
    segmenter = assets.build()
    state = read_state(file).state
    check_fit(state, segmenter.state_dict(), str(where))
    segmenter.load_state_dict(state)
    note = f"{which} checkpoint of a {assets.method} run" if which else f"segmenter of {where}"
    return SegmenterPredictor(segmenter.eval().to(device), assets, device, assets.method, [note])
