"""Runs of GRPO and its kin from the command line: files, directories, ranks, kills, and what is said of mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from odonata.app.cli import main
from odonata.language.language_model import load
from odonata.text.text_tokenizer import characters
from posttrain.offline_setting import ALPHABET, bytes_directory, train, write_jsonl
from posttrain.online_setting import KIN

BRIEF = ("--steps", 2, "--log-every", 1, "--evaluation.prompts", 4)
SMALL = (*BRIEF, "--data.batch-size", 2, "--group", 4)
SEVENS = "def sevens(answers):\n    return [float(answer.completion.count('7')) for answer in answers]\n"


@pytest.fixture
def sevens(tmp_path):
    """A reward of the user's own."""
    (tmp_path / "mine.py").write_text(SEVENS)
    return f"{tmp_path / 'mine.py'}:sevens"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Qwen2 that transformers made and wrote, with a tokenizer of characters."""
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = characters(ALPHABET.replace("_", ""))
    torch.manual_seed(4)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = Qwen2Config(
        vocab_size=tokenizer.vocab_size, num_hidden_layers=2, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=tokenizer.end(), pad_token_id=tokenizer.pad_id, bos_token_id=None, **sizes,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def log_of(run: Path) -> list[dict]:
    """The lines of training in a run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line or "length" in line]


def refused(capsys, *arguments) -> str:
    """What is said of a run that cannot begin; it leaves no folder."""
    folder = Path(arguments[-1])
    assert train(*arguments) != 0
    assert not (folder / "config.yaml").exists()
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


# ---- models in and out --------------------------------------------------------------------------------------------


def round_trip(name: str, published: Path, sevens: str, folder: Path, *options: object) -> None:
    """A directory comes in, learns, and goes out: transformers gives our logits, which are others than before."""
    assert train(name, "--model", published, "--task", "digits-sum", "--reward", sevens, *SMALL, *options,
                 "--optim.lr", 0.01, "--out", folder / "run") == 0  # fmt: skip
    assert main(["convert", str(folder / "run"), str(folder / "out"), "--to", "hf"]) == 0
    ids = torch.randint(2, 14, (3, 9))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder / "out").eval()(ids).logits
        ours = load(folder / "run", name, torch.device("cpu")).decoder(ids)
        before = AutoModelForCausalLM.from_pretrained(published).eval()(ids).logits
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
    assert float((before - theirs).norm() / theirs.norm()) > 1e-3
    kept = json.loads((published / "config.json").read_text())
    written = json.loads((folder / "out/config.json").read_text())
    assert written["model_type"] == "qwen2" and written["vocab_size"] == kept["vocab_size"]
    assert (folder / "out/tokenizer.json").read_bytes() == (published / "tokenizer.json").read_bytes()


@pytest.mark.shows("grpo", "weights")
def test_grpo_takes_a_directory_and_gives_one_back(published, sevens, tmp_path):
    round_trip("grpo", published, sevens, tmp_path)


@pytest.mark.shows("dr-grpo", "weights")
def test_dr_grpo_takes_a_directory_and_gives_one_back(published, sevens, tmp_path):
    round_trip("dr-grpo", published, sevens, tmp_path)


@pytest.mark.shows("dapo", "weights")
def test_dapo_takes_a_directory_and_gives_one_back(published, sevens, tmp_path):
    round_trip("dapo", published, sevens, tmp_path, "--no-filter-truncated")


@pytest.mark.shows("rloo", "weights")
def test_rloo_takes_a_directory_and_gives_one_back_with_adapters_merged(published, sevens, tmp_path):
    round_trip("rloo", published, sevens, tmp_path, "--lora.rank", 4)


def test_a_base_of_its_own_is_made_and_learns(tmp_path):
    assert train("grpo", "--task", "digits-sum:base_steps=60", *BRIEF, "--eval-every", 1, "--data.batch-size", 4,
                 "--out", tmp_path / "run") == 0  # fmt: skip
    last = log_of(tmp_path / "run")[-1]
    assert last["step"] == 2
    evaluated = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert {"heldout/right", "heldout/greedy", "heldout/reward", "heldout/length"} <= set().union(*evaluated)
    assert len((tmp_path / "run/rollouts.jsonl").read_text().splitlines()) == 2


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["gsm8k/test.jsonl.gz", "math/svamp.jsonl.gz"])
def test_questions_with_numbers_for_answers_are_asked_and_judged(file, shared_data, tmp_path, capsys):
    assert train("grpo", "--model", bytes_directory(tmp_path / "hf"), "--data.path", shared_data / "reasoning" / file,
                 "--data.limit", 40, "--data.on-error", "skip", "--reward", "math",
                 "--max-new-tokens", 12, *SMALL, "--out", tmp_path / "run") == 0  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert "rows to train on" in said
    first = log_of(tmp_path / "run")[0]
    assert {"reward", "reward/math", "live_groups", "entropy", "kl", "off_policy"} <= set(first)
    assert first["off_policy"] < 1e-5
    line = json.loads((tmp_path / "run/rollouts.jsonl").read_text().splitlines()[0])
    assert len(line["answers"]) == 4 and "user" in line["prompt"].lower()


