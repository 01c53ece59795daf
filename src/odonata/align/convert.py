"""Two-tower models between Odonata's folders and published layouts; the tokenizer and preprocessing travel along."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Generator
from pathlib import Path

import torch
from safetensors.torch import save_file

from odonata.align.assets import Assets
from odonata.align.predictor import TwoTowerPredictor
from odonata.align.pretrained import load_dual_encoder, preprocess_of, save_dual_encoder
from odonata.backbones.vit import ViTConfig
from odonata.data.preprocess import CLIP as CLIP_PREPROCESS
from odonata.data.preprocess import Preprocess
from odonata.errors import DataError, WeightsError
from odonata.text.families import clip_tokenizer, sentencepiece_tokenizer, tokenizer_json
from odonata.text.tokenizer import Tokenizer
from odonata.weights.published import Published

LAYOUTS = ("odonata", "hf", "openai", "open_clip", "big_vision")
"""What `odonata convert --to` takes."""


def load_published(
    path: Path,
    device: torch.device,
    *,
    layout: str | None = None,
    allow_torchscript: bool = False,
    quick_gelu: bool | None = None,
    tokenizer: str | Path | None = None,
) -> TwoTowerPredictor:
    """Return the predictor of published weights.

    Args:
        path: file or folder.
        device: where to compute.
        layout: where it is not to be found out; see `odonata.weights.published.read_published`.
        allow_torchscript: read an archive that carries code, as OpenAI's files are.
        quick_gelu: for bare open_clip weights, which do not say.
        tokenizer: file of the tokenizer, where it does not lie beside the weights. Without one, pictures can be
        embedded
            and weights converted, but no text encoded.

    Raises:
        WeightsError: the weights cannot be read.
        DataError: the tokenizer cannot.
    """
    model, published = load_dual_encoder(path, layout, allow_torchscript=allow_torchscript, quick_gelu=quick_gelu)
    notes = list(published.notes)
    try:
        preprocess = preprocess_of(published)
    except WeightsError:
        size = model.config.visual.image_size
        preprocess = Preprocess.from_dict(CLIP_PREPROCESS.to_dict() | {"size": size})
        notes.append(f"no preprocessing beside the weights: CLIP's at {size} pixels is taken")
    found = _tokenizer(published, model.config.text.context_length, Path(tokenizer) if tokenizer else None)
    if found is None:
        notes.append("no tokenizer beside the weights: give one with --tokenizer to encode text")
    visual = model.config.visual
    naflex = isinstance(visual, ViTConfig) and visual.positions == "naflex"
    assets = Assets(model.config, preprocess, found, 256 if naflex else 0)
    return TwoTowerPredictor(model, assets, path.name, device, notes)


def _tokenizer(published: Published, context_length: int, given: Path | None) -> Tokenizer | None:
    about = published.tokenizer or {}
    files: dict[str, str] = {given.name: str(given)} if given else dict(about.get("files", {}))
    if given is None:
        folder = next((Path(f).parent for f in files.values()), None)
        if folder and (folder / "odonata_tokenizer.json").is_file():
            return Tokenizer.load(folder)
    siglip = about.get("kind") == "sentencepiece"
    second = published.config["text"]["vocab_size"] == 256000
    for name, file in files.items():
        if name.endswith(".model"):
            return sentencepiece_tokenizer(file, "siglip2" if second else "siglip", context_length)
        if name.endswith(".gz") or name == "merges.txt":
            return clip_tokenizer(file, context_length)
        if name == "tokenizer.json" or (given and name.endswith(".json")):
            if siglip:
                end, pad = ("<eos>", "<pad>") if second else ("</s>", "</s>")
                cleaning = "siglip2" if second else "siglip"
                return tokenizer_json(
                    file, context_length=context_length, eos_token=end, pad_token=pad, cleaning=cleaning
                )
            return tokenizer_json(
                file,
                context_length=context_length,
                eos_token="<|endoftext|>",
                bos_token="<|startoftext|>",
                cleaning="clip",
            )
    if given:
        raise DataError(f"{given}: a tokenizer is a .model, .txt.gz of merges, merges.txt or tokenizer.json")
    return None


def save_folder(predictor: TwoTowerPredictor, folder: Path) -> list[Path]:
    """Write Odonata's own layout: `model.safetensors`, `model.json`, the tokenizer. The folder appears whole.

    Raises:
        WeightsError: the folder holds something already.
    """
    with new_folder(folder) as staged:
        state = {k: v.detach().cpu().contiguous() for k, v in predictor.model.state_dict().items()}
        save_file(state, staged / "model.safetensors")
        predictor.assets.save(staged)
    return sorted(folder.iterdir())


@contextlib.contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """Give an empty folder to write into, which becomes `folder` when all is written, and vanishes if it is not.

    Raises:
        WeightsError: the folder holds something already.
    """
    _refuse_full(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        staged = Path(made) / "new"
        staged.mkdir()
        yield staged
        if folder.is_dir():
            folder.rmdir()
        staged.replace(folder)


def convert(predictor: TwoTowerPredictor, folder: Path, layout: str) -> list[Path]:
    """Write a model in a layout and return the files.

    Raises:
        WeightsError: the layout is unknown or cannot say what this model is, or the folder holds something already.
    """
    if layout not in LAYOUTS:
        raise WeightsError(f"--to {layout!r} is unknown; there are {', '.join(LAYOUTS)}")
    if layout == "odonata":
        return save_folder(predictor, folder)
    _refuse_full(folder)
    tokenizer = predictor.assets.tokenizer
    with tempfile.TemporaryDirectory() as made:
        files: dict[str, Path] = {}
        if tokenizer is not None:
            tokenizer.save(made)
            _for_transformers(tokenizer, Path(made))
            files = {path.name: path for path in Path(made).iterdir()}
        return save_dual_encoder(
            folder, predictor.model, layout, preprocess=predictor.assets.preprocess, tokenizer_files=files
        )


def _for_transformers(tokenizer: Tokenizer, folder: Path) -> None:
    """Let `AutoTokenizer` read what was saved: it must be told to clean, to add start and end, and which ids they are.

    Its cleaning is white space, case and punctuation; what `ftfy` mends for CLIP has no counterpart there.
    """
    from tokenizers import Regex, normalizers
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    file = folder / "tokenizer.json"
    backend = Backend.from_file(str(file))
    collapse: list[normalizers.Normalizer] = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    bare = [normalizers.Replace("_", " "), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
    cleaning: dict[str, list[normalizers.Normalizer]] = {
        "clip": [*collapse, normalizers.Lowercase()],
        "lower": [*collapse, normalizers.Lowercase()],
        "whitespace": collapse,
        "siglip": [*bare, normalizers.Lowercase(), *collapse],
        "siglip2": [normalizers.Lowercase()],
    }
    steps = cleaning.get(tokenizer.rules.cleaning, []) + ([backend.normalizer] if backend.normalizer else [])
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    # OpenAI pads with 0, which is an exclamation mark; made a special token, it would change texts that have one.
    pad_id = tokenizer.eos_id if tokenizer.rules.cleaning == "clip" else tokenizer.pad_id
    names = {key: backend.id_to_token(i) for key, i in (("eos", tokenizer.eos_id), ("pad", pad_id))}
    special = [(names["eos"], tokenizer.eos_id)]
    if tokenizer.bos_id is not None:
        names["bos"] = backend.id_to_token(tokenizer.bos_id)
        special.append((names["bos"], tokenizer.bos_id))
    single = f"{names['bos']} $A {names['eos']}" if "bos" in names else f"$A {names['eos']}"
    backend.post_processor = TemplateProcessing(single=single, special_tokens=special)
    backend.save(str(file))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        **{f"{key}_token": name for key, name in names.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _refuse_full(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise WeightsError(f"{folder} is there already and not an empty folder; choose another")
