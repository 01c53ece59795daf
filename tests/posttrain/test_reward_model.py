"""The reward model as a method: TRL's trainer, gradients that do not depend on the way to them, whole runs, errors."""

import dataclasses
import gzip
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from odonata.app.api import load
from odonata.app.cli import main
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.language.assets import DecoderAssets
from odonata.language.language_model import published_files, read_folder
from odonata.posttrain import recipes
from odonata.posttrain.build import build
from odonata.posttrain.judge import Judge, scorer_files
from odonata.posttrain.preference import PairRow
from odonata.posttrain.reward_model import PadPairs, PairBatch, PairEvaluator, RewardModel, RewardOptions
from odonata.posttrain.rewards.interface import Answered
from odonata.posttrain.rewards.names import reward_named
from odonata.posttrain.scorer import Scorer, ScorerAssets, check_vocabulary
from odonata.text.text_tokenizer import characters
from odonata.weights.published import write_folder
from posttrain.offline_setting import (
    assert_same_gradients,
    bytes_directory,
    directory,
    one_step,
    quick_base,
    start_ranks,
    train,
)
from posttrain.online_setting import gpt2
from posttrain.scorer_setting import FACTS, assert_gradients_as_trl, assert_loss_as_trl, plain_scorer, qwen_scorer

ROWS = FACTS["reward"]
PAIRS = [(PairRow(*(tuple(row[side]) for side in ("prompt", "chosen", "rejected"))), row["margin"]) for row in ROWS]
TASK = "digits-sum:digits=2"


