"""The doctor: each finding stands in a log that shows it, and in no healthy one."""

import dataclasses
import json
import logging
import math
import subprocess
import sys

import pytest
import yaml

from odonata.engine.findings import Record
from odonata.errors import RunError
from odonata.posttrain.doctor import Watch, examine, findings
from odonata.posttrain.recipes import by_name
from posttrain.run_records import (
    DPO,
    GRPO,
    ONLINE,
    answers,
    evaluations,
    online_record,
    pair_record,
    rising,
    rows,
)

SFT = {"name": "sft", "steps": 200}
RIGHT, WRONG = (1.1, 1.0, 1.0, True), (0.1, 0.0, 1.0, True)

# name, severity, what the text or the option says, record
SICK = [
    ("dead groups", "wrong", "sft", online_record({"live_groups": 0.05, "reward/math": 0.01})),
    ("dead groups", "watch", "--resample 2", online_record({"live_groups": 0.3})),
    ("dead groups", "watch", "3.0 of 4 rounds",
     online_record({"live_groups": 0.3, "rounds": 3.0}, method={"resample": 3})),
    ("dead groups", "ok", "the prompts are learned",
     online_record({"live_groups": 0.2, "reward/math": rising(0.5, 1.0)})),
    ("truncation", "watch", "--max-new-tokens 128", online_record({"truncated": 0.3})),
    ("truncation", "wrong", "60%", online_record({"truncated": 0.6})),
    ("cut answers are rewarded", "wrong", "--filter-truncated",
     online_record(rollouts=[answers((1.1, 1.0, 1.0, False), RIGHT, WRONG)] * 3)),
    ("entropy collapse", "watch", "--clip-high 0.28", online_record({"entropy": rising(0.5, 0.005)})),
    ("entropy collapse", "wrong", "become one",
     online_record({"entropy": rising(0.5, 0.005), "reward": lambda x: min(0.6, 0.4 + x)})),
    ("low entropy", "ok", "sure and right",
     online_record({"entropy": rising(0.5, 0.005), "reward/math": rising(0.5, 0.99)})),
    ("entropy explosion", "wrong", "noise", online_record({"entropy": rising(0.3, 2.0), "reward": rising(0.5, 0.3)})),
    ("entropy explosion", "watch", "noise", online_record({"entropy": rising(0.3, 2.0)})),
    ("divergence", "watch", "--beta 0.1", online_record({"kl": rising(0.0, 1.2)})),
    ("divergence", "wrong", "nats an answer", online_record({"kl": rising(0.0, 3.0)})),
    ("the policy stands still", "watch", "--optim.lr 0.0009", online_record({"kl": 1e-6, "reward": 0.3})),
    ("off policy", "wrong", "not what is scored", online_record({"off_policy": 0.3})),
    ("off policy", "watch", "must be below 0.0001", online_record({"off_policy": 0.01})),
    ("off policy", "watch", "--precision fp32", online_record({"off_policy": 0.08}, precision="bf16")),
    ("clipping", "watch", "--epochs 1", online_record({"clip_fraction": 0.3}, method={"epochs": 4})),
    ("clipping", "wrong", "60%", online_record({"clip_fraction": 0.6})),
    ("reward flat", "watch", "beyond its noise", online_record({"reward": 0.4, "reward/math": 0.3})),
    ("reward flat", "ok", "are right", online_record({"reward": 1.05, "reward/math": 0.97})),
    ("reward falls", "wrong", "best at step", online_record({"reward": rising(0.8, 0.3)})),
    ("hacking", "wrong", "math falls", online_record({"reward/math": rising(0.6, 0.2)})),
    ("hacking", "wrong", "judge falls",
     online_record({"reward/judge": rising(0.6, 0.2)}, method={"reward": [*"abc"], "reward_weights": [1.0, 0.1, 0.0]})),
    ("hacking", "wrong", "90.0% at step 100", online_record(evaluated=evaluations(right=[0.7, 0.9, 0.8, 0.6]))),
    ("best step passed", "wrong", "while the reward falls",
     online_record({"reward": rising(0.9, 0.4)}, evaluated=evaluations(right=[0.9, 0.8, 0.6, 0.4]))),
    ("format without substance", "watch", "teaches nothing more",
     online_record({"reward/format": 1.0, "reward/math": rising(0.1, 0.3)})),
    ("one part dominates", "watch", "come from format",
     online_record(method={"reward_weights": [0.1, 1.0]}, rollouts=[answers(RIGHT, (0.0, 0.0, 0.0, True))] * 3)),
    ("length without reward", "watch", "--aggregation constant",
     online_record({"length": rising(20.0, 50.0), "reward/math": 0.3})),
    ("values foresee nothing", "watch", "--value-coef", online_record({"explained_variance": -0.2})),
    ("unscored answers", "watch", "not counted as wrong", online_record({"unscored": 0.05})),
    ("unscored answers", "wrong", "verifier", online_record({"unscored": 0.5})),
    ("loss near zero", "ok", "Look at the reward", online_record({"loss": 1e-7})),
    ("no gradient", "wrong", "nothing is learned", online_record({"grad_norm": 0.0})),
    ("gradient spikes", "watch", "at step 55",
     online_record({"grad_norm": lambda share: 40.0 if abs(share - 10 / 39) < 1e-9 else 0.5})),
    ("not a number", "wrong", "kl is not finite at step 5", online_record({"kl": math.nan})),
    ("not at its end", "watch", "step 200 of 400", online_record(steps=400)),
    ("chosen answers fall", "watch", "only fall faster", pair_record({"chosen_logprob": rising(-20.0, -26.0)})),
    ("chosen answers fall", "wrong", "--beta 0.3",
     pair_record({"chosen_logprob": rising(-20.0, -26.0)}, evaluated=evaluations(right=[0.8, 0.9, 0.6]))),
    ("over-optimisation", "wrong", "--steps 100", pair_record(evaluated=evaluations(accuracy=[0.7, 0.8, 0.7, 0.6]))),
    ("preferences reversed", "wrong", "exchanged", pair_record({"accuracy": 0.1})),
    ("rows known by heart", "watch", "60%", pair_record(evaluated=evaluations(accuracy=[0.6, 0.6]))),
    ("nothing left to learn", "watch", "none is held back", pair_record({"accuracy": lambda x: min(1.0, 0.5 + x)})),
    ("first loss", "wrong", "ln 2", pair_record({"loss": rising(0.8, 0.4)}, first=1)),
    ("nothing learned", "wrong", "chance", pair_record(name="reward", evaluated=evaluations(accuracy=[0.5, 0.51]))),
    ("nothing learned", "wrong", "held-back steps are judged right, both kinds alike",
     pair_record({"accuracy": 0.9}, name="prm", evaluated=evaluations(accuracy=[0.9, 0.9], balanced=[0.5, 0.5]))),
    ("over-fitting", "watch", "--steps 100",
     Record(SFT, [*rows({"loss": rising(2.0, 1.0)}), *evaluations(loss=[1.5, 1.2, 1.3, 1.6])])),
    ("known by heart", "watch", "recited",
     Record(SFT, [*rows({"loss": rising(0.03, 0.001)}), *evaluations(loss=[1.5, 1.6])])),
    ("loss rises", "watch", "--optim.lr 1e-05",
     Record({"name": "sft", "steps": 200, "optim": {"lr": 3e-5}}, rows({"loss": rising(1.0, 2.0)}))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "severity", "said", "record"), SICK, ids=[f"{row[0]}-{row[1]}" for row in SICK])
