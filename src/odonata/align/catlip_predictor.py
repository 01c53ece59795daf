"""A trained CatLIP model in use: which nouns a picture shows, and its features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from odonata.align.build_catlip import NounAssets
from odonata.align.catlip import CatLIP, CatLIPConfig
from odonata.align.predictor import Prediction
from odonata.data.any_picture import Picture, as_tensor, name_of, parts_of, several
from odonata.engine.checkpoint import weights_file
from odonata.errors import DataError, WeightsError
from odonata.weights.read import read_state


class CatLIPPredictor:
    """An image tower with a logit for each noun.

    Args:
        method: the trained model.
        assets: vocabulary and preprocessing.
        name: what reports call it.
        device: where to compute.
    """

    def __init__(self, method: CatLIP, assets: NounAssets, name: str, device: torch.device) -> None:
        self.method = method.to(device).eval()
        self.assets, self.name, self.device = assets, name, device
        self.notes: list[str] = []

    def prepare(self, picture: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """Return a picture as `embed_prepared` takes it; safe to call in threads."""
        return self.assets.preprocess.pixels(picture)

    @torch.inference_mode()
    def embed_prepared(self, pictures: Sequence[UInt8[Tensor, "3 height width"]]) -> Float[Tensor, "images dim"]:
        """Return unit-length pooled features of pictures that went through `prepare`."""
        tower = self.method.visual
        images = self.assets.preprocess.normalize(torch.stack(list(pictures))).to(self.device)
        features = tower.forward_head(tower.forward_features(images), pre_logits=True)
        return torch.nn.functional.normalize(features.float(), dim=-1).cpu()

    def embed_image(self, images: Picture | Iterable[Picture], batch_size: int = 64) -> Float[Tensor, "images dim"]:
        """Return unit-length features, one row a picture.

        Raises:
            DataError: a picture cannot be read, or there is none.
        """
        pictures = several(images)
        if not pictures:
            raise DataError("no pictures to embed")
        return torch.cat(
            [self.embed_prepared([self.prepare(as_tensor(p)) for p in part]) for part in parts_of(pictures, batch_size)]
        )

    def embed_text(self, texts: str | Iterable[str]) -> Tensor:
        """Refuse: there is no text tower.

        Raises:
            DataError: always.
        """
        raise DataError("CatLIP has no text tower: search by --image, or predict with --labels that name its nouns")

    @torch.inference_mode()
    def predict(
        self, images: Picture | Iterable[Picture], labels: Sequence[str] = (), templates: Sequence[str] = ("{}",)
    ) -> list[Prediction]:
        """Return the probability of each label: that of its noun, the least of them where it names several.

        Args:
            images: one picture or several.
            labels: texts that name nouns of the vocabulary; none for the whole vocabulary.
            templates: not used, for nouns alone count.

        Raises:
            DataError: a label names no noun of the vocabulary, or a picture cannot be read.
        """
        nouns = self.assets.nouns
        labels = labels or nouns.names
        by_name = {name: index for index, name in enumerate(nouns.names)}
        indices = [[by_name[label]] if label in by_name else nouns.indices(label) for label in labels]
        for label, found in zip(labels, indices, strict=True):
            if not found:
                few = ", ".join(nouns.names[:6])
                raise DataError(f"label {label!r} names none of the model's {len(nouns.names)} nouns ({few}, …)")
        pictures = several(images)
        rows: list[Tensor] = []
        for part in parts_of(pictures, 64):
            batch = torch.stack([self.prepare(as_tensor(picture)) for picture in part])
            rows.append(self.method.visual(self.assets.preprocess.normalize(batch).to(self.device)).sigmoid().cpu())
        scores = torch.cat(rows)
        chosen = torch.stack([scores[:, found].amin(1) for found in indices], 1)
        return [
            Prediction(name_of(picture, number), tuple(labels), tuple(row.tolist()))
            for number, (picture, row) in enumerate(zip(pictures, chosen, strict=True))
        ]

    def convert(self, folder: Path, layout: str = "odonata") -> list[Path]:
        """Write the model in Odonata's layout or as transformers' ViT (`hf`) and return the files.

        Raises:
            WeightsError: the layout is unknown or cannot say what this model is, or the folder holds something already.
        """
        from odonata.align.convert_catlip import convert

        return convert(self, folder, layout)


def load_catlip(folder: Path, device: torch.device, which: str = "best") -> CatLIPPredictor:
    """Return the predictor of a CatLIP run.

    Raises:
        WeightsError: the weights do not fit.
        RunError: the run has no checkpoint yet.
    """
    assets = NounAssets.load(folder / "assets")
    method = CatLIP(CatLIPConfig(), assets.tower, len(assets.nouns.names))
    file = weights_file(folder, which)
    try:
        method.load_state_dict(read_state(file).state)
    except RuntimeError as error:
        raise WeightsError(f"{file}: the weights do not fit: {str(error).splitlines()[1].strip()}") from error
    return CatLIPPredictor(method, assets, f"catlip ({folder.name})", device)
