"""The claim of Odonata's contrastive losses: exact, at a fraction of the memory of a loop that retains its logits."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from odonata.align.losses import sigmoid_loss, softmax_loss
from odonata.claims.claim import Claim, Comparison, Figures, Plot, Trial
from odonata.errors import RunError

DIM = 256
CHUNK = 1024
EXACT_ROWS = 1500

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def tiled_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Odonata's sigmoid loss."""
    return sigmoid_loss(image, text, scale, bias, process_group="local")


def tiled_softmax(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Odonata's softmax loss; the bias plays no part."""
    return softmax_loss(image, text, scale, process_group="local") + 0 * bias


def looped_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A loop over rows in chunks, differentiated by autograd, which keeps every chunk's logits until the end."""
    total = image.new_zeros(())
    for rows in torch.arange(len(image)).split(CHUNK):
        logits = scale.exp() * image[rows] @ text.T + bias
        total = total + F.softplus(logits).sum() - logits[torch.arange(len(rows)), rows].sum()
    return total / len(image)


def looped_softmax(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Both cross-entropies, each by such a loop."""
    total = 0 * bias
    for left, right in ((image, text), (text, image)):
        for rows in torch.arange(len(image)).split(CHUNK):
            logits = scale.exp() * left[rows] @ right.T
            total = total + F.cross_entropy(logits, rows, reduction="sum")
    return total / (2 * len(image))


LOSSES: dict[tuple[str, str], Loss] = {
    ("tiled", "sigmoid"): tiled_sigmoid,
    ("tiled", "softmax"): tiled_softmax,
    ("retained loop", "sigmoid"): looped_sigmoid,
    ("retained loop", "softmax"): looped_softmax,
}


def embeddings(rows: int, seed: int) -> list[Tensor]:
    """Return random unit-length embeddings, a scale and a bias, all of which want gradients."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (F.normalize(torch.randn(rows, DIM, generator=generator), dim=-1) for _ in range(2))
    tensors = [image, text, torch.tensor(20.0).log(), torch.tensor(-10.0)]
    return [tensor.requires_grad_() for tensor in tensors]


def relative_error(loss: Loss, exact: Loss, seed: int) -> float:
    """Return the largest relative error of the loss and its gradients, ‖ours − exact‖ / ‖exact‖ against float64."""
    ours = embeddings(EXACT_ROWS, seed)
    reference = [tensor.detach().double().requires_grad_() for tensor in ours]
    values = [loss(*ours), exact(*reference)]
    for value in values:
        value.backward()
    pairs = [(values[0], values[1]), *((a.grad, b.grad) for a, b in zip(ours, reference, strict=True))]
    return max(_error(a, b) for a, b in pairs)


def _error(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None and b is not None
    norm = b.norm().item()
    return (a.double() - b).norm().item() / norm if norm else a.norm().item()


def measure(kind: str, name: str, rows: int, seed: int) -> dict[str, float]:
    """Return the memory in MiB that loss and gradients need above the embeddings, and their CPU seconds."""
    loss, tensors = LOSSES[kind, name], embeddings(rows, seed)
    loss(*(tensor.detach()[:64].requires_grad_() if tensor.ndim else tensor for tensor in tensors)).backward()
    before = _reset_peak()
    start = time.process_time()
    loss(*tensors).backward()
    return {"peak_mib": _peak_mib() - before, "loss_cpu_seconds": time.process_time() - start}


def _reset_peak() -> float:
    """Forget the highest memory so far where the system allows it, and return the highest from here on."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _peak_mib()


def _peak_mib() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def trial(trial: Trial) -> Figures:
    """Measure one loss at one size in a process of its own, and compare it with float64."""
    name, size = trial.condition.split()
    rows = trial.steps(int(size.removesuffix("k")) * 1024)
    code = (
        "import json, torch; torch.set_num_threads(1); from odonata.claims.align_losses import measure; "
        f"print(json.dumps(measure({trial.variant!r}, {name!r}, {rows}, {trial.seed})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{trial.name}: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    error = relative_error(LOSSES[trial.variant, name], LOSSES["retained loop", name], trial.seed)
    return {**json.loads(done.stdout), "relative_error": error}


def _memory(name: str, size: str, margin: float, primary: bool = True) -> Comparison:
    return Comparison(f"{name}: memory at {size}", f"tiled@{name} {size}", f"retained loop@{name} {size}", "peak_mib",
                      "<", margin, ratio=True, primary=primary)  # fmt: skip


CLAIM = Claim(
    name="chunked-losses",
    room="align",
    methods=("clip", "siglip"),
    source="Zhai et al. 2023, arXiv:2303.15343, section 3.3 (memory from |B|² to b²); the retaining loop is that of "
    "open_clip's chunked loss (its pull requests 1145 and 1214), written anew",
    hypothesis="Loss and gradients of the tiled losses agree with float64 to 1e-5, and at 16 k pairs they need "
    "less than a fifth of the memory of a chunk loop whose logits autograd retains.",
    data="Random unit-length embeddings of 256 dimensions.",
    scaled_down="8 k and 16 k pairs on a CPU in float32; exactness is measured with 1,500 pairs, the largest "
    "relative error of the loss and its gradients. Memory is the highest resident set of a process of its own, above "
    "the embeddings.",
    trial=trial,
    conditions=("sigmoid 8k", "sigmoid 16k", "softmax 8k", "softmax 16k"),
    variants=("tiled", "retained loop"),
    comparisons=(
        *(Comparison(f"{name}: error against float64", f"tiled@{name} 8k", 1e-5, "relative_error", "<")
          for name in ("sigmoid", "softmax")),
        *(_memory(name, "16k", 0.2) for name in ("sigmoid", "softmax")),
        *(_memory(name, "8k", 0.2, primary=False) for name in ("sigmoid", "softmax")),
        *(Comparison(f"{name}: CPU time at 16k", f"tiled@{name} 16k", f"retained loop@{name} 16k", "loss_cpu_seconds",
                     "<", 1.0, ratio=True, primary=False) for name in ("sigmoid", "softmax")),
    ),
    plots=(
        Plot("peak_mib", "memory above the embeddings, MiB", log=True),
        Plot("loss_cpu_seconds", "CPU time of loss and gradients, s", log=True),
    ),
    axis="loss and batch, pairs",
    seeds=(1, 2, 3),
)  # fmt: skip
