"""The commands by which a language model writes, talks, is measured and converted, as a person uses them."""

import io
import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from app.conftest import odonata, refused
from language.hf_decoders import edit_config, written
from odonata.app.commands.chat import Voice
from odonata.language.language_model import LanguageModel
from odonata.text.text_bpe import train_text_bpe

SMALL = ("--variant", "nano", "--steps", "3", "--data.batch-size", "8", "--evaluation.sequences", "8",
         "--device", "cpu",
         "--log-every", "1")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on sums of digits, one on a file, and the second as a directory of transformers."""
    root = tmp_path_factory.mktemp("language")
    (root / "book.txt").write_text(
        "".join(f"Chapter {i}: the sea was calm, and the boats went out.\n" for i in range(200))
    )
    for name, more in (("digits", ()), ("book", ("--data.path", root / "book.txt", "--vocab-size", "300",
                                                  "--data.context", "32"))):  # fmt: skip
        done = odonata("train", "decoder", *SMALL, *more, "--out", root / name)
        assert done.status == 0, done.err
    done = odonata("convert", root / "book", root / "hf", "--to", "hf")
    assert done.status == 0, done.err
    return root


def test_generate_prints_each_completion_with_its_length_and_probability(runs):
    done = odonata("generate", runs / "digits", "31=", "4=", "--n", "2", "--max-new-tokens", "5", "--device", "cpu")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "=== 31=" and sum(line == "=== 4=" for line in lines) == 1
    assert sum(line.startswith("--- 1: ") for line in lines) == 2 and "tokens, log-probability -" in lines[1]
    assert "cut" in done.out and "weights of the run" in done.err
    assert odonata("generate", runs / "digits", "31=", "--n", "2").out == odonata(
        "generate", runs / "digits", "31=", "--n", "2", "--seed", "0").out  # fmt: skip


def test_generate_for_programs(runs):
    options = ("--n", "3", "--temperature", "0.7", "--top-p", "0.9", "--top-k", "5", "--min-p", "0.01",
               "--max-new-tokens", "4", "--json")  # fmt: skip
    found = odonata("generate", runs / "hf", "The sea", *options, "--seed", "3").json
    assert found[0]["prompt"] == "The sea" and len(found[0]["completions"]) == 3
    one = found[0]["completions"][0]
    assert set(one) == {"text", "tokens", "logprob", "finished"} and one["tokens"] <= 4 and one["logprob"] <= 0
    assert odonata("generate", runs / "hf", "The sea", *options, "--seed", "4").json != found
    same = odonata("generate", runs / "book", "The sea", *options, "--seed", "3").json
    assert [[c["text"] for c in row["completions"]] for row in same] == [
        [c["text"] for c in row["completions"]] for row in found
    ]


def test_generate_stops_at_texts_and_reads_prompts_from_a_pipe(runs, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("31="))
    [row] = odonata("generate", runs / "digits", "-", "--stop", "1", "2", "--json", "--max-new-tokens", "200").json
    text = row["completions"][0]["text"]
    assert row["prompt"] == "31=" and not set("12") & set(text[:-1])


def test_generate_answers_a_question_through_the_template(runs, monkeypatch):
    heard = []
    original = LanguageModel.prompt_ids

    def spy(self, prompt):
        heard.append(self.tokenizer.decode(original(self, prompt), skip_special=False))
        return original(self, prompt)

    monkeypatch.setattr(LanguageModel, "prompt_ids", spy)
    options = ("--chat", "--system", "Be brief.", "--max-new-tokens", "2")
    assert odonata("generate", runs / "hf", "Why?", *options).status == 0
    assert odonata("generate", runs / "hf", "Why?", *options, "--template", "plain").status == 0
    assert heard == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "System: Be brief.\nUser: Why?\nAssistant:",
    ]


def test_low_precision_says_nearly_the_same(runs):
    wide, low = (
        odonata(
            "evaluate", runs / "hf", "--data.path", runs / "book.txt", "--sequences", "20", "--dtype", dtype, "--json"
        ).json
        for dtype in ("fp32", "bf16")
    )
    assert low["nats"]["value"] == pytest.approx(wide["nats"]["value"], rel=1e-2)
    assert low["nats"]["value"] != wide["nats"]["value"]
    assert odonata("generate", runs / "hf", "The", "--dtype", "bf16", "--max-new-tokens", "3").status == 0


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("arguments", "message"), [
    (("generate", "digits"), "name a model and a prompt"),
    (("generate", "digits", "x1="), "has no token for 'x'; it knows the characters"),
    (("generate", "digits", "1=", "--n", "0"), "--n is 0; it must be at least 1"),
    (("generate", "digits", "1=", "--temperature", "-1"), "--temperature is -1.0"),
    (("generate", "digits", "1=", "--temperature", "0", "--top-p", "0.5"), "--temperature 0 takes the likeliest"),
    (("generate", "digits", "1=", "--max-new-tokens", "0"), "--max-new-tokens is 0"),
    (("generate", "digits", "1=", "--system", "x"), "--system is said in a conversation: add --chat"),
    (("generate", "digits", "1=", "--template", "chatml"), "--template writes conversations: add --chat"),
    (("generate", "digits", "1=", "--stop", ""), "--stop is empty"),
    (("generate", "hf", ""), "a prompt of no tokens"),
    (("generate", ".", "x"), "lacks config.json, which says what the model is"),
    (("generate", "nowhere", "x"), "nowhere does not exist"),
    (("generate", "book.txt", "x"), "book.txt is a file: a language model is a local directory"),
    (("chat", "nowhere"), "nowhere does not exist"),
    (("predict", "digits", "x.png"), "use `odonata generate MODEL PROMPT`, or chat"),
    (("evaluate", "hf"), "published weights come without texts: name some with --data.path"),
    (("evaluate", "hf", "--data.path", "none.txt"), "none.txt: no such file, folder or embedded set of texts"),
    (("evaluate", "digits", "--data.path", "digits-sum", "--data.context", "9"), "--data.context is for files"),
    (("evaluate", "digits", "--data.context", "9"), "what a run held back is cut as in training"),
    (("evaluate", "digits", "--sequences", "0"), "--sequences is 0; it must be at least 1"),
    (("convert", "hf", "out", "--num-heads", "3"), "--num-heads tells of pictures' models"),
    (("convert", "digits", "out", "--to", "gguf"), "--to gguf: a language model is written as hf"),
])  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(runs, monkeypatch, arguments, message):
    monkeypatch.chdir(runs)
    assert message in refused(*arguments)
    assert not (runs / "out").exists()


def chat(runs, lines: str, *options: str):
    command = [sys.executable, "-m", "odonata.app.cli", "chat", str(runs / "hf"), "--max-new-tokens", "6", *options]
    return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)


def test_chat_reads_a_pipe_keeps_the_conversation_and_forgets_it_when_told(runs):
    done = chat(runs, "hello\n\nhello\n/nonsense\n/reset\nhello\n/exit\nnever\n", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split(" …\n")  # what is cut ends so
    assert len(answers) == 4 and answers[0] == answers[2], "after /reset the same is said of the same"
    assert "/nonsense is no command: /reset forgets the conversation, /exit ends it" in done.stderr
    assert "> " not in done.stdout and "Traceback" not in done.stderr


def test_chat_goes_on_after_a_conversation_that_the_template_refuses(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "hf", tmp_path / "hf")
    edit = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    edit["chat_template"] = (
        "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"
    )
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(edit))
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n/reset\nc\n"))
    done = odonata("chat", tmp_path / "hf", "--max-new-tokens", "6")
    assert done.status == 0
    assert done.err.count("the chat template cannot write this conversation: one turn only") == 1
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert odonata("chat", runs / "hf").out == ""


def test_a_character_of_several_tokens_is_said_when_it_is_whole(capsys):
    tokenizer = train_text_bpe(["plain words"], 259)
    voice, ids = Voice(tokenizer), tokenizer.encode("né 👩!")
    said = []
    for count in range(1, len(ids) + 1):
        voice(ids[:count])
        said.append(capsys.readouterr().out)
    assert "".join(said) == "né 👩!" and "\ufffd" not in "".join(said) and "👩" in said


def test_evaluate_prints_figures_with_intervals_and_keeps_them_with_a_run(runs):
    done = odonata("evaluate", runs / "book")
    assert done.status == 0, done.err
    assert (
        "nats" in done.out
        and "perplexity" in done.out
        and "bits_per_byte" in done.out
        and "%" not in done.out.split("interval")[1]
    )
    kept = json.loads((runs / "book" / "evaluation.json").read_text())
    assert kept["nats"]["low"] < kept["nats"]["value"] < kept["nats"]["high"]
    logged = [json.loads(line) for line in (runs / "book" / "log.jsonl").read_text().splitlines()]
    assert kept["nats"]["value"] == pytest.approx([row["nats"] for row in logged if "nats" in row][-1], rel=0.05)
    embedded = odonata(
        "evaluate", runs / "digits", "--data.path", "digits-sum:digits=3", "--sequences", "40", "--json"
    ).json
    assert embedded.keys() == {"nats", "perplexity"} and embedded["nats"]["count"] == 40


def test_a_file_shorter_than_a_window_is_measured_as_one(runs, tmp_path):
    (tmp_path / "short.txt").write_text("The sea.")
    found = odonata("evaluate", runs / "hf", "--data.path", tmp_path / "short.txt", "--json").json
    assert found["nats"]["count"] == 1


def test_windows_end_where_learned_positions_do(tmp_path, runs):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=40,
                                       bos_token_id=None, eos_token_id=0))  # fmt: skip
    folder = written(model, tmp_path / "gpt2", tokenizer=True)
    done = odonata("evaluate", folder, "--data.path", runs / "book.txt", "--json", "--sequences", "5")
    assert done.status == 0, done.err
    assert done.json["nats"]["count"] == 5
    longer = refused("evaluate", folder, "--data.path", runs / "book.txt", "--data.context", "60")
    assert "a sequence of 60 tokens: this model's learned positions end at 40" in longer
    edit_config(folder, model_type="mamba", architectures=["MambaForCausalLM"])
    assert "model_type is 'mamba'; known are gpt2, llama, qwen2, qwen3" in refused("convert", folder, tmp_path / "out")
