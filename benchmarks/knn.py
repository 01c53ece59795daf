"""kNN of frozen features: 10,000 against 50,000, 384 wide, k = 20.

    python benchmarks/knn.py            # 4 threads; a minute
    python benchmarks/knn.py --quick    # 500 against 5,000

One process, in turn, the best time of each on the wall, and of all CPUs together.
Peers: "DINO" does what DINO's evaluation does, written anew here: the test set in 100 parts, and the votes as a
one-hot tensor of neighbours × classes; "scikit-learn" is `KNeighborsClassifier` with the cosine metric and brute force,
whose votes are weighted alike. All must give the same class for all but 1 in 1,000 samples (votes can be equal), or the
run fails.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, CLASSES, K, TEMPERATURE = 384, 100, 20, 0.07
NAMES = ("ours", "DINO", "scikit-learn")


def features(train: int, test: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy copies of 100 directions, as unit vectors; so noisy that neighbours disagree."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (train + test,), generator=generator)
    rows = centres[labels] + 4 * torch.randn(train + test, WIDTH, generator=generator)
    rows = F.normalize(rows, dim=1)
    return rows[:train], labels[:train], rows[train:]


def ours(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Our function with its defaults."""
    from odonata.metrics.knn import knn_scores

    return knn_scores(train, labels, test, classes=CLASSES).argmax(1)


@torch.no_grad()
def dino(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """The evaluation of DINO: 100 parts, one-hot votes."""
    found: list[Tensor] = []
    for rows in test.chunk(100):
        similarity, nearest = (rows @ train.T).topk(K, largest=True, sorted=True)
        one_hot = torch.zeros(len(rows) * K, CLASSES).scatter_(1, labels[nearest].view(-1, 1), 1)
        weights = (similarity / TEMPERATURE).exp_()
        votes = (one_hot.view(len(rows), K, CLASSES) * weights[:, :, None]).sum(1)
        found.append(votes.sort(1, descending=True).indices[:, 0])
    return torch.cat(found)


def scikit_learn(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Cosine metric, brute force."""
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(
        K, weights=lambda distance: np.exp((1 - distance) / TEMPERATURE), algorithm="brute", metric="cosine"
    )
    return torch.from_numpy(model.fit(train.numpy(), labels.numpy()).predict(test.numpy()))


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = dict(
    zip(NAMES, (ours, dino, scikit_learn), strict=True)
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 against 5,000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    import sklearn

    train, test = (5000, 500) if arguments.quick else (50_000, 10_000)
    bank, labels, rows = features(train, test)
    predicted = {name: function(bank[:5000], labels[:5000], rows[:500]) for name, function in FUNCTIONS.items()}
    wall, cpu = dict.fromkeys(NAMES, float("inf")), dict.fromkeys(NAMES, float("inf"))
    for _ in range(1 if arguments.quick else arguments.rounds):
        for name, function in FUNCTIONS.items():
            start, used = time.perf_counter(), time.process_time()
            predicted[name] = function(bank, labels, rows)
            wall[name] = min(wall[name], time.perf_counter() - start)
            cpu[name] = min(cpu[name], time.process_time() - used)
    different = {name: float((found != predicted["ours"]).double().mean()) for name, found in predicted.items()}
    for name, share in different.items():
        if share > 1e-3:
            raise SystemExit(f"{name} gives another class than ours for {share:.2%} of the samples")
    print(
        f"{test:,} × {train:,}, {WIDTH} wide, k = {K}, {arguments.threads} threads, load {os.getloadavg()[0]:.0f}, "
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    )
    print(f"{'':14}{'seconds':>9}{'CPU s':>8}{'time / ours':>13}{'CPU / ours':>12}  other classes")
    for name in NAMES:
        ratios = wall[name] / wall["ours"], cpu[name] / cpu["ours"]
        print(f"{name:14}{wall[name]:9.2f}{cpu[name]:8.2f}{ratios[0]:13.2f}{ratios[1]:12.2f}  {different[name]:.2%}")


if __name__ == "__main__":
    main()
