"""KTO as a method: TRL's trainer, the reference point over the whole batch, whole runs, and errors.

The loss itself is in test_preference_losses.py.
"""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from odonata.app.api import load
from odonata.app.cli import main
from odonata.data.loader import Shuffled
from odonata.posttrain import recipes
from odonata.posttrain.kto import (
    KTO,
    JudgedRow,
    JudgedRows,
    KTOOptions,
    PadJudged,
    Partners,
    partners_of,
)
from odonata.posttrain.reference import Reference
from posttrain.offline_setting import (
    FACTS,
    LABELS,
    ROWS,
    assert_as_trl,
    assert_same_gradients,
    bytes_directory,
    directory,
    one_step,
    pair_of_models,
    quick_base,
    qwen,
    right_of,
    start_ranks,
    train,
    write_jsonl,
)


def judged(shift=0):
    """The recorded rows: the chosen answer where it is wanted, the rejected one where it is not."""
    return [
        JudgedRow(
            tuple(2 + i % 20 for i in row["prompt"]) if shift else row["prompt"],
            tuple(2 + i % 20 for i in row["chosen" if good else "rejected"])
            if shift
            else row["chosen" if good else "rejected"],
            good,
        )
        for row, good in zip(ROWS, LABELS, strict=True)
    ]


def batch_of(rows):
    source = JudgedRows(rows, 64)
    return PadJudged(0)([source.pair(own, other) for own, other in enumerate(partners_of([r.prompt for r in rows]))])


def method_of(decoder, reference, weights=(1.0, 1.0)):
    return KTO(decoder, KTOOptions(beta=0.3), weights, reference)


# ---- TRL's trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.shows("kto", "parity")
def test_kto_is_trls():
    values = assert_as_trl("kto", method_of(qwen(), Reference(qwen(0.3))), batch_of(judged()))
    assert values["z0"] == pytest.approx(FACTS["kto/z0"], rel=1e-5)
    assert values["z0"] > 0


# ---- partners and the reference point --------------------------------------------------------------------------------


def test_partners_are_the_rows_before_that_answer_another_prompt():
    assert partners_of("abcd") == [3, 0, 1, 2]
    assert partners_of("aabb") == [3, 3, 1, 1]
    assert partners_of("aba") == [1, 0, 1]
    assert partners_of("aaa") == [0, 1, 2]  # nobody: each is its own
    assert partners_of("a") == [0]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_every_row_has_a_partner_with_another_prompt_if_there_is_one(prompts):
    partners = partners_of(prompts)
    for own, partner in enumerate(partners):
        if len(set(prompts)) > 1:
            assert prompts[partner] != prompts[own]
        else:
            assert partner == own


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_together_get_the_partners_of_the_whole_batch(world):
    rows = [JudgedRow((i % 5,), (10 + i, 1), bool(i % 2)) for i in range(20)]
    sampler = Partners(Shuffled(20, 6, 7), [row.prompt for row in rows])
    source = JudgedRows(rows, 64)
    for step in (0, 4):
        keys = sampler.keys(step)
        parts = [keys[len(keys) * rank // world : len(keys) * (rank + 1) // world] for rank in range(world)]
        found = [source[key] for part in parts for key in part]
        own = [row for row, _ in found]
        assert [rows[index] for _, index in Shuffled(20, 6, 7).keys(step)] == own
        assert [other for _, other in found] == [own[i].completion for i in partners_of([row.prompt for row in own])]


def test_a_mismatched_answer_is_cut_at_the_limit_and_left_out_without_room():
    rows = [JudgedRow((1, 2, 3), (4, 5, 6), True), JudgedRow((7, 8, 9, 10, 11), (12, 13), False)]
    source = JudgedRows(rows, 5)
    assert source.pair(0, 1) == (rows[0], (12, 13))
    assert source.pair(1, 0) == (rows[1], ())
    assert source.pair(0, 0) == (rows[0], ())
    assert len(PadJudged(0)([source.pair(0, 1), source.pair(1, 0)]).mismatched.ids) == 1


def test_z0_is_the_mean_over_the_batch_and_0_before_training_and_where_all_prompts_are_one():
    decoder, reference = pair_of_models()
    rows = judged(shift=1)
    batch = batch_of(rows)
    ratios = [
        method_of(decoder, reference).log_ratios(batch.mismatched.rows(torch.tensor([i]))).item() for i in range(6)
    ]
    found = method_of(decoder, reference).reference_point(batch)
    assert float(found) == pytest.approx(sum(ratios) / 6, rel=1e-6)
    assert float(method_of(reference.decoder, reference).reference_point(batch)) == 0
    same = batch_of([row._replace(prompt=(3, 4)) for row in rows])
    assert same.mismatched is None
    assert float(method_of(decoder, reference).reference_point(same)) == 0


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.5)])
def test_micro_batches_order_and_padding_change_no_gradient(weights):
    decoder, reference = pair_of_models()
    for _ in range(20):  # a policy that has come to like everything more than its reference does has a z0 above 0
        method = method_of(decoder, reference, weights)
        if float(method.reference_point(batch_of(judged(shift=1)))) > 0:
            break
        decoder, reference = reference.decoder.requires_grad_(), Reference(decoder)
    rows = judged(shift=1)
    method = method_of(decoder, reference, weights)
    values, whole = one_step(method, batch_of(rows))
    assert values["z0"] > 0
    for accumulate in (2, 4, 6):
        split_values, split = one_step(method, batch_of(rows), accumulate)
        assert_same_gradients(split, whole, 1e-10)
        assert split_values == pytest.approx(values, rel=1e-6)
    turned = rows[2:] + rows[:2]  # in a circle, so that partners stay
    assert_same_gradients(one_step(method, batch_of(turned))[1], whole, 1e-10)


