"""Supervised fine-tuning: TRL's trainer, what of a conversation is learned, whole runs, and errors."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from odonata.app.api import load
from odonata.app.cli import main
from odonata.data.dialogues import Exchange, Prompt, Turn
from odonata.errors import DataError, WeightsError
from odonata.language.decoder import Decoder
from odonata.language.next_token import NextToken
from odonata.posttrain.options import DialogueData
from odonata.posttrain.rows import Encoder, encoded
from odonata.posttrain.sampled import worked_rows
from odonata.posttrain.sft import ExchangeEncoder, LearnedRow, PadLearned
from odonata.posttrain.tasks import task_named
from odonata.text.chat import TEMPLATES
from odonata.text.text_tokenizer import TextTokenizer, characters
from posttrain.offline_setting import (
    PLAIN,
    ROWS,
    assert_as_trl,
    assert_same_gradients,
    bytes_directory,
    directory,
    one_step,
    quick_base,
    qwen,
    right_of,
    start_ranks,
    train,
    write_jsonl,
)

LEARNED = [
    LearnedRow((*row["prompt"], *row["chosen"]), (False,) * len(row["prompt"]) + (True,) * len(row["chosen"]))
    for row in ROWS
]


@pytest.mark.shows("sft", "parity")
def test_sft_is_trls():
    values = assert_as_trl("sft", NextToken(qwen()), PadLearned(0)(LEARNED))
    assert values.keys() == {"loss"}


def test_micro_batches_order_and_padding_change_no_gradient():
    torch.manual_seed(1)
    method = NextToken(Decoder(PLAIN).double())
    rows = [row._replace(ids=tuple(2 + i % 20 for i in row.ids)) for row in LEARNED]
    _, whole = one_step(method, PadLearned(0)(rows))
    for accumulate in (2, 4, 6):
        assert_same_gradients(one_step(method, PadLearned(0)(rows), accumulate)[1], whole, 1e-10)
    assert_same_gradients(one_step(method, PadLearned(0)(rows[::-1]))[1], whole, 1e-10)
    longer = [row._replace(ids=(*row.ids, *[5] * 7), scored=(*row.scored, *[False] * 7)) for row in rows]
    assert_same_gradients(one_step(method, PadLearned(9)(longer))[1], whole, 1e-10)


# ---- what of a conversation is learned -------------------------------------------------------------------------------

# One character each, but for the end: what is learned can be read.
LETTERS = characters(" \nabcdefghijklmnopqrstuvwxyzAUS:?!|<>{}", eos="$")
TALK = (Turn("user", "hi?"), Turn("assistant", "yo"), Turn("user", "so?"), Turn("assistant", "no"))


def learned_text(template, learn, turns=TALK, tokenizer=LETTERS):
    """The whole sequence as text, with what is learned in braces."""
    item = Exchange(Prompt(turns=turns[:-1]), turns[-1].content, "talk.jsonl:1")
    row = ExchangeEncoder(Encoder(tokenizer, template), learn)(item)
    assert len(row.ids) == len(row.scored)
    text, before = "", False
    for token, scored in zip(row.ids, row.scored, strict=True):
        text += ("{" if scored and not before else "") + ("}" if before and not scored else "")
        text += tokenizer.decode([token], skip_special=False)
        before = scored
    return text + ("}" if before else "")


def with_template(template):
    files = LETTERS.files | {"chat_template.jinja": template.encode()}
    return TextTokenizer(files, LETTERS.eos_ids)


def test_the_last_answer_or_all_of_them_are_learned_with_their_ends():
    assert learned_text("plain", "last") == "User: hi?\nAssistant: yo$\nUser: so?\nAssistant:{ no$}"
    assert learned_text("plain", "all") == "User: hi?\nAssistant:{ yo$}\nUser: so?\nAssistant:{ no$}"


def test_all_answers_are_learned_behind_what_they_would_follow_in_use():
    """Up to each answer the sequence is what `chat` would be given at that turn, token by token."""
    tokenizer = with_template(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}$ {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    item = Exchange(Prompt(turns=TALK[:-1]), TALK[-1].content, "talk.jsonl:1")
    whole = ExchangeEncoder(Encoder(tokenizer), "all")(item)
    encoder = Encoder(tokenizer)
    for place in (1, 3):
        prompt = Prompt(turns=TALK[:place])
        ids, answer = encoder.prompt(prompt), encoder.completion(prompt, TALK[place].content)
        stop = len(ids) + len(answer)
        assert list(whole.ids[:stop]) == [*ids, *answer]
        assert list(whole.scored[len(ids) : stop]) == [True] * len(answer)
    assert sum(whole.scored) == len("yo$") + len("no$")


def test_templates_that_rewrite_earlier_turns_are_refused_by_name():
    """Some drop what an assistant thought once the conversation goes on."""
    forgetful = with_template(
        "{% for m in messages %}{% if m.role == 'user' %}<{{ m.content }}>{% elif loop.last %}{{ m.content }}$"
        "{% else %}|{% endif %}{% endfor %}"
    )
    assert learned_text("auto", "last", tokenizer=forgetful) == "<hi?>|<so?>{no$}"
    with pytest.raises(
        DataError, match="the model's own chat template writes the beginning of this conversation other"
    ):
        learned_text("auto", "all", tokenizer=forgetful)
    endless = with_template(
        "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}<{% endif %}"
    )
    assert learned_text("auto", "last", tokenizer=endless).endswith("{no>$}")
    with pytest.raises(DataError, match="writes no end token behind the assistant's turn 2"):
        learned_text("auto", "all", tokenizer=endless)
    # A single answer needs neither.
    assert learned_text("auto", "all", TALK[:2], endless) == learned_text("auto", "last", TALK[:2], endless)


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_published_templates_let_all_answers_be_learned(template, tmp_path):
    """A model whose end token is the template's own: the words of the other side are never learned."""
    end = "<|im_end|>" if template == "chatml" else "<|eot_id|>"
    folder = bytes_directory(tmp_path / "hf")
    tokenizer = load(folder, device="cpu").tokenizer
    config = json.loads(tokenizer.files["tokenizer_config.json"]) | {"eos_token": end}
    words = json.loads(tokenizer.files["tokenizer.json"])
    known = {token["content"] for token in words["added_tokens"]}
    if end not in known:
        next_id = 1 + max(words["model"]["vocab"].values())
        words["model"]["vocab"][end] = next_id
        words["added_tokens"].append(words["added_tokens"][0] | {"content": end, "id": next_id})
    files = {"tokenizer.json": json.dumps(words).encode(), "tokenizer_config.json": json.dumps(config).encode()}
    told = learned_text(template, "all", tokenizer=TextTokenizer(files))
    assert f"{{yo{end}}}" in told
    assert told.endswith(f"{{no{end}}}")
    assert told.count("{") == 2
    assert template in TEMPLATES


