"""A step of CRD: negatives drawn where the loss is computed, against negatives drawn by the loader.

    python benchmarks/distill_crd.py            # half a minute
    python benchmarks/distill_crd.py --quick    # N = 5,000, K = 1,024

CIFAR-100's numbers: N = 50,000 samples of 100 classes, K = 16,384 negatives, batches of 64, pooled vectors of 256,
embeddings of 128. A step is the draw, the loss, its backward pass and the update of the banks; networks and pictures
are left out, as they are the same for all. Contestants take turns in one process, and the best time counts:

- "ours": `CRDLoss`.
- "loader": the peer. Negatives as RepDistiller's data set draws them, `numpy.random.choice` without replacement from a
  table of the samples of all other classes, for every sample of the batch, then collated; the loss gathers the
  embeddings of all candidates from the banks and multiplies them, as its `ContrastMemory` does.
- "loader, our loss": those negatives in `CRDLoss`, to tell the two causes apart.

The peer's draws happen here in the process that trains. Loader workers hide some of their time on a machine with idle
cores, and then need those cores and copy 8 MB per batch between processes. Given the same candidates, peer and ours
must agree in the loss and in the student's gradient to 1e-4, or the run fails.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from odonata.distill.losses.crd import CRDLoss, nce_loss
from odonata.distill.losses.interface import Taps, TapShapes

BATCH, CLASSES, WIDTH = 64, 100, 256


class LoaderDraws:
    """Candidates of a batch, drawn for each sample by numpy."""

    def __init__(self, labels: np.ndarray, count: int) -> None:
        self.labels, self.count = labels, count
        self.others = [np.flatnonzero(labels != group) for group in range(CLASSES)]
        self.random = np.random.RandomState(0)

    def sample(self, index: int) -> np.ndarray:
        """What the data set returns beside a picture: the sample and its negatives."""
        others = self.others[self.labels[index]]
        negatives = self.random.choice(others, self.count, replace=self.count > len(others))
        return np.hstack((np.asarray([index]), negatives))

    def batch(self, indices: Tensor) -> Tensor:
        """What the loader collates."""
        return torch.stack([torch.from_numpy(self.sample(index)) for index in indices.tolist()])


def gathering_step(loss: CRDLoss, student: Tensor, teacher: Tensor, candidates: Tensor) -> Tensor:
    """The peer's loss, on the embeddings, banks and Z of ours."""
    embeddings = F.normalize(loss.embed_student(student)), F.normalize(loss.embed_teacher(teacher))
    banks = loss.teacher_bank, loss.student_bank
    total = torch.zeros(())
    for place, (embedding, bank) in enumerate(zip(embeddings, banks, strict=True)):
        rows = torch.index_select(bank, 0, candidates.flatten()).view(*candidates.shape, -1)
        scores = torch.bmm(rows, embedding[:, :, None]).squeeze(2).div(loss.temperature).exp()
        if loss.z[place] < 0:
            loss.z[place] = scores.detach().mean() * len(bank)
        total = total + nce_loss(scores / loss.z[place].item(), len(bank))
    with torch.no_grad():
        for bank, embedding in ((loss.student_bank, embeddings[0]), (loss.teacher_bank, embeddings[1])):
            row = bank.index_select(0, candidates[:, 0]) * 0.5 + embedding * 0.5
            bank.index_copy_(0, candidates[:, 0], F.normalize(row))
    return total


def check(build: Callable[[], CRDLoss], student: Tensor, teacher: Tensor, candidates: Tensor) -> None:
    """Stop where the peer's loss, over two steps, is another than ours."""
    ours, peer = build(), build()
    for _ in range(2):
        leaves = [student.clone().requires_grad_() for _ in range(2)]
        first = ours.contrast(leaves[0], teacher, candidates[:, 0], candidates[:, 1:])["loss"]
        second = gathering_step(peer, leaves[1], teacher, candidates)
        gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip((first, second), leaves, strict=True)]
        for a, b in ((first, second), gradients):
            if not (a - b).norm() < 1e-4 * b.norm():
                raise SystemExit(f"the peer's loss or gradient is another: {a.norm()} and {b.norm()}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="N = 5,000, K = 1,024, three rounds")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    samples, count, rounds = (5000, 1024, 3) if arguments.quick else (50_000, 16_384, 10)
    labels = torch.arange(samples) % CLASSES
    shapes = TapShapes("student", dim=WIDTH), TapShapes("teacher", dim=WIDTH)

    def build() -> CRDLoss:
        torch.manual_seed(0)
        return CRDLoss(*shapes, labels=labels, num_negatives=count)

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2))
    indices = torch.randperm(samples, generator=generator)[:BATCH]
    draws = LoaderDraws(labels.numpy(), count)
    check(build, student, teacher, draws.batch(indices))
    losses = {name: build() for name in ("ours", "loader", "loader, our loss")}

    def ours() -> float:
        loss = losses["ours"]
        start = time.perf_counter()
        drawn = loss.negatives.draw(indices, count, loss.seed, loss.step)
        drawing = time.perf_counter() - start
        del drawn
        loss(Taps([], [], leaf, None), Taps([], [], teacher, None), None, indices)["loss"].backward()
        return drawing

    def loader() -> float:
        start = time.perf_counter()
        candidates = draws.batch(indices)
        drawing = time.perf_counter() - start
        gathering_step(losses["loader"], leaf, teacher, candidates).backward()
        return drawing

    def loader_our_loss() -> float:
        start = time.perf_counter()
        candidates = draws.batch(indices)
        drawing = time.perf_counter() - start
        loss = losses["loader, our loss"]
        loss.contrast(leaf, teacher, candidates[:, 0], candidates[:, 1:])["loss"].backward()
        return drawing

    # Ours draws once more for the clock of the draw; that time leaves the step again.
    contestants = {"ours": (ours, True), "loader": (loader, False), "loader, our loss": (loader_our_loss, False)}
    best = {name: (float("inf"), float("inf")) for name in contestants}
    for _ in range(rounds):
        for name, (step, again) in contestants.items():
            leaf = student.clone().requires_grad_()
            start = time.perf_counter()
            drawing = step()
            whole = time.perf_counter() - start - (drawing if again else 0)
            best[name] = (min(best[name][0], whole), min(best[name][1], drawing))
    print(
        f"CRD, N = {samples:,}, K = {count:,}, batch {BATCH}, torch {torch.__version__}, numpy {np.__version__}, "
        f"{arguments.threads} thread, best of {rounds}"
    )
    print(f"{'':18}{'ms / step':>10}{'of it draw':>12}{'time / ours':>13}")
    for name, (whole, drawing) in best.items():
        print(f"{name:18}{1e3 * whole:10.1f}{1e3 * drawing:12.1f}{whole / best['ours'][0]:13.2f}")


if __name__ == "__main__":
    main()
