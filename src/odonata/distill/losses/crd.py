"""CRD: a student's embedding must tell the teacher's embedding of its own image from those of thousands of others.

That bounds the mutual information of the two representations from below, correlations between dimensions included,
which KL divergences of logits do not see. Embeddings of the whole training set are kept in two banks. Each batch is
scored against the *other* network's bank, once with the student and once with the teacher as anchor, and positives are
told from K negatives by noise contrastive estimation with uniform noise 1/N. The normalising constants Z are estimated
on the first batch and stay.

Reference: Tian, Krishnan, Isola, Contrastive Representation Distillation, arXiv:1910.10699, equations 10, 18 and 19;
noise contrastive estimation over banks: Wu et al., arXiv:1805.01978, equations 5 to 8.

Deliberate differences from RepDistiller, whose K 16384, T .07, momentum .5, dimension 128 and weight .8 are the
defaults:

- Negatives are drawn on the device (`odonata.distill.losses.negatives`); there a loader draws them by
  `numpy.random.choice` for each sample, which decides the time of a step.
- Where the bank is not much larger than K, all of its scores are computed by one matrix product and the sampled ones
  picked, instead of gathering B × (K + 1) vectors. The result is the same.
- Banks, Z, seed and the number of batches seen are buffers: a checkpoint holds them, and a resumed run continues bit by
  bit. Several processes share what they write to the banks, and the estimate of Z.
- `negatives = "in_batch"` is another loss under its own name: the softmax of InfoNCE, both ways, over the batch alone,
  for data without end, where no bank can be kept.
"""

import math
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from odonata.distill.losses.interface import DistillLoss, Taps, TapShapes, needed
from odonata.distill.losses.negatives import Negatives
from odonata.errors import RecipeError
from odonata.nn.momentum import gather_rows

Source = Literal["other_classes", "other_samples", "in_batch"]

_EPS = 1e-7
# Gathering moves a whole embedding per score. On one core of a CPU, forward and backward with K = 16384, both took as
# long at a bank of about 35 times K; at three times K (50,000) the product was 16 times faster.
_BANK_OVER_NEGATIVES = 32


def nce_loss(scores: Float[Tensor, "batch candidates"], num_samples: int) -> Float[Tensor, ""]:
    """Telling the first candidate from K = candidates − 1 drawn from uniform noise.

    Args:
        scores: p(candidate | anchor), normalised; the positive comes first.
        num_samples: N; the noise is 1/N.

    Returns:
        the sum over candidates, mean over the batch.

    Source: Tian et al. 2020, equations 18 and 19; Wu et al. 2018, equation 7.
    """
    noise = (scores.shape[1] - 1) / num_samples
    log_total = (scores + (noise + _EPS)).log()
    positive = scores[:, 0].log() - log_total[:, 0]
    negative = math.log(noise) - log_total[:, 1:]
    return -(positive.sum() + negative.sum()) / len(scores)