def test_figures_of_a_step_by_hand():
    decoder, reference = pair_of_models()
    rows = judged(shift=1)
    batch = batch_of(rows)
    method = method_of(decoder, reference, (1.0, 2.0))
    ratio = method.log_ratios(batch.sequences).tolist()
    z0 = max(0.0, float(method.reference_point(batch)))
    values, _ = one_step(method, batch)
    losses = [
        (1.0 if good else 2.0) / (1 + math.exp(0.3 * (r - z0) * (1 if good else -1)))
        for r, good in zip(ratio, LABELS, strict=True)
    ]
    good = [0.3 * r for r, label in zip(ratio, LABELS, strict=True) if label]
    bad = [0.3 * r for r, label in zip(ratio, LABELS, strict=True) if not label]
    assert values["loss"] == pytest.approx(sum(losses) / 6, rel=1e-6)
    assert values["chosen_reward"] == pytest.approx(sum(good) / 3, rel=1e-6)
    assert values["rejected_reward"] == pytest.approx(sum(bad) / 3, rel=1e-6)
    assert values["margin"] == pytest.approx(sum(good) / 3 - sum(bad) / 3, rel=1e-6)
    assert values["accuracy"] == pytest.approx((sum(r > 0 for r in good) + sum(r < 0 for r in bad)) / 6)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def rules(count):
    """Answers that repeat the first letter are wanted, those that repeat the second are not."""
    letters, rows = "abcdefghij", []
    for i in range(count):
        first, second = letters[i % 10], letters[(i * 7 + 1 + i // 10) % 10]
        rows += [
            {"prompt": f"{first}{second}=", "completion": 2 * answer, "label": answer == first}
            for answer in (first, second) if first != second
        ]  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "judged.jsonl", rules(90))


def logs(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run):
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


@pytest.mark.shows("kto", "trains")
def test_held_back_answers_are_told_apart_after_training(model, rows, tmp_path):
    assert train(
        "kto", "--model", model, "--data.path", rows, "--steps", 80, "--data.batch-size", 32, "--optim.lr", 3e-3,
        "--data.heldout", 0.2, "--eval-every", 40, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    first, last = logs(tmp_path / "run")[0], [line for line in logs(tmp_path / "run") if "heldout/loss" in line][-1]
    # Before the first update everything is at the reference: σ(0) of each answer, weighed.
    assert first["margin"] == first["accuracy"] == first["z0"] == 0
    assert 0.45 < first["loss"] < 0.6
    assert last["heldout/loss"] < 0.9 * first["loss"]
    assert last["heldout/margin"] > 0.5


@pytest.mark.shows("kto", "weights")
@pytest.mark.parametrize("options", [(), ("--lora.rank", 2)], ids=["whole", "lora"])
def test_a_run_goes_back_to_transformers(options, rows, tmp_path):
    transformers = pytest.importorskip("transformers")
    start, run, out = directory(tmp_path / "hf"), tmp_path / "run", tmp_path / "out"
    assert train(
        "kto", "--model", start, "--data.path", rows, "--steps", 3, "--data.batch-size", 8, "--optim.lr", 1e-2,
        "--out", run, *options,
    ) == 0  # fmt: skip
    assert main(["convert", str(run), str(out), "--to", "hf"]) == 0
    ours = load(run, device="cpu")
    ids = torch.tensor([ours.tokenizer.encode("ab=aa")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(ours.decoder(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_run_on_a_task_that_was_cut_short_ends_in_the_same_bits(tmp_path):
    task = "digits-sum:digits=2"
    base = quick_base(tmp_path / "hf", task, 150)
    common = (
        "kto", "--model", base, "--task", task, "--sampled.prompts", 20, "--data.batch-size", 16, "--steps", 6,
        "--save-every", 3, "--evaluation.prompts", 8, "--eval-every", 3,
    )  # fmt: skip
    assert train(*common, "--out", tmp_path / "whole") == 0
    assert train(*common, "--out", tmp_path / "cut") == 0
    for late in (tmp_path / "cut/checkpoints").glob("step-00000006/*"):
        late.unlink()
    (tmp_path / "cut/checkpoints/step-00000006").rmdir()
    (tmp_path / "cut/checkpoints/index.json").write_text(json.dumps({"last": 3, "best": None}))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    kept = [json.loads(line) for line in (tmp_path / "cut/assets/samples.jsonl").read_text().splitlines()]
    assert 100 < len(kept) <= 160  # eight answers to each of twenty prompts, less what was cut
    for row in kept:
        right = str(sum(int(c) for c in row["prompt"].rstrip("=")) % 10)
        before, _, said = row["completion"].partition("#")
        assert row["label"] == (said == right and (not before or before.isdigit()))


# ---- manners ---------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert train(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.shows("kto", "manners")
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"completion": ""}, (), "judged.jsonl:1: 'completion' is empty"),
        ({"label": "perhaps"}, (), "judged.jsonl:1: 'label' is"),
        ({}, ("--balance", 2), "--balance is 2; it lies between 1 and 4/3"),
        ({}, ("--beta", 0), "--beta is 0; it must be above 0"),
        ({}, ("--data.batch-size", 1), "kto compares with answers to other prompts of the batch"),
        ({}, ("--sampled.answers", 4), "--sampled is about built-in tasks"),
        ({}, ("--data.max-length", 3), "no row has at most 3 tokens"),
        ({}, ("--data.max-length", 3, "--data.too-long", "stop"), "judged.jsonl:1: 6 tokens are more than"),
    ],
)
def test_what_cannot_be_used_is_named(change, options, message, model, tmp_path, capsys):
    made = rules(60)
    file = write_jsonl(tmp_path / "judged.jsonl", [made[0] | change, *made[1:]])
    common = ("kto", "--model", model, "--data.path", file, "--data.batch-size", 8, "--data.heldout", 0)
    assert message in refused(capsys, *common, *options, "--out", tmp_path / "run")


def test_one_kind_alone_cannot_be_balanced_and_one_prompt_alone_has_no_partner(model, tmp_path, capsys):
    common = ("kto", "--model", model, "--data.batch-size", 8, "--data.heldout", 0, "--steps", 1)
    good = write_jsonl(tmp_path / "good.jsonl", [row | {"label": True} for row in rules(30)])
    said = refused(capsys, *common, "--data.path", good, "--out", tmp_path / "good")
    assert "no answers are unwanted, so the two kinds cannot be balanced" in said
    assert train(*common, "--data.path", good, "--balance", "None", "--out", tmp_path / "good") == 0
    one = write_jsonl(tmp_path / "one.jsonl", [row | {"prompt": "ab="} for row in rules(30)])
    said = refused(capsys, *common, "--data.path", one, "--out", tmp_path / "one")
    assert "all rows have one prompt; kto needs answers to others as well" in said


def test_pairs_are_read_as_two_judgements_and_balanced(shared_data, tmp_path, capsys):
    assert train(
        "kto", "--model", bytes_directory(tmp_path / "hf"), "--data.path",
        shared_data / "reasoning/hh-rlhf/harmless-base.jsonl.gz", "--steps", 2, "--data.batch-size", 4, "--data.limit",
        60, "--data.on-error", "skip", "--data.max-length", 400, "--evaluation.rows", 8, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    said = capsys.readouterr().err
    assert "answers are wanted and weigh" in said
    steps = [line for line in logs(tmp_path / "run") if "loss" in line]
    assert steps[0]["margin"] == 0
    assert math.isfinite(steps[1]["loss"])


def test_the_recipe_is_the_papers():
    assert recipes.by_name("kto").method == KTOOptions(beta=0.1, balance=1.0)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(model, rows, tmp_path):
    common = ("kto", "--model", model, "--data.path", rows, "--steps", 6, "--data.batch-size", 14, "--optim.lr", 1e-2)
    for name, options in {"one": (), "two": ("--devices", 2, "--accumulate", 2)}.items():
        ended = start_ranks("train", *common, *options, "--out", tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    begun = load_file(model / "model.safetensors")
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key, value in one.items():
        moved = float((value - begun["model." + key.removeprefix("decoder.")]).norm())
        assert float((two[key] - value).norm()) < 1e-3 * moved, key
    for line, same in zip(logs(tmp_path / "one"), logs(tmp_path / "two"), strict=True):
        for figure in ("loss", "margin", "accuracy", "z0", "chosen_reward", "rejected_logprob", "heldout/loss"):
            assert line.get(figure, 0.0) == pytest.approx(same.get(figure, 0.0), rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_right_answers_become_likelier_on_sums_of_three_digits(tmp_path):
    task = "digits-sum:digits=3"
    base = quick_base(tmp_path / "hf", task, 1000)
    assert train(
        "kto", "--model", base, "--task", task, "--sampled.prompts", 256, "--eval-every", 4, "--steps", 24,
        "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    rights = [line["heldout/right"] for line in logs(tmp_path / "run") if "heldout/right" in line]
    assert max(rights) > right_of(base, task) + 0.1