def test_prompts_that_are_too_long_are_left_out_and_counted(published, sevens, tmp_path, capsys):
    rows = [{"prompt": "1" * length, "answer": "1"} for length in (4, 5, 6, 40, 41, 7)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    common = ("grpo", "--model", published, "--data.path", file, "--data.heldout", 0, "--reward", sevens,
              "--max-new-tokens", 8, *SMALL, "--data.max-length", 10)  # fmt: skip
    assert train(*common, "--out", tmp_path / "run") == 0
    assert "left out 2 rows of more than 10 tokens, first:" in " ".join(capsys.readouterr().err.split())
    said = refused(capsys, *common, "--data.too-long", "stop", "--out", tmp_path / "no")
    assert "rows.jsonl:4: 40 tokens are more than --data.max-length 10" in said


def test_learned_positions_leave_room_for_the_answer(sevens, tmp_path, capsys):
    tokenizer = characters(ALPHABET.replace("_", ""))
    folder = tmp_path / "gpt2"
    end = tokenizer.end()
    GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=20, n_embd=32, n_layer=2, n_head=4,
                               bos_token_id=end, eos_token_id=end)).save_pretrained(folder)  # fmt: skip
    tokenizer.save(folder)
    rows = [{"prompt": "1" * length, "answer": "1"} for length in (4, 5, 12, 13, 6, 7)]
    common = ("grpo", "--model", folder, "--data.path", write_jsonl(tmp_path / "rows.jsonl", rows), "--data.heldout", 0,
              "--reward", sevens, *SMALL)  # fmt: skip
    assert train(*common, "--max-new-tokens", 8, "--out", tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the model's positions end at 20: --data.max-length is taken as 12" in said and "left out 1 rows" in said
    # GPT-2's configuration drops out a tenth while training; a policy is compared without.
    assert all(line["off_policy"] < 1e-5 for line in log_of(tmp_path / "run"))
    said = refused(capsys, *common, "--max-new-tokens", 20, "--out", tmp_path / "no")
    assert "--max-new-tokens 20: the model's positions end at 20" in said


# ---- what is wrong ------------------------------------------------------------------------------------------------


@pytest.mark.shows("grpo", "manners")
@pytest.mark.shows("dr-grpo", "manners")
@pytest.mark.shows("dapo", "manners")
@pytest.mark.shows("rloo", "manners")
@pytest.mark.parametrize("name", KIN)
def test_what_cannot_begin_says_why_before_anything_is_written(name, published, tmp_path, capsys):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "12", "answer": "3"}, {"prompt": "45", "answer": "9"}])
    out = ("--out", tmp_path / "run")
    common = (name, "--model", published, "--data.path", file, "--data.heldout", 0, *BRIEF)
    assert "name what is earned with --reward" in refused(capsys, *common, *out)
    # Before its base is made, which would take a minute and a half.
    said = refused(capsys, name, "--reward", "mth", *out)
    assert "unknown reward 'mth'; perhaps you meant math" in said
    said = refused(capsys, name, "--task", "digits-sum", "--reward-weights", 1, 2, 3, *out)
    assert "2 rewards (marked-answer, marked-format) need as many finite weights" in said
    said = refused(capsys, name, "--data.limit", 5, *out)
    assert "--data.limit is about files; a built-in task brings its own prompts" in said
    said = refused(capsys, name, "--task", "digits-sum", "--data.path", file, "--model", published, *out)
    assert "--task digits-sum brings its own texts" in said
    said = refused(capsys, *common, "--reward", "math", "--data.batch-size", 3, *out)
    assert "rows.jsonl: 2 prompts are fewer than" in said
    said = refused(capsys, *common, "--reward", "math", "--data.batch-size", 1, "--group", 1, *out)
    assert "--group is 1; it must be at least 2" in said


