"""The contrastive objectives of CLIP and SigLIP, exact, over the global batch, without ever holding the N × N logits.

Notable:

- The similarity matrix is visited in square tiles. Each tile's share of the gradient is added while the tile is at
  hand, in the forward pass; what is kept for the backward pass is the gradient itself, as large as the embeddings.
  Memory beyond the embeddings and their gradients is that of one or two tiles, for any batch. An ordinary chunk loop
  saves nothing in training: autograd retains the logits of every chunk.
- The sigmoid loss needs one pass. The softmax loss needs two: the first finds the log-sum-exp of every row and column
  online, the second recomputes each tile to take its gradient.
- Over several processes the text blocks travel round a ring (`odonata.align.ring`) with their accumulators. A rank
  holds two blocks however many ranks there are.
- The convention for several processes: every rank returns the *global* loss; gradients of the embeddings are multiplied
  by the number of ranks, and those of `logit_scale` and `logit_bias` are the global ones on every rank. So the mean
  over ranks that DistributedDataParallel or FSDP takes yields exactly the gradient of one process with the whole batch.
  DDP counts on the loss being computed inside the forward pass of the module that it wraps.
- `groups` marks pairs of equal content. Two rows with the same caption are not each other's negatives: with
  ``duplicates="positive"`` they count as positives (in the softmax the target is uniform over a row's positives), with
  ``"ignore"`` they leave the sums. Either way the loss is divided by the number of rows, as without groups.

All sums are taken in float32 at least, under autocast too. Gradients of gradients are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from odonata.align.ring import Ring, form_ring

Duplicates = Literal["positive", "ignore"]

# The side of a tile. On a CPU a tile should lie in the cache (4 MB of float32 was fastest of 1 to 64 MB measured); an
# accelerator wants fewer, larger kernels (64 MB).
_CHUNK_CPU = 1024
_CHUNK_ACCELERATOR = 4096


def sigmoid_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    positives: Bool[Tensor, "batch batch"] | None = None,
    groups: Int[Tensor, "batch"] | None = None,
    duplicates: Duplicates = "positive",
    chunk: int | None = None,
    process_group: ProcessGroup | Literal["local"] | None = None,
) -> Float[Tensor, ""]:
    """Compute SigLIP's loss: every image–text pair of the batch is one yes-or-no question.

    Args:
        image: image embeddings, of unit length in the paper; row i belongs to row i of ``text``.
        text: text embeddings.
        logit_scale: t' of the paper, the *logarithm* of the cosine's factor; ln 10 at the start. Equal on all ranks.
        logit_bias: b of the paper; -10 at the start. Equal on all ranks.
        positives: which (image, text) pairs match, where it is more than the diagonal. One process only.
        groups: an integer per row; rows with equal integers have equal content. Instead of ``positives``.
        duplicates: whether off-diagonal pairs of one group are positives or leave the sum.
        chunk: side of the tile of logits held at a time; None chooses by device.
        process_group: who shares the batch: None for all ranks, "local" for this process alone.

    Returns:
        the sum over all pairs of the *global* batch divided by its rows (not by the pairs). On several ranks it is the
        same on each, and its gradients are such that their mean over the ranks is the global gradient.

    Raises:
        ValueError: shapes do not fit, or both ``positives`` and ``groups`` are given.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343, equation 1 and algorithm 1.

    >>> eye = torch.eye(4)
    >>> round(sigmoid_loss(eye, eye, torch.tensor(10.0).log(), torch.tensor(-5.0)).item(), 4)
    0.0269
    """
    _check(image, text, groups, chunk)
    if positives is not None and groups is not None:
        raise ValueError("sigmoid_loss: give positives or groups, not both")
    if positives is not None and positives.shape != (len(image), len(text)):
        raise ValueError(f"sigmoid_loss: positives must be [{len(image)}, {len(text)}], not {list(positives.shape)}")
    ring = form_ring(len(image), image.device, process_group)
    if positives is not None and ring.world_size > 1:
        raise ValueError(f"sigmoid_loss: positives cannot span {ring.world_size} ranks; give groups, or 'local'")
    labelling: Duplicates = duplicates if positives is None else "positive"
    pairs = _Pairs(ring, chunk or _default_chunk(image), groups, positives, labelling)
    return _apply(_SigmoidLoss, pairs, image, text, logit_scale, logit_bias)


def softmax_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""],
    *,
    groups: Int[Tensor, "batch"] | None = None,
    duplicates: Duplicates = "positive",
    chunk: int | None = None,
    process_group: ProcessGroup | Literal["local"] | None = None,
) -> Float[Tensor, ""]:
    """Compute CLIP's loss: the mean of the image → text and text → image cross-entropies over the global batch.

    Args:
        image: image embeddings, of unit length in the paper; row i belongs to row i of ``text``.
        text: text embeddings.
        logit_scale: t of the paper, the *logarithm* of the factor of the cosine; ln(1 / 0.07) at the start.
        groups: an integer per row; rows with equal integers have equal content.
        duplicates: "positive": the target is uniform over the row's group; "ignore": the other members of the group
            leave the denominator.
        chunk: side of the tile of logits held at a time; None chooses by device.
        process_group: who shares the batch: None for all ranks, "local" for this process alone.

    Returns:
        the loss of the *global* batch, with the convention for several ranks of `sigmoid_loss`.

    Raises:
        ValueError: shapes do not fit.

    Source: Radford et al., arXiv:2103.00020, figure 3. Uniform targets: Khosla et al., arXiv:2004.11362, equation 2.

    >>> eye = torch.eye(4)
    >>> round(softmax_loss(eye, eye, torch.tensor(10.0).log()).item(), 6)
    0.000136
    """
    _check(image, text, groups, chunk)
    ring = form_ring(len(image), image.device, process_group)
    pairs = _Pairs(ring, chunk or _default_chunk(image), groups, None, duplicates)
    return _apply(_SoftmaxLoss, pairs, image, text, logit_scale)


@dataclass(frozen=True)
class _Pairs:
    """Which pairs there are, which of them match, and in what order they are visited."""

    ring: Ring
    chunk: int
    groups: Tensor | None
    positives: Tensor | None
    duplicates: Duplicates

    def tiles(self, text: Tensor) -> Iterator[tuple[slice, slice]]:
        """The tiles of this rank's rows against one block of texts."""
        for row in range(0, self.ring.sizes[self.ring.rank], self.chunk):
            rows = slice(row, min(row + self.chunk, self.ring.sizes[self.ring.rank]))
            for column in range(0, len(text), self.chunk):
                yield rows, slice(column, min(column + self.chunk, len(text)))

    def on_diagonal(self, rows: slice, columns: slice, owner: int) -> bool:
        """Whether the tile's own diagonal is that of the global matrix."""
        return owner == self.ring.rank and rows == columns

    def alike(self, rows: slice, columns: slice, block: list[Tensor]) -> Bool[Tensor, "rows columns"] | None:
        """The tile's pairs of equal content, or None where only the diagonal matches."""
        if self.positives is not None:
            return self.positives[rows, columns]
        if self.groups is None:
            return None
        return self.groups[rows, None] == block[1][None, columns]

    def block(self, text: Tensor) -> list[Tensor]:
        """What travels round the ring unchanged."""
        return [text] if self.groups is None else [text, self.groups.contiguous()]


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pairs: _Pairs, wants: tuple[bool, ...], image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor
    ) -> Tensor:
        ring, scale = pairs.ring, log_scale.exp()
        scaled = _Scratch(image)
        # Sums by row, allocated once: a small tensor kept from every tile would splinter the heap between the tiles.
        losses, slopes = image.new_zeros(len(image)), image.new_zeros(len(image))
        gradients = _Gradients(wants, image, text)

        def visit(owner: int, block: list[Tensor], sums: list[Tensor]) -> None:
            for rows, columns in pairs.tiles(block[0]):
                # softplus(z) = -log σ(-z): with z = -label · logit it is the pair's loss of equation 1, and σ(z) its
                # slope, both without cancellation however sure the model is.
                z = scaled.product(image[rows] * scale, block[0][columns]).add_(bias)
                diagonal = pairs.on_diagonal(rows, columns, owner)
                alike = pairs.alike(rows, columns, block)
                _turn(z, alike, diagonal, pairs.duplicates, ignored=-torch.inf)
                losses[rows] += F.softplus(z).sum(1)
                if not any(wants):
                    continue
                slope = z.sigmoid_()
                _turn(slope, alike, diagonal, pairs.duplicates, ignored=0)
                slopes[rows] += slope.sum(1)
                gradients.add(slope, rows, columns, image, block[0], sums)

        gradients.text = ring.travel(pairs.block(text), gradients.carried(), visit)
        scale_sum = gradients.scale_sum(image, text)
        loss, scale_sum, bias_sum = ring.all_reduce(torch.stack([losses.sum(), scale_sum, slopes.sum()]))
        gradients.save(ctx, scale * ring.world_size / ring.total, scale_sum * scale / ring.total, bias_sum / ring.total)
        return loss / ring.total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _saved_gradients(ctx, grad_outputs[0])


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pairs: _Pairs, wants: tuple[bool, ...], image: Tensor, text: Tensor, log_scale: Tensor
    ) -> Tensor:
        ring, scale = pairs.ring, log_scale.exp()
        scaled = _Scratch(image)
        own = image.new_empty(len(image))  # the diagonal: a row's logit with its own text
        row_rest = image.new_full((len(image),), -torch.inf)  # log-sum-exp of a row without the diagonal
        others = image.new_zeros(len(image))  # how many further positives a row has, and the sum of their logits
        others_sum = image.new_zeros(len(image))

        def logits(rows: slice, columns: slice, owner: int, block: list[Tensor]) -> tuple[Tensor, Tensor | None, bool]:
            z = scaled.product(image[rows] * scale, block[0][columns])
            diagonal = pairs.on_diagonal(rows, columns, owner)
            alike = pairs.alike(rows, columns, block)
            if diagonal:
                own[rows] = z.diagonal()
                z.fill_diagonal_(-torch.inf)
            if alike is not None and diagonal:
                alike.fill_diagonal_(False)
            if alike is not None and pairs.duplicates == "ignore":
                z.masked_fill_(alike, -torch.inf)
                alike = None
            return z, alike, diagonal

        def measure(owner: int, block: list[Tensor], sums: list[Tensor]) -> None:
            for rows, columns in pairs.tiles(block[0]):
                z, alike, _ = logits(rows, columns, owner, block)
                row_rest[rows] = torch.logaddexp(row_rest[rows], z.logsumexp(1))
                sums[0][columns] = torch.logaddexp(sums[0][columns], z.logsumexp(0))
                if alike is not None:
                    others[rows] += alike.sum(1)
                    others_sum[rows] += torch.where(alike, z, 0).sum(1)

        (column_rest,) = ring.travel(pairs.block(text), [torch.full_like(row_rest, -torch.inf)], measure)
        # -log softmax of the diagonal is softplus(rest - own), and its slope σ(rest - own): near zero where the model
        # is sure, and exact there, unlike 1 minus a probability of almost 1.
        row_margin, column_margin = row_rest - own, column_rest - own
        row_lse, column_lse = torch.logaddexp(row_rest, own), torch.logaddexp(column_rest, own)
        towards_others = (others_sum - others * own) / (1 + others)
        loss = ((F.softplus(row_margin) + F.softplus(column_margin)) / 2 - towards_others).sum()
        own_slope = 2 * others / (1 + others) - row_margin.sigmoid() - column_margin.sigmoid()
        gradients = _Gradients(wants, image, text)

        def differentiate(owner: int, block: list[Tensor], sums: list[Tensor]) -> None:
            for rows, columns in pairs.tiles(block[0]):
                z, alike, diagonal = logits(rows, columns, owner, block)
                slope = torch.sub(z, row_lse[rows, None], out=scaled.spare(z)).exp_()
                slope.add_(z.sub_(block[-1][columns]).exp_())
                if alike is not None:
                    slope.sub_(torch.where(alike, 2 / (1 + others[rows, None]), 0))
                if diagonal:
                    slope.diagonal().copy_(own_slope[rows])
                gradients.add(slope, rows, columns, image, block[0], sums)

        if any(wants):
            gradients.text = ring.travel([*pairs.block(text), column_lse], gradients.carried(), differentiate)
        loss, scale_sum = ring.all_reduce(torch.stack([loss, gradients.scale_sum(image, text)]))
        gradients.save(ctx, scale * ring.world_size / (2 * ring.total), scale_sum * scale / (2 * ring.total))
        return loss / ring.total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _saved_gradients(ctx, grad_outputs[0])


