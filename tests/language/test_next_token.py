"""Training on the next token: what it learns, and that division, ranks and interruption change nothing."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from language import decoder_run
from odonata.app.api import recipe
from odonata.engine.distributed import World
from odonata.engine.fit import Engine, train
from odonata.errors import DataError, RecipeError, WeightsError
from odonata.language.build import build
from odonata.language.evaluation import text_figures
from odonata.language.language_model import open_model, published_files
from odonata.language.next_token import NextToken, by_length, scored_tokens
from odonata.language.sequences import pad_sequences
from odonata.nn.lora import LoRALinear
from odonata.text.text_tokenizer import TextTokenizer
from odonata.weights.published import write_folder

WORLD = World(0, 1, torch.device("cpu"))
SMALL = decoder_run.SMALL
RUN = Path(decoder_run.__file__)


def run(folder: Path, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, *launcher, str(RUN), str(folder), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def digest_of(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"DIGEST (\w+)", done.stdout)
    assert found, done.stdout + done.stderr
    return found[1]


def gradients_of_a_step(accumulate: int, batch) -> dict[str, torch.Tensor]:
    """The gradients that one step would apply, in float64."""
    chosen = recipe("decoder", accumulate=accumulate, **SMALL)
    torch.manual_seed(0)
    engine = Engine(chosen, build(chosen), None, WORLD)
    engine.method.double()
    kept = {}

    def keep(name="main"):
        kept.update({key: p.grad.clone() for key, p in engine.method.named_parameters()})

    engine.update = keep
    logs = engine.method.step(batch, engine)
    return kept | {"loss": logs["loss"]}


def uneven_batch(rows: int = 13):
    generator = torch.Generator().manual_seed(0)
    lengths = [(int(a) + 1, int(b) + 1) for a, b in torch.randint(0, 9, (rows, 2), generator=generator)]
    return pad_sequences([[2] * a for a, _ in lengths], [list(range(3, 3 + b)) for _, b in lengths], 0)


@pytest.mark.parametrize("parts", [2, 5, 13, 40])
def test_accumulation_changes_no_gradient(parts):
    whole, divided = gradients_of_a_step(1, uneven_batch()), gradients_of_a_step(parts, uneven_batch())
    assert whole.keys() == divided.keys() and len(whole) > 20
    for key, value in whole.items():
        assert torch.allclose(divided[key], value, rtol=1e-10, atol=1e-14), key


def test_the_loss_is_the_mean_over_scored_tokens_and_micro_batches_are_of_like_lengths():
    batch = uneven_batch()
    chosen = recipe("decoder", **SMALL)
    method = build(chosen).method
    scores = method.decoder(batch.ids)[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None])[..., 0]
    expected = -(scores * batch.scored[:, 1:]).sum() / batch.scored[:, 1:].sum()
    assert torch.allclose(method.loss(batch)["loss"], expected, atol=1e-6)
    parts = by_length(batch, 4)
    widths = [part.ids.shape[1] for part in parts]
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert sum(float(scored_tokens(part)) for part in parts) == float(scored_tokens(batch))


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_replicated_or_sharded(tmp_path):
    weights = []
    for parallel, ranks in (("ddp", 1), ("ddp", 2), ("fsdp", 2)):
        folder = tmp_path / f"{parallel}{ranks}"
        done = run(
            folder, "--double", "--steps", "6", "--accumulate", str(3 - ranks), "--parallel", parallel, ranks=ranks
        )
        assert done.returncode == 0, done.stderr
        weights.append(load_file(folder / "checkpoints" / "step-00000006" / "model.safetensors"))
    for key, value in weights[0].items():
        for other in weights[1:]:
            assert torch.allclose(other[key], value, rtol=1e-6, atol=1e-8), key


@pytest.mark.slow
def test_kill_9_and_resume_end_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "a")
    killed = run(tmp_path / "b", "--die-at", "17")
    assert killed.returncode == -9
    assert sorted(path.name for path in (tmp_path / "b/checkpoints").glob("step-*")) == ["step-00000010"]
    assert digest_of(run(tmp_path / "b", "--resume")) == digest_of(whole)


@pytest.mark.shows("decoder", "trains")
@pytest.mark.slow
def test_sums_of_digits_are_learned_as_far_as_they_can_be_foreseen():
    worked, digits, slips = 0.9, 4, 0.03
    chosen = recipe("decoder", variant="nano", data__path=f"digits-sum:digits={digits},worked={worked}", steps=500,
                    optim__lr=5e-3, evaluation__sequences=1024, device="cpu")  # fmt: skip
    figures = train(chosen, build(chosen), None, WORLD)
    # What nobody can foresee: which kind of text it is, the answer where nothing is worked out, and the slips.
    kind = -worked * math.log(worked) - (1 - worked) * math.log(1 - worked)
    tokens = worked * (digits + 3) + (1 - worked) * 3
    wrong = 0.9 * slips
    slip = -(1 - wrong) * math.log(1 - wrong) - wrong * math.log(wrong / 9)
    floor = (kind + (1 - worked) * math.log(10) + worked * digits * slip) / tokens
    without_adding = (kind + (1 - worked) * math.log(10) + worked * (digits - 1) * math.log(10)) / tokens
    assert floor < 0.19 and without_adding > 1
    assert floor * 0.9 < figures["nats"] < 1.25 * floor
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nats"]))


@pytest.mark.shows("decoder", "trains")
@pytest.mark.slow
def test_a_narrow_decoder_drawn_by_its_width_has_learned_sums_when_one_drawn_flat_has_not():
    nats = {}
    for way in ("scaled", "flat"):
        chosen = recipe("decoder", variant="nano", steps=500, initialisation=way, device="cpu")
        torch.manual_seed(0)
        nats[way] = train(chosen, build(chosen), None, WORLD)["nats"]
    # Three texts in ten show their sums: 0.53 nats cannot be foreseen, and 1.18 not by who cannot add.
    assert 0.5 < nats["scaled"] < 0.75 and nats["flat"] > 1.18


@pytest.mark.shows("decoder", "trains")
def test_eight_texts_are_learned_by_heart():
    chosen = recipe("decoder", **SMALL, steps=200, optim__lr=1e-2)
    task = build(chosen)
    batch = pad_sequences(*zip(*[task.batches.dataset[0, i] for i in range(8)], strict=True), 0)
    optimizer = torch.optim.AdamW(task.method.parameters(), lr=1e-2)
    for _ in range(150):
        loss = task.method.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The first token after a prompt is all that two texts of one prompt could differ in, and no prompt comes twice.
    assert loss.item() < 0.02


@pytest.mark.shows("decoder", "trains")
@pytest.mark.slow
def test_a_file_of_shakespeare_costs_fewer_and_fewer_bits_a_byte(shared_data, tmp_path):
    chosen = recipe("decoder", variant="nano", data__path=str(shared_data / "text" / "tinyshakespeare.txt"),
                    vocab_size=512, data__context=64, data__batch_size=32, steps=150, evaluation__sequences=64,
                    device="cpu")  # fmt: skip
    task = build(chosen)
    before = task.evaluate(task.method)
    after = train(chosen, task, tmp_path / "run", WORLD)
    tokenizer = TextTokenizer.load(tmp_path / "run" / "assets", [])
    per_token = before["nats"] / math.log(2) / before["bits_per_byte"]
    assert 1.8 < per_token < 2.5, "bytes a token of a BPE of 512"
    assert before["nats"] == pytest.approx(math.log(tokenizer.vocab_size), abs=0.2), "a new model knows nothing"
    assert after["bits_per_byte"] < 3.6 < 4.2 < before["bits_per_byte"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "sea.txt"
    lines = [
        f"On day {i} the sea was {('calm', 'rough', 'grey')[i % 3]} and the {i % 7} boats stayed.\n" for i in range(300)
    ]
    path.write_text("".join(lines))
    return path


def small_file(texts: Path, **fields):
    return recipe("decoder", **SMALL | {"data__path": str(texts), "data__context": 32, "data__batch_size": 8} | fields)


def test_windows_of_a_file_share_no_held_back_token_with_training(texts):
    task = build(small_file(texts, vocab_size=300, data__heldout=0.2))
    train_set, tokenizer = task.batches.dataset, task.assets.tokenizer
    ids = [*tokenizer.encode(texts.read_text()), tokenizer.end()]
    assert list(train_set.ids) == ids[: round(len(ids) * 0.8)]
    first = train_set[0, 0]
    assert first[0] + first[1] == ids[:33]
    for epoch in range(4):
        starts = [train_set[epoch, i] for i in range(len(train_set))]
        assert all(len(window[0]) == 1 and len(window[1]) == 32 for window in starts)
    places = {tuple(train_set[epoch, 1][1]) for epoch in range(8)}
    assert len(places) > 4, "each epoch begins its windows elsewhere"
    assert "windows of 32" in task.notes[-1] and task.goal == "nats"


def test_bits_per_byte_are_nats_per_token_over_the_bytes_that_a_token_stands_for(texts):
    task = build(small_file(texts, vocab_size=300, data__heldout=0.2, evaluation__sequences=10_000))
    figures = task.evaluate(task.method)
    held = texts.read_bytes().decode()
    tokenizer = task.assets.tokenizer
    ids = tokenizer.encode(held)
    tail = ids[round((len(ids) + 1) * 0.8) :]
    expected = figures["nats"] / math.log(2) * (len(tail) + 1) / len(tokenizer.decode(tail).encode())
    assert figures["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_figures_come_with_intervals_that_hold_the_mean_over_all_tokens():
    task = build(recipe("decoder", **SMALL))
    pairs = [task.batches.dataset[0, i] for i in range(40)]
    figures = text_figures(task.method.decoder, pairs, 0, 0.0, batch_size=7)
    again = text_figures(task.method.decoder, pairs, 0, 0.0, batch_size=40)
    assert figures.keys() == {"nats", "perplexity"} and figures["nats"].count == 40
    assert figures["nats"].value == pytest.approx(again["nats"].value, rel=1e-6)
    assert figures["nats"].low < figures["nats"].value < figures["nats"].high
    batch = pad_sequences(*zip(*pairs, strict=True), 0)
    assert figures["nats"].value == pytest.approx(task.method.loss(batch)["loss"].item(), rel=1e-5)


def test_training_goes_on_with_a_directory_and_with_its_adapters_alone(tmp_path):
    first = build(recipe("decoder", **SMALL))
    write_folder(tmp_path / "hf", published_files(first.method.decoder.state_dict(), first.assets))
    fields = {key: value for key, value in SMALL.items() if key != "variant"} | {"model": str(tmp_path / "hf")}
    again = build(recipe("decoder", **fields))
    state = first.method.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.method.state_dict().items())

    chosen = recipe("decoder", **fields, lora__rank=2, steps=3)
    task = build(chosen)
    trained = [key for key, p in task.method.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in key for key in trained)
    train(chosen, task, tmp_path / "run", WORLD)
    decoder, assets, _ = open_model(tmp_path / "run")
    assert not any(isinstance(module, LoRALinear) for module in decoder.modules()) and assets.lora.rank == 0
    ids = torch.tensor([[4, 5, 6]])
    task.method.eval()
    assert torch.allclose(decoder.eval()(ids), task.method.decoder(ids), atol=1e-5)
    resumed = build(chosen, tmp_path / "run" / "assets")
    assert isinstance(resumed.method, NextToken)
    assert resumed.method.state_dict().keys() == task.method.state_dict().keys()


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("fields", "error", "message"), [
    ({"variant": "giant"}, RecipeError, "--variant 'giant' is unknown; there are nano, micro, mini, small, base"),
    ({"lora__rank": 4}, RecipeError, "--lora.rank adapts pretrained weights: name them with --model"),
    ({"model": "x", "vocab_size": 300, "variant": "micro"}, RecipeError, "--vocab-size is of a new decoder; --model"),
    ({"model": "x"}, RecipeError, "--variant is of a new decoder"),
    ({"model": "x", "variant": "micro", "initialisation": "flat"}, RecipeError, "--initialisation is of a new decoder"),
    ({"model": "nowhere", "variant": "micro"}, WeightsError, "nowhere does not exist"),
    ({"vocab_size": 300}, RecipeError, "--vocab-size is for files: digits-sum is read by the character"),
    ({"data__context": 64}, RecipeError, "--data.context is for files: the texts of digits-sum have their own ends"),
    ({"data__heldout": 0.5}, RecipeError, "--data.heldout is for files"),
    ({"data__heldout": 1.0}, RecipeError, r"--data.heldout is 1.0; it lies in \[0, 1\)"),
    ({"data__context": 0}, RecipeError, "--data.context is 0; it must be at least 1"),
    ({"evaluation__batch_size": 0}, RecipeError, "--evaluation.batch-size 0"),
    ({"data__path": "digits-sum:digit=3"}, DataError, "digits-sum has no option 'digit'; it has digits, worked, "),
    ({"data__path": "nowhere.txt"}, DataError, "nowhere.txt: no such file, folder or embedded set of texts"),
])  # fmt: skip
def test_options_that_cannot_be_or_would_not_be_used_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        build(recipe("decoder", **SMALL | fields))


@pytest.mark.shows("decoder", "manners")
@pytest.mark.parametrize(("fields", "message"), [
    ({"data__context": 100_000}, "tokens of text are fewer than a window of --data.context 100000"),
    ({"data__batch_size": 4096}, "windows are fewer than a batch of 4096"),
])  # fmt: skip
def test_texts_that_are_too_short_say_so(texts, fields, message):
    with pytest.raises(DataError, match=message):
        build(small_file(texts, **fields))


def test_a_model_whose_tokenizer_cannot_read_a_set_is_told_so(tmp_path):
    first = build(recipe("decoder", **SMALL))
    write_folder(tmp_path / "hf", published_files(first.method.decoder.state_dict(), first.assets))
    fields = {key: value for key, value in SMALL.items() if key != "variant"}
    with pytest.raises(DataError, match=r"has no token for '[,:+*()-]"):
        build(recipe("decoder", **fields, model=str(tmp_path / "hf"), data__path="countdown"))