def test_a_row_without_the_field_that_a_reward_needs_is_shown(published, tmp_path, capsys):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "12"}, {"prompt": "45"}])
    said = refused(
        capsys, "grpo", "--model", published, "--data.path", file, "--data.heldout", 0, "--reward", "math", *SMALL,
        "--max-new-tokens", 4, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "the reward 'math' needs the field" in said and "the row of the prompt" in said


@pytest.mark.parametrize(
    ("body", "expected"),
    [("1 / 0", "ZeroDivisionError"), ("[float('inf')] * len(answers)", "returned inf"), ("'good'", "returned 'good'")],
)
def test_a_reward_of_the_users_own_that_fails_stops_the_run_and_leaves_nothing(
    body, expected, published, tmp_path, capsys
):
    (tmp_path / "bad.py").write_text(f"def judge(answers):\n    return {body}\n")
    said = refused(
        capsys, "grpo", "--model", published, "--task", "digits-sum", "--reward", f"{tmp_path / 'bad.py'}:judge",
        *SMALL, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "bad.py:judge" in said and expected in said


def test_a_model_that_lacks_the_tasks_characters_is_refused(tmp_path, capsys):
    """GPT-2's files with a vocabulary of letters: merges and bytes for what the task needs are not there."""
    folder = tmp_path / "gpt2"
    letters = "abcdefghijklmnopqrstuvwxyz"
    folder.mkdir()
    vocab = {"<|endoftext|>": 0} | {letter: i for i, letter in enumerate(letters, 1)}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = GPT2Config(vocab_size=len(vocab), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0,
                        eos_token_id=0)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    said = refused(capsys, "grpo", "--model", folder, "--task", "digits-sum", "--out", tmp_path / "run")
    assert f"{folder} has no token for '0123456789=#', which digits-sum" in said


def test_a_model_without_an_end_token_is_refused(published, sevens, tmp_path, capsys):
    folder = tmp_path / "endless"
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        plain = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in plain.items() if not k.startswith("eos_token")}))
    said = refused(
        capsys, "grpo", "--model", folder, "--task", "digits-sum", "--reward", sevens, "--out", tmp_path / "run"
    )
    assert "names no end token (eos_token)" in said


# ---- ranks, and kills ---------------------------------------------------------------------------------------------


def odonata(*arguments: object, ranks: int = 1) -> None:
    """`odonata …` in processes of its own."""
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, *launcher, "-m", "odonata.app.cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "alone", "together"),
    [
        ("grpo", ("--scale", "batch"), (), ()),
        ("grpo", ("--minibatches", 2, "--epochs", 2), ("--accumulate", 3), ("--parallel", "fsdp")),
        # Ranks have different numbers of live groups here, one of them none at a time.
        ("dapo", ("--no-filter-truncated", "--group", 2, "--minibatches", 3), (), ("--accumulate", 4)),
        ("dapo", ("--no-filter-truncated", "--group", 2), (), ("--accumulate", 4, "--parallel", "fsdp")),
        ("rloo", ("--lora.rank", 4), (), ("--parallel", "fsdp")),
    ],
    ids=["grpo", "grpo-fsdp", "dapo", "dapo-fsdp", "rloo-lora-fsdp"],
)
def test_two_ranks_learn_what_one_learns(name, options, alone, together, published, sevens, tmp_path):
    common = ("train", name, "optim:sgd", "--optim.lr", 0.1, "--model", published, "--task", "digits-sum", "--reward",
              sevens, "--steps", 3, "--log-every", 1, "--data.batch-size", 5, "--evaluation.prompts", 4, "--device",
              "cpu", *options)  # fmt: skip
    odonata(*common, *alone, "--out", tmp_path / "1")
    odonata(*common, *together, "--out", tmp_path / "2", ranks=2)
    one, two = (load_file(tmp_path / run / "checkpoints/step-00000003/model.safetensors") for run in "12")
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(two[key], value, atol=1e-5), key
    before = load_file(published / "model.safetensors")["model.embed_tokens.weight"]
    moved = one.get("decoder.layers.0.mlp.up_proj.lora_b", one["decoder.embed_tokens.weight"] - before)
    assert float(moved.abs().max()) > 1e-3
    for mine, theirs in zip(log_of(tmp_path / "1"), log_of(tmp_path / "2"), strict=True):
        for key in set(mine) - {"samples_per_s", "wait", "warning"}:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
    said = [[json.loads(line) for line in (tmp_path / run / "rollouts.jsonl").open()] for run in "12"]
    texts = [[[answer["text"] for answer in line["answers"]] for line in lines] for lines in said]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_bits_and_the_same_answers(published, sevens, tmp_path):
    common = ("train", "dapo", "--model", published, "--task", "digits-sum", "--reward", sevens, "--steps", 60,
              "--log-every", 1, "--save-every", 10, "--data.batch-size", 3, "--evaluation.prompts", 4,
              "--epochs", 2, "--minibatches", 2, "--beta", 0.04, "--device", "cpu")  # fmt: skip
    odonata(*common, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "odonata.app.cli", *map(str, common), "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = tmp_path / "killed/rollouts.jsonl"
    try:
        deadline = time.monotonic() + 120
        while not (log.is_file() and len(log.read_text().splitlines()) >= 24) and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 20 <= len(log.read_text().splitlines()) < 60
    odonata("resume", tmp_path / "killed")
    last = "checkpoints/step-00000060/model.safetensors"
    assert (tmp_path / "killed" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
    assert log.read_text() == (tmp_path / "whole/rollouts.jsonl").read_text()
    whole, killed = (
        [{k: v for k, v in line.items() if k not in ("samples_per_s", "wait")} for line in log_of(tmp_path / run)]
        for run in ("whole", "killed")
    )
    assert whole == killed
