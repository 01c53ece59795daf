"""Masked autoencoders, with their decoders, from published checkpoints and back.

An encoder alone travels as any tower does, by `odonata.backbones.pretrained`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from odonata.backbones.create import build, from_plain
from odonata.backbones.vit import ViTConfig
from odonata.data.preprocess import IMAGENET, Preprocess
from odonata.represent.mae import MAE, MAEConfig
from odonata.weights import mae
from odonata.weights.maps import check_fit
from odonata.weights.published import write_folder
from odonata.weights.read import read_state


def load_mae(
    path: str | Path,
    *,
    num_heads: int | None = None,
    decoder_heads: int | None = None,
    norm_pix: bool | None = None,
) -> MAE:
    """Build a masked autoencoder from a checkpoint that holds its decoder.

    Args:
        path: file of facebookresearch/mae, or folder or file of transformers' ViTMAEForPreTraining.
        num_heads: of the encoder, where its width is not a published one and the file has no configuration.
        decoder_heads: of the decoder, likewise.
        norm_pix: whether it predicts normalised patches; the authors' files do not tell, and then it is off.

    Returns:
        The method in evaluation mode; `load_mae(…).reconstruct(pictures)` draws.

    Raises:
        WeightsError: no decoder, or a checkpoint that cannot be read.
    """
    found = mae.read(read_state(path), num_heads, decoder_heads, norm_pix)
    tower: ViTConfig = from_plain(found.tower)
    preprocess = replace(IMAGENET, size=tower.image_size, resize_size=round(tower.image_size * 256 / 224))
    method = MAE(MAEConfig(image_size=tower.image_size, **found.decoder), build(tower), preprocess)
    check_fit(found.state, method.state_dict(), str(path))
    method.load_state_dict(found.state)
    return method.eval()


def save_mae(
    folder: str | Path, method: MAE, layout: mae.LayoutName, preprocess: Preprocess | None = None
) -> list[Path]:
    """Write encoder and decoder; return the files.

    Args:
        folder: where to; must not hold anything.
        method: what was trained.
        layout: `mae` (the authors' names) or `hf` (ViTMAEForPreTraining).
        preprocess: of the pictures, written beside transformers' weights.

    Raises:
        WeightsError: the encoder is not MAE's, or the folder is not empty.
    """
    state = {k: v for k, v in method.state_dict().items() if not k.startswith("backbone.head.")}
    about = preprocess.to_hf_preprocessor_config() if preprocess and layout == "hf" else None
    return write_folder(folder, mae.write(state, asdict(method.tower), asdict(method.config), layout, about))
