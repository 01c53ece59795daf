"""Memory and time of the contrastive losses, forward and backward, against the ways they are usually written.

    python benchmarks/losses.py            # N = 8,192, 16,384 and 32,768, D = 512: some minutes, 12 GB for the peers
    python benchmarks/losses.py --quick    # N = 2,048 and 4,096

Every figure comes from a process of its own: the peak of its resident memory above what it held before the loss, and
the best wall time of a few repetitions. Peers: "naive" holds the N × N logits; "loop" goes through them in chunks of
1,024 rows and adds up the losses, as chunking is usually written, so that autograd retains every chunk. All variants of
a row must agree in the loss and in the norm of the gradient to 1e-4, or the run fails. Peers that would not fit in the
free memory are left out.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

DIM, CHUNK = 512, 1024
VARIANTS = ("ours", "loop", "naive")
# N × N float32 matrices alive at the peak: what a peer needs, to decide whether to run it at all.
MATRICES = {("sigmoid", "loop"): 1.2, ("sigmoid", "naive"): 6, ("softmax", "loop"): 2.4, ("softmax", "naive"): 5}


def measure(kind: str, variant: str, rows: int, threads: int, repeats: int) -> dict[str, float]:
    """Run one variant in this process."""
    import torch
    import torch.nn.functional as F

    from odonata.align.losses import sigmoid_loss, softmax_loss

    torch.set_num_threads(threads)

    def inputs(count: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, y = (F.normalize(torch.randn(count, DIM, generator=generator), dim=-1) for _ in range(2))
        return [v.requires_grad_() for v in (x, y, torch.tensor(2.302585), torch.tensor(-10.0))]

    def signed(z: torch.Tensor, start: int) -> torch.Tensor:
        index = torch.arange(len(z))
        return F.softplus(z).sum() - z[index, start + index].sum()

    def naive_sigmoid(x, y, t, b):
        labels = 2 * torch.eye(len(x)) - 1
        return -F.logsigmoid(labels * (t.exp() * x @ y.T + b)).sum() / len(x)

    def loop_sigmoid(x, y, t, b):
        parts = [signed(t.exp() * x[i : i + CHUNK] @ y.T + b, i) for i in range(0, len(x), CHUNK)]
        return torch.stack(parts).sum() / len(x)

    def naive_softmax(x, y, t, _):
        logits, labels = t.exp() * x @ y.T, torch.arange(len(x))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def loop_softmax(x, y, t, _):
        labels = torch.arange(len(x)).split(CHUNK)
        parts = [
            F.cross_entropy(t.exp() * part @ other.T, label, reduction="sum")
            for one, other in ((x, y), (y, x))
            for part, label in zip(one.split(CHUNK), labels, strict=True)
        ]
        return torch.stack(parts).sum() / (2 * len(x))

    functions = {
        ("sigmoid", "ours"): sigmoid_loss,
        ("softmax", "ours"): lambda x, y, t, _: softmax_loss(x, y, t),
        ("sigmoid", "loop"): loop_sigmoid,
        ("softmax", "loop"): loop_softmax,
        ("sigmoid", "naive"): naive_sigmoid,
        ("softmax", "naive"): naive_softmax,
    }
    function = functions[kind, variant]
    function(*inputs(64)).backward()  # threads and libraries wake up
    leaves = inputs(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = float("inf")
    for _ in range(repeats):
        for leaf in leaves:
            leaf.grad = None
        start = time.perf_counter()
        loss = function(*leaves)
        loss.backward()
        best = min(best, time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    norm = torch.cat([leaves[0].grad.flatten(), leaves[1].grad.flatten()]).norm().item()
    return {"seconds": best, "megabytes": peak / 1024, "loss": loss.item(), "gradient": norm}


def run(kind: str, variant: str, rows: int, threads: int, repeats: int) -> dict[str, float] | None:
    """Run one variant in its own process, or return None where memory is short."""
    needed = MATRICES.get((kind, variant), 0) * rows * rows * 4 + 1e9
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > 0.9 * available:
        return None
    child = [kind, variant, str(rows), str(threads), str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *child]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if output.returncode:
        raise SystemExit(f"{kind} {variant} N = {rows} failed:\n{output.stderr}")
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="N = 2,048 and 4,096 only")
    parser.add_argument("--rows", type=int, nargs="+", default=[8192, 16384, 32768], help="batch sizes N")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, variant, *numbers = arguments.child
        print(json.dumps(measure(kind, variant, *map(int, numbers))))
        return
    print(f"D = {DIM}, float32, {arguments.threads} threads; memory above the inputs, forward and backward")
    print(f"{'loss':8}{'N':>7}  {'':7}{'seconds':>9}{'MB':>8}{'time / ours':>13}{'memory / ours':>15}")
    for rows in (2048, 4096) if arguments.quick else arguments.rows:
        for kind in ("sigmoid", "softmax"):
            found = {v: run(kind, v, rows, arguments.threads, 3 if rows <= 8192 else 1) for v in VARIANTS}
            ours = found["ours"]
            assert ours is not None
            for variant, result in found.items():
                if result is None:
                    print(f"{kind:8}{rows:7}  {variant:7}  left out: too little free memory")
                    continue
                for name in ("loss", "gradient"):
                    if abs(result[name] - ours[name]) > 1e-4 * abs(ours[name]):
                        raise SystemExit(f"{kind} N = {rows}: {variant} disagrees in {name}: {result} and {ours}")
                time_ratio = result["seconds"] / ours["seconds"]
                memory_ratio = result["megabytes"] / ours["megabytes"]
                print(
                    f"{kind:8}{rows:7}  {variant:7}{result['seconds']:9.2f}{result['megabytes']:8.0f}"
                    f"{time_ratio:13.2f}{memory_ratio:15.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
