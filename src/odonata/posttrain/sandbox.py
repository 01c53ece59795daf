"""Runs a program that a model wrote, on given inputs, and reports what it returned. Containment, not security.

What is guarded against is what a policy under optimisation stumbles on: endless loops, forks, memory, files, sockets,
signals to the trainer, printed or forged verdicts, patched equality. A determined attacker needs a virtual machine.

Notable:
- expected outputs never enter the child, so there is no verdict to forge: it can only report outputs, by a private
  inherited pipe, and the parent compares them with strict types (`agrees`);
- the wall clock and the CPU clock both end a program, with its whole process group; both run in the kernel and in this
  thread, without signal handlers, so verdicts are the same off the main thread;
- what failed for reasons of the machine is `unknown`, never a failed test: a child that could not start or contain
  itself, one that was ready to run but got no processor until the wall limit, one killed from outside;
- identical programs on identical inputs run once; hash seeds are fixed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from odonata.errors import RecipeError
from odonata.posttrain.sandbox_watch import Watched, watch

CHILD = Path(__file__).with_name("sandbox_child.py")
ALL_LAYERS = frozenset({"limits", "files", "processes", "network"})
MOST_CACHED = 4096

Ended = Literal["returned", "crashed", "time", "output", "processes", "malformed", "unknown"]


@dataclass(frozen=True)
class Limits:
    """What one program may use, for all its inputs together."""

    cpu_seconds: int = 2
    """Seconds of processor time."""
    wall_seconds: float = 10.0
    """Seconds by the clock: only sleeping programs should meet it, so it stays well above the processor time."""
    memory_mib: int = 512
    """Address space in MiB; Python itself needs about 30."""
    output_bytes: int = 1 << 20
    """Bytes of encoded outputs."""

    def __post_init__(self) -> None:
        if self.cpu_seconds < 1 or self.wall_seconds <= 0 or self.memory_mib < 64 or self.output_bytes < 1:
            raise RecipeError(f"{self}: at least 1 CPU second, 64 MiB, and a positive clock and output are needed")


@dataclass(frozen=True)
class Job:
    """A program, the name of the function in it, and the arguments of each call as JSON-like values."""

    program: str
    function: str
    inputs: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Outcome:
    """What one call gave."""

    value: Any = None
    error: str | None = None
    """The error in words; None: it returned."""


@dataclass(frozen=True)
class Execution:
    """What a program did."""

    ended: Ended
    outcomes: tuple[Outcome, ...]
    """One a call; all errors unless it returned."""
    layers: frozenset[str] = frozenset()
    """The layers of containment that the machine granted."""

    @property
    def known(self) -> bool:
        """The outcomes are the program's own doing."""
        return self.ended != "unknown"


