"""Checkpoints that appear whole or not at all, and from which a run goes on bit-equal.

step-00001000/
  model.safetensors   the method's weights (averaged ones in ema.safetensors), readable by anything
  training.pt         step, optimisers, loss scale, best value: tensors and plain values only
  rank-0.pt …         each rank's random states and buffers
  sharded/            instead of the optimisers in training.pt, where the run is sharded
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from odonata.engine.distributed import World, barrier
from odonata.engine.ema import EMA
from odonata.engine.run import write_atomically
from odonata.errors import RunError


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's `checkpoints/`.
        world: who writes what.
        keep: how many to keep besides the best.
        sharded: whether the method's parameters are sharded (FSDP2).
    """

    def __init__(self, folder: Path, world: World, keep: int = 2, sharded: bool = False) -> None:
        self.folder, self.world, self.keep, self.sharded = folder, world, keep, sharded
        self.best: tuple[int, float] | None = None
        if (folder / "index.json").is_file() and (best := read_index(folder).get("best")):
            self.best = (int(best["step"]), float(best["value"]))

    def save(
        self,
        step: int,
        method: nn.Module,
        optimizers: dict[str, Optimizer],
        ema: EMA | None,
        extra: dict[str, Any],
        *,
        best_value: float | None = None,
    ) -> Path:
        """Write `step-N/` and point the index at it; `best_value` says that it is the best so far, and by which value.

        Raises:
            RunError: the disk is full or not writable. What stood before still stands.
        """
        final = self.folder / f"step-{step:08d}"
        partial = final.with_suffix(".partial")
        failure = ""
        try:
            if self.world.leads:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            barrier()
            self._write(partial, step, method, optimizers, ema, extra)
            barrier()  # files of other ranks come and go until here
            if self.world.leads:
                _sync_to_disk(partial)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch reports a failed write of a zip archive as a RuntimeError, safetensors as one of its own
            failure = _reason(error)
            if self.world.size > 1:
                raise  # other ranks wait at the next barrier: torchrun ends them all
        if failure:
            shutil.rmtree(partial, ignore_errors=True)
            last = latest_step(self.folder)
            stands = (
                f"the checkpoint of step {last} still stands" if last is not None else "no checkpoint was made before"
            )
            raise RunError(f"{final}: cannot write the checkpoint: {failure}; {stands}")
        barrier()
        if best_value is not None:
            self.best = (step, best_value)
        if self.world.leads:
            if final.exists():  # the same step saved twice: at an interval, and at the end
                shutil.rmtree(final)
            partial.replace(final)
            best = {"step": self.best[0], "value": self.best[1]} if self.best else None
            write_atomically(self.folder / "index.json", json.dumps({"last": step, "best": best}))
            self._prune()
        barrier()
        return final

    def _write(
        self,
        folder: Path,
        step: int,
        method: nn.Module,
        optimizers: dict[str, Optimizer],
        ema: EMA | None,
        extra: dict[str, Any],
    ) -> None:
        training: dict[str, Any] = {"step": step, "extra": extra, "sharded": self.sharded}
        torch.save(_rank_state(method, self.world), folder / f"rank-{self.world.rank}.pt")
        weights: dict[str, Any]
        if self.sharded:
            model, optim = get_state_dict(method, list(optimizers.values()))
            state: dict[str, Any] = {"model": model, "optim": optim}
            if ema:
                state["ema"] = ema.average
                training["ema_updates"] = ema.updates
            dcp.save(state, checkpoint_id=folder / "sharded")
            weights = dict(
                get_model_state_dict(method, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            )
        else:
            training["optimizers"] = {name: o.state_dict() for name, o in optimizers.items()}
            weights = method.state_dict()
            if ema:
                training["ema_updates"] = ema.updates
                if self.world.leads:
                    save_file(_separate(ema.average), folder / "ema.safetensors")
        if self.world.leads:
            save_file(_separate(weights), folder / "model.safetensors")
            torch.save(training, folder / "training.pt")

    def _prune(self) -> None:
        steps = sorted(self.folder.glob("step-????????"))
        best = f"step-{self.best[0]:08d}" if self.best else ""
        for old in steps[: -self.keep]:
            if old.name != best:
                shutil.rmtree(old)
        for leftover in self.folder.glob("*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)

    def load_latest(
        self, method: nn.Module, optimizers: dict[str, Optimizer], ema: EMA | None
    ) -> tuple[int, dict[str, Any]] | None:
        """Restore everything from the last checkpoint and return its step and extra state, or None where there is none.

        The number of ranks may differ from the one that saved: then random states start anew from seed and step, and
        the caller sees `extra["world_changed"]`.

        Raises:
            RunError: the checkpoint cannot be read or does not fit the recipe.
        """
        step = latest_step(self.folder)
        if step is None:
            return None
        folder = self.folder / f"step-{step:08d}"
        try:
            training = torch.load(folder / "training.pt", map_location=self.world.device, weights_only=True)
            self._load_state(folder, training, method, optimizers, ema)
        except Exception as error:  # damaged files fail in any way
            raise RunError(f"{folder}: cannot resume from this checkpoint: {_reason(error)}") from error
        extra: dict[str, Any] = training["extra"]
        ranks = len(list(folder.glob("rank-*.pt")))
        extra["world_changed"] = ranks != self.world.size
        if not extra["world_changed"]:
            state = torch.load(folder / f"rank-{self.world.rank}.pt", map_location="cpu", weights_only=True)
            _restore_rank_state(state, method)
        return step, extra

    def _load_state(
        self,
        folder: Path,
        training: dict[str, Any],
        method: nn.Module,
        optimizers: dict[str, Optimizer],
        ema: EMA | None,
    ) -> None:
        if training["sharded"] != self.sharded:
            raise ValueError(f"it was saved with --parallel {'fsdp' if training['sharded'] else 'ddp'}; use the same")
        if self.sharded:
            model, optim = get_state_dict(method, list(optimizers.values()))
            state: dict[str, Any] = {"model": model, "optim": optim}
            if ema:
                state["ema"] = ema.average
            dcp.load(state, checkpoint_id=folder / "sharded")
            set_state_dict(
                method, list(optimizers.values()), model_state_dict=state["model"], optim_state_dict=state["optim"]
            )
        else:
            method.load_state_dict(load_file(folder / "model.safetensors", device=str(self.world.device)))
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(training["optimizers"][name])
            if ema:
                average = load_file(folder / "ema.safetensors", device=str(self.world.device))
                ema.load_state_dict({"average": average, "updates": training["ema_updates"]})
        if ema:
            ema.updates = training["ema_updates"]


def read_index(folder: Path) -> dict[str, Any]:
    """Return `index.json` of a `checkpoints/` folder: {"last": step, "best": {"step", "value"} or None}."""
    return json.loads((folder / "index.json").read_text())


def latest_step(folder: Path) -> int | None:
    """Return the step of the newest whole checkpoint."""
    steps = sorted(folder.glob("step-????????"))
    return int(steps[-1].name.removeprefix("step-")) if steps else None


def weights_file(folder: Path, which: str = "best") -> Path:
    """Return the file of weights to use from a run folder: the best checkpoint, or the last; averaged where there are.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    checkpoints = folder / "checkpoints"
    step = latest_step(checkpoints)
    if step is None:
        raise RunError(f"{folder} has no checkpoint yet; resume it with `odonata resume {folder}`")
    if which == "best" and (checkpoints / "index.json").is_file() and (best := read_index(checkpoints)["best"]):
        step = int(best["step"])
    chosen = checkpoints / f"step-{step:08d}"
    averaged = chosen / "ema.safetensors"
    return averaged if averaged.is_file() else chosen / "model.safetensors"


def load_weights(method: nn.Module, file: Path) -> None:
    """Fill `method` with the weights of a run, whether it is sharded or not."""
    state: dict[str, Any] = dict(load_file(file))
    set_model_state_dict(method, state, options=StateDictOptions(full_state_dict=True))


def _reason(error: BaseException) -> str:
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory; tied weights are written under each of their names."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().contiguous()
        if tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        result[key] = tensor
    return result


def _rank_state(method: nn.Module, world: World) -> dict[str, Any]:
    generator: Any = np.random.get_state()  # noqa: NPY002 - the global state is what user code may draw from
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if world.device.type == "cuda" else None,
        "python": [version, list(words), gauss],
        "numpy": [generator[0], torch.from_numpy(generator[1].astype(np.int64)), *generator[2:]],
        "buffers": {name: buffer.detach().clone() for name, buffer in method.named_buffers()},
    }


def _restore_rank_state(state: dict[str, Any], method: nn.Module) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    for name, buffer in method.named_buffers():
        buffer.copy_(state["buffers"][name])


def _sync_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