def test_a_log_that_shows_it_is_found_out(name, severity, said, record):
    found = [finding for finding in findings(record) if finding.name == name]
    assert [finding.severity for finding in found] == [severity], findings(record)
    assert said in f"{found[0]} {found[0].option}"


@pytest.mark.parametrize(
    "record",
    [
        online_record(),
        online_record(evaluated=evaluations(right=[0.6, 0.7, 0.8, 0.79]), rollouts=[answers(RIGHT, WRONG, RIGHT)] * 8),
        pair_record(evaluated=evaluations(accuracy=[0.7, 0.75, 0.8, 0.79], loss=[0.65, 0.6, 0.55, 0.55])),
        Record(SFT, [*rows({"loss": rising(2.0, 1.0)}), *evaluations(loss=[1.5, 1.2, 1.1])]),
    ],
    ids=["answers", "answers held out", "pairs", "examples"],
)
def test_a_healthy_run_has_no_finding(record):
    assert findings(record) == []


def test_noise_alone_is_no_trend():
    figures = {**ONLINE, "reward": 0.5, "reward/math": 0.45, "reward/format": 0.5, "length": 20.0, "kl": 0.01}
    found = {f.name for noise in (0.1, 0.3) for f in findings(Record(GRPO, rows(figures, noise=noise)))}
    assert found == {"reward flat"}


