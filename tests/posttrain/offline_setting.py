"""Small decoders, rows and directories that the tests of methods on files share, and what one step of them computes."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from fixtures.named_numbers import numbers
from odonata.app.cli import main
from odonata.engine.distributed import World
from odonata.engine.fit import Engine
from odonata.engine.recipe import Recipe
from odonata.engine.task import Task
from odonata.language.assets import DecoderAssets
from odonata.language.decoder import Decoder, DecoderConfig, variant
from odonata.language.language_model import published_files
from odonata.language.sampling import Sampling
from odonata.posttrain import recipes
from odonata.posttrain.preference import DPOOptions
from odonata.posttrain.reference import Reference
from odonata.posttrain.source import answers_evaluator
from odonata.posttrain.start import make_base, starting_point
from odonata.posttrain.tasks import task_named
from odonata.text.text_bpe import train_text_bpe
from odonata.text.text_tokenizer import TextTokenizer, characters
from odonata.weights.published import write_folder

RECORDED = dict(np.load(Path(__file__).parents[1] / "fixtures/trl_trainers.npz"))
FACTS = json.loads(bytes(RECORDED.pop("json")))
ROWS = [{side: tuple(ids) for side, ids in row.items()} for row in FACTS["rows"]]
LABELS = FACTS["labels"]
PLAIN = DecoderConfig(
    vocab_size=24, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=24,
    norm="layer", qkv_bias=True,
)  # fmt: skip
"""With LayerNorm, which keeps float64; RMSNorm computes in float32 as the published models do."""
ALPHABET = "0123456789=#abcdefghijklmnopqrstuvwxyz <>|?ABCDEFGHIJKLMNOPQRSTUVWXYZ:\n"


def qwen(apart: float = 0.0) -> Decoder:
    """The tiny Qwen2 that `fixtures/make_trl_trainers.py` gave TRL, or the reference apart from it."""
    sizes = FACTS["sizes"]
    decoder = Decoder(
        DecoderConfig(**sizes, head_dim=sizes["hidden_size"] // sizes["num_attention_heads"], qkv_bias=True)
    )
    decoder = decoder.double()
    names = {name: "model." + name for name in decoder.state_dict()}
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    decoder.load_state_dict(
        {name: numbers(theirs, shapes[name]) + apart * numbers("reference " + theirs, shapes[name])
         for name, theirs in names.items()}
    )  # fmt: skip
    return decoder


def pair_of_models(scale: float = 0.3) -> tuple[Decoder, Reference]:
    """A policy in float64, and a reference that it has left."""
    torch.manual_seed(1)
    decoder = Decoder(PLAIN).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    reference = Reference(decoder)
    for parameter in decoder.parameters():
        parameter.data += 0.3 * scale * torch.randn_like(parameter)
    return decoder, reference


def one_step(method, batch, accumulate: int = 1) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What a method's step returns, and the gradients that it would have applied."""
    recipe = Recipe("test", None, None, None, accumulate=accumulate, device="cpu")
    engine = Engine(recipe, Task(method, None, 1, ""), None, World(0, 1, torch.device("cpu")))
    engine.update = lambda name="main": None
    method.zero_grad()
    values = method.step(batch, engine)
    gradients = {name: copy.deepcopy(p.grad) for name, p in method.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in values.items()}, gradients


def assert_same_gradients(found: dict, expected: dict, bound: float) -> None:
    """Relative to the largest norm; a parameter without one is the same on both sides."""
    assert found.keys() == expected.keys()
    size = max(float(value.norm()) for value in expected.values())
    assert size > 0
    for name, value in expected.items():
        error = float((found[name] - value).norm()) / size
        assert error < bound, f"{name}: {error:.1e}"


def assert_as_trl(name: str, method, batch) -> dict[str, float]:
    """Loss and gradients of a step are those that TRL's trainer computed: 1e-6 and 1e-5."""
    values, gradients = one_step(method, batch)
    assert abs(values["loss"] / float(RECORDED[f"{name}/loss"]) - 1) < 1e-6
    norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
    assert abs(norm / float(RECORDED[f"{name}/norm"]) - 1) < 1e-5
    tensors = [key for key in RECORDED if key.startswith(f"{name}/model.")]
    assert len(tensors) == 4
    for key in tensors:
        expected = torch.from_numpy(RECORDED[key])
        found = gradients["decoder." + key.removeprefix(f"{name}/model.")]
        error = float((found - expected).norm() / expected.norm())
        assert error < 1e-5, f"{key}: {error:.1e}"
    return values


def directory(folder: Path, alphabet: str = ALPHABET, tokenizer: TextTokenizer | None = None) -> Path:
    """A random decoder whose tokens are characters, or another tokenizer's, as a directory that transformers reads."""
    torch.manual_seed(3)
    tokenizer = tokenizer or characters(alphabet)
    config = variant("nano", tokenizer.vocab_size, 256)
    write_folder(folder, published_files(Decoder(config).state_dict(), DecoderAssets(config, tokenizer)))
    return folder


def bytes_directory(folder: Path) -> Path:
    """The same with a byte-level BPE, which can read any text."""
    return directory(folder, tokenizer=train_text_bpe(["Human: how many is that? Assistant: that is many."] * 4, 300))


def write_jsonl(file: Path, rows: list[dict]) -> Path:
    """Write rows, and return the file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def train(*arguments: object) -> int:
    """`odonata train …` in this process."""
    return main(["train", *map(str, arguments), "--device", "cpu"])


def quick_base(folder: Path, task: str, steps: int) -> Path:
    """A base of a built-in task that was trained for so many steps, as a directory."""
    found = task_named(f"{task},base_steps={steps}")
    decoder, assets, _ = make_base(found, 0)
    write_folder(folder, published_files(decoder.state_dict(), assets))
    return folder


def right_of(folder: Path, task: str) -> float:
    """The share of right answers that a directory's model gives to held-back prompts, as runs measure it."""
    start = starting_point(DPOOptions(model=str(folder), task=task), "", seed=0, wants_reference=False)
    evaluator = answers_evaluator(start, recipes.by_name("dpo"))
    assert evaluator is not None
    return evaluator.figures(start.decoder, Sampling())["right"]


def start_ranks(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`odonata …` in a process of its own, which may start others."""
    command = [sys.executable, "-m", "odonata.app.cli", *map(str, arguments), "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
