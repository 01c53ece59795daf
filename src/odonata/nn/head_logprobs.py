"""Log-probabilities of given tokens under a language model's head, without ever holding the rows × vocab logits.

Notable:

- Rows are visited in chunks. Each chunk's logits live in one buffer that the next chunk overwrites; what is kept for
  the backward pass is one log-sum-exp a row. The backward pass computes the logits again, turns them into their own
  gradient in place, and adds that to the gradients of hidden states, weight and bias. An ordinary chunk loop saves
  nothing in training: autograd retains the logits of every chunk.
- Products are taken in autocast's precision, or in that of the inputs. Everything after them (temperature, log-sum-exp,
  entropy, the sums of the gradients) is in float32, or in float64 if the inputs are.
- A weight that needs no gradient (a frozen head under LoRA) costs no product for one.
- Entropy comes out of the same pass. It is a figure to look at unless `entropy_gradient` asks for its exact gradient,
  −p (log p + H) for each logit.

Gradients of gradients are refused.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import RecipeError

# A chunk's logits in float32; an accelerator wants fewer, larger kernels. Fewer rows than 128 make the matrix products
# slow on a CPU: 32 took 1.4 times as long at 32,768 tokens, and 256 only 4 % less.
_BYTES_CPU = 16 * 2**20
_BYTES_ACCELERATOR = 128 * 2**20
_LEAST_ROWS = 128


def head_logprobs(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    targets: Int[Tensor, "rows"],
    *,
    bias: Float[Tensor, "vocab"] | None = None,
    temperature: float = 1.0,
    chunk: int = 0,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"] | None]:
    """Return log softmax((hidden · weightᵀ + bias) / temperature) at the targets, and the entropy where asked for.

    Args:
        hidden: the model's last hidden states, only those that predict a token that counts.
        weight: of the head.
        targets: the tokens that they predict, each in [0, vocab).
        bias: of the head.
        temperature: what logits are divided by, above 0: that of the rollout.
        chunk: rows at a time; 0 chooses by memory.
        entropy: also return the entropy of each distribution, in nats.
        entropy_gradient: let gradients flow through the entropy, for an entropy bonus.

    Returns:
        Log-probabilities in nats, and entropies or None; float32 for float32, bfloat16 and float16 inputs.

    Raises:
        RecipeError: shapes do not fit, a target is outside the vocabulary (looked at on a CPU only), the temperature
            is not positive, or a gradient is asked of an entropy that is not computed.

    Source: the value is that of `F.log_softmax`; the pass over chunks that are computed again in the backward pass
    follows Wijmans et al. 2024, arXiv:2411.09009 (cut cross-entropy), over rows instead of blocks of the vocabulary.

    >>> logprobs, entropy = head_logprobs(torch.zeros(1, 2), torch.ones(4, 2), torch.tensor([3]), entropy=True)
    >>> round(logprobs.exp().item(), 4), round(entropy.exp().item(), 4)
    (0.25, 4.0)
    """
    _check(hidden, weight, targets, bias, temperature, chunk, entropy, entropy_gradient)
    kind = hidden.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    plan = _Plan(temperature, chunk or _default_chunk(hidden, len(weight)), low, entropy, entropy_gradient)
    with torch.autocast(kind, enabled=False):
        found = _HeadLogprobs.apply(plan, hidden, weight, bias, targets)
    logprobs, entropies = cast("tuple[Tensor, Tensor | None]", found)
    return logprobs, entropies


@dataclass(frozen=True)
class _Plan:
    temperature: float
    chunk: int
    product: torch.dtype
    """Of the matrix products."""
    entropy: bool
    entropy_gradient: bool

    @property
    def sums(self) -> torch.dtype:
        """Of everything that follows a product."""
        return torch.promote_types(self.product, torch.float32)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        rows = _Rows(plan, hidden, weight, bias)
        logprobs, log_sums, entropies = (hidden.new_empty(len(hidden), dtype=plan.sums) for _ in range(3))
        for part in rows.parts():
            z = rows.logits(part)
            own = z.gather(1, targets[part, None]).squeeze(1)
            # The logits are used up here, so that their log-sum-exp needs no second buffer of their size.
            highest = z.amax(1)
            total = z.sub_(highest[:, None]).exp_().sum(1)
            log_sums[part] = highest + total.log()
            logprobs[part] = own - log_sums[part]
            if plan.entropy:
                # −p ln p, and 0 where p is: a logit of −∞ is a token that cannot be.
                entropies[part] = torch.special.entr(z.div_(total[:, None]), out=z).sum(1)
        ctx.plan = plan
        ctx.set_materialize_grads(False)  # an entropy that nobody differentiates costs nothing
        ctx.save_for_backward(hidden, weight, bias, targets, log_sums, entropies if plan.entropy_gradient else None)
        if plan.entropy and not plan.entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies if plan.entropy else None

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("head_logprobs cannot be differentiated twice; use F.log_softmax, or create_graph=False")
        hidden, weight, bias, targets, log_sums, entropies = ctx.saved_tensors
        upstream = grad_outputs[1] if ctx.plan.entropy_gradient else None
        with torch.autocast(hidden.device.type, enabled=False):
            rows = _Rows(ctx.plan, hidden, weight, bias)
            gradients = _Gradients(rows, ctx.needs_input_grad[1:4], hidden, weight)
            for part in rows.parts():
                p = rows.logits(part).sub_(log_sums[part, None]).exp_()
                slope = _slope(p, part, targets, grad_outputs[0], upstream, entropies)
                gradients.add(slope.div_(ctx.plan.temperature), part)
        return None, *gradients.in_the_inputs_precision(hidden, weight, bias), None


def _slope(
    p: Tensor, part: slice, targets: Tensor, of_logprob: Tensor | None, of_entropy: Tensor | None,
    entropies: Tensor | None,
) -> Tensor:  # fmt: skip
    """Turn probabilities into the gradient of the logits over the temperature, in place."""
    extra = None
    if of_entropy is not None and entropies is not None:
        # ∂H/∂z = −p (ln p + H) = entr(p) − p H
        extra = torch.special.entr(p).addcmul_(p, entropies[part, None], value=-1).mul_(of_entropy[part, None])
    if of_logprob is None:
        return extra if extra is not None else p.zero_()
    # ∂ log p_y / ∂z = 1[y] − p
    slope = p.mul_(-of_logprob[part, None])
    slope.scatter_add_(1, targets[part, None], of_logprob[part, None])
    return slope if extra is None else slope.add_(extra)


class _Rows:
    """The chunks, and the one buffer that holds the logits of each in turn."""

    def __init__(self, plan: _Plan, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.plan, self._hidden, self._bias = plan, hidden, bias
        self.weight = weight.to(plan.product)
        size = (min(plan.chunk, len(hidden)), len(weight))
        self._product = hidden.new_empty(size, dtype=plan.product)
        self._logits = self._product if plan.sums == plan.product else hidden.new_empty(size, dtype=plan.sums)

    def parts(self) -> list[slice]:
        """Slices of rows."""
        count = len(self._hidden)
        return [slice(i, min(i + self.plan.chunk, count)) for i in range(0, count, self.plan.chunk)]

    def hidden(self, part: slice) -> Tensor:
        """Return a chunk's hidden states as they enter products."""
        return self._hidden[part].to(self.plan.product)

    def logits(self, part: slice) -> Tensor:
        """Compute a chunk's logits over the temperature; what was computed before is gone."""
        count = part.stop - part.start
        product = torch.mm(self.hidden(part), self.weight.T, out=self._product[:count])
        logits = self._logits[:count]  # the same memory where nothing is to be converted
        if logits.dtype != product.dtype:
            logits.copy_(product)
        if self._bias is not None:
            logits.add_(self._bias.to(logits.dtype))
        return logits.div_(self.plan.temperature) if self.plan.temperature != 1 else logits