def test_several_findings_come_worst_first():
    record = online_record({"off_policy": 0.3, "truncated": 0.3, "loss": 1e-7})
    assert [(f.name, f.severity) for f in findings(record)] == [
        ("off policy", "wrong"), ("truncation", "watch"), ("loss near zero", "ok"),
    ]  # fmt: skip


def test_dead_groups_are_counted_by_what_they_have_in_common():
    lines = [answers(RIGHT, RIGHT), answers(RIGHT, WRONG), answers(WRONG, WRONG), answers(WRONG, WRONG)] * 2
    (found,) = [f for f in findings(online_record({"live_groups": 0.3}, rollouts=lines)) if f.name == "dead groups"]
    assert "1 have only good answers, 2 only bad ones" in found.text  # of the last half


def test_a_model_that_scores_is_no_share_of_right_answers():
    """A score of 1.9 is not 190 % right: low entropy and flat scores are not excused by it."""
    figures = {"reward": 1.9, "reward/run:rm": 1.9, "entropy": rising(0.5, 0.005), "live_groups": 0.3}
    plain = {name: shape for name, shape in ONLINE.items() if not name.startswith("reward/")}
    config = {**GRPO, "method": {**GRPO["method"], "reward": ["run:rm"], "reward_weights": []}}
    found = {f.name: f for f in findings(Record(config, rows({**plain, **figures})))}
    assert {"entropy collapse", "reward flat", "dead groups"} <= set(found)
    assert not any("nan" in f.text or ("%" in f.text and "right" in f.text) for f in found.values())


def test_unscored_answers_do_not_upset_the_rollouts():
    lines = [answers((None, 0.0, 0.0, True), RIGHT), {"step": 5}, answers((math.nan, 0.0, 0.0, False), WRONG)]
    assert findings(online_record(rollouts=lines)) == []


# ---- folders ---------------------------------------------------------------------------------------------------------


def run_folder(path, record: Record):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(record.config))
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in record.rows) + '{"step": 3, "los')
    (path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in record.rollouts))
    return path


def test_a_folder_is_examined_whose_last_line_a_kill_cut_short(tmp_path):
    record = online_record(rollouts=[answers((1.1, 1.0, 1.0, False), RIGHT)] * 3)
    assert [f.name for f in examine(run_folder(tmp_path / "run", record))] == ["cut answers are rewarded"]


