"""The sandbox against programs that loop, fork, eat, write, forge and talk; and what it must not blame on them."""

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from odonata.errors import RecipeError
from odonata.posttrain import sandbox as sandbox_module
from odonata.posttrain.sandbox import ALL_LAYERS, Execution, Job, Limits, Outcome, Sandbox, agrees
from odonata.posttrain.sandbox_watch import watch

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="seccomp, Landlock and /proc are Linux's")
WITHOUT_FILTER = frozenset({"limits"})


@pytest.fixture(scope="module")
def box():
    return Sandbox(Limits(cpu_seconds=1, wall_seconds=30, output_bytes=100_000), workers=2)


def run(box, program, *inputs, function="f"):
    return box.run(Job(program, function, inputs or ([1],)))


def test_outputs_come_back_with_their_types(box):
    values = [3, -2.5, True, None, "ä\n", [1, [2.0]], (1, (2,)), {"a": (1,), 2: [3]}, {1, 2}, math.inf, 10**1000]
    done = run(
        box,
        "def f(i):\n    import math\n    return " + repr(values).replace("inf", "math.inf") + "[i]",
        *[[i] for i in range(11)],
    )
    assert done.ended == "returned"
    assert all(agrees(value, outcome.value) for value, outcome in zip(values, done.outcomes, strict=True))


def test_foreign_objects_come_back_as_what_they_are_and_equal_nothing(box):
    (outcome,) = run(box, "class Fraud: pass\ndef f(x): return [Fraud()]").outcomes
    assert repr(outcome.value) == "[<an object of type Fraud>]"
    assert not agrees([1], outcome.value)


def test_each_call_has_fresh_arguments(box):
    done = run(box, "def f(x):\n    x.append(1)\n    return len(x)", [[]], [[]], [[5]])
    assert [outcome.value for outcome in done.outcomes] == [1, 1, 2]


def test_one_failing_call_leaves_the_others(box):
    done = run(box, "def f(x): return 6 // x", [2], [0], [3])
    assert [outcome.value for outcome in done.outcomes] == [3, None, 2]
    assert done.outcomes[1].error == "ZeroDivisionError: integer division or modulo by zero"


def test_a_method_of_solution_is_found_as_well(box):
    assert run(box, "class Solution:\n    def f(self, x): return x + 1").outcomes == (Outcome(2),)
    assert "KeyError" in run(box, "def g(x): return 1").outcomes[0].error


def test_sets_come_back_in_one_order_whatever_the_process(box):
    program = "def f(x): return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    assert run(box, program).outcomes == run(box, program + "  # again").outcomes


@pytest.mark.slow
@pytest.mark.parametrize("layers", [ALL_LAYERS, WITHOUT_FILTER], ids=["all layers", "limits only"])
@pytest.mark.parametrize(
    ("program", "ended"),
    [
        ("while True: pass", "time"),
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "time"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "time"),
        ("def f(x): return 9**9**9", "time"),
        ("import os\nos._exit(0)", "crashed"),
        ("def f(x): return f(x)", "returned"),
        ("import os\nos.abort()", "crashed"),
        ("def f(x): return 'a' * 10**6", "output"),
        ("import os, sys\nos.write(int(sys.argv[2]), b'[{\"value\": 1}]\\n')\ndef f(x): return 1", "malformed"),
        ("import os, sys\nos.write(int(sys.argv[2]), b'{}\\x00\\xff' * 100 + b'\\n')\nos._exit(0)", "malformed"),
        ("import os, sys\nos.write(int(sys.argv[2]), b'[' * 50000 + b'\\n')\nos._exit(0)", "malformed"),
        ("import os, sys\nwhile True: os.write(int(sys.argv[2]), b'x' * 65536)", "output"),
        ("import os, sys\nos.close(int(sys.argv[2]))\nwhile True: pass", "time"),
    ],
)  # fmt: skip
def test_how_hostile_programs_end(program, ended, layers):
    box = Sandbox(Limits(cpu_seconds=1, wall_seconds=30, output_bytes=100_000), workers=1, layers=layers)
    start = time.monotonic()
    done = run(box, program)
    assert done.ended == ended and done.known
    assert len(done.outcomes) == 1
    assert ended == "returned" or done.outcomes[0].error
    assert time.monotonic() - start < 20


@pytest.mark.slow
def test_memory_is_bounded(box):
    done = run(box, "def f(x): return len([0] * 10**9)")
    assert done.outcomes[0].error.startswith("MemoryError")
    grows = run(box, "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 22))")
    assert grows.ended in ("crashed", "time") or grows.outcomes[0].error.startswith("MemoryError")


