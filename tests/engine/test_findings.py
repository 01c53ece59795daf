"""Curves and what is concluded from them; options in words."""

import math
from random import Random

import pytest

from odonata.engine.findings import Curve, Record, general, rate_times, read_lines
from odonata.engine.option_help import field_help, option_lines
from odonata.engine.recipe import AdamW, Recipe, Schedule


def curve(values):
    return Curve(tuple(range(1, len(values) + 1)), tuple(values))


def test_quarters_of_a_curve():
    eight = curve([1.0, 3.0, 9.0, 9.0, 9.0, 9.0, 4.0, 8.0])
    assert (eight.start.mean, eight.start.first, eight.start.last) == (2.0, 1, 2)
    assert (eight.end.mean, eight.end.first, eight.end.last) == (6.0, 7, 8)
    assert eight.rise == 4.0 and eight.best() == (3, 9.0) and eight.best(-1) == (1, 1.0)
    assert curve([5.0]).start.mean == curve([5.0]).end.mean == 5.0 and curve([5.0]).error == 0.0


def test_the_error_is_that_of_the_difference_of_two_quarters():
    """Over many curves of noise, the rise spreads as the error says: within a tenth."""
    chance = Random(0)
    curves = [curve([chance.gauss(0, 1) for _ in range(64)]) for _ in range(400)]
    spread = math.sqrt(sum(c.rise**2 for c in curves) / len(curves))
    assert sum(c.error for c in curves) / len(curves) == pytest.approx(spread, rel=0.1)
    assert spread == pytest.approx(math.sqrt(2 / 16), rel=0.1)
    assert sum(c.rises() or c.falls() for c in curves) < 0.09 * len(curves)


def test_a_trend_is_no_noise():
    line = curve([0.1 * i for i in range(40)])
    assert line.rises() and not line.falls() and not line.rises(least=10.0)
    assert not curve([0.0, 1.0, 2.0]).rises()  # too few lines


def test_one_dip_is_no_loss_and_two_are():
    assert not curve([0.7, 0.93, 0.85]).lost() and not curve([0.93, 0.85, 0.92]).lost() and not curve([0.9]).lost()
    assert curve([0.7, 0.93, 0.85, 0.86]).lost() and curve([0.9, 0.75]).lost()


def test_lines_that_are_none_are_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "a": 2}\n[1]\n{"a": 3}\n{"step": true}\n{"step": 2, "a": "x"}\n{"st'
    )
    assert [row["step"] for row in read_lines(tmp_path / "log.jsonl")] == [1, 2]
    assert read_lines(tmp_path / "nothing.jsonl") == []


def test_figures_that_are_no_numbers_make_no_curve():
    record = Record({"method": {"beta": 0.1}}, [{"step": 1, "a": math.nan, "b": "x", "c": True}, {"step": 2, "a": 3.0}])
    found = record.curve("a")
    assert found is not None and (found.steps, found.values) == ((2,), (3.0,))
    assert record.curve("b") is None and record.curve("c") is None and record.names() == ["step", "a"]
    assert record.option("method.beta") == 0.1 and record.option("method.beta.x", 7) == 7
    assert [f.name for f in general(record)] == ["not a number"]
    assert rate_times(record, 2.0) == "--optim.lr"
    assert rate_times(Record({"optim": {"lr": 0.3}}, []), 0.1) == "--optim.lr 0.03"


def test_early_stopping_is_no_accident():
    rows = [{"step": 5, "loss": 1.0}]
    assert [f.severity for f in general(Record({"steps": 10}, rows))] == ["watch"]
    assert [f.severity for f in general(Record({"steps": 10, "early_stop": 3}, rows))] == ["ok"]


def test_options_have_their_help_and_those_within_their_names():
    recipe = Recipe("x", AdamW(lr=0.5), Schedule(), AdamW())
    lines = {line.flag: line for line in option_lines(recipe.method)}
    assert lines["--lr"].value == 0.5 and lines["--weight-decay"].help
    nested = {line.flag: line for line in option_lines(Recipe("x", AdamW(), Schedule(), AdamW()))}
    assert nested["--optim.lr"].help == "Peak learning rate." and "--data.warmup" in nested
    assert field_help(Recipe)["log_every"] == "Steps between lines of log.jsonl."