def test_stages_of_a_pipeline_are_examined_each(tmp_path):
    run_folder(tmp_path / "r1", Record({"name": "r1", "steps": 1}, [{"step": 0, "right": 0.2}]))
    run_folder(tmp_path / "r1/1-cold-start", Record(SFT, rows({"loss": rising(2.0, 1.0)})))
    run_folder(tmp_path / "r1/2-rl", online_record({"off_policy": 0.3}))
    table = {"base": 0.2, "1-cold-start": 0.5, "2-rl": 0.4, "student before": 0.0, "6-distil": 0.1}
    (tmp_path / "r1/stages.json").write_text(json.dumps({k: {"right": v} for k, v in table.items()}))
    found = examine(tmp_path / "r1")
    assert [(f.stage, f.name) for f in found] == [("2-rl", "off policy"), ("2-rl", "a stage made it worse")]
    assert "from 50.0% after 1-cold-start to 40.0% after 2-rl" in found[1].text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        examine(tmp_path)
    (tmp_path / "config.yaml").write_text("[1, 2]")
    with pytest.raises(RunError, match=r"has no log\.jsonl"):
        examine(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(RunError, match="holds no recipe"):
        examine(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="is not YAML"):
        examine(tmp_path)
    (tmp_path / "config.yaml").write_text("name: sft")
    assert [f.name for f in examine(tmp_path)] == ["no figures"]


def test_the_doctor_of_files_needs_no_torch():
    code = "import sys, odonata.posttrain.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- while a run trains ----------------------------------------------------------------------------------------------


def told(watch, record, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "odonata.posttrain.doctor"):
        for row in record.rows:
            watch(row["step"], {key: value for key, value in row.items() if key != "step"})
    return [entry.getMessage() for entry in caplog.records]


def test_a_watch_warns_once_of_each_kind(caplog):
    record = online_record({"off_policy": 0.3, "truncated": 0.6})
    messages = told(Watch(record.config), record, caplog)
    assert len(messages) == 2
    assert messages[0].startswith("step 5: run watch: off policy: ")  # exact: the first line is enough
    assert messages[1].startswith("step 15: run watch: truncation: ")  # three lines in a row
    assert messages[1].endswith("(--max-new-tokens 128)")


@pytest.mark.parametrize("record", [online_record(), pair_record()], ids=["answers", "pairs"])
def test_a_watch_is_silent_over_a_healthy_run(record, caplog):
    assert told(Watch(record.config), record, caplog) == []


def test_a_watch_says_nothing_early_of_what_the_next_steps_may_mend(caplog):
    record = online_record({"reward": 0.4, "reward/math": 0.3, "length": 20.0, "reward/format": 0.5})
    assert [f.name for f in findings(record)] == ["reward flat"]
    assert told(Watch(record.config), record, caplog) == []


def test_a_watch_over_a_long_run_keeps_few_lines_and_all_evaluations(caplog):
    watch = Watch({**DPO, "steps": 5000})
    for step in range(1, 3001):
        watch(step, {"loss": 0.5, "margin": 0.1, "accuracy": 0.8})
        if step % 500 == 0:
            watch(step, {"heldout/accuracy": 0.8})
    assert len(watch.rows) <= 256 + 6
    assert [row["step"] for row in watch.rows if "heldout/accuracy" in row] == [500 * k for k in range(1, 7)]
    trained = [row["step"] for row in watch.rows if "loss" in row]
    assert trained == list(range(1, 3001, watch.stride)) and len(trained) > 128


@pytest.mark.slow
def test_a_run_that_samples_beyond_its_limit_is_told_so_by_watch_and_doctor(tmp_path):
    """A base of a few steps never ends its answers: everything is cut, nothing is right."""
    from app.conftest import odonata

    run = tmp_path / "run"
    done = odonata(
        "train", "grpo", "--task", "digits-sum:base_steps=2", "--steps", "10", "--log-every", "1", "--data.batch-size",
        "4", "--evaluation.prompts", "8", "--device", "cpu", "--out", run,
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "run watch: truncation" in done.err
    found = {f["name"]: f for f in odonata("doctor", run, "--json").json}
    assert found["truncation"]["severity"] in ("watch", "wrong")
    assert "off policy" not in found and "warning" not in found
    assert "truncation" in (run / "report.html").read_text()


def test_every_task_of_the_room_has_a_watch():
    from odonata.posttrain.build import build

    recipe = by_name("grpo")
    method = dataclasses.replace(recipe.method, task="digits-sum:base_steps=1")
    task = build(
        dataclasses.replace(recipe, method=method, evaluation=dataclasses.replace(recipe.evaluation, prompts=4))
    )
    assert isinstance(task.watch, Watch) and task.watch.config["method"]["task"] == "digits-sum:base_steps=1"
