"""Records can be read back, and every verdict that the package carries follows from the figures beside it."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree

import pytest

from odonata import claims
from odonata.claims.claim import Published
from odonata.claims.record import RECORDED, Record, record_in_package
from odonata.claims.runner import run_claim
from odonata.errors import RunError


def test_a_record_is_the_same_after_writing_and_reading(toy_claim, tmp_path):
    record = run_claim(toy_claim(), tmp_path, command="odonata claim run toy")
    path = record.save(tmp_path / "out")
    assert Record.load(path) == record
    ElementTree.parse(path.with_suffix(".svg"))


def test_smoke_tests_and_verdicts_without_ground_are_not_recorded(toy_claim, tmp_path):
    record = run_claim(toy_claim(), tmp_path / "work")
    with pytest.raises(RunError, match="cannot be recorded"):
        record_in_package(dataclasses.replace(record, quick=True), tmp_path)
    with pytest.raises(RunError, match="does not follow from the figures"):
        record_in_package(dataclasses.replace(record, verdict="not supported"), tmp_path)
    assert record_in_package(record, tmp_path) == tmp_path / "toy.json"


def test_published_figures_stand_beside_ours_in_their_order(toy_claim, tmp_path):
    figures = {"old@small": 70.0, "new@small": 72.0}
    record = run_claim(toy_claim(published=Published("score", "a paper", figures)), tmp_path)
    beside = Record.load(record.save(tmp_path / "out")).beside_published()
    assert beside is not None
    rows, correlation = beside
    assert [(cell, theirs) for cell, theirs, _ in rows] == [("new@small", 72.0), ("old@small", 70.0)]
    assert rows[0][2] > rows[1][2]
    assert correlation == pytest.approx(1)
    assert run_claim(toy_claim(), tmp_path / "other").beside_published() is None


def test_what_is_not_a_record_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"verdict": "supported"}')
    for name, message in (("a", "cannot read"), ("b", "not the record"), ("c", "cannot read")):
        with pytest.raises(RunError, match=message):
            Record.load(tmp_path / f"{name}.json")


def test_every_record_belongs_to_a_claim_and_has_its_figure():
    names = {path.stem for path in RECORDED.glob("*.json")}
    assert names <= set(claims.CLAIMS)
    assert {path.stem for path in RECORDED.glob("*.svg")} == names
    for name in names:
        ElementTree.parse(RECORDED / f"{name}.svg")


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.json")))
class TestRecorded:
    def test_verdict_follows_from_the_figures(self, name):
        record = Record.load(RECORDED / f"{name}.json")
        verdict, outcomes = record.recompute()
        assert verdict == record.verdict
        for found, kept in zip(outcomes, record.outcomes, strict=True):
            assert found.verdict == kept["verdict"]
            for end in ("mean", "low", "high"):
                assert getattr(found.interval, end) == pytest.approx(kept[end], rel=1e-9, abs=1e-12)

    def test_every_cell_ran_with_every_seed_at_the_setting_that_validation_chose(self, name):
        record, claim = Record.load(RECORDED / f"{name}.json"), claims.load(name)
        cells = {f"{variant}@{condition}" for condition, variant in claim.cells()}
        assert not record.quick
        assert record.seeds == list(claim.seeds)
        assert {(t["cell"], t["seed"]) for t in record.trials} == {(c, s) for c in cells for s in claim.seeds}
        assert all(t["setting"] == record.chosen[t["cell"]] for t in record.trials)
        if not claim.tuned:
            return
        sign, figure = (-1 if claim.tune_by.startswith("-") else 1), claim.tune_by.removeprefix("-")
        for cell in cells:
            tried = [t for t in record.tuning if t["cell"] == cell]
            assert len(tried) == len(claim.settings(claim.variants[0])) * len(claim.tuning_seeds)
            assert max(tried, key=lambda t: sign * t["figures"][figure])["setting"] == record.chosen[cell]

    def test_it_is_about_the_claim_as_it_is_now(self, name):
        record = Record.load(RECORDED / f"{name}.json")
        assert record.claim == json.loads(json.dumps(claims.load(name).to_dict()))

    def test_cost_versions_and_command_are_there(self, name):
        record = Record.load(RECORDED / f"{name}.json")
        everything = [*record.tuning, *record.trials]
        assert record.cost["trials"] == len(everything)
        assert record.cost["cpu_seconds"] == pytest.approx(sum(t["cpu_seconds"] for t in everything), abs=0.2)
        assert {"odonata", "torch", "numpy", "scipy", "python"} <= record.machine["versions"].keys()
        assert record.machine["date"]
        assert record.command.startswith("odonata claim run") and name in record.command
