"""The model that the policy must not leave too far: a frozen copy, or the policy itself without its adapters."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odonata.language.decoder import Decoder
from odonata.language.sequences import Sequences, token_logprobs
from odonata.nn.lora import LoRALinear


class Reference:
    """What says how likely the reference finds tokens. It is no module: checkpoints do not hold it.

    Args:
        decoder: the policy as it begins. With adapters it is used with them switched off, else it is copied.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.shared = any(isinstance(part, LoRALinear) for part in decoder.modules())
        self.decoder = decoder if self.shared else copy.deepcopy(decoder).eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(self, batch: Sequences, temperature: float = 1.0) -> Float[Tensor, "batch steps"]:
        """Return the log-probability of each scored token, 0 elsewhere.

        Args:
            batch: sequences of `steps` + 1 tokens.
            temperature: by which scores are divided.
        """
        if not self.shared:
            self.decoder.to(batch.ids.device)
            return token_logprobs(self.decoder, batch, temperature=temperature)[0]
        with adapters_off(self.decoder), evaluating(self.decoder):
            return token_logprobs(self.decoder, batch, temperature=temperature)[0]

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs of it: nothing, where the frozen weights are in its checkpoints."""
        return {} if self.shared else dict(self.decoder.state_dict())


@contextlib.contextmanager
def adapters_off(module: nn.Module) -> Generator[None]:
    """Switch low-rank updates off for the while."""
    adapters = [part for part in module.modules() if isinstance(part, LoRALinear)]
    scales = [part.scale for part in adapters]
    try:
        for part in adapters:
            part.scale = 0.0
        yield
    finally:
        for part, scale in zip(adapters, scales, strict=True):
            part.scale = scale


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Switch dropout off for the while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