class _Gradients:
    """Sums over the chunks, of those gradients that somebody wants."""

    def __init__(self, rows: _Rows, wants: tuple[bool, ...], hidden: Tensor, weight: Tensor) -> None:
        self._rows, sums = rows, rows.plan.sums
        self.hidden = hidden.new_empty(hidden.shape, dtype=sums) if wants[0] else None
        self.weight = weight.new_zeros(weight.shape, dtype=sums) if wants[1] else None
        self.bias = weight.new_zeros(len(weight), dtype=sums) if wants[2] else None

    def add(self, slope: Tensor, part: slice) -> None:
        if self.bias is not None:
            self.bias += slope.sum(0)
        slope = slope.to(self._rows.plan.product)
        if self.hidden is not None:
            self.hidden[part] = slope @ self._rows.weight
        if self.weight is None:
            return
        if self.weight.dtype == slope.dtype:
            self.weight.addmm_(slope.T, self._rows.hidden(part))
        else:
            self.weight += slope.T @ self._rows.hidden(part)

    def in_the_inputs_precision(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor | None]:
        pairs = ((self.hidden, hidden), (self.weight, weight), (self.bias, bias))
        return [None if sums is None or like is None else sums.to(like.dtype) for sums, like in pairs]


def _default_chunk(hidden: Tensor, vocab: int) -> int:
    size = _BYTES_CPU if hidden.device.type == "cpu" else _BYTES_ACCELERATOR
    return max(_LEAST_ROWS, size // (4 * vocab))


def _check(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float, chunk: int,
    entropy: bool, entropy_gradient: bool,
) -> None:  # fmt: skip
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise RecipeError(
            f"head_logprobs needs hidden [rows, dim] and weight [vocab, dim] of one dim, not {list(hidden.shape)} and "
            f"{list(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1] or targets.is_floating_point():
        raise RecipeError(f"targets must be {len(hidden)} integers, not {list(targets.shape)} of {targets.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise RecipeError(f"bias must be [{len(weight)}], not {list(bias.shape)}")
    # An accelerator would have to be waited for; there `gather` asserts.
    if (
        targets.device.type == "cpu"
        and len(targets)
        and not 0 <= int(targets.min()) <= int(targets.max()) < len(weight)
    ):
        raise RecipeError(
            f"targets reach from {int(targets.min())} to {int(targets.max())}, and the vocabulary from 0 to "
            f"{len(weight) - 1}; leave out the rows that predict nothing"
        )
    if temperature <= 0 or chunk < 0:
        raise RecipeError(f"temperature must be positive and chunk at least 0, not {temperature} and {chunk}")
    if entropy_gradient and not entropy:
        raise RecipeError("entropy_gradient needs entropy=True: there is no entropy to differentiate")
