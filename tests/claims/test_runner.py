"""Trials are run once, tuned alike, and decide."""

import dataclasses
import json

import pytest

from odonata.claims import runner
from odonata.claims.claim import Trial
from odonata.claims.runner import Finished, best_setting, run_claim
from odonata.errors import RunError

GRID = dict.fromkeys(("new", "old"), ({"lr": 0.0}, {"lr": 1.0}, {"lr": 3.0}))


@pytest.mark.parametrize(
    ("effect", "noise", "verdict"),
    [(1.0, 0.05, "supported"), (-1.0, 0.05, "not supported"), (0.0, 0.5, "inconclusive")],
)
def test_verdict_comes_out_as_the_truth_is(toy_claim, tmp_path, effect, noise, verdict):
    record = run_claim(toy_claim(effect, noise), tmp_path)
    assert record.verdict == verdict
    assert record.recompute()[0] == verdict


def test_settings_are_chosen_on_validation_by_seeds_that_are_not_reported(toy_claim, tmp_path):
    record = run_claim(toy_claim(grid=GRID, tune_by="score"), tmp_path)
    assert record.chosen == {"new@small": {"lr": 1.0}, "old@small": {"lr": 1.0}}
    assert {(t["split"], t["seed"]) for t in record.tuning} == {("val", 101)}
    assert len(record.tuning) == 6
    assert {t["split"] for t in record.trials} == {"test"}
    assert sorted(t["seed"] for t in record.trials) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert record.cost["trials"] == 16


def test_an_interrupted_claim_goes_on_without_repeating_a_trial(toy_claim, tmp_path):
    calls, folder = tmp_path / "calls", tmp_path / "work"
    claim = toy_claim(calls=calls, grid=GRID, tune_by="score")

    def stop(what: str, done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_claim(claim, folder, report=stop)
    before = calls.read_text().splitlines()
    assert len(before) == 9
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"key": "cut sho')  # as a kill leaves it
    record = run_claim(claim, folder)
    names = calls.read_text().splitlines()
    assert len(names) == len(set(names)) == 16
    assert record.verdict == "supported"
    again = run_claim(claim, folder)
    assert calls.read_text().splitlines() == names
    assert (again.outcomes, again.trials) == (record.outcomes, record.trials)


def test_trials_of_other_code_are_not_taken(toy_claim, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    run_claim(toy_claim(calls=calls), tmp_path / "work")
    monkeypatch.setattr(runner, "fingerprint", lambda claim: "other")
    run_claim(toy_claim(calls=calls), tmp_path / "work")
    assert len(calls.read_text().splitlines()) == 20


def test_a_failing_trial_is_named_and_the_finished_ones_are_kept(toy_claim, tmp_path):
    good = toy_claim()

    def fails(trial: Trial) -> dict[str, float]:
        if trial.seed == 2:
            raise ArithmeticError("the sky fell")
        return good.trial(trial)

    with pytest.raises(
        RunError, match=r"toy: new@small \(no settings\), seed 2, test failed: ArithmeticError: the sky"
    ):
        run_claim(dataclasses.replace(good, trial=fails), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [(row["cell"], row["seed"]) for row in rows] == [("new@small", 1), ("old@small", 1)]


def test_files_that_trials_share_are_made_before_them(toy_claim, tmp_path):
    seen = []

    def prepare(folder, budget):
        seen.append((folder, budget))
        (folder / "tower").write_text("ready")

    good = toy_claim()

    def trial(trial: Trial) -> dict[str, float]:
        assert (trial.folder / "tower").read_text() == "ready"
        return good.trial(trial)

    run_claim(dataclasses.replace(good, trial=trial, prepare=prepare), tmp_path)
    assert seen == [(tmp_path, 1.0)]


def test_a_smoke_test_is_short_untuned_and_marked(toy_claim, tmp_path):
    record = run_claim(toy_claim(grid=GRID, tune_by="score"), tmp_path, quick=True)
    assert record.quick
    assert record.tuning == []
    assert record.seeds == [1, 2]
    assert record.cost["trials"] == 4


def test_the_best_setting_is_the_largest_figure_or_the_smallest_and_never_one_that_is_not_finite():
    def done(lr: float, figure: float, seed: int = 101) -> Finished:
        return Finished(Trial("toy", "small", "new", {"lr": lr}, seed, "val"), {"loss": figure}, 0, 0)

    trials = [done(1.0, 3.0), done(2.0, 1.0), done(3.0, float("nan")), done(4.0, float("inf"))]
    assert best_setting(trials, "loss") == {"lr": 1.0}
    assert best_setting(trials, "-loss") == {"lr": 2.0}
    two_seeds = [done(1.0, 5.0), done(1.0, 0.0, 102), done(2.0, 3.0), done(2.0, 3.0, 102)]
    assert best_setting(two_seeds, "loss") == {"lr": 2.0}


def test_a_work_folder_that_cannot_be_is_an_error(toy_claim, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write a work folder"):
        run_claim(toy_claim(), tmp_path / "file" / "work")
