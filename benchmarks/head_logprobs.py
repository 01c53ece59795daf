"""Memory and time of the log-probabilities of given tokens under a large head, forward and backward.

    python benchmarks/head_logprobs.py                        # 1,024 rows × 32,768 and 151,936 tokens, D = 256
    python benchmarks/head_logprobs.py --trl OTHER/bin/python # TRL's fused head too, from an environment that has it
    python benchmarks/head_logprobs.py --quick                # 256 rows × 4,096

Every figure comes from a process of its own: the peak of its resident memory above what it held before, and the best
wall time of a few repetitions. Peers: "full" holds the rows × vocab logits and takes their log_softmax. "selective"
holds them too, gathers first, and subtracts the log-sum-exp of one sequence of 128 rows after the other: TRL's way on
a CPU. "TRL, fused" is its `ChunkedLogProbFunction`, which its DPO and KTO use, with the chunk that its trainers set.
"frozen" is ours where the head needs no gradient, as under LoRA. All variants of a row must agree in the sum of the
log-probabilities and in the norm of the hidden states' gradient to 1e-4, or the run fails.
"""

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

DIM, SEQUENCE = 256, 128
TRL_CHUNK = 32768
"""`_CHUNKED_LOGPROB_CHUNK_SIZE` of TRL 1.16."""
VARIANTS = ("ours", "ours, entropy", "ours, frozen", "full", "selective", "TRL, fused")


def begin_peak() -> float:
    """Return the resident megabytes; where the system can, give back what is free and forget an earlier peak."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_megabytes()
    return pages * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    """Return the most resident megabytes since."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(variant: str, rows: int, vocab: int, threads: int, repeats: int) -> dict[str, float]:
    """Run one variant in this process."""
    import torch

    torch.set_num_threads(threads)

    def ours(hidden, weight, targets):
        from odonata.nn.head_logprobs import head_logprobs

        return head_logprobs(hidden, weight, targets, entropy="entropy" in variant)[0]

    def full(hidden, weight, targets):
        return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def selective(hidden, weight, targets):
        logits = hidden @ weight.T
        sums = [part.logsumexp(-1) for part in logits.split(SEQUENCE)]
        return logits.gather(1, targets[:, None])[:, 0] - torch.cat(sums)

    def fused(hidden, weight, targets):
        from trl.kernels import ChunkedLogProbFunction

        chunk, wanted = TRL_CHUNK, ("log_probs",)
        return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, chunk, None, 1.0, wanted)[0]

    def inputs(count: int, tokens: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(count, DIM, generator=generator, requires_grad=True)
        weight = torch.randn(tokens, DIM, generator=generator).mul_(0.02)
        weight.requires_grad_("frozen" not in variant)
        return [hidden, weight, torch.randint(0, tokens, (count,), generator=generator)]

    function = {"full": full, "selective": selective, "TRL, fused": fused}.get(variant, ours)
    function(*inputs(64, 512)).sum().backward()  # threads and libraries wake up
    given = inputs(rows, vocab)
    before = begin_peak()
    best = float("inf")
    for _ in range(repeats):
        for leaf in given[:2]:
            leaf.grad = None
        start = time.perf_counter()
        logprobs = function(*given)
        logprobs.sum().backward()
        best = min(best, time.perf_counter() - start)
    result = {"seconds": best, "megabytes": peak_megabytes() - before, "sum": logprobs.sum().item()}
    return result | {"gradient": given[0].grad.norm().item()}


def run(python: str, variant: str, rows: int, vocab: int, threads: int, repeats: int) -> dict[str, float]:
    """Run one variant in its own process."""
    child = [variant, str(rows), str(vocab), str(threads), str(repeats)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [python, str(Path(__file__).resolve()), "--child", *child]
    output = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if output.returncode:
        raise SystemExit(f"{variant}, {rows} × {vocab} failed:\n{output.stderr}")
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 rows × 4,096 tokens only")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--vocab", type=int, nargs="+", default=[32768, 151936])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl", help="the Python of an environment with TRL 1.16 and torch; left out where not given")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        variant, *numbers = arguments.child
        print(json.dumps(measure(variant, *map(int, numbers))))
        return
    rows = 256 if arguments.quick else arguments.rows
    print(
        f"{rows} rows, D = {DIM}, float32, {arguments.threads} threads; memory above the inputs, forward and backward"
    )
    print(f"{'vocab':>8}  {'':15}{'seconds':>9}{'MB':>8}{'time / ours':>13}{'memory / ours':>15}")
    for vocab in (4096,) if arguments.quick else arguments.vocab:
        ours: dict[str, float] = {}
        for variant in VARIANTS:
            if variant.startswith("TRL") and not arguments.trl:
                print(f"{vocab:8,}  {variant:15}  left out: --trl was not given")
                continue
            python = arguments.trl if variant.startswith("TRL") else sys.executable
            result = run(python, variant, rows, vocab, arguments.threads, arguments.repeats)
            ours = ours or result
            for name in ("sum", "gradient"):
                if abs(result[name] - ours[name]) > 1e-4 * abs(ours[name]):
                    raise SystemExit(f"{vocab} tokens: {variant} disagrees in {name}: {result} and {ours}")
            print(
                f"{vocab:8,}  {variant:15}{result['seconds']:9.2f}{result['megabytes']:8.0f}"
                f"{result['seconds'] / ours['seconds']:13.2f}{result['megabytes'] / ours['megabytes']:15.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
