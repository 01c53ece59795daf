"""Ranks: start them with torchrun, let them agree, replicate or shard a network over them."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from odonata.errors import RecipeError, RunError

_LAUNCHED = "ODONATA_LAUNCHED"  # in the environment of ranks that `launch` started


@dataclass(frozen=True)
class World:
    """This process among all: its rank, how many there are, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0


def join_world(device: str = "auto") -> World:
    """Return this process's place, joining the group that torchrun described in the environment, if any.

    Raises:
        RecipeError: `cuda` is asked for and absent, or there are more local ranks than GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not gpus:
        raise RecipeError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    on_gpu = device != "cpu" and gpus > 0
    if on_gpu and local >= gpus:
        raise RecipeError(f"rank {rank} wants GPU {local}, and there are {gpus}")
    place = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        if not on_gpu:  # ranks on one machine share its cores
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", size))))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    return World(rank, size, place)


def leave_world() -> None:
    """Leave the process group, if there is one; together, unless an error is on its way up."""
    if dist.is_initialized():
        # A gloo rank that leaves while another still talks to it is now and then aborted at its exit.
        if sys.exc_info()[0] is None:
            dist.barrier()
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many ranks have joined."""
    return dist.get_world_size() if dist.is_initialized() else 1


def check_devices(devices: int, device: str) -> None:
    """Refuse more processes than there are GPUs, or CPU cores.

    Raises:
        RecipeError: says how many there are.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    there = torch.cuda.device_count() if on_gpu else os.cpu_count() or 1
    if devices > there:
        raise RecipeError(f"--devices {devices}: this machine has {there} {'GPUs' if on_gpu else 'CPU cores'}")


def launch(arguments: Sequence[str], devices: int) -> int:
    """Run `odonata ARGUMENTS` on `devices` local ranks under torchrun and return the exit status.

    Raises:
        RunError: a rank failed; says what the first of them did.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Else a restarted group meets stale keys in the shared store (pytorch #135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    os.environ[_LAUNCHED] = "1"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its tables say less than our message
    options = ["--standalone", f"--nproc-per-node={devices}", "-m", "odonata.app.cli", *arguments]
    try:
        run(parse_args(options))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        told = failure.error_file_data.get("message")  # what `report_failure` wrote, if it came to that
        message = told["message"] if isinstance(told, dict) else f"process {rank} ended with status {failure.exitcode}"
        raise RunError(message) from error
    except SignalException as error:
        raise RunError(
            f"stopped by {error.sigval.name}: every process saved what it had; go on with odonata resume"
        ) from error
    finally:
        del os.environ[_LAUNCHED]
    return 0


def report_failure(message: str) -> bool:
    """Tell the process that `launch`ed this one why it ends; return whether there is one: it then tells the person."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file or _LAUNCHED not in os.environ:
        return False
    content = {"message": {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}}
    Path(file).write_text(json.dumps(content), encoding="utf-8")
    return True


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "WORLD_SIZE" in os.environ


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def agree_on_largest(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the elementwise maximum over the ranks."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device if device.type == "cuda" else None)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def mean_over_ranks(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Return each value's mean over the ranks, which all have the same names."""
    if not dist.is_initialized() or not values:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device if device.type == "cuda" else None)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / dist.get_world_size()).tolist(), strict=True))


def from_leader(value: str) -> str:
    """Return rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over the ranks, for what no wrapper averages (GradCache's second pass; sharding's scalars)."""
    if not dist.is_initialized():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def scalars_of(network: nn.Module) -> set[nn.Parameter]:
    """Return the parameters without an axis: FSDP2 cannot shard them."""
    return {p for p in network.parameters() if p.ndim == 0}


def shard(networks: Sequence[nn.Module], units: Iterable[nn.Module], world: World) -> None:
    """Shard parameters over all ranks in place (FSDP2), each unit gathered by itself, then the rest of each network."""
    mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("shard",))
    for unit in list(units):
        fully_shard(unit, mesh=mesh)
    for network in networks:
        fully_shard(network, mesh=mesh, ignored_params=scalars_of(network))