class _Scratch:
    """The memory for one tile of logits, and for a second one where it is asked for."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._tile: Tensor | None = None
        self._spare: Tensor | None = None

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        self._tile = _room(self._tile, len(left) * len(right), self._like)
        return torch.mm(left, right.T, out=self._tile[: len(left) * len(right)].view(len(left), len(right)))

    def spare(self, tile: Tensor) -> Tensor:
        self._spare = _room(self._spare, tile.numel(), self._like)
        return self._spare[: tile.numel()].view_as(tile)


class _Gradients:
    """Sums over the tiles of slope · embedding; only those that somebody wants."""

    def __init__(self, wants: tuple[bool, ...], image: Tensor, text: Tensor) -> None:
        self.wants = wants
        # Σ slope · cosine, the gradient of the scale, falls out of either sum of embeddings; so one at least is kept.
        needs_image = wants[0] or (wants[2] and not wants[1])
        self.image = torch.zeros_like(image) if needs_image else None
        self.text = [torch.zeros_like(text)] if wants[1] else []

    def carried(self) -> list[Tensor]:
        return self.text

    def add(
        self, slope: Tensor, rows: slice, columns: slice, image: Tensor, text: Tensor, travelling: list[Tensor]
    ) -> None:
        if self.image is not None:
            self.image[rows].addmm_(slope, text[columns])
        if travelling:
            travelling[0][columns].addmm_(slope.T, image[rows])

    def scale_sum(self, image: Tensor, text: Tensor) -> Tensor:
        if not self.wants[2]:
            return image.new_zeros(())
        if self.image is not None:
            return torch.linalg.vecdot(self.image, image).sum()
        return torch.linalg.vecdot(self.text[0], text).sum()

    def save(self, ctx: Any, factor: Tensor, *scalars: Tensor) -> None:
        image = self.image.mul_(factor) if self.image is not None and self.wants[0] else None
        text = self.text[0].mul_(factor) if self.text else None
        kept = [value if want else None for value, want in zip(scalars, self.wants[2:], strict=True)]
        ctx.save_for_backward(image, text, *kept)


_Loss = TypeVar("_Loss", _SigmoidLoss, _SoftmaxLoss)


def _apply(function: type[_Loss], pairs: _Pairs, image: Tensor, text: Tensor, *scalars: Tensor) -> Tensor:
    wants = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (image, text, *scalars))
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    # The casts stand outside the function: autograd brings the gradients back to the inputs' own precision, and only
    # after the loss scale of a float16 run has been multiplied in.
    inputs = [tensor.to(dtype).contiguous() for tensor in (image, text, *scalars)]
    with torch.autocast(image.device.type, enabled=False):
        return cast(Tensor, function.apply(pairs, wants, *inputs))


def _saved_gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the contrastive losses keep their first gradient, not the logits, and cannot be differentiated twice; "
            "use create_graph=False, or write the N × N loss out with F.cross_entropy or F.logsigmoid"
        )
    # A plain loss.backward() hands the gradients over as they are, without one more copy of the embeddings' size. Only
    # on a CPU, where looking at the factor costs nothing.
    is_one = grad_output.device.type == "cpu" and grad_output.item() == 1
    saved = cast("tuple[Tensor | None, ...]", ctx.saved_tensors)
    scaled = [grad if grad is None or is_one else grad * grad_output for grad in saved]
    return (None, None, *scaled)


def _turn(tile: Tensor, alike: Tensor | None, diagonal: bool, duplicates: Duplicates, ignored: float) -> None:
    """Multiply a tile by -label in place, and set the pairs that leave the sum to ``ignored``."""
    if alike is not None and duplicates == "positive":
        tile.mul_(torch.where(alike, -1, 1))
        return
    if alike is not None:
        tile.masked_fill_(alike.fill_diagonal_(False) if diagonal else alike, ignored)
    if diagonal:
        tile.diagonal().neg_()


def _room(buffer: Tensor | None, size: int, like: Tensor) -> Tensor:
    return buffer if buffer is not None and buffer.numel() >= size else like.new_empty(size)


def _default_chunk(image: Tensor) -> int:
    return _CHUNK_CPU if image.device.type == "cpu" else _CHUNK_ACCELERATOR


def _check(image: Tensor, text: Tensor, groups: Tensor | None, chunk: int | None) -> None:
    if image.ndim != 2 or image.shape != text.shape or len(image) == 0:
        raise ValueError(
            "a contrastive loss needs image and text embeddings of one shape [batch ≥ 1, dim], "
            f"not {list(image.shape)} and {list(text.shape)}"
        )
    if groups is not None and (groups.shape != image.shape[:1] or groups.is_floating_point()):
        raise ValueError(f"groups must be {len(image)} integers, not {list(groups.shape)} of {groups.dtype}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
