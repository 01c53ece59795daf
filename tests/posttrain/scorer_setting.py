"""Tiny scorers that the tests of reward models, process rewards and PPO share, and what TRL computed of their like."""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fixtures.named_numbers import numbers
from odonata.language.decoder import Decoder, DecoderConfig
from odonata.posttrain.scorer import Scorer
from posttrain.offline_setting import PLAIN

RECORDED = dict(np.load(Path(__file__).parents[1] / "fixtures/trl_scorers.npz"))
FACTS = json.loads(bytes(RECORDED.pop("json")))
SIZES = FACTS["sizes"]
QWEN = DecoderConfig(**SIZES, head_dim=SIZES["hidden_size"] // SIZES["num_attention_heads"], qkv_bias=True)


def qwen(prefix: str = "", apart: float = 0.0) -> Decoder:
    """The tiny Qwen2 that `fixtures/make_trl_scorers.py` gave TRL, in float64 where transformers computes in it."""
    decoder = Decoder(QWEN).double()
    state = decoder.state_dict()
    names = {name: "model." + name for name in state}
    decoder.load_state_dict(
        {name: numbers(prefix + theirs, tuple(state[name].shape)) for name, theirs in names.items()}
    )
    for name, parameter in decoder.named_parameters():
        if apart:
            parameter.data += apart * numbers("apart model." + name, tuple(parameter.shape))
    return decoder


def qwen_scorer(prefix: str = "", outputs: int = 1) -> Scorer:
    """The same with a head of so many outputs; of two, with a bias."""
    scorer = Scorer(qwen(prefix), outputs, bias=outputs == 2).double()
    for name, parameter in scorer.score.named_parameters():
        parameter.data.copy_(numbers(f"{prefix}score.{name}", tuple(parameter.shape)))
    return scorer


def plain_scorer(outputs: int = 1, seed: int = 1) -> Scorer:
    """A random scorer with LayerNorm, which keeps float64."""
    torch.manual_seed(seed)
    scorer = Scorer(Decoder(PLAIN), outputs, bias=outputs == 2).double()
    for parameter in scorer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return scorer


def gradients_of(module: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of a loss by transformers' names."""
    module.zero_grad()
    loss.backward()
    return {
        name.replace("decoder.", "model."): copy.deepcopy(p.grad)
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def assert_gradients_as_trl(name: str, gradients: dict[str, torch.Tensor], bound: float = 1e-5) -> None:
    """Single gradients, and the norm of all, are those that TRL's models had."""
    norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
    assert abs(norm / float(RECORDED[f"{name}/norm"]) - 1) < bound
    kept = [key.removeprefix(f"{name}/") for key in RECORDED if key.startswith(f"{name}/") and key.endswith("weight")]
    assert len(kept) >= 2
    for key in kept:
        expected = torch.from_numpy(RECORDED[f"{name}/{key}"]).double()
        error = float((gradients[key] - expected).norm() / expected.norm())
        assert error < bound, f"{name}, {key}: {error:.1e}"


def assert_loss_as_trl(name: str, loss: torch.Tensor, bound: float = 1e-6) -> None:
    """A loss is the one that TRL computed."""
    error = abs(float(loss.detach()) / float(RECORDED[name]) - 1)
    assert error < bound, f"{name}: {error:.1e}"
