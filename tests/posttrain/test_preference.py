"""DPO, IPO and SimPO as methods: TRL's trainers, gradients that do not depend on the way to them, whole runs, errors.

The losses themselves are in test_preference_losses.py.
"""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from odonata.app.api import load
from odonata.app.cli import main
from odonata.errors import DataError, RecipeError
from odonata.language.sequences import Sequences, pad_sequences
from odonata.nn.lora import add_lora
from odonata.posttrain import recipes
from odonata.posttrain.build import build
from odonata.posttrain.preference import (
    DPOOptions,
    IPOOptions,
    PadPairs,
    PairBatch,
    PairRow,
    PreferenceMethod,
    SimPOOptions,
    objective_of,
)
from odonata.posttrain.reference import Reference
from posttrain.offline_setting import (
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

PAIRS = [PairRow(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]
BATCH = PadPairs(0)([(row, None) for row in PAIRS])
OBJECTIVES = {
    "dpo": DPOOptions(beta=0.3),
    "conservative": DPOOptions(loss="conservative", beta=0.3, label_smoothing=0.1),
    "robust": DPOOptions(loss="robust", beta=0.3, label_smoothing=0.1),
    "hinge": DPOOptions(loss="hinge", beta=0.3),
    "ipo": IPOOptions(beta=0.3),
    "ipo-normalised": IPOOptions(beta=0.3, normalised=True),
    "simpo": SimPOOptions(beta=2.0, gamma=0.5),
}


def method_of(name, decoder, reference):
    return PreferenceMethod(decoder, objective_of(OBJECTIVES[name]), None if name == "simpo" else reference)


# ---- TRL's trainers --------------------------------------------------------------------------------------------------


@pytest.mark.shows("dpo", "parity")
@pytest.mark.parametrize(("recorded", "name"), [("sigmoid", "dpo"), ("robust", "robust"), ("hinge", "hinge")])
def test_dpo_is_trls(recorded, name):
    assert_as_trl(f"dpo-{recorded}", method_of(name, qwen(), Reference(qwen(0.3))), BATCH)


@pytest.mark.shows("ipo", "parity")
def test_ipo_is_trls_where_log_ratios_are_means():
    assert_as_trl("dpo-ipo", method_of("ipo-normalised", qwen(), Reference(qwen(0.3))), BATCH)


@pytest.mark.shows("simpo", "parity")
def test_simpo_is_trls():
    assert_as_trl("simpo", method_of("simpo", qwen(), None), BATCH)


# ---- what a gradient does not depend on ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_order_and_padding_change_no_gradient(name):
    pairs = [PairRow(*([2 + i % 20 for i in ids] for ids in row)) for row in PAIRS]
    batch = PadPairs(0)([(row, None) for row in pairs])
    method = method_of(name, *pair_of_models())
    values, whole = one_step(method, batch)
    for accumulate in (2, 4, 6):
        split_values, split = one_step(method, batch, accumulate)
        assert_same_gradients(split, whole, 1e-10)
        assert split_values == pytest.approx(values, rel=1e-6)
    turned = PadPairs(0)([(row, None) for row in reversed(pairs)])
    assert_same_gradients(one_step(method, turned)[1], whole, 1e-10)
    ids, scored = batch.sequences.ids, batch.sequences.scored
    more = torch.full((len(ids), 5), 7)
    padded = PairBatch(Sequences(torch.cat([ids, more], 1), torch.cat([scored, more < 0], 1)))
    assert_same_gradients(one_step(method, padded)[1], whole, 1e-10)


def test_figures_of_a_step_by_hand():
    decoder, reference = pair_of_models()
    rows = [PairRow((3, 4), (5, 6, 1), (7, 1)), PairRow((8,), (9, 1), (2, 2, 1))]
    batch = PadPairs(0)([(row, None) for row in rows])
    values, _ = one_step(method_of("dpo", decoder, reference), batch)

    def logprob(model, prompt, answer):
        ids = torch.tensor([[*prompt, *answer]])
        found = model(ids[:, :-1]).detach().log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        return float(found[len(prompt) - 1 :].sum())

    policy = [[logprob(decoder, row.prompt, side) for side in row[1:]] for row in rows]
    ref = [[logprob(reference.decoder, row.prompt, side) for side in row[1:]] for row in rows]
    rewards = [[0.3 * (p - r) for p, r in zip(*both, strict=True)] for both in zip(policy, ref, strict=True)]
    margins = [chosen - rejected for chosen, rejected in rewards]
    assert values == pytest.approx({
        "loss": sum(math.log1p(math.exp(-m)) for m in margins) / 2,
        "margin": sum(margins) / 2,
        "accuracy": sum(m > 0 for m in margins) / 2,
        "chosen_reward": sum(chosen for chosen, _ in rewards) / 2,
        "rejected_reward": sum(rejected for _, rejected in rewards) / 2,
        "chosen_logprob": sum(chosen for chosen, _ in policy) / 2,
        "rejected_logprob": sum(rejected for _, rejected in policy) / 2,
    }, rel=1e-6)  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("lora", [False, True])
def test_before_the_first_update_the_loss_is_ln_2_to_the_last_bit(lora, accumulate):
    decoder = qwen().float()
    if lora:
        add_lora(decoder, 2, 8.0, ("q_proj", "down_proj"))
    method = method_of("dpo", decoder, Reference(decoder))
    whole = PadPairs(0)([(row, None) for row in PAIRS])
    for part in map(method.compared, whole.by_length(accumulate)):
        found = method.loss((part, 1.0))
        assert found["margin"] == found["accuracy"] == found["chosen_reward"] == found["rejected_reward"] == 0
    values, _ = one_step(method, PadPairs(0)([(row, None) for row in PAIRS[:4]]), accumulate)
    assert values["loss"] == float(torch.tensor(2.0).log())  # four equal numbers have an exact mean
    assert values["accuracy"] == 0  # strictly more, as in TRL


# ---- whole runs ------------------------------------------------------------------------------------------------------


def repeats(count):
    """Pairs whose better answer says a letter of the prompt twice, and whose worse one goes on to the next letter."""
    letters = "abcdefghijk"
    places = [(i % 10, (i * 7 + 1 + i // 10) % 10) for i in range(count)]
    return [
        {"prompt": f"{letters[i]}{letters[j]}=", "chosen": letters[i] * 2, "rejected": letters[i : i + 2]}
        for i, j in places
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", repeats(90))


TASK = "digits-sum:digits=2"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """It answers in the form of the task, by chance."""
    return quick_base(tmp_path_factory.mktemp("base") / "hf", TASK, 150)


def logs(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def held(run):
    return [line for line in logs(run) if "heldout/loss" in line]


@pytest.mark.shows("dpo", "trains")
@pytest.mark.shows("ipo", "trains")
@pytest.mark.shows("simpo", "trains")
@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo"])
def test_held_back_pairs_are_told_apart_after_training(name, model, pairs, tmp_path):
    """A rule that pairs show (say it twice) holds for pairs that were not shown."""
    assert train(
        name, "--model", model, "--data.path", pairs, "--steps", 60, "--data.batch-size", 32, "--optim.lr", 3e-3,
        "--data.heldout", 0.2, "--eval-every", 30, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    first, last = logs(tmp_path / "run")[0], held(tmp_path / "run")[-1]
    if name == "dpo":
        assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    if name != "simpo":
        assert first["margin"] == first["accuracy"] == 0
    assert last["heldout/accuracy"] > 0.9
    assert last["heldout/margin"] > first["margin"]
    assert {"chosen_logprob", "rejected_logprob", "chosen_reward", "rejected_reward", "grad_norm"} <= first.keys()


def test_a_reference_asked_once_changes_nothing_but_the_cost(model, pairs, tmp_path):
    common = ("dpo", "--model", model, "--data.path", pairs, "--steps", 8, "--data.batch-size", 16, "--eval-every", 4)
    assert train(*common, "--out", tmp_path / "each") == 0
    assert train(*common, "--precompute-reference", "--out", tmp_path / "once") == 0
    figures = ("loss", "margin", "chosen_reward", "heldout/loss", "heldout/margin")
    for each, once in zip(logs(tmp_path / "each"), logs(tmp_path / "once"), strict=True):
        for name in figures:
            assert each.get(name, 0.0) == pytest.approx(once.get(name, 0.0), rel=1e-4, abs=1e-6)
    assert (tmp_path / "each/assets/reference.safetensors").is_file()
    assert not (tmp_path / "once/assets/reference.safetensors").exists()
    known = load_file(tmp_path / "once/assets/reference-logprobs.safetensors")
    assert known["train"].shape == (len(repeats(90)) - len(known["heldout"]), 2)
    assert (known["train"] < 0).all()


def weights(run):
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


@pytest.mark.parametrize("options", [(), ("--precompute-reference",), ("--lora.rank", 2)], ids=["", "once", "lora"])
def test_a_run_on_a_task_that_was_cut_short_ends_in_the_same_bits(options, base, tmp_path):
    common = (
        "dpo", "--model", base, "--task", TASK, "--sampled.prompts", 40, "--data.batch-size", 8, "--steps", 6,
        "--save-every", 3, "--evaluation.prompts", 8, "--eval-every", 3, "--data.heldout", 0.2, *options,
    )  # fmt: skip
    assert train(*common, "--out", tmp_path / "whole") == 0
    assert train(*common, "--out", tmp_path / "cut") == 0
    for late in (tmp_path / "cut/checkpoints").glob("step-00000006/*"):
        late.unlink()
    (tmp_path / "cut/checkpoints/step-00000006").rmdir()
    (tmp_path / "cut/checkpoints/index.json").write_text(json.dumps({"last": 3, "best": None}))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "cut/assets/samples.jsonl").read_text().splitlines()]
    assert all(row.keys() == {"prompt", "chosen", "rejected"} for row in rows)
    for row in rows:
        wanted = str(sum(int(c) for c in row["prompt"].rstrip("=")) % 10)
        assert row["chosen"].rpartition("#")[2] == wanted
        assert row["rejected"] != row["chosen"]


# ---- weights in and out ----------------------------------------------------------------------------------------------


@pytest.mark.shows("dpo", "weights")
@pytest.mark.shows("ipo", "weights")
@pytest.mark.shows("simpo", "weights")
@pytest.mark.parametrize(
    ("name", "options"), [("dpo", ()), ("dpo", ("--lora.rank", "2")), ("ipo", ()), ("simpo", ("--lora.rank", "4"))]
)
def test_a_run_goes_back_to_transformers(name, options, pairs, tmp_path):
    transformers = pytest.importorskip("transformers")
    start = directory(tmp_path / "hf")
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(
        name, "--model", start, "--data.path", pairs, "--steps", 3, "--data.batch-size", 8, "--optim.lr", 1e-2,
        "--out", run, *options,
    ) == 0  # fmt: skip
    assert main(["convert", str(run), str(out), "--to", "hf"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours = load(run, device="cpu")
    words = transformers.AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([ours.tokenizer.encode("ab=aa")])
    assert words("ab=aa", add_special_tokens=False)["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        found, expected = ours.decoder(ids), theirs(ids).logits
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    begun = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)(ids).logits
    assert (begun - expected).abs().max() > 1e-2  # it did learn


def test_adapters_alone_are_pefts_files(pairs, tmp_path):
    """Names and shapes are those that PEFT 0.21 wrote for the same targets of a Qwen2."""
    start = directory(tmp_path / "hf")
    assert train(
        "dpo", "--model", start, "--data.path", pairs, "--steps", 3, "--data.batch-size", 8, "--optim.lr", 1e-2,
        "--lora.rank", 2, "--lora.targets", "q_proj", "v_proj", "down_proj", "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "peft"), "--to", "peft"]) == 0
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 2, 32)
    assert config["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    state = load_file(tmp_path / "peft/adapter_model.safetensors")
    linears = [f"self_attn.{name}_proj" for name in "qv"] + ["mlp.down_proj"]
    assert state.keys() == {
        f"base_model.model.model.layers.{layer}.{linear}.lora_{side}.weight"
        for layer in range(2) for linear in linears for side in "AB"
    }  # fmt: skip
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "whole"), "--to", "hf"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "whole"))
    name = "layers.1.mlp.down_proj"
    low, high = (state[f"base_model.model.model.{name}.lora_{side}.weight"] for side in "AB")
    moved = before[f"model.{name}.weight"] + 32 / 2 * high @ low  # as PEFT merges: alpha / r · B A
    assert torch.allclose(after[f"model.{name}.weight"], moved, atol=1e-6)
    assert high.abs().max() > 0


# ---- manners ---------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert train(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.shows("dpo", "manners")
@pytest.mark.shows("ipo", "manners")
@pytest.mark.shows("simpo", "manners")
@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo"])
def test_equal_and_empty_answers_are_named_by_file_and_line(name, model, tmp_path, capsys):
    rows = repeats(30)
    equal = write_jsonl(tmp_path / "equal.jsonl", [*rows[:2], {"prompt": "a=", "chosen": "b", "rejected": "b"}])
    said = refused(capsys, name, "--model", model, "--data.path", equal, "--out", tmp_path / "run")
    assert "equal.jsonl:3: 'chosen' and 'rejected' are equal: 'b'" in said
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"prompt": "a=", "chosen": " ", "rejected": "b"}, *rows])
    said = refused(capsys, name, "--model", model, "--data.path", empty, "--out", tmp_path / "run")
    assert "empty.jsonl:1: 'chosen' is empty" in said
    # Texts that differ, and are the same once the template has trimmed them.
    trimmed = write_jsonl(tmp_path / "trimmed.jsonl", [*rows, {"prompt": "a=", "chosen": "b", "rejected": "b "}])
    chat = (name, "--model", model, "--data.path", trimmed, "--data.prompts", "chat", "--template", "llama3")
    said = refused(capsys, *chat, "--out", tmp_path / "run")
    assert f"trimmed.jsonl:{len(rows) + 1}: the chosen and the rejected answer are the same tokens" in said
    assert not (tmp_path / "run/checkpoints").exists()
    assert train(
        *chat, "--data.on-error", "skip", "--data.batch-size", 8, "--data.heldout", 0, "--steps", 1,
        "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    assert f"left out 1 rows that cannot be encoded, first: {trimmed}:{len(rows) + 1}" in capsys.readouterr().err


def test_rows_longer_than_the_limit_are_counted_cut_or_refused(model, tmp_path, capsys):
    rows = repeats(30)
    long = write_jsonl(tmp_path / "long.jsonl", [*rows, {"prompt": "a=", "chosen": "ab" * 20, "rejected": "ba"}])
    common = ("dpo", "--model", model, "--data.path", long, "--data.max-length", 12, "--steps", 1,
              "--data.batch-size", 8, "--data.heldout", 0)  # fmt: skip
    said = refused(capsys, *common, "--data.too-long", "stop", "--out", tmp_path / "stop")
    assert f"long.jsonl:{len(rows) + 1}: 43 tokens are more than --data.max-length 12" in said
    for policy, what in (("skip", "left out"), ("cut", "cut")):
        assert train(*common, "--data.too-long", policy, "--out", tmp_path / policy) == 0
        assert f"{what} 1 rows of more than 12 tokens, first: {long}:{len(rows) + 1}" in capsys.readouterr().err


def test_cut_pairs_keep_their_difference_or_go():
    pair = PairRow((1, 2), (3, 4, 5), (3, 4, 6))
    assert pair.length == 5
    assert pair.cut(4) is None  # what is left of both is equal
    assert pair.cut(2) is None  # the prompt fills it
    assert PairRow((1,), (2, 3), (4, 5)).cut(2) == ((1,), (2,), (4,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", ("--label-smoothing", 0.1), "--label-smoothing is not used by --loss sigmoid"),
        ("dpo", ("--loss", "robust"), "--loss robust needs the share of wrong labels"),
        ("dpo", ("--loss", "robust", "--label-smoothing", 0.6), "in (0, 0.5), not 0.6"),
        ("dpo", ("--beta", 0), "--beta is 0; it must be above 0"),
        ("ipo", ("--beta", -1), "--beta is -1; it must be above 0"),
        ("simpo", ("--gamma", -1), "--gamma is -1; a margin must not be negative"),
        ("dpo", ("--sampled.prompts", 3), "--sampled is about built-in tasks"),
        ("dpo", ("--evaluation.prompts", 3), "--evaluation.prompts is about built-in tasks"),
        ("dpo", ("--task", "digits-sum"), "does not go together with --data.path"),
        ("dpo", ("--data.batch-size", 4000), "are fewer than --data.batch-size 4000"),
    ],
)  # fmt: skip
def test_options_that_do_nothing_or_cannot_be_are_refused(name, options, message, model, pairs, tmp_path, capsys):
    said = refused(capsys, name, "--model", model, "--data.path", pairs, *options, "--out", tmp_path / "run")
    assert message in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.on-error", "skip"), "--data.on-error is about files"),
        (("--data.prompt-template", "{x}"), "--data.prompt-template is about files"),
        (("--sampled.answers", 1), "--sampled.answers is 1; it must be at least 2"),
        (("--sampled.temperature", 0), "--sampled.temperature is 0.0; a choice needs chance"),
    ],
)
def test_options_that_a_task_does_not_use_are_refused(options, message, model, tmp_path, capsys):
    said = refused(capsys, "dpo", "--model", model, "--task", "digits-sum", *options, "--out", tmp_path / "run")
    assert message in said


def test_models_that_lack_a_file_or_do_not_fit_their_tokenizer_are_named(pairs, tmp_path, capsys):
    lacking = directory(tmp_path / "lacking")
    (lacking / "model.safetensors").unlink()
    said = refused(capsys, "dpo", "--model", lacking, "--data.path", pairs, "--out", tmp_path / "run")
    assert f"{lacking} lacks model.safetensors" in said
    mixed, small = directory(tmp_path / "mixed"), directory(tmp_path / "small", alphabet="0123456789")
    for name in ("config.json", "model.safetensors"):
        (mixed / name).write_bytes((small / name).read_bytes())
    said = refused(capsys, "dpo", "--model", mixed, "--data.path", pairs, "--out", tmp_path / "run")
    assert "they do not belong together" in said
    said = refused(capsys, "dpo", "--model", small, "--task", "digits-sum", "--out", tmp_path / "run")
    assert f"{small} has no token for '=" in said


def test_a_base_that_is_never_right_has_no_pairs(tmp_path, capsys):
    base = directory(tmp_path / "hf", alphabet="0123456789=#")
    said = refused(
        capsys, "dpo", "--model", base, "--task", "digits-sum", "--sampled.prompts", 2, "--sampled.answers", 2,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert "no prompt got both a right and a wrong answer; take more with --sampled.prompts" in said


# ---- real rows, ranks, and a task ------------------------------------------------------------------------------------


def test_two_steps_on_transcripts_of_hh_rlhf(shared_data, tmp_path, capsys):
    """Prompts of several turns, through a chat template in words, since the model brings none."""
    model = bytes_directory(tmp_path / "hf")
    assert train(
        "dpo", "--model", model, "--data.path", shared_data / "reasoning/hh-rlhf/harmless-base.jsonl.gz", "--steps", 2,
        "--data.batch-size", 4, "--data.limit", 40, "--data.on-error", "skip", "--data.max-length", 400,
        "--evaluation.rows", 4, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    said = capsys.readouterr().err
    assert "harmless-base.jsonl.gz (pair): 40 rows to train on" in said
    assert "rows of more than 400 tokens, first: " in said
    steps = [line for line in logs(tmp_path / "run") if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert math.isfinite(steps[1]["loss"])


def test_recipes_are_the_papers():
    assert recipes.by_name("dpo").method == DPOOptions(loss="sigmoid", beta=0.1)
    assert recipes.by_name("ipo").method == IPOOptions(beta=0.1, normalised=False)
    simpo = recipes.by_name("simpo").method
    assert 2.0 <= simpo.beta <= 2.5
    assert 0.3 <= simpo.gamma <= 1.6


def test_without_a_model_there_is_nothing_to_train_on_rows(pairs):
    recipe = recipes.by_name("dpo")
    with pytest.raises(RecipeError, match=r"--data\.path needs a model to train"):
        build(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, path=str(pairs))))


def test_equal_tokens_are_refused():
    with pytest.raises(DataError, match="nothing to prefer"):
        PairRow((1,), (2,), (2,)).check()


def test_pairs_stand_chosen_first_then_rejected():
    batch = PadPairs(9)([(PairRow((1, 2), (3,), (4, 5)), (-1.0, -2.0)), (PairRow((6,), (7, 8), (3,)), (-3.0, -4.0))])
    expected = pad_sequences([(1, 2), (6,), (1, 2), (6,)], [(3,), (7, 8), (4, 5), (3,)], 9)
    assert torch.equal(batch.sequences.ids, expected.ids)
    assert torch.equal(batch.sequences.scored, expected.scored)
    assert batch.ref.tolist() == [-1.0, -3.0, -2.0, -4.0]
    assert batch.rows(torch.tensor([1])).ref.tolist() == [-3.0, -4.0]
    assert batch.rows(torch.tensor([1])).sequences.ids.tolist() == [[6, 7, 8], [6, 3, 9]]


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(model, pairs, tmp_path):
    """Also with a reference asked once, of which each rank asks half."""
    common = ("dpo", "--model", model, "--data.path", pairs, "--steps", 6, "--data.batch-size", 14, "--optim.lr", 1e-2)
    for name, options in {
        "one": (), "two": ("--devices", 2, "--accumulate", 3), "once": ("--devices", 2, "--precompute-reference"),
        "sharded": ("--devices", 2, "--parallel", "fsdp"),
    }.items():  # fmt: skip
        ended = start_ranks("train", *common, *options, "--out", tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    begun = load_file(model / "model.safetensors")
    one = weights(tmp_path / "one")
    for name in ("two", "once", "sharded"):
        other = weights(tmp_path / name)
        for key, value in one.items():
            moved = float((value - begun["model." + key.removeprefix("decoder.")]).norm())
            assert float((other[key] - value).norm()) < 1e-3 * moved, f"{name}: {key}"
        for line, same in zip(logs(tmp_path / "one"), logs(tmp_path / name), strict=True):
            for figure in ("loss", "margin", "accuracy", "chosen_logprob", "heldout/loss"):
                assert line.get(figure, 0.0) == pytest.approx(same.get(figure, 0.0), rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A base that adds three digits, in some of its answers."""
    return quick_base(tmp_path_factory.mktemp("talker") / "hf", SUMS, 1000)


SUMS = "digits-sum:digits=3"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo"])
def test_right_answers_become_likelier_on_sums_of_three_digits(name, talker, tmp_path):
    """The pairs are the base's own answers; sampled answers to held-back prompts tell."""
    assert train(
        name, "--model", talker, "--task", SUMS, "--sampled.prompts", 256, "--eval-every", 4, "--steps", 24,
        "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    rights = [line["heldout/right"] for line in held(tmp_path / "run")]
    assert max(rights) > right_of(talker, SUMS) + 0.1
