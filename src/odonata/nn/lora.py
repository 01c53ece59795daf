"""Low-rank adapters on the Linears of any module (LoRA, Hu et al. 2021).

Notable: attention here has separate `q`, `k`, `v` and `proj` Linears, so any of them can be adapted on its own; merging
writes W + (alpha / rank) · B A back into an ordinary Linear, and the published layouts can be exported again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen Linear plus a trained low-rank term: W x + b + (alpha / rank) · B A x (Hu et al. 2021, eq. 3).

    Args:
        base: the Linear to adapt; it is frozen.
        rank: rank of the term, 1 or more.
        alpha: its scale times `rank`.
        dropout: dropout of the term's input while training.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.in_features, base.out_features):
            raise ValueError(f"rank {rank} does not fit a {base.in_features} to {base.out_features} Linear")
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        # Kaiming-uniform A and zero B, as microsoft/LoRA's layers.py: the adapted model starts as the base model.
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Float[Tensor, "... inner"]) -> Float[Tensor, "... outer"]:
        """Returns the base's output plus the low-rank term."""
        return self.base(x) + self.scale * F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns the base with the term added to its weight; the base itself is changed."""
        self.base.weight += self.scale * self.lora_b @ self.lora_a
        return self.base.requires_grad_(True)


def add_lora(
    module: nn.Module, rank: int, alpha: float, targets: Sequence[str] = ("q", "v"), dropout: float = 0.0
) -> list[str]:
    """Replaces Linears of `module` by adapted ones, in place, and freezes every other parameter.

    Args:
        module: any module.
        rank: rank of the adapters.
        alpha: scale of the adapters times `rank`.
        targets: last parts of the names of the Linears to adapt, such as `q`, `v` or `fc1`.
        dropout: dropout of the adapters' input.

    Returns:
        Names of the adapted Linears.

    Raises:
        ValueError: no Linear has such a name.
    """
    found = [n for n, part in module.named_modules() if n.rpartition(".")[2] in targets and isinstance(part, nn.Linear)]
    if not found:
        raise ValueError(f"no Linear is named {' or '.join(targets)}: nothing to adapt")
    module.requires_grad_(False)
    for name in found:
        base = module.get_submodule(name)
        assert isinstance(base, nn.Linear)
        _put(module, name, LoRALinear(base, rank, alpha, dropout))
    return found


def merge_lora(module: nn.Module) -> list[str]:
    """Folds all adapters into their Linears, in place, and unfreezes those; returns their names."""
    found = [name for name, part in module.named_modules() if isinstance(part, LoRALinear)]
    for name in found:
        adapter = module.get_submodule(name)
        assert isinstance(adapter, LoRALinear)
        _put(module, name, adapter.merged())
    return found


def lora_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Returns the adapters' parameters alone; load them with `load_state_dict(…, strict=False)`."""
    return {key: value for key, value in module.state_dict().items() if key.rpartition(".")[2] in ("lora_a", "lora_b")}


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)
