"""The process reward model as a method: TRL's rows, loss and gradients; figures by hand; whole runs; errors."""

import copy
import gzip
import itertools
import json

import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from tokenizers import models, pre_tokenizers

from odonata.app.api import load
from odonata.app.cli import main
from odonata.data.dialogue_items import NEUTRAL, RIGHT, WRONG, Prompt, Steps
from odonata.data.digit_sums import steps_of
from odonata.errors import DataError, RecipeError
from odonata.language.language_model import read_folder
from odonata.posttrain.judge import Judge
from odonata.posttrain.process_reward import (
    PadSteps,
    ProcessReward,
    StepBatch,
    StepEvaluator,
    StepRow,
    encode_steps,
    outcome_only,
    solution_rows,
    step_figures,
)
from odonata.posttrain.reward_losses import IGNORED
from odonata.posttrain.rewards.interface import Answered
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.rows import Encoder
from odonata.posttrain.sampled import Judged
from odonata.posttrain.scorer import Scorer, ScorerAssets
from odonata.posttrain.search.process_scores import aggregate_steps
from odonata.text.text_tokenizer import characters, from_backend
from posttrain.offline_setting import assert_same_gradients, bytes_directory, directory, one_step, quick_base, train
from posttrain.scorer_setting import FACTS, assert_gradients_as_trl, assert_loss_as_trl, plain_scorer, qwen_scorer

TASK = "digits-sum:digits=2"
LETTERS = characters(" =+0123456789\n")
"""Padding is 0, the end 1, letters follow: as `fixtures/make_trl_scorers.py` numbers them."""


def row_of(row, **changes) -> StepRow:
    labels = tuple(RIGHT if label else WRONG for label in row["labels"])
    item = Steps(Prompt(text=row["prompt"]), tuple(row["completions"]), labels, "row")
    return encode_steps(item, Encoder(LETTERS), "\n", "good", **changes)


# ---- TRL's trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.shows("prm", "parity")
@pytest.mark.parametrize("name", ["steps", "outcome"])
def test_rows_loss_and_gradients_are_those_of_trls_prm_trainer(name):
    rows = [row_of(row) for row in FACTS["prm"]]
    if name == "outcome":
        rows = [outcome_only(row) for row in rows]
    assert [list(row.labels) for row in rows] == FACTS[f"prm/{name}"]
    method = ProcessReward(qwen_scorer(outputs=2))
    batch = PadSteps(0)(rows)
    values = method.loss((batch, float(batch.sequences.scored.sum())))
    assert_loss_as_trl(f"prm/{name}/loss", values["loss"])
    method.zero_grad()
    values["loss"].backward()
    gradients = {
        key.removeprefix("scorer.").replace("decoder.", "model."): p.grad for key, p in method.named_parameters()
    }
    assert_gradients_as_trl(f"prm/{name}/0", gradients)


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("neutral", "expected"), [("good", [1, 1, 0]), ("bad", [1, 0, 0]), ("skip", [1, IGNORED, 0])])
def test_a_neutral_step_counts_as_the_option_says(neutral, expected):
    item = Steps(Prompt(text="1+1="), ("1+1", "=", "3"), (RIGHT, NEUTRAL, WRONG), "row")
    row = encode_steps(item, Encoder(LETTERS), "\n", neutral)
    ends = [7, 9, 11]  # four tokens of the prompt, then three and a separator, one and a separator, twice
    assert [row.labels[end] for end in ends] == expected
    assert all(label == IGNORED for place, label in enumerate(row.labels) if place not in ends)
    assert row.length == 12 and len(row.solution) == 8


def test_a_row_that_is_cut_keeps_the_steps_that_end_before_the_limit():
    row = row_of({"prompt": "1+1=", "completions": ["1+1", "2"], "labels": [True, True]})
    assert row.length == 10
    shorter = row.cut(8)
    assert shorter == StepRow(row.prompt, row.solution[:4], row.labels[:8]) and shorter.labels[7] == 1
    assert row.cut(7) is None  # no step ends within
    assert row.cut(3) is None  # nor does the prompt


