"""The table of test-time compute, and its curve."""

import numpy as np
import pytest
from PIL import Image

from odonata.errors import DataError
from odonata.metrics.bootstrap import bootstrap_mean
from odonata.posttrain.search.table import draw_curve, format_table, scaling_table

OUTCOMES = {
    "vote": {4: [1, 0, 1, 1], 1: [0, 0, 1, 1], 16: [1, 1, 1, 1]},
    "best of n": {4: [1, 0, 0, 0.5]},
}


def test_rows_are_means_with_bootstrap_intervals():
    rows = scaling_table(OUTCOMES)
    assert [(row.method, row.budget) for row in rows] == [("vote", 1), ("vote", 4), ("vote", 16), ("best of n", 4)]
    assert [row.accuracy for row in rows] == [0.5, 0.75, 1.0, 0.375]
    expected = bootstrap_mean([1, 0, 1, 1])
    assert (rows[1].low, rows[1].high, rows[1].problems) == (expected.low, expected.high, 4)
    assert rows[2].low == rows[2].high == 1
    assert rows[1].to_dict() == {"method": "vote", "budget": 4, "accuracy": 0.75, "low": expected.low,
                                 "high": expected.high, "problems": 4}  # fmt: skip


def test_text_has_a_column_for_each_budget():
    lines = format_table(scaling_table(OUTCOMES)).splitlines()
    assert lines[0].split() == ["budget", "1", "4", "16"]
    assert lines[1].startswith("vote") and lines[1].endswith("100.0 [100.0, 100.0]")
    assert lines[2].startswith("best of n") and lines[2].count("–") == 2
    assert len({len(line) for line in lines}) == 1


def pixels(path, colour):
    picture = np.asarray(Image.open(path).convert("RGB"))
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return np.argwhere((picture == wanted).all(-1))


def test_the_curve_rises_where_accuracy_does(tmp_path):
    path = tmp_path / "curve.png"
    draw_curve(scaling_table(OUTCOMES), path, title="Countdown")
    blue = pixels(path, "#0b6bcb")
    blue = blue[blue[:, 0] > 65]  # below the legend
    left, right = blue[blue[:, 1] < blue[:, 1].min() + 4], blue[blue[:, 1] > blue[:, 1].max() - 4]
    assert right[:, 0].mean() < left[:, 0].mean() - 100
    assert len(pixels(path, "#c2410c")) > 50
    alone = tmp_path / "alone.png"
    draw_curve(scaling_table({"vote": {4: [1, 0]}}), alone)
    assert Image.open(alone).size == Image.open(path).size


def test_bad_input(tmp_path):
    rows = scaling_table(OUTCOMES)
    with pytest.raises(DataError, match="vote, budget 2 has 1 problems, but vote, budget 1 has 2"):
        scaling_table({"vote": {1: [1, 0], 2: [1]}})
    with pytest.raises(DataError, match="vote, budget 1: the outcome of problem 1 is 2"):
        scaling_table({"vote": {1: [1, 2]}})
    with pytest.raises(DataError, match="problem 0 is nan"):
        scaling_table({"vote": {1: [float("nan")]}})
    with pytest.raises(DataError, match="vote, budget 0: a budget is 1 or more"):
        scaling_table({"vote": {0: [1]}})
    with pytest.raises(DataError, match="vote, budget 1 has no problem"):
        scaling_table({"vote": {1: []}})
    with pytest.raises(DataError, match="no outcomes"):
        scaling_table({})
    with pytest.raises(DataError, match=r"curve.svg: a curve is written as .png"):
        draw_curve(rows, tmp_path / "curve.svg")
    with pytest.raises(DataError, match="cannot be written: No such file"):
        draw_curve(rows, tmp_path / "absent" / "curve.png")
    with pytest.raises(DataError, match="nothing to draw"):
        draw_curve([], tmp_path / "curve.png")
