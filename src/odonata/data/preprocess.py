"""From a picture to the numbers that a published network expects: resize, crop, scale, normalise.

The presets give the same bits as the published pipelines when the Pillow backend is used:

- `CLIP`: OpenAI's and open_clip's (shortest side by Pillow bicubic, centre crop rounded as torchvision rounds it). With
  `crop_rounding="hf"` it is transformers' `CLIPImageProcessor`; the two differ by one pixel for about 15 % of
  photographs.
- `SIGLIP`: transformers' `SiglipImageProcessor` (bicubic, aspect not kept).
- `SIGLIP_BIG_VISION`: what the weights were trained with, `tf.image.resize` bilinear without antialiasing.
- `IMAGENET`: the usual classification evaluation, 256 → 224.

`naflex_patches` is SigLIP 2's NaFlex (arXiv 2502.14786, section 2.4): aspect kept, at most so many patches.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from odonata.data.images import to_tensor
from odonata.data.resize import Backend, CropRounding, Interpolation, center_crop, letterbox, resize, shortest_side_size
from odonata.errors import DataError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

# PIL.Image.Resampling's numbers, which transformers stores in preprocessor_config.json.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocess:
    """Deterministic preprocessing of one picture.

    Args:
        size: side, or (height, width), of the result in pixels.
        resize: "shortest" scales the shorter side to the size, "squash" both (aspect not kept), "letterbox" fits and
            pads.
        resize_size: for "shortest": the side before the crop where it differs (ImageNet: 256 before 224).
        interpolation: the filter.
        crop: for "shortest": cut the centre; without it the result keeps its longer side.
        crop_rounding: see `odonata.data.resize.center_crop`.
        mean, std: of each channel, in units of the rescaled values.
        rescale: factor applied to bytes before the mean is taken away.
        backend: "pillow" for published numbers, "torch" for speed.
        antialias: see `odonata.data.resize.resize`.
        fill: grey level of the letterbox's margins.
    """

    size: int | tuple[int, int] = 224
    resize: Literal["shortest", "squash", "letterbox"] = "shortest"
    resize_size: int | None = None
    interpolation: Interpolation = "bicubic"
    crop: bool = True
    crop_rounding: CropRounding = "torchvision"
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    rescale: float = 1 / 255
    backend: Backend = "pillow"
    antialias: bool = True
    fill: int = 0

    def __post_init__(self) -> None:
        if min(self.height_width) < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std must be positive, got {self.std}")

    @property
    def height_width(self) -> tuple[int, int]:
        """The result's (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, image: Image.Image | UInt8[Tensor, "3 height width"]) -> Float[Tensor, "3 new_height new_width"]:
        """Preprocess one picture to float32."""
        return self.normalize(self.pixels(image))

    def pixels(self, image: Image.Image | UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """The geometric part alone: resized and cropped bytes."""
        tensor = to_tensor(image) if isinstance(image, Image.Image) else image
        height, width = tensor.shape[-2:]
        size = self.height_width
        if self.resize == "letterbox":
            return letterbox(tensor, size, self.fill, self.interpolation, self.backend)[0]
        if self.resize == "squash":
            return resize(tensor, size, self.interpolation, self.backend, antialias=self.antialias)
        if self.resize_size is None and size[0] != size[1]:
            # Cover the rectangle, as open_clip's ResizeKeepRatio does.
            ratio = min(height / size[0], width / size[1])
            target = round(height / ratio), round(width / ratio)
        else:
            target = shortest_side_size(height, width, self.resize_size or size[0])
        tensor = resize(tensor, target, self.interpolation, self.backend, antialias=self.antialias)
        return center_crop(tensor, size, self.crop_rounding) if self.crop else tensor

    def normalize(
        self, image: UInt8[Tensor, "*batch 3 height width"] | Float[Tensor, "*batch 3 height width"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Scale and normalise bytes. The product is rounded to float32 once, as transformers does, for equal bits."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=image.device)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32, device=image.device)[:, None, None]
        return (image.double() * self.rescale).float().sub_(mean).div_(std).contiguous()

    def denormalize(self, image: Float[Tensor, "*batch 3 height width"]) -> UInt8[Tensor, "*batch 3 height width"]:
        """Bytes again, for showing pictures."""
        mean = torch.tensor(self.mean, device=image.device)[:, None, None]
        std = torch.tensor(self.std, device=image.device)[:, None, None]
        return ((image.float() * std + mean) / self.rescale).round().clamp(0, 255).to(torch.uint8)

    def naflex_patches(
        self, image: Image.Image | UInt8[Tensor, "3 height width"], patch_size: int = 16, max_patches: int = 256
    ) -> tuple[Float[Tensor, "tokens dim"], tuple[int, int]]:
        """`naflex_patches` with this mean, standard deviation and backend."""
        return naflex_patches(image, patch_size, max_patches, normalization=self)

    def to_dict(self) -> dict[str, Any]:
        """All fields, with lists for tuples: what JSON and YAML can hold."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "Preprocess":
        """The inverse of `to_dict`. Raises DataError that names an unknown field."""
        unknown = set(config) - {field.name for field in fields(cls)}
        if unknown:
            raise DataError(f"preprocess: unknown field {sorted(unknown)[0]!r}; known: {[f.name for f in fields(cls)]}")
        fixed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in config.items()
        }
        return cls(**fixed)

    def to_hf_preprocessor_config(self) -> dict[str, Any]:
        """The contents of a transformers `preprocessor_config.json`."""
        if self.resize == "letterbox" or not self.antialias:
            raise DataError("transformers' image processors have no letterbox and no resize without antialiasing")
        height, width = self.height_width
        if self.resize == "shortest" and self.resize_size is None and height != width:
            raise DataError(
                f"transformers cannot cover {height}×{width}; give resize_size, the shorter side to scale to"
            )
        square = {"height": height, "width": width}
        squash = self.resize == "squash"
        return {
            "image_processor_type": "SiglipImageProcessor" if squash else "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": square if squash else {"shortest_edge": self.resize_size or min(height, width)},
            "resample": next(number for number, name in _RESAMPLE.items() if name == self.interpolation),
            **({} if squash else {"do_center_crop": self.crop, "crop_size": square}),
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_hf_preprocessor_config(cls, config: Mapping[str, Any]) -> "Preprocess":
        """Read a transformers `preprocessor_config.json` of the CLIP, SigLIP, BLIP or ViT kind."""
        if not config.get("do_resize", True):
            raise DataError("preprocessor_config: do_resize is false; a network here needs pictures of one size")
        size: Any = config.get("size", 224)
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        # Old files hold a bare number: the shorter side for CLIP, a square for ViT and SigLIP.
        if isinstance(size, int):
            size = {"shortest_edge": size} if "CLIP" in kind else {"height": size, "width": size}
        resample = config.get("resample", 3)
        if resample not in _RESAMPLE:
            raise DataError(f"preprocessor_config: resample {resample!r} is unknown; known: {_RESAMPLE}")
        shortest = size.get("shortest_edge")
        if shortest is None and not {"height", "width"} <= set(size):
            raise DataError(f"preprocessor_config: size {size} needs shortest_edge, or height and width")
        crop = bool(config.get("do_center_crop", shortest is not None and "crop_size" in config))
        target: Any = config.get("crop_size", shortest) if crop else shortest
        if shortest is None:
            target = (size["height"], size["width"])
        elif isinstance(target, Mapping):
            target = (target["height"], target["width"])
        normalized = config.get("do_normalize", True)
        return cls(
            size=target[0] if isinstance(target, tuple) and target[0] == target[1] else target,
            resize="squash" if shortest is None else "shortest",
            resize_size=None if shortest is None or shortest == target or target == (shortest, shortest) else shortest,
            interpolation=_RESAMPLE[resample],
            crop=crop or shortest is None,
            crop_rounding="hf",
            mean=_triple(config.get("image_mean", HALF)) if normalized else (0.0, 0.0, 0.0),
            std=_triple(config.get("image_std", HALF)) if normalized else (1.0, 1.0, 1.0),
            rescale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        )

    def to_open_clip(self) -> dict[str, Any]:
        """The `preprocess_cfg` of an open_clip configuration."""
        mode = {"shortest": "shortest", "squash": "squash", "letterbox": "longest"}[self.resize]
        return {
            "size": self.size if isinstance(self.size, int) else list(self.size),
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": mode,
            "fill_color": self.fill,
        }

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> "Preprocess":
        """Read an open_clip `preprocess_cfg`; what it leaves out is OpenAI's."""
        modes: dict[str, Literal["shortest", "squash", "letterbox"]]
        modes = {"shortest": "shortest", "squash": "squash", "longest": "letterbox"}
        mode = config.get("resize_mode", "shortest")
        if mode not in modes:
            raise DataError(f"preprocess_cfg: resize_mode {mode!r} is unknown; known: {list(modes)}")
        size = config.get("size", 224)
        return cls(
            size=size if isinstance(size, int) else (int(size[0]), int(size[1])),
            resize=modes[mode],
            interpolation=config.get("interpolation", "bicubic"),
            mean=_triple(config.get("mean", CLIP_MEAN)),
            std=_triple(config.get("std", CLIP_STD)),
            fill=int(config.get("fill_color", 0)),
        )


def naflex_patches(
    image: Image.Image | UInt8[Tensor, "3 height width"],
    patch_size: int = 16,
    max_patches: int = 256,
    *,
    normalization: Preprocess | None = None,
) -> tuple[Float[Tensor, "tokens dim"], tuple[int, int]]:
    """Cut a picture, scaled to at most `max_patches` patches with its aspect nearly kept, into flat patches.

    Returns:
        Patches of patch_size² · 3 values in the order (row, column, channel), not padded, and the grid (rows, columns).
        Source: transformers' `Siglip2ImageProcessor`, whose numbers these are bit for bit.
    """
    normalization = normalization or NAFLEX
    tensor = to_tensor(image) if isinstance(image, Image.Image) else image
    height, width = naflex_size(tensor.shape[-2], tensor.shape[-1], patch_size, max_patches)
    pixels = normalization.normalize(resize(tensor, (height, width), "bilinear", normalization.backend))
    rows, columns = height // patch_size, width // patch_size
    grid = pixels.reshape(3, rows, patch_size, columns, patch_size).permute(1, 3, 2, 4, 0)
    return grid.reshape(rows * columns, patch_size * patch_size * 3), (rows, columns)


def naflex_size(height: int, width: int, patch_size: int, max_patches: int, eps: float = 1e-5) -> tuple[int, int]:
    """The largest (height, width), multiples of the patch and of nearly this aspect, within `max_patches` patches."""
    if max_patches < 1:
        raise ValueError(f"max_patches must be at least 1, got {max_patches}")

    def scaled(scale: float, side: int) -> int:
        return max(patch_size, math.ceil(side * scale / patch_size) * patch_size)

    low, high = eps / 10, 100.0
    while high - low >= eps:
        middle = (low + high) / 2
        patches = (scaled(middle, height) // patch_size) * (scaled(middle, width) // patch_size)
        low, high = (middle, high) if patches <= max_patches else (low, middle)
    return scaled(low, height), scaled(low, width)


def _triple(values: Any) -> Triple:
    if isinstance(values, (int, float)):
        return float(values), float(values), float(values)
    if len(values) != 3:
        raise DataError(f"a mean or standard deviation needs 3 channels, got {values}")
    return float(values[0]), float(values[1]), float(values[2])


CLIP = Preprocess()
SIGLIP = Preprocess(resize="squash", crop_rounding="hf", mean=HALF, std=HALF)
SIGLIP_BIG_VISION = Preprocess(
    resize="squash", interpolation="bilinear", mean=HALF, std=HALF, backend="torch", antialias=False
)
IMAGENET = Preprocess(interpolation="bilinear", resize_size=256, mean=IMAGENET_MEAN, std=IMAGENET_STD)
NAFLEX = Preprocess(resize="squash", interpolation="bilinear", mean=HALF, std=HALF)
