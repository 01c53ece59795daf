"""Published two-tower checkpoints in and out, whatever their layout.

Nothing is guessed silently: `notes` says every inference that was made, and what cannot be inferred is asked for.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from odonata.errors import WeightsError
from odonata.weights import big_vision, darknet, hf_clip, hf_siglip, open_clip, openai_clip
from odonata.weights.darknet_cfg import parse_cfg
from odonata.weights.layout import Files, Layout, Plain, ReadOptions
from odonata.weights.npy_dict import write_npy_dict
from odonata.weights.read import Raw, read_json, read_state

LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT for module in (hf_clip, hf_siglip, big_vision, openai_clip, open_clip)
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "bpe_simple_vocab_16e6.txt.gz",
)


@dataclass
class Published:
    """A published checkpoint, read."""

    layout: str
    """Name of its layout."""
    config: Plain
    """Configuration for `odonata.align.dual_encoder.config_from_dict`."""
    state: dict[str, Tensor]
    """Weights under our names, in the precision of the file."""
    preprocess: Plain | None
    """`source` (hf, open_clip, openai, big_vision, naflex) and `config`, the content of its file."""
    tokenizer: Plain | None
    """`kind`, `context_length`, and `files`: name to path of the tokenizer files beside the weights."""
    notes: list[str] = field(default_factory=list[str])
    """Every inference and convention that was used."""
    unused: list[str] = field(default_factory=list[str])
    """Entries of the file that were not used."""


def read_published(
    path: str | Path,
    layout: str | None = None,
    *,
    allow_torchscript: bool = False,
    quick_gelu: bool | None = None,
    strict: bool = True,
) -> Published:
    """Reads a published CLIP or SigLIP checkpoint.

    Args:
        path: file or folder; see `odonata.weights.read.read_state`.
        layout: `openai`, `open_clip`, `hf_clip`, `hf_siglip` (or `hf` for either), `big_vision`; found out
            if not given.
        allow_torchscript: read TorchScript archives, which carry code.
        quick_gelu: for bare open_clip weights, whether they were trained with QuickGELU.
        strict: refuse tensors that have no place in the architecture.

    Returns:
        Configuration, weights under our names, preprocessing, tokenizer files, and notes on all that was inferred.

    Raises:
        WeightsError: unreadable, unknown, incomplete, or open in a way that the caller must settle.
    """
    raw = read_state(path, allow_torchscript=allow_torchscript)
    chosen = _choose(raw, layout)
    plan = chosen.plan(raw, ReadOptions(quick_gelu))
    state, unused = plan.key_map.to_ours(raw.state, str(path), strict)
    notes = [f"layout {chosen.name}", *raw.notes, *plan.notes]
    if unused:
        notes.append(f"not used: {', '.join(unused)}")
    halves = sorted({str(value.dtype) for value in state.values() if value.dtype in (torch.float16, torch.bfloat16)})
    if halves:
        notes.append(f"weights stored as {', '.join(halves)}; models built here hold float32")
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    preprocess = plan.preprocess or _hf_preprocess(folder)
    tokenizer = None if plan.tokenizer is None else plan.tokenizer | {"files": _tokenizer_files(folder)}
    return Published(chosen.name, plan.config, state, preprocess, tokenizer, notes, unused)


def write_published(
    folder: str | Path,
    state: Mapping[str, Tensor],
    config: Plain,
    layout: str = "hf",
    *,
    preprocess: Plain | None = None,
    tokenizer_files: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Writes a model in a published layout; the folder appears whole or not at all.

    Args:
        folder: where to; must not exist or be empty, unless `overwrite`.
        state: weights under our names.
        config: configuration as `odonata.align.dual_encoder.config_to_dict` gives it.
        layout: `hf` (CLIP or SigLIP, by the configuration), `openai`, `open_clip` or `big_vision`.
        preprocess: content of the layout's preprocessing file, if it has one.
        tokenizer_files: name in the folder to file that is copied there.
        overwrite: replace a folder that holds something.

    Returns:
        Files written.

    Raises:
        WeightsError: the layout cannot say what this model is, or the folder is not empty.
    """
    folder = Path(folder)
    _refuse_occupied(folder, overwrite)
    files = _layout_for_writing(layout, config).write(state, config, preprocess)
    return write_folder(folder, files, tokenizer_files, overwrite=overwrite)