def test_sleeping_ends_at_the_wall_and_is_the_programs_fault():
    start = time.monotonic()
    done = run(Sandbox(Limits(wall_seconds=0.7), workers=1), "import time\ntime.sleep(60)")
    assert (done.ended, done.known) == ("time", True)
    assert time.monotonic() - start < 3


def test_printing_and_reading_cost_nothing_and_say_nothing(box):
    done = run(
        box,
        "import sys\nfor i in range(10**5): print('passed', file=sys.stderr)\n"
        "print('[{\"value\": 2}]')\ndef f(x): return x",
    )
    assert done.outcomes == (Outcome(1),)
    assert run(box, "def f(x): return input()").outcomes[0].error.startswith("EOFError")


@LINUX
def test_all_layers_are_granted_here_and_reported(box):
    granted = run(box, "def f(x): return x").layers
    assert {"limits", "processes", "network"} <= granted


@LINUX
@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "os.system('true') == 0 or 1 / 0",
        "__import__('subprocess').run(['true'])",
        "__import__('socket').socket()",
        "__import__('threading').Thread(target=print).start()",
        "os.kill(os.getppid(), 9)",
        "os.killpg(os.getpgid(os.getppid()), 9)",
        "os.execv('/bin/true', ['true'])",
        "__import__('resource').prlimit(os.getppid(), 0, (1, 1))",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    ],
)
def test_processes_sockets_and_signals_are_refused(box, attempt):
    (outcome,) = run(box, f"import os\ndef f(x): return bool({attempt}) + 1").outcomes
    assert outcome.error is not None
    assert outcome.error.split(":")[0] in ("PermissionError", "RuntimeError", "ZeroDivisionError", "BlockingIOError")


def test_nothing_is_written_to_disk(box, tmp_path):
    grow = "def f(path):\n    with open(path, 'wb') as file: file.write(b'x' * 10**7)\n    return 1"
    for path in (str(tmp_path / "stolen"), "here.txt"):
        assert run(box, grow, [path]).outcomes[0].error is not None
    assert not (tmp_path / "stolen").exists() or not (tmp_path / "stolen").stat().st_size
    folder = run(
        box, "import os\ndef f(x):\n    os.mkdir('left')\n    open('left/file', 'w').close()\n    return os.getcwd()"
    )
    assert folder.outcomes[0].error is None and not Path(folder.outcomes[0].value).exists()


def test_files_outside_its_folder_are_closed_where_the_kernel_can(box, tmp_path):
    if "files" not in run(box, "def f(x): return x").layers:
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "tests.json").write_text("[49]")
    for attempt in ("open(p).read()", "os.listdir(os.path.dirname(p))", "os.remove(p)", "open('/proc/1/stat').read()",
                    "os.rename(p, p + '2')", "os.symlink(p, p + '3')"):  # fmt: skip
        (outcome,) = run(box, f"import os\ndef f(p): return {attempt}", [str(tmp_path / "tests.json")]).outcomes
        assert outcome.error.startswith("PermissionError"), attempt
    assert (tmp_path / "tests.json").read_text() == "[49]"
    assert [path.name for path in tmp_path.iterdir()] == ["tests.json"]


def test_the_standard_library_is_there_and_the_site_packages_are_not(box):
    names = "collections heapq bisect math itertools functools re random decimal fractions string typing dataclasses"
    imports = "\n".join(f"import {name}" for name in names.split())
    assert run(box, f"{imports}\ndef f(x): return fractions.Fraction(1, 2) * 2 == 1").outcomes == (Outcome(True),)
    assert run(box, "import numpy").outcomes[0].error.startswith("ModuleNotFoundError")
    assert run(box, "import os\ndef f(x): return sorted(os.environ)").outcomes[0].value == ["LC_ALL", "PYTHONHASHSEED"]


FORKS = {
    "a fork that waits": "os.fork()",
    "a fork in a session of its own": "os.fork() or os.setsid()",
    "a bomb": "[os.fork() for i in range(6)]",
}