def test_steps_of_digit_sums_are_the_running_sums_and_the_answer():
    rows = solution_rows([[Judged("314=", "348#8", True), Judged("314=", "35#9", False)]], by_steps=True)
    assert rows[0] == {"prompt": "314=", "completions": ["3", "4", "8", "#8"], "labels": [True] * 4}
    assert rows[1] == {"prompt": "314=", "completions": ["3", "5", "#9"], "labels": [True, False, False]}
    whole = solution_rows([[Judged("314=", "348#8", True)]], by_steps=False)
    assert whole == [{"prompt": "314=", "completions": ["348#8"], "labels": [True]}]


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_figures_by_hand():
    good, bad = True, False
    judged = [
        ([good, good, bad], [good, good, bad]),  # all right
        ([good, bad, bad], [good, good, bad]),  # the mistake is found a step late
        ([good, good], [good, good]),  # no mistake, none found
        ([good, good], [bad, good]),  # one found where there is none
    ]
    # Good steps: 7, of which 6 are judged good; bad ones: 3, of which 2. Right in all: 8 of 10.
    assert step_figures(judged) == pytest.approx(
        {"accuracy": 0.8, "balanced": (6 / 7 + 2 / 3) / 2, "first_mistake": 0.5, "outcome": 1.0}
    )
    assert step_figures([([good, good], [good, good])])["balanced"] == 1.0  # of one kind alone


def test_a_model_that_calls_everything_good_is_balanced_at_half():
    method = ProcessReward(Scorer(qwen_scorer().decoder, 2, bias=True).double())
    method.scorer.score.bias.data[1] = 1.0
    rows = [row_of(row) for row in FACTS["prm"]]
    figures = StepEvaluator(rows, PadSteps(0), 2).measure(method)
    assert figures["heldout/balanced"] == 0.5
    assert figures["heldout/accuracy"] == pytest.approx(4 / 7) and figures["heldout/outcome"] == pytest.approx(1 / 3)


# ---- what a gradient does not depend on ------------------------------------------------------------------------------


def test_micro_batches_order_and_padding_change_no_gradient():
    rows = [
        row_of({"prompt": "1+" * (i % 3 + 1) + "1=", "completions": ["1+1=2", "2"][: 1 + i % 2], "labels": [i % 3 > 0, False][: 1 + i % 2]})  # noqa: E501
        for i in range(7)
    ]  # fmt: skip
    method = ProcessReward(plain_scorer(2))
    values, whole = one_step(method, PadSteps(0)(rows))
    for accumulate in (2, 3, 7):
        split_values, split = one_step(method, PadSteps(0)(rows), accumulate)
        assert_same_gradients(split, whole, 1e-9)
        assert split_values == pytest.approx(values, rel=1e-6)
    assert_same_gradients(one_step(method, PadSteps(3)(rows[::-1]))[1], whole, 1e-9)
    batch = PadSteps(0)(rows)
    more = torch.full((7, 4), 5)
    sequences = type(batch.sequences)(
        torch.cat([batch.sequences.ids, more], 1), torch.cat([batch.sequences.scored, more < 0], 1)
    )
    wider = StepBatch(sequences, torch.cat([batch.labels, torch.full_like(more, IGNORED)], 1))
    assert_same_gradients(one_step(method, wider)[1], whole, 1e-9)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def write_jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def sums(count, **fields):
    """Solutions in two steps, the sum of two digits and its double; every third one is wrong from some step on."""
    rows = []
    for i in range(count):
        a, b = i % 10, i * 7 % 10
        slip = i % 3
        total = a + b + (slip == 1)
        double = 2 * total + (slip == 2)
        labels = [slip != 1, slip == 0]
        rows.append({"prompt": f"{a}{b}=", "completions": [str(total), str(double)], "labels": labels} | fields)
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("prm") / "hf")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """It answers in the form of the task, by chance."""
    return quick_base(tmp_path_factory.mktemp("prm-base") / "hf", TASK, 150)