def write_folder(
    folder: str | Path, files: Files, copies: Mapping[str, Path] | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Writes weights and texts into a folder, which appears whole or not at all.

    Args:
        folder: where to; must not exist or be empty, unless `overwrite`.
        files: what a layout made.
        copies: name in the folder to file that is copied there.
        overwrite: replace a folder that holds something.

    Returns:
        Files written.

    Raises:
        WeightsError: the folder is not empty.
    """
    folder = Path(folder)
    _refuse_occupied(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        staged = Path(made) / "new"
        staged.mkdir()
        write_files(staged, files, copies or {})
        if folder.is_dir():
            folder.replace(Path(made) / "old")
        staged.replace(folder)
    return sorted(folder.iterdir())


def _refuse_occupied(folder: Path, overwrite: bool) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not overwrite):
        raise WeightsError(f"{folder} exists and is not an empty folder; choose another or pass overwrite=True")


def _choose(raw: Raw, layout: str | None) -> Layout:
    if layout == "hf":
        layout = "hf_siglip" if hf_siglip.recognises(raw) else "hf_clip"
    if layout is not None:
        return _named(layout)
    for candidate in LAYOUTS.values():
        if candidate.recognises(raw):
            return candidate
    kind = f"model_type {raw.config.get('model_type')!r}" if raw.config else "no configuration beside it"
    held = ", ".join(sorted(raw.state)[:4])
    raise WeightsError(f"{raw.path}: the layout is not known ({kind}; {held} …). Known: {', '.join(LAYOUTS)}")


def _named(layout: str) -> Layout:
    if layout not in LAYOUTS:
        raise WeightsError(f"layout {layout!r} is unknown: hf, {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def _layout_for_writing(layout: str, config: Plain) -> Layout:
    if layout != "hf":
        return _named(layout)
    siglip = config["visual"]["kind"] == "vit" and config["visual"]["pool"] == "map"
    return LAYOUTS["hf_siglip" if siglip else "hf_clip"]


def write_files(folder: Path, files: Files, tokenizer_files: Mapping[str, Path]) -> None:
    """Writes weights and texts into a folder, and copies files beside them."""
    # safetensors refuses tensors that share memory, and all formats want plain CPU tensors.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in files.state.items()}
    for name, part in _divided(files.weights_name, state):
        if files.shard_bytes and sum(value.nbytes for value in part.values()) > files.shard_bytes:
            _write_shards(folder, name, part, files)
        else:
            _write_weights(folder / name, part, files)
    for name, content in files.texts.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + os.linesep
        (folder / name).write_text(text, encoding="utf-8")
    for name, source in tokenizer_files.items():
        shutil.copyfile(source, folder / Path(name).name)


def _divided(name: str, state: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    """The names of the files and what each holds: all of it, or one network."""
    if "{}" not in name:
        return [(name, state)]
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        net, _, rest = key.partition(".")
        parts.setdefault(net, {})[rest] = value
    return [(name.format(net), part) for net, part in parts.items()]


def _write_shards(folder: Path, name: str, state: dict[str, Tensor], files: Files) -> None:
    """Writes tensors over several files of at most `shard_bytes`, and the index that says which holds what."""
    shards: list[dict[str, Tensor]] = [{}]
    for key, value in state.items():
        if shards[-1] and sum(v.nbytes for v in shards[-1].values()) + value.nbytes > files.shard_bytes:
            shards.append({})
        shards[-1][key] = value
    stem, suffix = name.rsplit(".", 1)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}"
        _write_weights(folder / file, shard, files)
        where |= dict.fromkeys(shard, file)
    total = sum(value.nbytes for value in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / f"{name}.index.json").write_text(json.dumps(index, indent=2) + os.linesep, encoding="utf-8")


def _write_weights(target: Path, state: dict[str, Tensor], files: Files) -> None:
    if target.suffix == ".safetensors":
        safetensors.torch.save_file(state, target, metadata={"format": "pt"})
    elif target.suffix == ".npz":
        _write_npz(target, state)
    elif target.suffix == ".npy":
        write_npy_dict(target, state)
    elif target.suffix == ".weights":
        cfg = parse_cfg(str(files.texts[f"{target.stem}.cfg"]))
        target.write_bytes(darknet.to_bytes(cfg, state, darknet.header_in(state)))
    else:
        torch.save(state if files.entry is None else {files.entry: state}, target)


def _write_npz(target: Path, state: Mapping[str, Tensor]) -> None:
    odd = [name for name, value in state.items() if value.dtype == torch.bfloat16]
    if odd:
        raise WeightsError(f"NumPy has no bfloat16, in which {odd[0]} is; convert the weights to float32 first")
    np.savez(target, **{name: value.numpy() for name, value in state.items()})  # pyright: ignore[reportArgumentType]


def _hf_preprocess(folder: Path) -> Plain | None:
    file = folder / "preprocessor_config.json"
    return {"source": "hf", "config": read_json(file)} if file.is_file() else None


def _tokenizer_files(folder: Path) -> dict[str, str]:
    return {name: str(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()}
