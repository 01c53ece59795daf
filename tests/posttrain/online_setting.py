"""Tiny policies, prompts and rollouts that the tests of methods on their own answers share."""

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch

from odonata.engine.distributed import World
from odonata.engine.fit import Engine
from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.engine.task import Task
from odonata.language.decoder import Decoder, DecoderConfig, variant
from odonata.language.sampling import Sampling
from odonata.language.sequences import pad_sequences, token_logprobs
from odonata.posttrain.grpo import GRPO, GRPOOptions
from odonata.posttrain.questions import PromptItem
from odonata.posttrain.recipes import by_name
from odonata.posttrain.reference import Reference
from odonata.posttrain.rewards.interface import Answered
from odonata.posttrain.rollout import Asking, Rollout
from odonata.text.text_tokenizer import characters
from posttrain.offline_setting import PLAIN

KIN = ("grpo", "dr-grpo", "dapo", "rloo")
TOKENIZER = characters("0123456789=#")
"""Padding is 0, the end 1, the digit d is d + 2."""
LIMIT = 12


@dataclasses.dataclass(frozen=True)
class Sevens:
    """What a test rewards: sevens, in any answer."""

    name: str = "sevens"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Count them."""
        return [float(answer.completion.count("7")) for answer in answers]


@dataclasses.dataclass(frozen=True)
class Said:
    """A reward made of a function of the text."""

    function: Callable[[Answered], float | None]
    name: str = "said"

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Ask it of each."""
        return [self.function(answer) for answer in answers]


def options_of(name: str, **changes) -> GRPOOptions:
    """The method's own options, with changes."""
    return dataclasses.replace(by_name(name).method, **changes)


def asking_with(reward=None, group: int = 4, limit: int = LIMIT, **fields) -> Asking:
    plain = Asking(TOKENIZER, [reward or Sevens()], [1.0], group, limit, Sampling(), 0)
    return dataclasses.replace(plain, **fields)


def nano(seed: int = 0, **changes) -> Decoder:
    """A random decoder in float32."""
    torch.manual_seed(seed)
    return Decoder(dataclasses.replace(variant("nano", TOKENIZER.vocab_size, 64), **changes))


def engine_for(method, *, real: bool = False, **changes) -> Engine:
    """An engine on one process; unless it is real, updates change nothing and leave their gradients."""
    recipe = Recipe(
        "test", None, None, None, optim=AdamW(lr=1e-2, weight_decay=0.0), schedule=Schedule("constant", warmup=0.0),
        clip=Clip("norm", 1.0), device="cpu",
    )  # fmt: skip
    engine = Engine(dataclasses.replace(recipe, **changes), Task(method, None, 1, ""), None, _ALONE)
    engine.method.train()
    if not real:
        engine.update = lambda name="main": None
    return engine


_ALONE = World(0, 1, torch.device("cpu"))


def items(*prompts: str, first_key: int = 100) -> list[PromptItem]:
    return [
        PromptItem(tuple(TOKENIZER.encode(text)), text, {"answer": "7"}, first_key + i)
        for i, text in enumerate(prompts)
    ]


def apart_from_itself(lengths=(5, 1, 9, 12, 2, 7, 3, 12), group: int = 4) -> tuple[Decoder, Reference, Rollout]:
    """A policy in float64 and answers of many lengths, sampled by another policy, to prompts of several lengths."""
    torch.manual_seed(1)
    decoder = Decoder(PLAIN).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference = Reference(decoder)
    for parameter in decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    given = [torch.randint(2, 24, (3 + 2 * (row // group),)).tolist() for row in range(len(lengths))]
    sequences = pad_sequences(given, [torch.randint(2, 24, (length,)).tolist() for length in lengths], 0)
    with torch.no_grad():
        logprobs, _ = token_logprobs(decoder, sequences)
        ref = reference.logprobs(sequences)
    where = sequences.scored[:, 1:]
    old = (logprobs + 0.25 * torch.randn_like(logprobs)).masked_fill(~where, 0)
    return decoder, reference, Rollout(sequences, old, where, torch.randn(len(lengths), 1).double(), ref)


def gradients_of(method: GRPO, rollout: Rollout, accumulate: int = 1) -> tuple[dict[str, float], dict]:
    """What an update returns, and the gradients that it would have applied."""
    engine = engine_for(method, accumulate=accumulate)
    method.zero_grad()
    values = method.update(rollout, engine)
    gradients = {name: copy.deepcopy(p.grad) for name, p in method.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in values.items()}, gradients


def method_of(name: str, decoder: Decoder, reference: Reference | None = None, *, asking=None, **changes) -> GRPO:
    return GRPO(decoder, options_of(name, **changes), asking or asking_with(), reference)


def gpt2(dropout: float = 0.0) -> Decoder:
    """A tiny decoder with learned positions, as GPT-2's."""
    torch.manual_seed(0)
    return Decoder(
        DecoderConfig(
            vocab_size=TOKENIZER.vocab_size, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, head_dim=8,
            intermediate_size=64, max_position_embeddings=32, positions="learned", norm="layer", mlp="plain",
            activation="gelu_tanh", qkv_bias=True, output_bias=True, mlp_bias=True, dropout=dropout,
        )
    )  # fmt: skip