def in_batch_loss(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE among the embeddings of a batch, student → teacher plus teacher → student."""
    logits = student @ teacher.T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def bank_similarities(
    embedding: Float[Tensor, "batch dim"], bank: Float[Tensor, "samples dim"], candidates: Int[Tensor, "batch count"]
) -> Float[Tensor, "batch count"]:
    """Inner products with some rows of a bank that may be overwritten afterwards."""
    if len(bank) <= _BANK_OVER_NEGATIVES * candidates.shape[1]:
        return (embedding @ bank.clone().T).gather(1, candidates)
    rows = bank.index_select(0, candidates.flatten()).unflatten(0, candidates.shape)
    return (rows @ embedding[:, :, None]).squeeze(2)


class CRDLoss(DistillLoss):
    """CRD of the pooled vectors.

    Args:
        student, teacher: shapes of the taps.
        num_samples: N of the training set; not needed where labels are given.
        labels: class of every sample of the training set.
        negatives: "other_classes" (needs labels), "other_samples", or "in_batch".
        num_negatives: K.
        temperature: T.
        momentum: of a bank's row when its sample is seen again.
        dim: of the embeddings.
        seed: of the draws and of the banks at the start.

    Raises:
        RecipeError: labels or the number of samples are missing.
    """

    needs = frozenset({"pooled", "indices"})
    beta = 0.8

    student_bank: Tensor
    teacher_bank: Tensor
    z: Tensor
    step: Tensor
    seed: Tensor

    def __init__(
        self,
        student: TapShapes,
        teacher: TapShapes,
        num_samples: int | None = None,
        labels: Int[Tensor, "samples"] | None = None,
        negatives: Source = "other_classes",
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        dim: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(student, teacher)
        self.num_negatives, self.temperature, self.momentum = num_negatives, temperature, momentum
        self.embed_student, self.embed_teacher = nn.Linear(student.dim, dim), nn.Linear(teacher.dim, dim)
        self.in_batch = negatives == "in_batch"
        if self.in_batch:
            return
        if negatives == "other_classes" and labels is None:
            raise RecipeError("crd draws negatives from other classes and needs labels; or negatives = 'other_samples'")
        size = num_samples if labels is None else len(labels)
        if size is None:
            raise RecipeError("crd keeps an embedding of every training sample and needs their number; or 'in_batch'")
        self.negatives = Negatives(size, labels if negatives == "other_classes" else None)
        generator = torch.Generator().manual_seed(seed)
        for name in ("student_bank", "teacher_bank"):
            uniform = 2 * torch.rand(size, dim, generator=generator) - 1
            self.register_buffer(name, uniform * math.sqrt(3 / dim))
        self.register_buffer("z", torch.full((2,), -1.0))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seed", torch.tensor(seed))

    def loss(self, student: Taps, teacher: Taps, labels: Tensor | None, indices: Tensor | None) -> dict[str, Tensor]:
        """See `contrast`; negatives are drawn for this step."""
        ours, theirs = needed(student.pooled, "a pooled vector"), needed(teacher.pooled, "a pooled vector")
        if self.in_batch:
            embeddings = F.normalize(self.embed_student(ours)), F.normalize(self.embed_teacher(theirs))
            return {"loss": in_batch_loss(*embeddings, self.temperature)}
        indices = needed(indices, "the samples' indices")
        drawn = self.negatives.draw(indices, self.num_negatives, self.seed, self.step)
        return self.contrast(ours, theirs, indices, drawn)

    def contrast(
        self,
        student: Float[Tensor, "batch student_dim"],
        teacher: Float[Tensor, "batch teacher_dim"],
        indices: Int[Tensor, "batch"],
        negatives: Int[Tensor, "batch negatives"],
    ) -> dict[str, Tensor]:
        """Compute the loss against given negatives and, in training mode, write the batch into the banks.

        Args:
            student, teacher: pooled vectors.
            indices: the samples in the training set.
            negatives: samples to tell them from.
        """
        v_student = F.normalize(self.embed_student(student))
        v_teacher = F.normalize(self.embed_teacher(teacher))
        candidates = torch.cat([indices[:, None], negatives], 1)
        parts = [
            (bank_similarities(v, bank, candidates) / self.temperature).exp()
            for v, bank in ((v_student, self.teacher_bank), (v_teacher, self.student_bank))
        ]
        z = self._constants(parts)
        losses = [nce_loss(part / constant, len(self.student_bank)) for part, constant in zip(parts, z, strict=True)]
        if self.training:
            self._remember(v_student.detach(), v_teacher.detach(), indices, z)
        anchors = {"crd_student": losses[0].detach(), "crd_teacher": losses[1].detach()}
        return {"loss": losses[0] + losses[1], **anchors}

    @torch.no_grad()
    def _constants(self, parts: list[Tensor]) -> Tensor:
        """Z of each anchor: kept if set, otherwise N times the mean of the unnormalised scores (Wu et al., eq. 8)."""
        means = torch.stack([part.mean() for part in parts]).to(self.z.dtype)
        if _is_parallel():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        # Without asking the device whether they are set: that would wait for it.
        return torch.where(self.z < 0, means * len(self.student_bank), self.z)

    @torch.no_grad()
    def _remember(self, v_student: Tensor, v_teacher: Tensor, indices: Tensor, z: Tensor) -> None:
        if _is_parallel():  # equally many rows on each rank
            v_student, v_teacher, indices = (gather_rows(tensor) for tensor in (v_student, v_teacher, indices))
        for bank, new in ((self.student_bank, v_student), (self.teacher_bank, v_teacher)):
            row = self.momentum * bank.index_select(0, indices) + (1 - self.momentum) * new.to(bank.dtype)
            bank.index_copy_(0, indices, F.normalize(row))
        self.z.copy_(z)
        self.step += 1


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
