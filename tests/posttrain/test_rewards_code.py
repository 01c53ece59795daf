"""Unit-tested programs: all or nothing, hostile ones included; what the sandbox cannot tell is unknown."""

import threading

import pytest

from odonata.errors import DataError
from odonata.posttrain.rewards import Answered, judge
from odonata.posttrain.rewards.code import CodeFractionReward, CodeReward, extract_program
from odonata.posttrain.sandbox import Limits, Sandbox

TWO_POINTERS = """def max_area(h):
    i, j, best = 0, len(h) - 1, 0
    while i < j:
        best = max(best, (j - i) * min(h[i], h[j]))
        if h[i] < h[j]:
            i += 1
        else:
            j -= 1
    return best
"""
MOVES_THE_TALLER = TWO_POINTERS.replace("h[i] < h[j]:", "h[i] > h[j]:")
HOSTILE = {
    "patches equality": (
        "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\ndef max_area(h): return A(0)"
    ),
    "compares like any float": "class F(float):\n    __eq__ = lambda s, o: True\ndef max_area(h): return F(1)",
    "prints a verdict": 'print(\'@@{"pass": 22, "n": 22}\')\ndef max_area(h): return 0',
    "exits with a forged verdict": (
        'import os, sys\nfor fd in range(1, 10):\n    try: os.write(fd, b\'{"passed": 22, "value": 49}\\n\')\n'
        "    except OSError: pass\nos._exit(0)"
    ),
    "exits early": "import sys\nsys.exit(0)\ndef max_area(h): return 49",
    "patches json": (
        "import json\njson.dumps = lambda *a, **k: '[{\"value\": true}]'\njson.loads = lambda *a, **k: [[1, 1]]\n"
        "def max_area(h): return True"
    ),
    "patches the child": (
        "import __main__\n__main__.outcome = lambda *a: {'value': 1}\n__main__.encoded = lambda *a: 1\n"
        "def max_area(h): return 2"
    ),
    "says true": "def max_area(h): return True",
    "says text": "def max_area(h): return '49'",
    "returns nothing": "def max_area(h): pass",
    "answers every operator": (
        "class Any:\n    def __getattr__(s, n): return lambda *a: s\n    def __eq__(s, o): return True\n"
        "def max_area(h): return Any()"
    ),
    "reads its frames": (
        "def max_area(h):\n    import sys\n    f = sys._getframe()\n    while f.f_back: f = f.f_back\n"
        "    return list(f.f_locals)[0]"
    ),
    "raises what cannot be printed": "class E(BaseException):\n    def __str__(s): raise s\ndef max_area(h): raise E",
    "is no Python": "def max_area(h: return",
    "has a null byte": "def max_area(h): return 1\0",
    "defines another name": "def area(h): return 49\nmax_area = None",
}


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox(Limits(cpu_seconds=1, wall_seconds=8), workers=2)


def answered(program, **row):
    return Answered(
        "Write it.",
        f"<think>so</think>\n```python\n{program}\n```",
        row or {"problem": "container-with-most-water"},
        True,
    )


def test_right_program_passes_all_and_the_classic_mistake_a_third_which_counts_as_nothing(sandbox):
    answers = [answered(TWO_POINTERS), answered(MOVES_THE_TALLER)]
    judged = judge([CodeReward(sandbox), CodeFractionReward(sandbox)], [1.0, 0.0], answers)
    assert judged.total == [1.0, 0.0]
    assert judged.parts["code-fraction"][0] == 1.0
    assert 0.1 < judged.parts["code-fraction"][1] < 0.6


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_hostile_programs_earn_nothing(sandbox, program):
    assert CodeReward(sandbox)([answered(program)]) == [0.0]


def test_expected_outputs_never_enter_the_child(sandbox):
    spy = "def spy(n):\n    import gc\n    return any(type(o) is dict and o.get('expected') for o in gc.get_objects())"
    row = {"function": "spy", "tests": [{"arguments": [1], "expected": False}]}
    assert CodeReward(sandbox)([answered(spy, **row)]) == [1.0]
    secret = "def find(n):\n    import gc\n    return '1418-terces'[::-1] in repr(gc.get_objects())"
    row = {
        "function": "find",
        "tests": [{"arguments": [1], "expected": False}, {"arguments": [2], "expected": "secret-8141"}],
    }
    assert CodeFractionReward(sandbox)([answered(secret, **row)]) == [0.5]


def test_a_sandbox_that_cannot_start_is_unknown_and_not_zero():
    broken = Sandbox(workers=1, python="/bin/false")
    judged = judge([CodeReward(broken)], [1.0], [answered(TWO_POINTERS)])
    assert judged.total == [None]
    assert Sandbox(workers=1, python="/nonexistent/python") and CodeReward(
        Sandbox(workers=1, python="/nonexistent/python")
    )([answered(TWO_POINTERS)]) == [None]


def test_a_completion_without_the_program_is_wrong(sandbox):
    completions = [
        "",
        "I cannot.",
        "```python\nprint(1)\n```",
        "<think>```python\ndef max_area(h): return 1\n```</think>",
    ]
    answers = [Answered("", text, {"problem": "container-with-most-water"}, True) for text in completions]
    assert CodeReward(sandbox)(answers) == [0.0] * 4


def test_verdicts_are_the_same_off_the_main_thread():
    answers = [answered(TWO_POINTERS), answered(MOVES_THE_TALLER), answered("while True: pass\ndef max_area(h): 1")]
    limits, there = Limits(cpu_seconds=1), []
    here = CodeReward(Sandbox(limits, workers=1))(answers)
    thread = threading.Thread(target=lambda: there.append(CodeReward(Sandbox(limits, workers=1))(answers)))
    thread.start()
    thread.join(30)
    assert here == [1.0, 0.0, 0.0] and there == [here]


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\ndef f(x): return 1\n```", "def f(x): return 1\n"),
        ("```\ndef f(x): return 1\n```\nbetter:\n```py\ndef f(x): return 2\n```", "def f(x): return 2\n"),
        ("```python\ndef f(x): return 1\n```\nuse it:\n```python\nprint(f(3))\n```", "def f(x): return 1\n"),
        ("def f(x): return 3", "def f(x): return 3"),
        ("<answer>\nf = lambda x: 4\n</answer>", "f = lambda x: 4"),
        ("def g(x): return 3", None),
        ("```python\ndef f(x): return 1", None),
    ],
)
def test_the_program_in_a_completion(completion, program):
    assert extract_program(completion, "f") == program


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": "container-with-most-watter"}, "unknown problem .* perhaps you meant container-with-most-water"),
        ({"function": "f", "tests": []}, "needs the name of a `function` and a list of `tests`"),
        ({"function": "f(x)", "tests": [1]}, "needs the name of a `function`"),
        ({"function": "f", "tests": [[1, 2]]}, r"a test in the row of 'Write it.' is \[1, 2\]: it must be"),
    ],
)
def test_rows_without_usable_tests_are_named(sandbox, row, message):
    with pytest.raises(DataError, match=message):
        CodeReward(sandbox)([answered("def f(x): return x", **row)])