def refused(capsys, *arguments):
    assert train("reward", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


# ---- TRL's trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.shows("reward", "parity")
@pytest.mark.parametrize(("name", "centering", "margins"), [("plain", 0.0, False), ("full", 0.01, True)])
def test_loss_and_gradients_are_those_of_trls_reward_trainer(name, centering, margins):
    method = RewardModel(qwen_scorer(), RewardOptions(centering=centering))
    batch = PadPairs(0)([(row, margin if margins else 0.0) for row, margin in PAIRS])
    batch = dataclasses.replace(batch, margins=torch.tensor([m if margins else 0.0 for _, m in PAIRS]).double())
    values = method.loss((batch, 6.0))
    assert_loss_as_trl(f"reward/{name}/loss", values["loss"])
    method.zero_grad()
    values["loss"].backward()
    gradients = {
        key.removeprefix("scorer.").replace("decoder.", "model."): p.grad for key, p in method.named_parameters()
    }
    assert_gradients_as_trl(f"reward/{name}/0", gradients)
    assert float(values["accuracy"]) == pytest.approx(FACTS[f"reward/{name}/accuracy"])  # no ties here
    assert float(values["margin"]) == pytest.approx(FACTS[f"reward/{name}/margin"], rel=1e-5)


def test_an_untrained_model_has_the_loss_ln_2_and_half_of_the_pairs():
    method = RewardModel(Scorer(qwen_scorer().decoder).double(), RewardOptions())
    figures = PairEvaluator([(row, 0.0) for row, _ in PAIRS], PadPairs(0), 4).measure(method)
    assert figures["heldout/loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert (figures["heldout/accuracy"], figures["heldout/margin"]) == (0.5, 0.0)


# ---- what a gradient does not depend on ------------------------------------------------------------------------------


def test_micro_batches_order_and_padding_change_no_gradient():
    rows = [(PairRow(*([2 + i % 20 for i in ids] for ids in row)), margin) for row, margin in PAIRS]
    method = RewardModel(plain_scorer(), RewardOptions(centering=0.01))
    batch = PadPairs(0)(rows)
    values, whole = one_step(method, batch)
    for accumulate in (2, 4, 6):
        split_values, split = one_step(method, batch, accumulate)
        assert_same_gradients(split, whole, 1e-9)
        assert split_values == pytest.approx(values, rel=1e-6)
    assert_same_gradients(one_step(method, PadPairs(0)(rows[::-1]))[1], whole, 1e-9)
    sides = (batch.chosen, batch.rejected)
    wider = [type(s)(*(torch.cat([x, torch.full((6, 5), f)], 1) for x, f in ((s.ids, 7), (s.scored, False)))) for s in sides]  # fmt: skip  # noqa: E501
    assert_same_gradients(one_step(method, PairBatch(*wider, batch.margins))[1], whole, 1e-9)


def test_the_score_is_that_of_the_last_real_token_where_padding_is_the_end_token():
    """Both sides of a pair end with token 1; padded with 1 or with 9, the scores are the same."""
    scorer = plain_scorer()
    rows = [(PairRow((3, 4), (5, 6, 1), (7, 1)), 0.0), (PairRow((8,), (9, 1), (2, 2, 2, 2, 1)), 0.0)]
    by_end, by_other = (PadPairs(pad)(rows).chosen for pad in (1, 9))
    assert torch.equal(scorer.at_end(by_end), scorer.at_end(by_other))
    alone = scorer(torch.tensor([[3, 4, 5, 6, 1]]))[0, -1, 0]
    assert float(scorer.at_end(by_end)[0].detach()) == pytest.approx(float(alone.detach()), rel=1e-12)


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("reward") / "hf")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """It answers in the form of the task, by chance."""
    return quick_base(tmp_path_factory.mktemp("reward-base") / "hf", TASK, 150)


def write_jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def more_ones(count, **fields):
    """Answers of many lengths; the better one has more ones."""
    torch.manual_seed(4)
    rows = []
    for i in range(count):
        bits = torch.rand(2, 6).sort(0).values > 0.5
        worse, better = ("".join("01"[int(bit)] for bit in row) for row in bits)
        rows.append({"prompt": f"{i % 10}{i // 10 % 10}=", "chosen": better + "1", "rejected": worse + "0"} | fields)
    return rows


def logs(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.shows("reward", "trains")
def test_held_back_pairs_are_ranked_after_training(model, tmp_path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", more_ones(160))
    run = tmp_path / "run"
    assert train(
        "reward", "--model", model, "--data.path", pairs, "--steps", 60, "--data.batch-size", 32, "--optim.lr", 3e-3,
        "--data.heldout", 0.2, "--eval-every", 20, "--log-every", 1, "--out", run,
    ) == 0  # fmt: skip
    lines = logs(run)
    assert lines[0]["loss"] == pytest.approx(math.log(2), rel=1e-6) and lines[0]["accuracy"] == 0.5
    last = [line for line in lines if "heldout/accuracy" in line][-1]
    assert last["heldout/accuracy"] > 0.9 and last["heldout/margin"] > 1
    judge = load(run, device="cpu")
    assert isinstance(judge, Judge)
    assert judge.score("12=", "1111111") > judge.score("12=", "0000000")


def weights(run):
    return load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "model.safetensors")


@pytest.mark.parametrize("options", [(), ("--lora.rank", 2)], ids=["", "lora"])
def test_a_run_on_a_task_that_was_cut_short_ends_in_the_same_bits(options, base, tmp_path):
    common = (
        "reward", "--model", base, "--task", TASK, "--sampled.prompts", 40, "--data.batch-size", 8, "--steps", 6,
        "--save-every", 3, "--eval-every", 3, *options,
    )  # fmt: skip
    for name in ("whole", "cut"):
        assert train(*common, "--out", tmp_path / name) == 0
    last = tmp_path / "cut/checkpoints/step-00000006"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (tmp_path / "cut/checkpoints/index.json").write_text(json.dumps({"last": 3, "best": None}))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert any(name.startswith("scorer.score") for name in whole)


def test_rows_of_hh_rlhf_become_pairs(shared_data, tmp_path):
    source = next((shared_data / "reasoning").rglob("harmless-base*.jsonl.gz"))
    with gzip.open(source, "rt") as lines:
        rows = [next(lines) for _ in range(60)]
    (tmp_path / "hh.jsonl").write_text("".join(rows))
    model = bytes_directory(tmp_path / "hf")
    assert train(
        "reward", "--model", model, "--data.path", tmp_path / "hh.jsonl", "--steps", 1, "--data.batch-size", 8,
        "--data.max-length", 2048, "--log-every", 1, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    assert logs(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(model, tmp_path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", more_ones(60))
    common = (
        "train", "reward", "--model", model, "--data.path", pairs, "--steps", 4, "--data.batch-size", 16, "--log-every",
        1, "--margin", 0.5,
    )  # fmt: skip
    ways = {"one": (), "two": ("--devices", 2, "--accumulate", 2)}
    for name, options in ways.items():
        done = start_ranks(*common, *options, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=2e-5) for key in one)
    for line, same in zip(logs(tmp_path / "one"), logs(tmp_path / "two"), strict=True):
        for figure in ("loss", "accuracy", "margin", "heldout/loss"):
            assert line.get(figure, 0.0) == pytest.approx(same.get(figure, 0.0), rel=1e-3, abs=1e-5)


# ---- weights in and out ----------------------------------------------------------------------------------------------


@pytest.mark.shows("reward", "weights")
@pytest.mark.parametrize("options", [(), ("--lora.rank", "2")], ids=["", "lora"])
def test_a_run_goes_to_transformers_sequence_classification_and_back(options, model, tmp_path):
    transformers = pytest.importorskip("transformers")
    pairs = write_jsonl(tmp_path / "pairs.jsonl", more_ones(40))
    run, out = tmp_path / "run", tmp_path / "out"
    assert train(
        "reward", "--model", model, "--data.path", pairs, "--steps", 4, "--data.batch-size", 16, "--optim.lr", 1e-2,
        "--out", run, *options,
    ) == 0  # fmt: skip
    assert main(["convert", str(run), str(out), "--to", "hf"]) == 0
    assert "score.weight" in load_file(out / "model.safetensors")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen2ForSequenceClassification" and theirs.config.num_labels == 1
    ours, again = Judge.load(run), load(out, device="cpu")
    prompts, answers = ["12=", "7=", "345="], ["1100", "1", "010101"]
    ids = [[*ours.tokenizer.encode(p + a), ours.tokenizer.end()] for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, ids))
    padded = torch.tensor([row + [theirs.config.pad_token_id] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    with torch.no_grad():
        expected = theirs.eval()(padded, attention_mask=mask).logits[:, 0].tolist()
    assert max(map(abs, expected)) > 1e-3
    for judge in (ours, again):
        found = [judge.score(p, a) for p, a in zip(prompts, answers, strict=True)]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.shows("reward", "weights")
def test_a_reward_model_of_transformers_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = characters("0123456789=")
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = transformers.LlamaConfig(
        **sizes, num_key_value_heads=2, intermediate_size=48, num_labels=1, pad_token_id=0, eos_token_id=1
    )
    torch.manual_seed(2)
    theirs = transformers.LlamaForSequenceClassification(llama).eval()
    theirs.save_pretrained(tmp_path / "llama")
    tokenizer.save(tmp_path / "llama")
    ids = torch.tensor([[*tokenizer.encode("12=3"), 1]])
    with torch.no_grad():
        expected = float(theirs(ids).logits[0, 0])
    assert Judge.load(tmp_path / "llama").score("12=", "3") == pytest.approx(expected, rel=1e-5)


def test_gpt2_goes_there_and_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = characters("0123456789=#")
    decoder = gpt2()
    write_folder(tmp_path / "lm", published_files(decoder.state_dict(), DecoderAssets(decoder.config, tokenizer)))
    start, assets, _ = read_folder(tmp_path / "lm")
    scorer = Scorer(start).eval()
    torch.nn.init.normal_(scorer.score.weight)
    write_folder(tmp_path / "rm", scorer_files(scorer, ScorerAssets(assets, "reward")))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32)
    assert type(theirs).__name__ == "GPT2ForSequenceClassification"
    ids = torch.tensor([[*tokenizer.encode("12=3"), 1]])
    with torch.no_grad():
        expected = float(theirs.eval()(ids).logits[0, 0])
    assert Judge.load(tmp_path / "rm").score("12=", "3") == pytest.approx(expected, rel=1e-5)


# ---- a judge, and a reward by name -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged_run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    pairs = write_jsonl(folder / "pairs.jsonl", more_ones(40))
    arguments = ("--model", model, "--data.path", pairs, "--steps", 4, "--data.batch-size", 16, "--optim.lr", 1e-2)
    assert train("reward", *arguments, "--out", folder / "run") == 0
    return folder / "run"


def test_as_a_reward_it_scores_the_tokens_that_were_sampled(judged_run):
    reward, judge = reward_named(f"run:{judged_run}"), Judge.load(judged_run)
    assert reward.name == f"run:{judged_run}"
    tokenizer = judge.tokenizer
    prompt, said = tuple(tokenizer.encode("12=")), (*tokenizer.encode("101"), tokenizer.end())
    by_ids = Answered("12=", "101", {}, True, prompt, said)
    by_text = Answered("12=", "101", {}, True)
    cut = Answered("12=", "101", {}, False, prompt, said[:-1])
    scores = reward([by_ids, by_text, cut])
    assert scores[0] == pytest.approx(judge.score("12=", "101"), rel=1e-5)
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    assert scores[2] == pytest.approx(judge.scores_of([prompt], [said[:-1]])[0], rel=1e-5)
    assert scores[2] != pytest.approx(scores[0], rel=1e-3)  # an answer that was cut has no end to be judged at
    assert reward([]) == []


def test_scores_do_not_depend_on_the_batch_around_them(judged_run):
    judge = Judge.load(judged_run)
    prompts = [judge.tokenizer.encode(text) for text in ("1=", "123=", "45=", "9=")]
    answers = [judge.tokenizer.encode(text) for text in ("1", "010101", "11", "0000")]
    whole = judge.scores_of(prompts, answers)
    alone = [judge.scores_of([p], [a])[0] for p, a in zip(prompts, answers, strict=True)]
    judge.batch_rows = 2
    assert whole == pytest.approx(alone, rel=1e-5) == judge.scores_of(prompts, answers)


def test_conversations_are_scored_through_the_template(judged_run):
    judge = Judge.load(judged_run)
    turns = [{"role": "user", "content": "12"}]
    text = judge.tokenizer.chat(turns, "auto")
    ids = judge.tokenizer.encode(text)
    whole = judge.tokenizer.chat([*turns, {"role": "assistant", "content": "1"}], "auto", add_generation_prompt=False)
    answer = judge.tokenizer.encode(whole[len(text) :])
    answer = answer[: answer.index(judge.tokenizer.end()) + 1]  # the template writes a line break behind the end
    assert judge.score(turns, "1") == pytest.approx(judge.scores_of([ids], [answer])[0], rel=1e-5)
    with pytest.raises(DataError, match="role 'bot'"):
        judge.score([{"role": "bot", "content": "12"}], "1")


def test_it_scores_answers_and_not_steps(judged_run):
    judge = Judge.load(judged_run)
    with pytest.raises(RecipeError, match="scores whole answers"):
        judge.step_scores("12=", ["1"])
    with pytest.raises(RecipeError, match="nothing to aggregate by 'min'"):
        judge.score("12=", "1", by="min")


# ---- manners ---------------------------------------------------------------------------------------------------------


@pytest.mark.shows("reward", "manners")
def test_equal_answers_and_missing_margins_are_named_by_file_and_line(model, tmp_path, capsys):
    rows = more_ones(30, margin=0.5)
    equal = write_jsonl(tmp_path / "equal.jsonl", [*rows[:2], {"prompt": "1=", "chosen": "1", "rejected": "1"}])
    said = refused(capsys, "--model", model, "--data.path", equal, "--out", tmp_path / "run")
    assert "equal.jsonl:3: 'chosen' and 'rejected' are equal: '1'" in said
    lacks = write_jsonl(tmp_path / "lacks.jsonl", [*rows, *more_ones(1)])
    common = ("--model", model, "--data.batch-size", 8, "--steps", 1, "--out", tmp_path / "run")
    said = refused(capsys, *common, "--data.path", lacks, "--margin", "file")
    assert "lacks.jsonl:31: the row has no margin, and --margin file asks for it" in said
    assert not (tmp_path / "run").exists()
    whole = write_jsonl(tmp_path / "whole.jsonl", rows)
    assert train("reward", *common, "--data.path", whole, "--margin", "file", "--log-every", 1) == 0
    # −ln σ(0 − 0.5), before the first update
    assert logs(tmp_path / "run")[0]["loss"] == pytest.approx(math.log1p(math.exp(0.5)), rel=1e-6)


def test_margins_that_are_not_used_are_told_of(model, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", more_ones(30, margin=0.5))
    plain = recipes.reward()
    recipe = dataclasses.replace(
        plain,
        method=dataclasses.replace(plain.method, model=str(model)),
        data=dataclasses.replace(plain.data, path=str(file), batch_size=8),
    )
    assert any("--margin file uses that" in note for note in build(recipe).notes)


@pytest.mark.shows("reward", "manners")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--centering", -1), "--centering is -1"),
        (("--margin", "file"), "--margin file is what a file's rows say"),
        (("--data.path", "x.jsonl"), "--data.path needs a model to train"),
        (("--sampled.answers", 1), "--sampled.answers is 1; it must be at least 2"),
        (("--data.prompts", "chat"), "--data.prompts is about files"),
        (("--model", "x", "--data.path", "x.jsonl", "--sampled.prompts", 4), "--sampled is about built-in tasks"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, said, tmp_path, capsys):
    assert said in refused(capsys, *options, "--out", tmp_path / "run")


@pytest.mark.shows("reward", "manners")
def test_what_holds_no_reward_model_is_refused_by_name(model, judged_run, tmp_path, capsys):
    with pytest.raises(WeightsError, match="no such run or directory of a reward model"):
        reward_named(f"run:{tmp_path}/nowhere")
    with pytest.raises(WeightsError, match="holds no reward model: that is a run of reward or prm"):
        reward_named(f"run:{model}")
    with pytest.raises(RecipeError, match="'run' names no reward model"):
        reward_named("run")
    # A reward model is no language model to go on with.
    said = refused(capsys, "--model", judged_run, "--out", tmp_path / "run")
    assert "is a run of another kind: it holds no language model" in said


@pytest.mark.shows("reward", "manners")
def test_a_reward_model_of_another_tokenizer_is_refused():
    ours, theirs = characters("0123456789="), characters("123456789=")
    check_vocabulary(ours, characters("0123456789="), "the reward run:x")
    with pytest.raises(RecipeError, match=r"run:x reads other tokens .*: 11 entries .* such as '0'"):
        check_vocabulary(ours, theirs, "the reward run:x")
    with pytest.raises(RecipeError, match="another end of a text"):
        check_vocabulary(ours, with_other_end(), "the reward run:x")


def with_other_end():
    other = characters("0123456789=")
    other.eos_ids = (2,)
    return other


def test_published_scorers_of_other_sizes_are_refused(judged_run, tmp_path):
    judge = Judge.load(judged_run)
    judge.convert(tmp_path / "rm")
    config = json.loads((tmp_path / "rm/config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"] and config["id2label"] == {"0": "LABEL_0"}
    (tmp_path / "rm/config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForTokenClassification"]}))
    with pytest.raises(WeightsError, match=r"score.weight has 1 labels; a model that scores steps has 2"):
        Judge.load(tmp_path / "rm")
    with pytest.raises(WeightsError, match="not an empty folder"):
        judge.convert(tmp_path / "rm")
    with pytest.raises(WeightsError, match="a reward model is written as hf"):
        judge.convert(tmp_path / "other", "open_clip")
