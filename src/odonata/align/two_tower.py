"""What the two-tower methods share: their configuration, their step, and the limits of the temperature."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

import torch
import tyro
from jaxtyping import Float
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from odonata.align.batch import ImageTextBatch
from odonata.align.dual_encoder import DualEncoder, DualEncoderConfig
from odonata.align.grad_cache import grad_cache_step
from odonata.engine import tensors
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.engine.fit import Engine
    from odonata.engine.method import Method

MAX_LOG_SCALE = math.log(100)
"""CLIP clips the logit scale at 100 (2103.00020, sec. 2.5)."""


@dataclass(frozen=True)
class TwoTowerConfig:
    """The options of every two-tower method."""

    variant: str = "clip-laptop"
    """Architecture by name: a published one (ViT-B-16, RN50, ViT-B-16-SigLIP, …) or one that trains on a laptop."""
    model: tyro.conf.Suppress[DualEncoderConfig | None] = None
    """Instead of a name, the architecture itself."""
    image_size: int = 0
    """Side of the input in pixels (0 = the variant's)."""
    init: str = ""
    """Published weights or a run to start from; its tokenizer and preprocessing come along."""
    tokenizer: str = ""
    """A tokenizer.json, CLIP's merges, a SentencePiece .model or WordPiece vocab.txt; empty: a BPE of the captions."""
    vocab_size: int = 4096
    """Entries of the BPE that is trained when no tokenizer is given."""
    context_length: int = 0
    """Tokens of a caption (0 = the variant's)."""
    duplicates: Literal["positive", "ignore", "negative"] = "positive"
    """What rows of equal caption or picture are to each other; in small sets they are not negatives."""
    micro_batch: int = 0
    """GradCache: encode so many pairs at a time, yet contrast the whole batch, with equal gradients (0 = off)."""
    lora_rank: int = 0
    """Train low-rank updates of the attention's matrices instead of all weights (0 = off)."""
    lora_alpha: float = 16.0
    """Scale of the low-rank updates: alpha / rank."""
    max_patches: int = 0
    """NaFlex: patches a picture is resized to have at most (0 = fixed squares)."""

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            RecipeError: names the option.
        """
        for name in ("image_size", "context_length", "micro_batch", "lora_rank", "max_patches"):
            if getattr(self, name) < 0:
                raise RecipeError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must not be negative")
        if self.lora_rank and not self.init:
            raise RecipeError("--lora-rank adapts pretrained weights: name them with --init")


def encode(model: DualEncoder, batch: ImageTextBatch) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch dim"]]:
    """Return unit-length embeddings of the batch's pictures and captions."""
    return model.encode_image(batch.images, mask=batch.mask, grids=batch.grids), model.encode_text(batch.tokens)


class Alike(TypedDict, total=False):
    """What the losses are told of rows with equal content."""

    groups: Tensor
    duplicates: Literal["positive", "ignore"]


def alike(batch: ImageTextBatch, duplicates: Literal["positive", "ignore", "negative"]) -> Alike:
    """Return the losses' arguments on rows of equal content; none where every other row is a negative."""
    return {} if duplicates == "negative" else {"groups": batch.groups, "duplicates": duplicates}


Objective = Callable[[Tensor, Tensor, ImageTextBatch], dict[str, Tensor]]
"""Embeddings of pictures and captions to the loss and its figures."""


def contrastive_step(
    method: Method, model: DualEncoder, objective: Objective, batch: ImageTextBatch, engine: Engine, micro_batch: int
) -> dict[str, Tensor]:
    """Do one update: at once, or with embeddings cached over micro-batches (GradCache, 2101.06983).

    Raises:
        RecipeError: GradCache is asked for together with accumulation or sharding.
    """
    if not micro_batch or tensors.rows(batch) <= micro_batch:
        return engine.minimise(method, batch)
    if engine.recipe.accumulate > 1 or engine.sharded:
        other = "--accumulate" if engine.recipe.accumulate > 1 else "--parallel fsdp"
        raise RecipeError(f"--micro-batch does not go together with {other}")
    parts = tensors.split(batch, -(-tensors.rows(batch) // micro_batch))
    logs: dict[str, Tensor] = {}

    def loss(image: Tensor, text: Tensor) -> Tensor:
        out = objective(image, text, batch)
        logs.update({key: value.detach() for key, value in out.items()})
        return out["loss"]

    def encode_images(part: ImageTextBatch) -> Tensor:
        with engine.autocast():
            return model.encode_image(part.images, mask=part.mask, grids=part.grids)

    def encode_texts(part: ImageTextBatch) -> Tensor:
        with engine.autocast():
            return model.encode_text(part.tokens)

    replicated = engine.wrapped(method)
    with replicated.no_sync() if isinstance(replicated, DistributedDataParallel) else contextlib.nullcontext():
        grad_cache_step((encode_images, encode_texts), (parts, parts), loss, backward=engine.backward)
    if engine.world.size > 1:
        engine.average_gradients()
    engine.update()
    return logs


@torch.no_grad()
def clamp_logit_scale(model: DualEncoder) -> None:
    """Keep the logarithm of the scale in [0, ln 100], as open_clip and big_vision do after each update."""
    model.logit_scale.clamp_(0, MAX_LOG_SCALE)
