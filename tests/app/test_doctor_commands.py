"""`odonata doctor` and `odonata explain`, as a person calls them."""

import json

import pytest
import yaml

from app.conftest import odonata, refused
from odonata.app.catalog import methods

ROWS = [
    {"step": step, "loss": 1.0 / step, "grad_norm": 1.0, "lr": 1e-3, "samples_per_s": 10.0, "wait": 0.6}
    for step in range(1, 21)
]


def run_of(folder, name="clip", rows=ROWS, **config):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"_": "Recipe", "name": name, "steps": 20, **config}))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_of_any_room_is_examined(tmp_path):
    warned = [*ROWS, {"step": 20, "warning": "a picture was left out"}]
    done = odonata("doctor", run_of(tmp_path / "run", rows=warned), "--json")
    assert done.status == 0, done.err
    assert [(f["name"], f["severity"]) for f in done.json] == [("waiting for data", "watch"), ("warning", "watch")]
    assert done.json[0]["option"] == "--data.workers 4" and "60%" in done.json[0]["text"]
    assert "a picture was left out" in done.json[1]["text"]


def test_the_table_names_finding_remedy_and_option_on_one_line(tmp_path):
    done = odonata("doctor", run_of(tmp_path / "run"))
    line = next(line for line in done.out.splitlines() if "waiting for data" in line)
    assert line.startswith("watch") and "--data.workers 4" in line
    assert done.out.splitlines()[-1] == f"{tmp_path / 'run'}: 1 to watch"


def test_a_healthy_run_is_said_to_be(tmp_path):
    done = odonata("doctor", run_of(tmp_path / "run", rows=[{**row, "wait": 0.01} for row in ROWS]))
    assert done.status == 0 and done.out.strip() == f"{tmp_path / 'run'}: nothing wrong was found"


def test_a_trained_run_of_another_room_is_not_refused(trained):
    done = odonata("doctor", trained / "siglip", "--json")
    assert done.status == 0 and isinstance(done.json, list), done.err


def test_what_is_no_run_is_refused(tmp_path):
    assert "has no config.yaml" in refused("doctor", tmp_path)
    (tmp_path / "config.yaml").write_text("name: clip\n")
    assert "has no log.jsonl" in refused("doctor", tmp_path)
    assert "no method 'nothing'" in refused("doctor", run_of(tmp_path / "other", name="nothing"))


@pytest.mark.parametrize("name", [entry.name for entry in methods()])
def test_every_method_is_explained(name):
    done = odonata("explain", name, "--json")
    assert done.status == 0, done.err
    told = done.json
    assert told["paper"] and told["options"][-1]["flag"] == "--steps"
    own = [option for option in told["options"] if option["help"]]
    assert len(own) >= 5 and all(option["flag"].startswith("--") for option in own)
    if told["room"] == "posttrain":
        assert told["equations"]


def test_an_explanation_for_people(tmp_path):
    out = odonata("explain", "grpo").out
    assert "arXiv:2402.03300, equation 3" in out and "--preset trl: " in out
    beta = next(line for line in out.splitlines() if line.startswith("*  --beta"))
    assert beta.split() == ["*", "--beta", "0.04", "0.04", "0"]
    assert "Price of leaving the reference" in out
    page = odonata("explain", "yolo-v3-spp").out
    assert "docs/methods/yolo.md" in page and "Equations" not in page


def test_an_unknown_method_is_refused_with_near_ones():
    assert "did you mean grpo" in refused("explain", "gropo")


def test_presets_are_shown_by_show_as_well():
    assert odonata("show", "dapo", "--presets", "--json").json["presets"] == ["paper", "trl"]
    assert "voc" in odonata("show", "fcn-8s", "--presets", "--json").json["presets"]
