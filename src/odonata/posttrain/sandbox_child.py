"""What runs inside the sandbox: limits itself, then runs one program on its inputs and reports the outputs.

It is started by path, without `site`, and imports nothing but the standard library. It knows inputs, never expected
outputs: whatever the program does to this process (patched equality, patched `json`, an early exit, junk in the
pipe), all it can do is report outputs, which the parent compares. `contain` lists the layers that this machine
granted:
- limits: CPU seconds, address space, no bytes to files, few descriptors, no core, no child processes (root is exempt);
- files: Landlock (Linux 5.13) lets it read Python's library, and touch nothing but its throw-away folder;
- processes: seccomp refuses to fork, to execute, to signal or trace others, to change their limits;
- network: seccomp refuses sockets; without it, a network namespace of its own, where the kernel grants one.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

LAYERS = ("limits", "files", "processes", "network")
# System calls that a pure function of arrays has no use for, per machine.
REFUSED = {
    "x86_64": (
        0xC000003E,
        # clone fork vfork execve kill tkill tgkill ptrace socket socketpair sched_setaffinity setpriority
        (56, 57, 58, 59, 62, 200, 234, 101, 41, 53, 203, 141),
        # rt_sigqueueinfo rt_tgsigqueueinfo prlimit64 process_vm_readv process_vm_writev execveat
        (129, 297, 302, 310, 311, 322),
    ),
    "aarch64": (
        0xC00000B7,
        (220, 221, 129, 130, 131, 117, 198, 199, 122, 140),
        (138, 240, 261, 270, 271, 281),
    ),
}
# The same on both machines: pidfd_send_signal, io_uring_setup, pidfd_open, clone3, pidfd_getfd.
REFUSED_EVERYWHERE = (424, 425, 434, 435, 438)


def main() -> None:
    """Read the request from one descriptor, write the layers and the outputs as two lines of JSON to the other."""
    source, sink = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(source, "rb") as file:
        request = json.load(file)
    layers = contain(request["limits"], set(request["layers"]))
    write_all(sink, json.dumps(layers).encode() + b"\n")
    outcomes = run(request["program"], request["function"], request["inputs"])
    write_all(sink, json.dumps(outcomes).encode() + b"\n")
    os._exit(0)


def write_all(sink: int, data: bytes) -> None:
    """Write all of `data`; a pipe takes it in pieces."""
    while data:
        data = data[os.write(sink, data) :]


def run(program: str, function: str, inputs: list[str]) -> list[dict[str, Any]]:
    """Return one outcome an input, {"value": …} or {"error": …}; each input is decoded anew, so none can be spoilt."""
    space: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(program, "program.py", "exec"), space)
        answer = space.get(function) or getattr(space["Solution"](), function)
    except BaseException as error:
        return [{"error": described(error)}] * len(inputs)
    return [outcome(answer, arguments) for arguments in inputs]


def outcome(answer: Any, arguments: str) -> dict[str, Any]:
    """Return what one call returned or raised."""
    try:
        return {"value": encoded(answer(*json.loads(arguments)), 0)}
    except BaseException as error:
        return {"error": described(error)}


def described(error: BaseException) -> str:
    """Return the error in at most 200 characters."""
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except BaseException:
        return "an error that cannot be printed"


def encoded(value: Any, depth: int) -> Any:
    """Return `value` in JSON, its very type kept; what is no plain value becomes {"object": its type}."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and value.bit_length() < 10_000):
        return value
    if depth < 8 and kind is list:
        return [encoded(item, depth + 1) for item in value]
    if depth < 8 and kind in (tuple, set, frozenset):
        return {kind.__name__: [encoded(item, depth + 1) for item in value]}
    if depth < 8 and kind is dict:
        return {"dict": [[encoded(key, depth + 1), encoded(item, depth + 1)] for key, item in value.items()]}
    return {"object": kind.__name__}