class ForeignObject:
    """Stands for a returned value of no plain type; equal to nothing."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<an object of type {self.kind}>"


class Sandbox:
    """A pool that runs programs in processes of their own and remembers what they did.

    >>> Sandbox().run(Job("def double(x): return 2 * x", "double", [[4], ["ab"]])).outcomes
    (Outcome(value=8, error=None), Outcome(value='abab', error=None))
    """

    def __init__(
        self,
        limits: Limits | None = None,
        workers: int | None = None,
        layers: frozenset[str] = ALL_LAYERS,
        python: str = sys.executable,
    ):
        """Take the limits, how many programs run at once (None: one a core) and the layers to ask for.

        Raises:
            RecipeError: the system has no process limits (Windows), a layer is unknown, or `workers` is not positive.
        """
        if os.name != "posix":
            raise RecipeError("programs can be judged on Linux and macOS only: this system has no process limits")
        if unknown := sorted(layers - ALL_LAYERS):
            raise RecipeError(f"unknown layer {unknown[0]!r} of containment; there are {', '.join(sorted(ALL_LAYERS))}")
        self.workers = _free_cores() if workers is None else workers
        if self.workers < 1:
            raise RecipeError(f"a sandbox needs at least one worker, not {workers}")
        self.limits, self.layers, self.python = limits or Limits(), layers, python
        self.cached = OrderedDict[bytes, Execution]()
        self.lock = threading.Lock()

    def run(self, job: Job) -> Execution:
        """Return what the program did with each input.

        Raises:
            TypeError: an input is no JSON-like value.
        """
        return self.run_many([job])[0]

    def run_many(self, jobs: Sequence[Job]) -> list[Execution]:
        """Return what each program did, in order; identical jobs run once, `unknown` ones are not remembered."""
        keys = [_key(job) for job in jobs]
        with self.lock:
            new = {key: job for key, job in zip(keys, jobs, strict=True) if key not in self.cached}
            known = {key: self.cached[key] for key in keys if key in self.cached}
        if new:
            with ThreadPoolExecutor(min(self.workers, len(new))) as pool:
                known |= dict(zip(new, pool.map(self._execute, new.values()), strict=True))
        with self.lock:
            for key in new:
                if known[key].known:
                    self.cached[key] = known[key]
            while len(self.cached) > MOST_CACHED:
                self.cached.popitem(last=False)
        return [known[key] for key in keys]

    def _execute(self, job: Job) -> Execution:
        try:
            with (
                tempfile.TemporaryDirectory(prefix="odonata-program-", ignore_cleanup_errors=True) as folder,
                tempfile.TemporaryFile() as request,
            ):
                request.write(self._request(job))
                request.seek(0)
                watched = self._start_and_watch(request.fileno(), folder)
        except OSError as error:
            return _failed("unknown", job, f"the program could not be started: {error}")
        return self._read(watched, job)

    def _request(self, job: Job) -> bytes:
        inputs = [json.dumps(list(arguments)) for arguments in job.inputs]
        document = {"program": job.program, "function": job.function, "inputs": inputs}
        return json.dumps(document | {"limits": asdict(self.limits), "layers": sorted(self.layers)}).encode()

    def _start_and_watch(self, request: int, folder: str) -> Watched:
        reader, writer = os.pipe()
        try:
            process = subprocess.Popen(
                # Without site packages or paths of its own. Not -I, which would ignore the fixed hash seed.
                [self.python, "-P", "-s", "-S", "-B", str(CHILD), str(request), str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(request, writer),
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        try:
            return watch(process, reader, self.limits.wall_seconds, self.limits.output_bytes)
        finally:
            os.close(reader)

    def _read(self, watched: Watched, job: Job) -> Execution:
        """Judge how the child ended, and read its two lines without trusting them."""
        head, newline, rest = watched.data.partition(b"\n")
        if not newline:
            return _failed("unknown", job, "the sandbox did not start")
        layers = frozenset(str(name) for name in json.loads(head))
        if watched.ended in ("output", "processes", "unknown"):
            return _failed(watched.ended, job, EXPLAINED[watched.ended], layers)
        if watched.ended == "time" or watched.code == -signal.SIGXCPU or _out_of_cpu(watched, self.limits):
            return _failed("time", job, EXPLAINED["time"], layers)
        if watched.code == -signal.SIGKILL:
            return _failed("unknown", job, "killed from outside", layers)
        if not rest.endswith(b"\n"):
            return _failed("crashed", job, f"the program ended the process with status {watched.code}", layers)
        outcomes = _decoded_outcomes(rest, len(job.inputs))
        return (
            _failed("malformed", job, EXPLAINED["malformed"], layers)
            if outcomes is None
            else Execution("returned", outcomes, layers)
        )


EXPLAINED = {
    "output": "more output than allowed",
    "processes": "the program started processes",
    "unknown": "no processor was free until the wall limit",
    "time": "out of time",
    "malformed": "the program wrote into the pipe",
}


@functools.cache
def shared_sandbox() -> Sandbox:
    """Return the sandbox that the rewards by name share, so that two of them run a program once."""
    return Sandbox()


def agrees(expected: Any, value: Any) -> bool:
    """Say if `value` is what was expected, with the very types: True is not 1, a tuple is not a list.

    Floats may differ by 1e-9 of their size; not-a-number agrees with itself.
    """
    if type(value) is not type(expected):
        return False
    if isinstance(expected, float):
        return math.isclose(expected, value, rel_tol=1e-9) or (math.isnan(expected) and math.isnan(value))
    if isinstance(expected, list | tuple):
        return len(expected) == len(value) and all(agrees(e, v) for e, v in zip(expected, value, strict=True))
    if isinstance(expected, dict):
        return expected.keys() == value.keys() and all(agrees(item, value[key]) for key, item in expected.items())
    return expected == value


def _free_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(job: Job) -> bytes:
    text = json.dumps([job.program, job.function, [list(arguments) for arguments in job.inputs]])
    return hashlib.sha256(text.encode()).digest()


def _failed(ended: Ended, job: Job, why: str, layers: frozenset[str] = frozenset()) -> Execution:
    return Execution(ended, tuple(Outcome(error=why) for _ in job.inputs), layers)


def _out_of_cpu(watched: Watched, limits: Limits) -> bool:
    return watched.code == -signal.SIGKILL and watched.cpu_seconds >= limits.cpu_seconds


def _decoded_outcomes(line: bytes, count: int) -> tuple[Outcome, ...] | None:
    """Read one outcome an input; None: the line is not what the child writes."""
    try:
        document = json.loads(line)
        if not isinstance(document, list) or len(document) != count:
            return None
        return tuple(_decoded_outcome(entry) for entry in document)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _decoded_outcome(entry: Any) -> Outcome:
    ((kind, content),) = dict(entry).items()
    if kind == "error":
        return Outcome(error=str(content))
    if kind != "value":
        raise ValueError(kind)
    return Outcome(value=_decoded(content))


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "object":
        return ForeignObject(str(content))
    if kind == "dict":
        return {_decoded(key): _decoded(item) for key, item in content}
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](_decoded(item) for item in content)
