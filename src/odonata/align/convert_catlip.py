"""CatLIP models between Odonata's folders and transformers' `ViTForImageClassification`; the nouns are the labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from odonata.align.build_catlip import NounAssets
from odonata.align.catlip import CatLIP, CatLIPConfig, NounTargets
from odonata.align.catlip_predictor import CatLIPPredictor
from odonata.align.convert import new_folder
from odonata.backbones.vit import ViTConfig
from odonata.data.preprocess import CLIP as CLIP_PREPROCESS
from odonata.data.preprocess import Preprocess
from odonata.errors import WeightsError
from odonata.weights import hf_vit
from odonata.weights.maps import check_fit
from odonata.weights.published import write_files
from odonata.weights.read import Raw, read_json, read_state

LAYOUTS = ("odonata", "hf")
"""What a CatLIP model can be written as."""


def convert(predictor: CatLIPPredictor, folder: Path, layout: str) -> list[Path]:
    """Write a model in a layout and return the files; the folder appears whole or not at all.

    Raises:
        WeightsError: the layout is unknown or cannot say what this model is, or the folder holds something already.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"--to {layout!r} has no place for a CatLIP model; there are {', '.join(LAYOUTS)}")
    assets = predictor.assets
    state = {name: value.detach().cpu().contiguous() for name, value in predictor.method.state_dict().items()}
    with new_folder(folder) as staged:
        if layout == "odonata":
            save_file(state, staged / "model.safetensors")
            assets.save(staged)
        else:
            names, words = assets.nouns.names, assets.nouns.words
            prepared = assets.preprocess.to_hf_preprocessor_config()
            write_files(staged, hf_vit.write(state, dataclasses.asdict(assets.tower), names, words, prepared), {})
    return sorted(folder.iterdir())


def load_folder(folder: Path, device: torch.device) -> CatLIPPredictor:
    """Return the predictor of a CatLIP folder of Odonata's.

    Raises:
        WeightsError: a file is missing, or the weights do not fit.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise WeightsError(f"{folder}: model.json is there, but {file.name} is missing")
    return _predictor(read_state(file).state, NounAssets.load(folder), str(file), folder.name, device)


def load_vit(folder: Path, device: torch.device) -> CatLIPPredictor:
    """Return the predictor of transformers' ViT classifier.

    Raises:
        WeightsError: it cannot be read, or has no classifier or names.
    """
    raw = read_state(folder)
    tower, state = hf_vit.read(raw)
    if "visual.head.weight" not in state:
        raise WeightsError(f"{folder}: a ViT without a classifier predicts nothing; train from it with --init")
    config = ViTConfig(**tower)
    assets = NounAssets(config, _preprocess(raw, folder, config.image_size), NounTargets(*hf_vit.labels(raw)))
    found = _predictor(state, assets, str(folder), folder.name, device)
    found.notes += ["layout hf_vit", *raw.notes]
    if (raw.config or {}).get("problem_type") != "multi_label_classification":
        found.notes.append(
            "config.json does not say multi_label_classification: each class gets a sigmoid all the same"
        )
    return found


def _preprocess(raw: Raw, folder: Path, size: int) -> Preprocess:
    file = folder / "preprocessor_config.json"
    if file.is_file():
        return Preprocess.from_hf_preprocessor_config(read_json(file))
    raw.notes.append(f"no preprocessing beside the weights: CLIP's at {size} pixels is taken")
    return dataclasses.replace(CLIP_PREPROCESS, size=size)


def _predictor(
    state: dict[str, Tensor], assets: NounAssets, where: str, name: str, device: torch.device
) -> CatLIPPredictor:
    method = CatLIP(CatLIPConfig(), assets.tower, len(assets.nouns.names))
    check_fit(state, method.state_dict(), where)
    method.load_state_dict(state)
    return CatLIPPredictor(method, assets, name, device)