def test_cut_rows_keep_what_is_learned_or_go():
    row = LearnedRow((1, 2, 3, 4), (False, False, True, True))
    assert row.cut(3) == ((1, 2, 3), (False, False, True))
    assert row.cut(2) is None


# ---- whole runs ------------------------------------------------------------------------------------------------------


def doubled(count):
    letters = "abcdefghij"
    return [
        {"prompt": f"{letters[i % 10]}{letters[(i * 3 + i // 10) % 10]}=", "completion": letters[i % 10] * 3}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return directory(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", doubled(100))


def logs(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.shows("sft", "trains")
def test_a_rule_is_learned_from_examples_and_said(model, rows, tmp_path):
    assert train(
        "sft", "--model", model, "--data.path", rows, "--steps", 120, "--data.batch-size", 32, "--optim.lr", 5e-3,
        "--data.heldout", 0.1, "--eval-every", 60, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    last = [line for line in logs(tmp_path / "run") if "heldout/loss" in line][-1]
    assert last["heldout/loss"] < 0.1
    (said,) = load(tmp_path / "run", device="cpu").generate(["ce="], max_new_tokens=8)
    assert (said[0].text, said[0].finished) == ("ccc", True)


@pytest.mark.shows("sft", "weights")
@pytest.mark.parametrize("options", [(), ("--lora.rank", 2)], ids=["whole", "lora"])
def test_a_run_goes_back_to_transformers(options, rows, tmp_path):
    transformers = pytest.importorskip("transformers")
    start, run, out = directory(tmp_path / "hf"), tmp_path / "run", tmp_path / "out"
    assert train(
        "sft", "--model", start, "--data.path", rows, "--steps", 3, "--data.batch-size", 8, "--optim.lr", 1e-2,
        "--out", run, *options,
    ) == 0  # fmt: skip
    assert main(["convert", str(run), str(out), "--to", "hf"]) == 0
    ours = load(run, device="cpu")
    ids = torch.tensor([ours.tokenizer.encode("ab=aaa")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(ours.decoder(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    before = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    with torch.no_grad():
        assert (before(ids).logits - theirs(ids).logits).abs().max() > 1e-2


def test_a_run_goes_on_from_a_run(model, rows, tmp_path):
    common = ("--data.path", rows, "--steps", 2, "--data.batch-size", 8)
    assert train("sft", "--model", model, *common, "--out", tmp_path / "first") == 0
    assert train("sft", "--model", tmp_path / "first", *common, "--out", tmp_path / "second") == 0
    assert logs(tmp_path / "second")[0]["loss"] < logs(tmp_path / "first")[0]["loss"]


def test_worked_texts_of_a_task_are_right_and_show_their_work():
    notes = []
    task = task_named("digits-sum")
    rows = worked_rows(task, 50, 3, notes)
    assert len(rows) == 50
    for row in rows:
        total, sums = 0, ""
        for digit in row["prompt"].rstrip("="):
            total = (total + int(digit)) % 10
            sums += str(total)
        assert row["completion"].endswith(f"#{total}")
        assert len(row["completion"]) == len(sums) + 2
    assert "worked texts alone, and only those that come out right" in notes[0]
    assert worked_rows(task, 50, 3, []) == rows
    assert worked_rows(task, 50, 4, []) != rows
    with pytest.raises(DataError, match="texts hold 0 that are worked and right"):
        worked_rows(task_named("digits-sum:worked=0"), 2, 0, [])


def test_a_run_on_a_task_that_was_cut_short_ends_in_the_same_bits(tmp_path):
    task = "digits-sum:digits=2"
    base = quick_base(tmp_path / "hf", task, 20)
    common = (
        "sft", "--model", base, "--task", task, "--examples", 60, "--data.batch-size", 16, "--steps", 6,
        "--save-every", 3, "--evaluation.prompts", 8, "--eval-every", 3,
    )  # fmt: skip
    assert train(*common, "--out", tmp_path / "whole") == 0
    assert train(*common, "--out", tmp_path / "cut") == 0
    for late in (tmp_path / "cut/checkpoints").glob("step-00000006/*"):
        late.unlink()
    (tmp_path / "cut/checkpoints/step-00000006").rmdir()
    (tmp_path / "cut/checkpoints/index.json").write_text(json.dumps({"last": 3, "best": None}))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = (
        load_file(tmp_path / name / "checkpoints/step-00000006/model.safetensors") for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert len((tmp_path / "cut/assets/samples.jsonl").read_text().splitlines()) == 60


# ---- manners ---------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    assert train(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


TWO_ANSWERS = {"messages": [{"role": turn.role, "content": turn.content} for turn in TALK]}


@pytest.mark.shows("sft", "manners")
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]},
         "chat.jsonl:2: turn 2 of 'messages' (assistant) is empty"),
        ({"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]},
         "chat.jsonl:2: turn 1 of 'messages' has no 'role'"),
        ({"messages": [{"role": "user", "content": "a"}]}, "chat.jsonl:2: the last turn of 'messages' is the user's"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 300}]},
         "chat.jsonl:2: 320 tokens are more than --data.max-length 200"),
    ],
)  # fmt: skip
def test_bad_conversations_are_named_by_file_and_line(row, message, model, tmp_path, capsys):
    file = write_jsonl(tmp_path / "chat.jsonl", [TWO_ANSWERS, row, *[TWO_ANSWERS] * 9])
    common = ("sft", "--model", model, "--data.path", file, "--data.max-length", 200, "--data.batch-size", 4,
              "--data.heldout", 0, "--steps", 1)  # fmt: skip
    said = refused(capsys, *common, "--data.too-long", "stop", "--out", tmp_path / "run")
    assert message in said
    assert train(*common, "--data.on-error", "skip", "--out", tmp_path / "run") == 0
    said = capsys.readouterr().err
    assert "left out 1 " in said
    assert "10 earlier answers of the conversations are not learned (--learn all)" in said


def test_options_that_do_nothing_are_refused(model, rows, tmp_path, capsys):
    common = ("sft", "--model", model)
    out = ("--out", tmp_path / "run")
    said = refused(capsys, *common, "--data.path", rows, "--examples", 5, *out)
    assert "--examples is about built-in tasks" in said
    said = refused(capsys, *common, "--data.path", rows, "--learn", "all", *out)
    assert "--learn all is about conversations" in said
    said = refused(capsys, *common, "--task", "digits-sum", "--learn", "all", *out)
    assert "--learn all is about conversations; the texts of a task are none" in said
    said = refused(capsys, *common, "--data.path", rows, "--lora.rank", -1, *out)
    assert "--lora.rank is -1" in said
    assert "no such file or folder" in refused(capsys, *common, "--data.path", tmp_path / "none.jsonl", *out)


def test_rows_beyond_learned_positions_are_left_out_and_counted(tmp_path, capsys):
    """GPT-2 has no position for a token beyond its context, whatever --data.max-length says."""
    transformers = pytest.importorskip("transformers")
    folder = directory(tmp_path / "hf")
    tokenizer = load(folder, device="cpu").tokenizer
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=24, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    file = write_jsonl(tmp_path / "rows.jsonl", [*doubled(20), {"prompt": "a=", "completion": "b" * 40}])
    assert train(
        "sft", "--model", folder, "--data.path", file, "--data.batch-size", 4, "--data.heldout", 0, "--steps", 1,
        "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    said = capsys.readouterr().err
    assert "the model's positions end at 24: that is what --data.max-length is taken as" in said
    assert f"left out 1 rows of more than 24 tokens, first: {file}:21" in said
    run = load(tmp_path / "run", device="cpu")
    with pytest.raises(WeightsError, match="the run trained no adapters"):
        run.convert(tmp_path / "peft", "peft")


def test_adapters_of_gpt2_are_not_written_alone(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    folder = directory(tmp_path / "hf")
    tokenizer = load(folder, device="cpu").tokenizer
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=24, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    file = write_jsonl(tmp_path / "rows.jsonl", doubled(20))
    assert train(
        "sft", "--model", folder, "--data.path", file, "--data.batch-size", 4, "--data.heldout", 0, "--steps", 1,
        "--lora.rank", 2, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "peft"), "--to", "peft"]) == 2
    assert "GPT-2's files hold queries, keys and values as one matrix" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "whole"), "--to", "hf"]) == 0