@LINUX
@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_without_the_filter_forks_are_refused_or_counted_and_killed_with_their_family(fork, tmp_path):
    program = (
        f"import os, time\ndef f(path):\n    {fork}\n    os.mkdir(f'{{path}}/{{os.getpid()}}')\n    time.sleep(60)"
    )
    box = Sandbox(Limits(cpu_seconds=2, wall_seconds=30), workers=1, layers=WITHOUT_FILTER)
    start = time.monotonic()
    done = run(box, program, [str(tmp_path)])
    refused = done.ended == "returned" and done.outcomes[0].error.startswith(
        "BlockingIOError"
    )  # RLIMIT_NPROC, not root
    assert done.ended == "processes" or refused
    assert time.monotonic() - start < 15
    assert refused or list(tmp_path.iterdir())
    deadline = time.monotonic() + 5
    while (alive := [path.name for path in tmp_path.iterdir() if _runs(path.name)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@LINUX
def test_without_the_filter_the_network_is_taken_away_where_the_kernel_grants_it():
    box = Sandbox(Limits(cpu_seconds=1), workers=1, layers=frozenset({"limits", "network"}))
    program = (
        "import socket\ndef f(port):\n    with socket.socket() as s:\n        s.settimeout(1)\n"
        "        return s.connect_ex(('127.0.0.1', port))"
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        done = run(box, program, [server.getsockname()[1]])
    if "network" not in done.layers:
        pytest.skip("this kernel grants no network namespace")
    assert done.outcomes[0].value != 0


def test_a_child_that_cannot_start_is_unknown_and_not_remembered():
    for python in ("/bin/false", "/nonexistent/python"):
        box = Sandbox(workers=1, python=python)
        done = run(box, "def f(x): return x")
        assert (done.ended, done.known) == ("unknown", False)
        assert done.outcomes[0].error
        assert not box.cached


@LINUX
@pytest.mark.slow
def test_a_program_that_found_no_processor_is_unknown_and_one_that_sleeps_is_not():
    for code, ended in (("while True: pass", "unknown"), ("import time; time.sleep(60)", "time")):
        reader, writer = os.pipe()
        process = subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)
        os.close(writer)
        watched = watch(process, reader, 1.2, 1000)
        os.close(reader)
        assert (watched.ended, watched.code) == (ended, -signal.SIGKILL)


@pytest.mark.slow
def test_a_child_killed_from_outside_is_unknown(monkeypatch):
    def watch_and_shoot(process, *arguments):
        threading.Timer(1.5, process.kill).start()
        return watch(process, *arguments)

    monkeypatch.setattr(sandbox_module, "watch", watch_and_shoot)
    done = run(Sandbox(workers=1), "import time\ntime.sleep(20)")
    assert (done.ended, done.outcomes[0].error) == ("unknown", "killed from outside")


def test_identical_programs_run_once(monkeypatch):
    box = Sandbox(workers=2)
    runs = []

    def count(job):
        runs.append(job.program)
        return Execution("returned", (Outcome(1),))

    monkeypatch.setattr(box, "_execute", count)
    jobs = [Job("a", "f", [[1]]), Job("b", "f", [[1]]), Job("a", "f", [[1]]), Job("a", "f", [[2]])]
    assert len(box.run_many(jobs)) == 4
    box.run_many(jobs)
    assert sorted(runs) == ["a", "a", "b"]


def test_many_programs_keep_their_order_and_leave_no_file_behind(box, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    descriptors = Path("/proc/self/fd") if Path("/proc").is_dir() else tmp_path
    before = len(list(descriptors.iterdir()))
    done = box.run_many([Job(f"def f(x): return x * {n}", "f", [[2]]) for n in range(20)])
    assert [execution.outcomes[0].value for execution in done] == [2 * n for n in range(20)]
    assert len(list(descriptors.iterdir())) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_verdicts_are_the_same_off_the_main_thread(box):
    jobs = [
        Job("def f(x): return x", "f", [[1]]),
        Job("while True: pass  # thread", "f", [[1]]),
        Job("1/0", "f", [[1]]),
    ]
    there = []
    fresh = Sandbox(box.limits, workers=2)
    thread = threading.Thread(target=lambda: there.append(fresh.run_many(jobs)))
    thread.start()
    here = Sandbox(box.limits, workers=2).run_many(jobs)
    thread.join(20)
    assert there == [here]


@pytest.mark.parametrize(
    ("expected", "value", "verdict"),
    [
        (1, 1, True), (1, True, False), (True, 1, False), (1, 1.0, False), (0.1 + 0.2, 0.3, True), (0.3, 0.3001, False),
        ([1, 2], (1, 2), False), ([1, [2]], [1, [2]], True), ([1], [1, 1], False), ("a", "a", True), (None, None, True),
        (math.nan, math.nan, True), (math.inf, math.inf, True), (math.inf, -math.inf, False), (1.0, math.nan, False),
        ({"a": 1}, {"a": 1}, True), ({"a": 1}, {"a": True}, False), ({1, 2}, {2, 1}, True), (0, None, False),
    ],
)  # fmt: skip
def test_agreement_is_of_value_and_type(expected, value, verdict):
    assert agrees(expected, value) is verdict


def test_a_patched_integer_agrees_with_nothing():
    class Anything(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    assert Anything(3) == 49 and not agrees(49, Anything(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(cpu_seconds=0), "at least 1 CPU second"),
        (lambda: Limits(memory_mib=8), "64 MiB"),
        (lambda: Sandbox(workers=0), "at least one worker, not 0"),
        (lambda: Sandbox(layers=frozenset({"disk"})), "unknown layer 'disk' of containment; there are files, limits"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(RecipeError, match=message):
        make()
