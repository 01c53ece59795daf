"""What people touch: a detector with its conventions and its table of categories, ready for pictures of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from odonata.data.any_picture import Picture, as_tensor, is_one, name_of, parts_of, several
from odonata.data.detections import Detections
from odonata.data.framing import Framing, Place
from odonata.data.object_batches import ObjectBatch
from odonata.data.objects import Category
from odonata.detect.assets import DetectorAssets
from odonata.detect.detector import Detector
from odonata.detect.methods import CONFIG_OF
from odonata.detect.scale_policy import Look, in_range, looks, windows
from odonata.engine.checkpoint import weights_file
from odonata.engine.config_file import from_plain
from odonata.errors import OdonataError, RecipeError, WeightsError
from odonata.ops.nms import batched_nms, nmm, soft_nms
from odonata.weights.detectors import is_model, read_model, write_model
from odonata.weights.layout import Files
from odonata.weights.maps import check_fit
from odonata.weights.published import write_folder
from odonata.weights.read import read_json, read_state

Merge = Literal["nms", "nmm"]
SNIP_SIGMA = 0.55
"""Width of the soft-NMS that merges a pyramid's answers (SNIPER's code)."""


@dataclass
class DetectorPredictor:
    """A detector in evaluation mode.

    Args:
        detector: the network.
        assets: its conventions and categories.
        device: where it is.
        name: of the method, or the source of the weights.
        notes: what was inferred in reading.
    """

    detector: Detector
    assets: DetectorAssets
    device: torch.device
    name: str = ""
    notes: list[str] = field(default_factory=list[str])

    @property
    def categories(self) -> tuple[Category, ...]:
        """The table of categories."""
        return self.assets.categories

    @property
    def framing(self) -> Framing:
        """What pictures are scaled to."""
        return self.assets.config.framing

    def predict(self, pictures: Picture | Sequence[Picture], **options: Any) -> Any:
        """Return the `Detections` of one picture, or a list of them for several; the options are those of `find`."""
        answers = list(self.find(several(pictures), **options))
        return answers[0] if is_one(pictures) else answers

    def find(
        self,
        pictures: Sequence[Picture],
        *,
        score: float | None = None,
        tile: int = 0,
        overlap: float | None = None,
        merge: Merge = "nms",
        batch_size: int = 4,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> Iterator[Detections]:
        """Yield what is found in each picture, in pixels of the picture as it lies on disk.

        Args:
            pictures: of any size.
            score: least score of a detection, 0 to 1; None: the detector's own.
            tile: side of windows, in the picture's own pixels, that it is looked at in (0 = whole, or as it was
                trained).
            overlap: share of a window that the next repeats, 0 to below 1; None: as it was trained.
            merge: how the answers of windows become one: "nms" keeps the surest, "nmm" also enlarges it to what it
                suppresses, so that objects cut by a window become whole.
            batch_size: pictures, or windows, that are computed together.
            precision: autocast type.

        Raises:
            RecipeError: a threshold outside [0, 1], or an impossible tile.
            DataError: a picture cannot be read.
        """
        config = self.assets.config
        if score is not None and not 0 <= score <= 1:
            raise RecipeError(f"the score threshold is {score}; it lies in [0, 1]")
        if tile < 0 or (overlap is not None and not 0 <= overlap < 1):
            raise RecipeError(f"tile is {tile} and overlap {overlap}; want tile >= 0 and overlap in [0, 1)")
        side = tile or (config.tile if config.scale_policy == "tiles" else 0)
        shared = config.tile_overlap if overlap is None else overlap
        with self._settings(score, precision):
            number = 0
            for part in parts_of(pictures, batch_size):
                images = [as_tensor(picture) for picture in part]
                if side:
                    answers = [self._tiled(image, side, shared, merge, batch_size) for image in images]
                else:
                    answers = self._whole(images)
                for picture, answer in zip(part, answers, strict=True):
                    named = replace(answer, image=name_of(picture, number), categories=self.categories)
                    number += 1
                    yield named.to("cpu")

    @contextlib.contextmanager
    def _settings(self, score: float | None, precision: str) -> Generator[None]:
        """Another threshold for a while, without gradients, in a precision."""
        options = self.detector.options
        if score is not None:
            self.detector.options = replace(options, score_threshold=score)
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")
        try:
            with torch.no_grad(), cast:
                yield
        finally:
            self.detector.options = options

    def _whole(self, images: Sequence[UInt8[Tensor, "3 height width"]]) -> list[Detections]:
        """Look at whole pictures, at every size that the policy asks for."""
        ways = looks(self.assets.config)
        seen = [self._look(images, look) for look in ways]
        if len(ways) == 1:
            return seen[0]
        return [self._merged_sizes(list(parts)) for parts in zip(*seen, strict=True)]

    def _look(self, images: Sequence[UInt8[Tensor, "3 height width"]], look: Look) -> list[Detections]:
        batch, places = frame_batch(images, look.framing, self.device)
        answers: list[Detections] = []
        for answer, place in zip(self.detector.predict(batch), places, strict=True):
            back = to_picture(answer, place)
            if look.range is not None:
                back = back.take(in_range(back.boxes, 1.0, look.range))
            answers.append(back)
        return answers

    def _merged_sizes(self, parts: list[Detections]) -> Detections:
        """One answer from those of several sizes: soft-NMS within each class (SNIP), or NMS for a plain pyramid."""
        config, joined = self.assets.config, join(parts)
        if not len(joined):
            return joined
        if config.scale_policy == "snip":
            least = self.detector.options.score_threshold
            chosen, scores = soft_nms(joined.boxes, joined.scores, joined.labels, sigma=SNIP_SIGMA, minimum_score=least)
            return replace(joined.take(chosen), scores=scores).take(torch.arange(len(chosen)) < config.max_detections)
        chosen = batched_nms(joined.boxes, joined.scores, joined.labels, config.nms_threshold)
        return joined.take(chosen[: config.max_detections])

    def _tiled(
        self, image: UInt8[Tensor, "3 height width"], tile: int, overlap: float, merge: Merge, batch: int
    ) -> Detections:
        """Look at a picture in overlapping windows."""
        height, width = image.shape[-2:]
        cut = windows(height, width, tile, overlap)
        parts: list[Detections] = []
        for start in range(0, len(cut), batch):
            some = cut[start : start + batch]
            answers = self._whole([image[:, t : t + h, x : x + w] for t, x, h, w in some])
            parts += [
                shifted(answer, top, left, (height, width))
                for answer, (top, left, _, _) in zip(answers, some, strict=True)
            ]
        joined = join(parts)
        if len(cut) == 1 or not len(joined):
            return joined
        threshold = self.assets.config.nms_threshold
        if merge == "nms":
            return joined.take(batched_nms(joined.boxes, joined.scores, joined.labels, threshold))
        chosen, boxes = nmm(joined.boxes, joined.scores, threshold, joined.labels)
        return replace(joined.take(chosen), boxes=boxes)

    def convert(self, folder: Path, layout: str) -> list[Path]:
        """Write the detector in a published layout, or in Odonata's own; return the files.

        Raises:
            WeightsError: the layout cannot say what this detector is, or the folder is not empty.
        """
        state = dict(self.detector.state_dict())
        if layout == "odonata":
            return write_folder(folder, Files("model.safetensors", state, {"model.json": self.assets.to_plain()}))
        table = [(category.id, category.name) for category in self.categories]
        return write_folder(folder, write_model(state, self.assets.method, self.assets.config, table, layout))


def frame_batch(
    images: Sequence[UInt8[Tensor, "3 height width"]], framing: Framing, device: torch.device
) -> tuple[ObjectBatch, list[Place]]:
    """Pictures without objects as a batch in their frames, and where each lies in its frame."""
    framed = [framing.frame(image) for image in images]
    sizes = torch.tensor([pixels.shape[-2:] for pixels, _ in framed])
    height, width = (-(-int(side) // framing.divisor) * framing.divisor for side in sizes.amax(0))
    padded = [F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p, _ in framed]
    count = len(images)
    batch = ObjectBatch(
        images=torch.stack(padded).to(device),
        sizes=sizes.to(device),
        boxes=[torch.zeros(0, 4, device=device)] * count,
        labels=[torch.zeros(0, dtype=torch.int64, device=device)] * count,
        ignore=[torch.zeros(0, dtype=torch.bool, device=device)] * count,
        scales=torch.tensor([(p.scale[0] * p.scale[1]) ** 0.5 for _, p in framed], device=device),
        indices=torch.arange(count, device=device),
    )
    return batch, [place for _, place in framed]


def to_picture(answer: Detections, place: Place) -> Detections:
    """Detections of a frame in pixels of the picture; masks and points move with the boxes."""
    boxes, masks, points = place.to_picture(answer.boxes), answer.masks, answer.points
    if points is not None:
        offset, scale = points.new_tensor(place.offset), points.new_tensor(place.scale)
        points = (points - offset) / scale
    if masks is not None:
        masks = masks_to_picture(masks, place)
    return replace(answer, boxes=boxes, masks=masks, points=points, size=place.size)


def masks_to_picture(masks: Tensor, place: Place) -> Tensor:
    """Masks of a frame as masks of the picture."""
    left, top = round(place.offset[0]), round(place.offset[1])
    height, width = round(place.size[0] * place.scale[1]), round(place.size[1] * place.scale[0])
    inside = masks[:, top : top + height, left : left + width]
    if not len(inside):
        return masks.new_zeros((0, *place.size))
    grown = F.interpolate(inside[None].float(), place.size, mode="bilinear", align_corners=False)[0]
    return grown > 0.5


def shifted(answer: Detections, top: int, left: int, size: tuple[int, int]) -> Detections:
    """Detections of a window as detections of the picture of (height, width)."""
    offset = answer.boxes.new_tensor([left, top, left, top])
    masks = answer.masks
    if masks is not None:
        height, width = masks.shape[-2:]
        masks = F.pad(masks, (left, size[1] - left - width, top, size[0] - top - height))
    points = None if answer.points is None else answer.points + offset[:2]
    return replace(answer, boxes=answer.boxes + offset, masks=masks, points=points, size=size)


def join(parts: Sequence[Detections]) -> Detections:
    """The detections of several looks at one picture in one list."""
    first = parts[0]
    masks = None if first.masks is None else torch.cat([part.masks for part in parts if part.masks is not None])
    points = None if first.points is None else torch.cat([part.points for part in parts if part.points is not None])
    return replace(
        first,
        boxes=torch.cat([part.boxes for part in parts]),
        scores=torch.cat([part.scores for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        masks=masks,
        points=points,
        extra={key: torch.cat([part.extra[key] for part in parts]) for key in first.extra},
    )


def recognises(path: Path) -> bool:
    """Whether a folder of Odonata's, or published weights, hold a detector.

    Raises:
        WeightsError: the file cannot be read.
    """
    if (path / "model.json").is_file():
        return "detector" in read_json(path / "model.json")
    return is_model(path, "detect")


def load(path: Path, method: str | None, device: torch.device, **options: Any) -> DetectorPredictor:
    """Return what detects with a run of this room, a folder of Odonata's, or a published detector.

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
        return _filled(DetectorAssets.load(path / "assets"), weights_file(path, which), path, device, which)
    if (path / "model.json").is_file():
        return _filled(DetectorAssets.load(path), path / "model.safetensors", path, device, "")
    published = read_model(path, "detect")
    try:
        config = from_plain(published.plan.config, CONFIG_OF[published.method](), str(path))
    except OdonataError as error:
        raise WeightsError(str(error)) from error
    table = published.plan.categories or [(number, f"class {number}") for number in range(published.plan.classes)]
    assets = DetectorAssets(published.method, config, tuple(Category(id_, name) for id_, name in table))
    detector = assets.build()
    # Old files do not count batches; the counter starts at 0, which changes no answer.
    wanted = detector.state_dict()
    state = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | published.state
    check_fit(state, wanted, str(path))
    detector.load_state_dict(state)
    source = published.plan.source
    return DetectorPredictor(detector.eval().to(device), assets, device, source, published.notes)


def _filled(assets: DetectorAssets, file: Path, where: Path, device: torch.device, which: str) -> DetectorPredictor:
    detector = assets.build()
    state = read_state(file).state
    check_fit(state, detector.state_dict(), str(where))
    detector.load_state_dict(state)
    note = f"{which} checkpoint of a {assets.method} run" if which else f"detector of {where}"
    return DetectorPredictor(detector.eval().to(device), assets, device, assets.method, [note])