# ---- real rows, ranks, and a task ------------------------------------------------------------------------------------


def test_two_steps_on_gsm8k(shared_data, tmp_path, capsys):
    rows = shared_data / "reasoning/gsm8k/train.jsonl.gz"
    assert train(
        "sft", "--model", bytes_directory(tmp_path / "hf"), "--data.path", rows, "--steps", 2, "--data.batch-size", 4,
        "--data.limit", 60, "--data.max-length", 500, "--evaluation.rows", 4, "--out", tmp_path / "run",
    ) == 0  # fmt: skip
    said = capsys.readouterr().err
    assert "train.jsonl.gz (gsm8k): 60 rows to train on" in said
    assert "rows of more than 500 tokens, first: " in said
    steps = [line for line in logs(tmp_path / "run") if "loss" in line]
    # A random model finds all 300 tokens nearly alike.
    assert steps[-1]["loss"] == pytest.approx(math.log(300), rel=0.05)


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(model, rows, tmp_path):
    common = ("sft", "--model", model, "--data.path", rows, "--steps", 6, "--data.batch-size", 14, "--optim.lr", 1e-2)
    for name, options in {"one": (), "two": ("--devices", 2, "--accumulate", 2)}.items():
        ended = start_ranks("train", *common, *options, "--out", tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    begun = load_file(model / "model.safetensors")
    one, two = (load_file(tmp_path / name / "checkpoints/step-00000006/model.safetensors") for name in ("one", "two"))
    for key, value in one.items():
        moved = float((value - begun["model." + key.removeprefix("decoder.")]).norm())
        assert float((two[key] - value).norm()) < 1e-3 * moved, key


@pytest.mark.slow
def test_right_answers_become_likelier_on_sums_of_three_digits(tmp_path):
    task = "digits-sum:digits=3"
    base = quick_base(tmp_path / "hf", task, 1000)
    assert (
        train("sft", "--model", base, "--task", task, "--steps", 64, "--eval-every", 16, "--out", tmp_path / "run") == 0
    )
    rights = [line["heldout/right"] for line in logs(tmp_path / "run") if "heldout/right" in line]
    assert max(rights) > right_of(base, task) + 0.3


def test_encoders_keep_their_answers_apart():
    """An exchange of text is its words and the end."""
    item = Exchange(Prompt(text="hi? "), "yo", "rows.jsonl:1")
    row = ExchangeEncoder(Encoder(LETTERS))(item)
    assert LETTERS.decode(row.ids, skip_special=False) == "hi? yo$"
    assert row.scored == (False,) * 4 + (True,) * 3
    assert ExchangeEncoder(Encoder(LETTERS), "all")(item) == row
    assert dataclasses.replace(item, completion="so").completion == "so"


def test_held_back_rows_may_all_be_too_long():
    items = [Exchange(Prompt(text="hi? "), "yo" * 9, "rows.jsonl:1")]
    data, notes = DialogueData(path="rows.jsonl", max_length=6), []
    encode = ExchangeEncoder(Encoder(LETTERS))
    assert encoded(items, encode, lambda row: len(row.ids), LearnedRow.cut, data, notes, least=0) == []
    assert notes == ["left out 1 rows of more than 6 tokens, first: rows.jsonl:1"]
    with pytest.raises(DataError, match=r"rows\.jsonl: no row has at most 6 tokens"):
        encoded(items, encode, lambda row: len(row.ids), LearnedRow.cut, data, [])