def contain(limits: dict[str, int], wanted: set[str]) -> list[str]:
    """Take the layers in `wanted` that the machine grants; return their names."""
    if "limits" in wanted:
        limit(limits)
    taken = ["limits"] if "limits" in wanted else []
    if not sys.platform.startswith("linux") or wanted <= {"limits"}:
        return taken
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: both need it where the user is not root
    if "network" in wanted and "processes" not in wanted and own_network(libc):
        taken.append("network")
    if "files" in wanted and close_files(ctypes, libc):
        taken.append("files")
    if "processes" in wanted and refuse_calls(ctypes, libc):
        taken += ["processes", "network"]
    elif "network" in wanted and "network" not in taken and own_network(libc):
        taken.append("network")
    return taken


def limit(limits: dict[str, int]) -> None:
    """Set the limits of the process; a limit that the machine does not know is passed over."""
    seconds, memory = limits["cpu_seconds"], limits["memory_mib"] << 20
    for name, soft, hard in (
        ("RLIMIT_CPU", seconds, seconds + 1),
        ("RLIMIT_AS", memory, memory),
        ("RLIMIT_FSIZE", 0, 0),
        ("RLIMIT_NOFILE", 32, 32),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_NPROC", 0, 0),
    ):
        try:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        except (AttributeError, ValueError, OSError):
            continue


def own_network(libc: Any) -> bool:
    """Move to a network without interfaces (`unshare -n`), as root or in a user namespace."""
    return libc.unshare(0x40000000) == 0 or libc.unshare(0x50000000) == 0


def close_files(ctypes: Any, libc: Any) -> bool:
    """Let the process read Python's library and use the working folder; everything else is refused (Landlock)."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << (13 if version < 2 else 14 if version < 3 else 15)) - 1
    rules = libc.syscall(444, ctypes.byref(ctypes.c_uint64(everything)), 8, 0)
    if rules < 0:
        return False
    readable = [*sys.path[1:], "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/dev/urandom"]
    for path, access in [(os.getcwd(), everything), *((path, 0b1100) for path in readable)]:  # noqa: PTH109
        if os.path.exists(path):  # noqa: PTH110 (pathlib would cost a third of the start)
            allow(ctypes, libc, rules, path, access)
    closed = libc.syscall(446, rules, 0) == 0
    os.close(rules)
    return closed


def allow(ctypes: Any, libc: Any, rules: int, path: str, access: int) -> None:
    """Add the rule that `access` is allowed beneath `path`; a plain file takes only the rights of files."""
    handle = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    rule = (access if os.path.isdir(path) else access & 0b0100).to_bytes(8, sys.byteorder)  # noqa: PTH112
    libc.syscall(445, rules, 1, ctypes.c_char_p(rule + handle.to_bytes(4, sys.byteorder)), 0)
    os.close(handle)


def refuse_calls(ctypes: Any, libc: Any) -> bool:
    """Install a seccomp filter: the calls in `REFUSED` fail with EPERM, a foreign instruction set is killed."""
    machine = os.uname().machine
    if machine not in REFUSED:
        return False
    architecture, one, other = REFUSED[machine]
    numbers = (*one, *other, *REFUSED_EVERYWHERE)
    count = len(numbers)
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    program.append((at_least, count + 1, 0, 0x40000000))  # the x32 calls of x86-64
    program += [(equal, count - i, 0, number) for i, number in enumerate(numbers)]
    program += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050001)]
    code = b"".join(
        k.to_bytes(2, sys.byteorder) + bytes([yes, no]) + value.to_bytes(4, sys.byteorder)
        for k, yes, no, value in program
    )
    buffer = ctypes.create_string_buffer(code)
    head = len(program).to_bytes(8, "little") + ctypes.addressof(buffer).to_bytes(8, "little")
    return libc.prctl(22, 2, ctypes.c_char_p(head), 0, 0) == 0


if __name__ == "__main__":
    main()
