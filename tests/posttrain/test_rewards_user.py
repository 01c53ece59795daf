"""A reward of the user's own: what it says, and where it is at fault when it raises, hangs or returns nonsense."""

import logging
import os
import time

import pytest

from odonata.errors import RecipeError, RunError
from odonata.posttrain.rewards import Answered, judge, reward_named
from odonata.posttrain.rewards.user import UserReward

SOURCE = """
import time
from neighbour import BONUS

def polite(answers):
    print("hello")
    return [BONUS * ("please" in a.completion) if a.finished else None for a in answers]

def raises(answers):
    return [1 / a.row["n"] for a in answers]

def hangs(answers):
    while any(a.row["n"] == 0 for a in answers):
        time.sleep(0.01)
    return [1.0] * len(answers)

def nan(answers):
    return [float("nan") for a in answers]

def text(answers):
    return ["good" for a in answers]

def one_too_few(answers):
    return [1.0] * (len(answers) - 1)

def one_number(answers):
    return 1.0

def one_string(answers):
    return "ab"

def numpy_numbers(answers):
    import numpy
    return numpy.arange(len(answers), dtype=numpy.float32)

def exits(answers):
    raise SystemExit(3)

def dies(answers):
    import os
    os._exit(7)

def together(answers):
    if len(answers) > 1:
        raise RuntimeError("two is a crowd")
    return [1.0]

alias = polite
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("BONUS = 2\n")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def batch(*numbers):
    return [Answered(f"prompt {n}", "please", {"n": n}, True) for n in numbers]


def test_own_function_judges_by_its_name_with_what_stands_beside_its_file(file):
    reward = reward_named(f"{file}:polite")
    answers = [Answered("", "yes please", {}, True), Answered("", "now", {}, True), Answered("", "", {}, False)]
    judged = judge([reward], [0.5], answers)
    assert judged.total == [1.0, 0.0, None]
    assert list(judged.parts) == [f"{file}:polite"]
    assert reward(answers) == [2.0, 0.0, None]
    reward.close()


def test_numbers_of_numpy_are_numbers(file):
    assert UserReward(str(file), "numpy_numbers")(batch(1, 2, 3)) == [0.0, 1.0, 2.0]


def test_what_raises_names_function_line_and_row(file):
    line = SOURCE.splitlines().index('    return [1 / a.row["n"] for a in answers]') + 1
    with pytest.raises(RunError) as caught:
        UserReward(str(file), "raises")(batch(1, 2, 0, 4))
    message = str(caught.value)
    assert f"{file}:raises raised ZeroDivisionError: division by zero at {file}:{line}" in message
    assert "on the row {'n': 0} of the prompt 'prompt 0'" in message


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nan", "returned nan for the row {'n': 1}.*finite number, or None"),
        ("text", "returned 'good' for the row"),
        ("one_too_few", "returned 1 values for 2 answers"),
        ("one_number", "returned 1.0: wanted a list of 2 numbers"),
        ("one_string", "returned 'ab': wanted a list of 2 numbers"),
        ("exits", "raised SystemExit: 3"),
        ("dies", r"ended its process \(status 7\)"),
        ("together", "raised RuntimeError: two is a crowd .* on these 2 answers together, though on none alone"),
    ],
)
def test_nonsense_stops_the_run_and_says_so(file, function, message):
    with pytest.raises(RunError, match=rf"the reward .*mine.py:{function} {message}"):
        UserReward(str(file), function)(batch(1, 2))


def test_what_hangs_is_killed_and_unknown_and_the_next_batch_is_judged(file, caplog):
    reward = UserReward(str(file), "hangs", wall_seconds=0.4)
    assert reward(batch(1)) == [1.0]
    process = reward.worker.process
    with caplog.at_level(logging.WARNING):
        assert reward(batch(1, 0)) == [None, None]
    assert "did not answer within 0.4 s: its process was ended and 2 answers stay unjudged" in caplog.text
    assert process.returncode == -9
    reward.wall_seconds = 30
    assert reward(batch(1, 2)) == [1.0, 1.0]


def test_three_hangs_in_a_row_stop_the_run(file):
    reward = UserReward(str(file), "hangs", wall_seconds=0.1)
    assert [reward(batch(0)), reward(batch(0))] == [[None], [None]]
    with pytest.raises(RunError, match=r"did not answer within 0\.1 s on 3 batches in a row"):
        reward(batch(0))


def test_a_large_batch_goes_through_the_pipes(file):
    answers = [Answered("", "please " + "x" * 10_000, {"n": 1}, True) for _ in range(300)]
    assert UserReward(str(file), "alias")(answers) == [2.0] * 300


def test_closing_ends_the_process(file):
    reward = UserReward(str(file), "polite")
    reward(batch(1))
    pid = reward.worker.process.pid
    reward.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_forgotten_reward_ends_its_process(file):
    reward = UserReward(str(file), "polite")
    reward(batch(1))
    process = reward.worker.process
    del reward
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.returncode is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:nothing", "defines no function 'nothing'"),
        ("{folder}/absent.py:polite", "there is no file"),
        ("{folder}/broken.py:polite", "is no Python"),
    ],
)
def test_names_that_lead_nowhere(file, name, message):
    (file.parent / "broken.py").write_text("def polite(:\n")
    with pytest.raises(RecipeError, match=message):
        reward_named(name.format(file=file, folder=file.parent))


def test_a_file_that_cannot_be_loaded_says_where(file):
    file.write_text("def polite(answers): return []\nimport no_such_module_at_all\n")
    with pytest.raises(
        RunError, match=r"could not be loaded: ModuleNotFoundError: .*no_such_module_at_all.* at .*mine.py:2"
    ):
        reward_named(f"{file}:polite")(batch(1))


def test_rows_that_cannot_be_sent_are_named(file):
    with pytest.raises(RunError, match=r"the rows cannot be sent to the reward's process: Object of type set"):
        UserReward(str(file), "polite")([Answered("", "", {"x": {1}}, True)])