def logs(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def without_nines(count):
    """Solutions of one to four numbers; a 9 is a mistake, and nothing after it is right."""
    torch.manual_seed(5)
    rows = []
    for i in range(count):
        steps = ["".join(str(int(d)) for d in torch.randint(0, 10, (2,))) for _ in range(1 + i % 4)]
        first = next((n for n, step in enumerate(steps) if "9" in step), 4)
        rows.append({"prompt": f"{i % 9}=", "completions": steps, "labels": [n < first for n in range(len(steps))]})
    return rows


@pytest.mark.shows("prm", "trains")
def test_first_mistakes_of_held_back_solutions_are_found_after_training(model, tmp_path):
    rows, run = write_jsonl(tmp_path / "rows.jsonl", without_nines(240)), tmp_path / "run"
    assert train(
        "prm", "--model", model, "--data.path", rows, "--steps", 80, "--data.batch-size", 64, "--optim.lr", 3e-3,
        "--data.heldout", 0.2, "--eval-every", 20, "--log-every", 1, "--out", run,
    ) == 0  # fmt: skip
    lines = logs(run)
    held = [line for line in lines if "heldout/balanced" in line]
    assert lines[0]["loss"] == pytest.approx(0.693147, rel=1e-5)
    assert held[-1]["heldout/balanced"] > 0.9 and held[-1]["heldout/first_mistake"] > 0.8
    judge = Judge.load(run)
    right, wrong, after = judge.step_scores("3=", ["12", "95", "11"])
    assert right > 0.5 > max(wrong, after)


@pytest.mark.slow
@pytest.mark.shows("prm", "trains")
def test_steps_of_a_task_are_judged_after_training(tmp_path):
    base, run = quick_base(tmp_path / "base", "digits-sum:digits=3", 1200), tmp_path / "run"
    assert train(
        "prm", "--model", base, "--task", "digits-sum:digits=3", "--steps", 120, "--data.batch-size", 128, "--optim.lr",
        2e-3, "--eval-every", 40, "--sampled.prompts", 256, "--out", run,
    ) == 0  # fmt: skip
    held = [line for line in logs(run) if "heldout/balanced" in line]
    assert max(line["heldout/balanced"] for line in held) > 0.75
    judge = load(run, device="cpu")
    assert isinstance(judge, Judge) and judge.assets.steps == "digits-sum"
    assert judge.split("347#7") == [text for text, _ in steps_of("", "347#7")] == ["3", "4", "7", "#7"]
    # What it learns from the base's answers is that those without running sums are guesses.
    right, wrong = judge.step_scores("340=", ["3", "7", "7", "#7"]), judge.step_scores("340=", ["#8"])
    assert min(right) > 0.5 > min(wrong)
    assert judge.score("340=", "377#7") == pytest.approx(min(right), rel=1e-5)
    assert judge.score("340=", "377#7", by="prod") == pytest.approx(aggregate_steps(right, "prod"), rel=1e-4)
    reward = reward_named(f"run:{run}")
    answers = [Answered("340=", text, {}, True) for text in ("377#7", "", "#8")]
    assert reward(answers) == pytest.approx([min(right), 0.0, min(wrong)], rel=1e-5)


def test_an_outcome_model_learns_the_last_step_alone(model, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", sums(60))
    common = ("prm", "--model", model, "--data.path", rows, "--steps", 1, "--data.batch-size", 16, "--log-every", 1)
    for name in ("steps", "outcome"):
        assert train(*common, "--labels", name, "--out", tmp_path / name) == 0
    good = {name: logs(tmp_path / name)[0]["good"] for name in ("steps", "outcome")}
    assert good["steps"] > good["outcome"]  # of the last steps more are wrong


def test_a_run_that_was_cut_short_ends_in_the_same_bits(base, tmp_path):
    common = (
        "prm", "--model", base, "--task", TASK, "--sampled.prompts", 30, "--data.batch-size", 16, "--steps", 6,
        "--save-every", 3, "--eval-every", 3,
    )  # fmt: skip
    for name in ("whole", "cut"):
        assert train(*common, "--out", tmp_path / name) == 0
    last = tmp_path / "cut/checkpoints/step-00000006"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (tmp_path / "cut/checkpoints/index.json").write_text(json.dumps({"last": 3, "best": None}))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = (load_file(tmp_path / f"{n}/checkpoints/step-00000006/model.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("prompts", ["auto", "text"])
def test_rows_of_bigbench_mistake_are_read_through_the_template_or_as_text(prompts, shared_data, tmp_path):
    source = shared_data / "reasoning/bigbench-mistake/multistep_arithmetic.jsonl.gz"
    with gzip.open(source, "rt") as lines:
        (tmp_path / "rows.jsonl").write_text("".join(itertools.islice(lines, 40)))
    model = bytes_directory(tmp_path / "hf")
    assert train(
        "prm", "--model", model, "--data.path", tmp_path / "rows.jsonl", "--data.prompts", prompts, "--steps", 1,
        "--data.batch-size", 4, "--data.max-length", 2048, "--log-every", 1, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    line = logs(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(0.6931, abs=1e-3) and 0 < line["good"] < 1


# ---- weights in and out ----------------------------------------------------------------------------------------------


@pytest.mark.shows("prm", "weights")
@pytest.mark.parametrize("options", [(), ("--lora.rank", "2")], ids=["", "lora"])
def test_a_run_goes_to_transformers_token_classification_and_back(options, model, tmp_path):
    transformers = pytest.importorskip("transformers")
    rows = write_jsonl(tmp_path / "rows.jsonl", sums(40))
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(
        "prm", "--model", model, "--data.path", rows, "--steps", 4, "--data.batch-size", 16, "--optim.lr", 1e-2,
        "--out", run, *options,
    ) == 0  # fmt: skip
    assert main(["convert", str(run), str(out), "--to", "hf"]) == 0
    assert {"score.weight", "score.bias"} <= load_file(out / "model.safetensors").keys()
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(out, dtype=torch.float32).eval()
    assert type(theirs).__name__ == "Qwen2ForTokenClassification" and theirs.config.num_labels == 2
    ours, again = Judge.load(run), load(out, device="cpu")
    words = ours.tokenizer
    ids = words.encode("34=") + [token for step in ("7", "14") for token in words.encode(step + "\n")]
    ends = [len(words.encode("34=7")), len(ids) - 1]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.softmax(-1)[0, ends, 1].tolist()
    assert abs(expected[0] - expected[1]) > 1e-4
    for judge in (ours, again):
        assert judge.step_scores("34=", ["7", "14"]) == pytest.approx(expected, rel=1e-5)
        assert judge.split("7\n14\n") == ["7", "14"]


def test_scores_of_steps_do_not_depend_on_the_batch_around_them(model):
    decoder, assets, _ = read_folder(model)
    scorer = Scorer(copy.deepcopy(decoder), 2, bias=True).eval()
    torch.nn.init.normal_(scorer.score.weight)
    judge = Judge(scorer, ScorerAssets(assets, "steps"), torch.device("cpu"), "random")
    solutions = [(judge.tokenizer.encode(p), s) for p, s in (("1=", ["1"]), ("123=", ["4", "5", "66"]), ("9=", ["12"]))]
    whole = judge.step_scores_of(solutions)
    judge.batch_rows = 1
    assert [len(found) for found in whole] == [1, 3, 1]
    for found, alone in zip(whole, judge.step_scores_of(solutions), strict=True):
        assert found == pytest.approx(alone, rel=1e-5)


# ---- manners ---------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert train("prm", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.shows("prm", "manners")
def test_labels_of_0_and_1_must_be_explained(model, tmp_path, capsys):
    rows = [row | {"labels": [int(label) for label in row["labels"]]} for row in sums(30)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    common = (
        "--model", model, "--data.path", file, "--steps", 1, "--data.batch-size", 8, "--log-every", 1,
        "--out", tmp_path / "run",
    )  # fmt: skip
    said = refused(capsys, *common)
    assert "the labels of steps are 0 and 1; say whether 0 means zero='wrong' or 'neutral'" in said
    assert train("prm", *common, "--zero", "wrong") == 0
    assert 0 < logs(tmp_path / "run")[0]["good"] < 1


@pytest.mark.shows("prm", "manners")
def test_an_option_about_neutral_steps_needs_some(model, tmp_path, capsys):
    file = write_jsonl(tmp_path / "rows.jsonl", sums(30))
    said = refused(capsys, "--model", model, "--data.path", file, "--neutral", "skip", "--out", tmp_path / "run")
    assert "--neutral skip" in said and "has no neutral steps" in said
    said = refused(capsys, "--model", model, "--data.path", file, "--zero", "wrong", "--out", tmp_path / "run")
    assert "zero='wrong'" in said and "has no such labels" in said


@pytest.mark.shows("prm", "manners")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--separator", ";"), "--separator is about a file's rows"),
        (("--neutral", "bad"), "--neutral is about a file's rows"),
        (("--zero", "wrong"), "--zero is about a file's rows"),
        (("--task", "countdown"), "--task countdown has no judged steps: set --labels outcome"),
        (("--sampled.prompts", 0), "--sampled.prompts is 0; it must be at least 1"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, said, tmp_path, capsys):
    assert said in refused(capsys, *options, "--out", tmp_path / "run")


@pytest.mark.shows("prm", "manners")
def test_steps_without_tokens_and_answers_without_steps_are_refused(base, model):
    with pytest.raises(DataError, match="step 1 has no token"):
        encode_steps(Steps(Prompt(text="1="), ("1", "é"), (RIGHT, RIGHT), "row"), Encoder(_silent()), "", "good")
    decoder, assets, _ = read_folder(model)
    judge = Judge(Scorer(decoder, 2, bias=True).eval(), ScorerAssets(assets, "steps"), torch.device("cpu"), "random")
    with pytest.raises(DataError, match="an answer without a step has no score"):
        judge.score("12=", "")
    with pytest.raises(DataError, match="a solution without steps"):
        judge.step_scores("12=", [])
    with pytest.raises(RecipeError, match="scores steps, not whole answers"):
        judge.scores_of([[3]], [[4]])
    with pytest.raises(DataError, match="the prompt is empty"):
        judge.step_scores("", ["1"])


def _silent():
    """A tokenizer that has no token for é, not even for what is unknown."""
    backend = tokenizers.Tokenizer(models.BPE({"<e>": 0, "1": 1, "=": 2}, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return from_backend(backend, eos="<e>", pad="<e>")
