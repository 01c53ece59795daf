"""Two-tower models from published checkpoints, and back into published layouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odonata.align.dual_encoder import DualEncoder, config_from_dict, config_to_dict
from odonata.data.preprocess import CLIP, NAFLEX, SIGLIP_BIG_VISION, Preprocess
from odonata.errors import WeightsError
from odonata.weights.maps import check_fit
from odonata.weights.published import Published, read_published, write_published


def load_dual_encoder(
    path: str | Path,
    layout: str | None = None,
    *,
    allow_torchscript: bool = False,
    quick_gelu: bool | None = None,
    strict: bool = True,
) -> tuple[DualEncoder, Published]:
    """Builds a model from a published CLIP or SigLIP checkpoint, in evaluation mode and float32.

    Args:
        path, layout, allow_torchscript, quick_gelu, strict: as in `odonata.weights.published.read_published`.

    Returns:
        The model, and what was read: preprocessing, tokenizer files, notes on all that was inferred.

    Raises:
        WeightsError: the checkpoint cannot be read, or does not fit what its configuration says.
    """
    published = read_published(path, layout, allow_torchscript=allow_torchscript, quick_gelu=quick_gelu, strict=strict)
    try:
        config = config_from_dict(published.config)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    model = DualEncoder(config)
    check_fit(published.state, model.state_dict(), str(path))
    model.load_state_dict(published.state)
    return model.eval(), published


def save_dual_encoder(
    folder: str | Path,
    model: DualEncoder,
    layout: str = "hf",
    *,
    preprocess: Preprocess | None = None,
    tokenizer_files: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a model in a published layout.

    Args:
        folder, layout, tokenizer_files, overwrite: as in `odonata.weights.published.write_published`.
        model: the model; adapters must be merged.
        preprocess: how its images are prepared; goes into the layout's preprocessing file.

    Returns:
        Files written.

    Raises:
        WeightsError: the layout cannot say what this model is, or the folder is not empty.
    """
    return write_published(
        folder,
        model.state_dict(),
        config_to_dict(model.config),
        layout,
        preprocess=_written(preprocess, layout, model),
        tokenizer_files=tokenizer_files,
        overwrite=overwrite,
    )


def preprocess_of(published: Published) -> Preprocess:
    """Returns the preprocessing that a published checkpoint expects.

    Raises:
        WeightsError: the checkpoint has no preprocessing file and its layout no convention.
    """
    if published.preprocess is None:
        raise WeightsError(
            f"the {published.layout} checkpoint has no preprocessing file; choose one of odonata.data.preprocess"
        )
    source, config = published.preprocess["source"], published.preprocess["config"]
    size = published.config["visual"]["image_size"]
    if source == "open_clip":
        return Preprocess.from_open_clip({"size": size} | config)
    if source == "hf":
        naflex = published.config["visual"].get("positions") == "naflex"
        return _naflex_of(config) if naflex else Preprocess.from_hf_preprocessor_config(config)
    preset = {"openai": CLIP, "big_vision": SIGLIP_BIG_VISION, "naflex": NAFLEX}[source]
    return Preprocess.from_dict(preset.to_dict() | {"size": size})


def _naflex_of(config: Mapping[str, Any]) -> Preprocess:
    given = {name: config[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in config}
    return Preprocess.from_dict(NAFLEX.to_dict() | given)


def _written(preprocess: Preprocess | None, layout: str, model: DualEncoder) -> dict[str, Any] | None:
    if preprocess is None:
        return None
    if layout == "open_clip":
        return preprocess.to_open_clip()
    visual = config_to_dict(model.config)["visual"]
    if visual.get("positions") != "naflex":
        return preprocess.to_hf_preprocessor_config()
    tokens = (visual["image_size"] // visual["patch_size"]) ** 2
    return {
        "image_processor_type": "Siglip2ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "patch_size": visual["patch_size"],
        "max_num_patches": tokens,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": preprocess.rescale,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
