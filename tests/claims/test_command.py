"""`odonata claim` as people type it."""

import json

import pytest

from odonata import claims
from odonata.app.cli import main
from odonata.claims import runner


def test_help_and_mistakes(capsys):
    assert main(["claim", "--help"]) == 0
    assert "list | run NAME" in capsys.readouterr().out
    assert main(["claim"]) == 2
    assert main(["claim", "lst"]) == 2
    assert "there are list, run, report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "which claim? There are siglip-batch-size"),
        (["run", "dfn-fliter"], "no claim 'dfn-fliter'; did you mean dfn-filter?"),
        (["run", "dfn-filter", "lit"], "no claim 'lit'"),
        (["run", "dfn-filter", "--jobs", "0"], "--jobs is 0"),
        (["run", "dfn-filter", "--quick", "--record"], "cannot be recorded"),
        (["report", "nothing"], "no claim 'nothing'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(runner, "run_claim", lambda *_, **__: pytest.fail("ran"))
    assert main(["claim", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_list_for_programs_has_every_claim_with_its_recorded_verdict(capsys):
    assert main(["claim", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == claims.CLAIMS.keys()
    for name, kept in claims.recorded().items():
        assert rows[name]["verdict"] == kept["verdict"]


def test_report_of_a_claim_without_a_record_says_how_to_make_one(capsys, monkeypatch):
    monkeypatch.setattr(claims, "recorded", dict)
    assert main(["claim", "report", "dfn-filter"]) == 2
    assert "odonata claim run dfn-filter --record" in capsys.readouterr().err


def test_run_prints_the_verdict_and_keeps_the_record(capsys, monkeypatch, tmp_path, toy_claim):
    monkeypatch.setattr(claims, "load", lambda name: toy_claim())
    assert main(["claim", "run", "dfn-filter", "--jobs", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "supported" in out and "new beats old" in out
    kept = json.loads((tmp_path / "dfn-filter" / "toy.json").read_text())
    assert kept["command"] == "odonata claim run --jobs 1 dfn-filter", "where files are put decides nothing"


@pytest.mark.slow
def test_a_claim_runs_end_to_end_over_two_processes(capsys, tmp_path):
    assert main(["claim", "run", "siglip-batch-size", "--quick", "--jobs", "2", "--out", str(tmp_path)]) == 0
    assert "smoke test" in capsys.readouterr().out
    kept = json.loads((tmp_path / "siglip-batch-size-quick" / "siglip-batch-size.json").read_text())
    assert kept["quick"] is True
    assert len(kept["trials"]) == 12
