"""What a person touches: a trained or published two-tower model that embeds, compares and classifies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from odonata.align.assets import Assets
from odonata.align.dual_encoder import DualEncoder
from odonata.align.inputs import image_inputs
from odonata.data.any_picture import Picture, as_tensor, name_of, parts_of, several
from odonata.engine.checkpoint import weights_file
from odonata.errors import DataError, WeightsError
from odonata.metrics.zeroshot import class_embeddings
from odonata.nn.lora import add_lora, merge_lora
from odonata.weights.published import LAYOUTS
from odonata.weights.read import is_torchscript, read_json, read_state


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture.

    `probabilities` sum to 1 for models trained with a softmax; for sigmoid models each label has its own.
    """

    image: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def best(self) -> str:
        """The most probable label."""
        return self.labels[max(range(len(self.labels)), key=self.probabilities.__getitem__)]

    def ranked(self) -> list[tuple[str, float]]:
        """Return labels with their probabilities, the most probable first."""
        return sorted(zip(self.labels, self.probabilities, strict=True), key=lambda pair: -pair[1])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"image": self.image, "labels": [{"label": k, "probability": v} for k, v in self.ranked()]}


class TwoTowerPredictor:
    """A pair of towers with everything needed to use them.

    Args:
        model: the towers.
        assets: preprocessing and tokenizer; the tokenizer may be absent from published weights.
        name: what reports call it.
        device: where to compute.
        notes: what was inferred when the weights were read.
    """

    def __init__(
        self, model: DualEncoder, assets: Assets, name: str, device: torch.device, notes: Sequence[str] = ()
    ) -> None:
        self.model = model.to(device).eval()
        self.assets, self.name, self.device, self.notes = assets, name, device, list(notes)

    @torch.inference_mode()
    def embed_image(self, images: Picture | Iterable[Picture], batch_size: int = 64) -> Float[Tensor, "images dim"]:
        """Return unit-length embeddings, one row a picture.

        Args:
            images: a path, PIL picture or uint8 [3, height, width] tensor, or several.
            batch_size: pictures encoded at a time.

        Raises:
            DataError: a picture cannot be read.
        """
        rows = [
            self.embed_prepared([self.prepare(as_tensor(picture)) for picture in part])
            for part in parts_of(several(images), batch_size)
        ]
        if not rows:
            raise DataError("no pictures to embed")
        return torch.cat(rows)

    @torch.inference_mode()
    def embed_text(self, texts: str | Iterable[str], batch_size: int = 256) -> Float[Tensor, "texts dim"]:
        """Return unit-length embeddings, a row a text; equal texts are encoded once, those of like length together."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise DataError("no texts to embed")
        unique = sorted(set(texts))  # texts that begin alike come together
        rows = [
            self.model.encode_text(self.assets.tokenize(part).to(self.device), share_prefixes=True).cpu()
            for part in parts_of(unique, batch_size)
        ]
        place = {text: number for number, text in enumerate(unique)}
        return torch.cat(rows)[[place[text] for text in texts]]

    def embed_classes(
        self, classes: Sequence[str], templates: Sequence[str] = ("{}",), batch_size: int = 256
    ) -> Float[Tensor, "classes dim"]:
        """Return one unit-length embedding a class: the mean over prompt templates (2103.00020, sec. 3.1.4)."""
        embed = partial(self.embed_text, batch_size=batch_size)
        # All prompts at once: `embed_text` batches them by their beginnings.
        return class_embeddings(embed, classes, templates, batch=len(classes) * len(templates))

    @torch.inference_mode()
    def predict(
        self, images: Picture | Iterable[Picture], labels: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> list[Prediction]:
        """Return for each picture how well each label describes it.

        Args:
            images: one picture or several, as for `embed_image`.
            labels: sentences, or class names together with `templates`.
            templates: prompts with `{}` for the label; their embeddings are averaged.

        Raises:
            DataError: no labels, or a picture cannot be read.
        """
        if not labels:
            raise DataError("predict needs labels: what might the picture show?")
        pictures = several(images)
        classes = self.embed_classes(labels, templates).to(self.device)
        logits = self.model.logits(self.embed_image(pictures).to(self.device), classes).cpu()
        scores = logits.sigmoid() if self.model.logit_bias is not None else logits.softmax(-1)
        return [
            Prediction(name_of(picture, number), tuple(labels), tuple(row.tolist()))
            for number, (picture, row) in enumerate(zip(pictures, scores, strict=True))
        ]

    def prepare(self, picture: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """Return a picture as `embed_prepared` takes it; safe to call in threads."""
        return picture if self.assets.max_patches else self.assets.preprocess.pixels(picture)

    @torch.inference_mode()
    def embed_prepared(self, pictures: Sequence[UInt8[Tensor, "3 height width"]]) -> Float[Tensor, "images dim"]:
        """Return unit-length embeddings of pictures that went through `prepare`."""
        inputs = image_inputs(list(pictures), self.assets)
        return self.model.encode_image(**{k: v.to(self.device) for k, v in inputs.items()}).float().cpu()

    def convert(self, folder: Path, layout: str = "odonata") -> list[Path]:
        """Write the model in Odonata's layout or a published one and return the files.

        Raises:
            WeightsError: the layout is unknown or cannot say what this model is, or the folder holds something already.
        """
        from odonata.align.convert import convert

        return convert(self, folder, layout)


def recognises(path: Path) -> bool:
    """Whether a folder of Odonata's, or published weights, hold a model of this room.

    Raises:
        WeightsError: the file cannot be read.
    """
    if (path / "model.json").is_file():
        return not {"tower", "detector", "segmenter"} & read_json(path / "model.json").keys()
    if is_torchscript(path):
        return True  # so OpenAI publishes CLIP, and nobody else publishes what is known here
    raw = read_state(path)
    return is_catlip(raw.config or {}) or any(layout.recognises(raw) for layout in LAYOUTS.values())


def is_catlip(config: dict[str, Any]) -> bool:
    """Whether a configuration is CatLIP's: a transformers' ViT with several labels a picture. Any other classifies."""
    return config.get("model_type") == "vit" and config.get("problem_type") == "multi_label_classification"


def load(path: Path, method: str | None, device: torch.device, **options: Any) -> Any:
    """Return the predictor of a run of this room, of an Odonata model folder, or of published weights.

    Raises:
        WeightsError: the weights cannot be read or do not fit.
        RunError: the run has no checkpoint yet.
    """
    if method == "catlip":
        from odonata.align.catlip_predictor import load_catlip

        return load_catlip(path, device, options.get("which", "best"))
    if method is not None:
        return _load_run(path, method, device, options.get("which", "best"))
    if (path / "model.json").is_file():
        if "nouns" in read_json(path / "model.json"):
            from odonata.align.convert_catlip import load_folder

            return load_folder(path, device)
        return _load_folder(path, device)
    if (path / "config.json").is_file() and is_catlip(read_json(path / "config.json")):
        from odonata.align.convert_catlip import load_vit

        return load_vit(path, device)
    from odonata.align.convert import load_published

    return load_published(path, device, **options)


def _load_run(folder: Path, method: str, device: torch.device, which: str) -> TwoTowerPredictor:
    assets = Assets.load(folder / "assets")
    file = weights_file(folder, which)
    state = {k.removeprefix("model."): v for k, v in read_state(file).state.items() if k.startswith("model.")}
    return TwoTowerPredictor(towers(assets, state, file), _merged(assets), f"{method} ({folder.name})", device)


def _load_folder(folder: Path, device: torch.device) -> TwoTowerPredictor:
    assets, file = Assets.load(folder), folder / "model.safetensors"
    if not file.is_file():
        raise WeightsError(f"{folder}: model.json is there, but {file.name} is missing")
    return TwoTowerPredictor(towers(assets, read_state(file).state, file), _merged(assets), folder.name, device)


def _merged(assets: Assets) -> Assets:
    return dataclasses.replace(assets, lora_rank=0)


def towers(assets: Assets, state: dict[str, Tensor], file: Path) -> DualEncoder:
    """Return the towers with these weights; low-rank updates are merged into what they update.

    Raises:
        WeightsError: keys or shapes do not fit; names some.
    """
    model = DualEncoder(assets.config)
    if assets.lora_rank:
        add_lora(model, assets.lora_rank, assets.lora_alpha)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{file}: the weights do not fit the architecture: {str(error).splitlines()[1].strip()}"
        ) from error
    if assets.lora_rank:
        merge_lora(model)
    return model
