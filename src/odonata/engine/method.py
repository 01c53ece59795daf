"""What a method is to the engine: networks, a loss, and, where one loss is not enough, a step of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from odonata.engine.fit import Engine


class Method(nn.Module, ABC):
    """The base of every method that the engine trains.

    A method with one loss and one optimiser writes `loss` and is done. One that alternates between networks (a GAN)
    names them in `networks`, gives each its optimiser in `optimizers`, and writes `step`; see `Engine` for the four
    verbs that a step uses: `wrapped`, `autocast`, `backward` and `update`.
    """

    @abstractmethod
    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return what is minimised under `"loss"`, and other scalars worth logging."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Same as `loss`: data-parallel wrappers act on a module's call."""
        return self.loss(batch)

    def networks(self) -> Sequence[nn.Module]:
        """Return the modules whose call `step` makes, each replicated or sharded as a whole."""
        return (self,)

    def shard_units(self) -> Iterable[nn.Module]:
        """Return the modules that FSDP gathers one at a time: the layers of every stack."""
        for name, module in self.named_modules():
            if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] == "layers":
                yield from module

    def optimizers(self, build: Callable[[nn.Module], Optimizer]) -> dict[str, Optimizer]:
        """Return named optimisers; `build` makes one by the recipe's rules from a module's trainable parameters."""
        return {"main": build(self)}

    def step(self, batch: Any, engine: Engine) -> dict[str, Tensor]:
        """Do one update from this rank's share of a batch and return scalars to log."""
        return engine.minimise(self, batch)

    def begin_step(self, step: int, steps: int) -> None:
        """Take note of the place in the run, for schedules of the method's own (momentum, temperature, masks).

        Args:
            step: updates done.
            steps: of the whole run.
        """

    def after_backward(self) -> None:
        """Change gradients before they are clipped and applied; a gradient set to None leaves its parameter alone."""

    def after_update(self) -> None:
        """Restore what an update may break, such as the range of a temperature."""
