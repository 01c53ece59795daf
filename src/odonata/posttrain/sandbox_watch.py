"""Watches a child process until it ends, talks too much, multiplies or runs out of time; then ends its whole group.

No signal handlers and no timers: a loop over the pipe and the clock, so any thread can watch. Every process of the
group is killed before the child is reaped, while its number still belongs to it. Where seccomp could not forbid forks
(the first line that the child wrote says so), the family is counted from /proc; root is exempt from the limit on
processes.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROC = Path("/proc")


@dataclass(frozen=True)
class Watched:
    """How the child ended."""

    ended: Literal["exited", "time", "output", "processes", "unknown"]
    """unknown: at the wall limit it was ready to run, so the machine was too busy to tell."""
    data: bytes
    """What it wrote into the pipe."""
    code: int
    """Its status; a signal that killed it is negative."""
    cpu_seconds: float
    """Processor time that it used."""


def watch(process: subprocess.Popen[bytes], pipe: int, wall_seconds: float, most_bytes: int) -> Watched:
    """Wait for `process`, reading `pipe`; kill its group at the end, whatever the end was."""
    data = bytearray()
    ended: Literal["exited", "time", "output", "processes", "unknown"] = "unknown"
    try:
        ended = _follow(process.pid, pipe, data, time.monotonic() + wall_seconds, most_bytes)
    finally:
        _kill_group(process.pid, _family(process.pid) if _may_fork(data) or not data else [])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Watched(ended, bytes(data), process.returncode, usage.ru_utime + usage.ru_stime)


def _follow(
    pid: int, pipe: int, data: bytearray, deadline: float, most_bytes: int
) -> Literal["exited", "time", "output", "processes", "unknown"]:
    os.set_blocking(pipe, False)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    pause = 0.001
    while True:
        if poll is None:
            time.sleep(pause)
            pause = min(0.02, 2 * pause)
        else:
            poll.poll(20)
        exited = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        if poll is not None and not _drain(pipe, data, most_bytes):
            poll = None
        if len(data) > most_bytes:
            return "output"
        if exited:
            return "exited"
        if time.monotonic() > deadline:
            return "unknown" if _state(pid) == "R" else "time"
        if _may_fork(data) and len(_family(pid)) > 1:
            return "processes"


def _drain(pipe: int, data: bytearray, most_bytes: int) -> bool:
    """Read what is there; False: the pipe has no writer any more."""
    while len(data) <= most_bytes:
        try:
            chunk = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        data += chunk
    return True


def _may_fork(data: bytearray) -> bool:
    head, newline, _ = data.partition(b"\n")
    return bool(newline) and b'"processes"' not in head


def _kill_group(pid: int, family: list[int]) -> None:
    for member in [*family, pid]:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _family(pid: int) -> list[int]:
    """Return the processes of the session that `pid` leads, and their children, as far as /proc tells."""
    parents = dict[int, int]()
    family = set[int]()
    for entry in PROC.glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        member = int(entry.parent.name)
        parents[member] = int(fields[1])
        if int(fields[3]) == pid:
            family.add(member)
    grown = True
    while grown:
        children = {member for member, parent in parents.items() if parent in family} - family
        family |= children
        grown = bool(children)
    return sorted(family)


def _state(pid: int) -> str:
    """Return R for a process that runs or waits for a processor; ? where there is no /proc."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"
