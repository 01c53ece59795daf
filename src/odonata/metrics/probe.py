"""Linear probe: multinomial logistic regression on frozen features, its weight decay chosen on a validation split.

Source: CLIP, arXiv:2103.00020, appendix A.3: L-BFGS, at most 1,000 iterations, strengths from 1e-6 to 1e6, the final
probe trained on both splits; features are not normalised. CLIP searches 96 strengths from coarse to fine; the sweep
here has one per power of ten, or what the caller gives. The objective is that of scikit-learn's LogisticRegression, so
strengths can be compared: Σ cross-entropy + l2 / 2 · ‖W‖² with l2 = 1 / C; the intercept is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from odonata.errors import DataError

L2_SWEEP = tuple(10.0**exponent for exponent in range(-6, 7))


@dataclass(frozen=True)
class LinearProbe:
    """A trained probe.

    Args:
        weight: one row per class.
        bias: one entry per class.
        l2: the strength that it was trained with.
    """

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, "classes"]
    l2: float

    def scores(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


def fit_linear_probe(
    features: Float[Tensor, "batch dim"],
    labels: Int[Tensor, "batch"],
    *,
    l2: float = 1.0,
    classes: int | None = None,
    max_iterations: int = 1000,
    start: LinearProbe | None = None,
) -> LinearProbe:
    """Train a probe to the optimum of its convex objective, in float64.

    Args:
        features: frozen features.
        labels: classes, 0 … classes - 1.
        l2: strength of the penalty, scikit-learn's 1 / C; above 0.
        classes: their number; None for one more than the largest label.
        max_iterations: of L-BFGS.
        start: begin at this probe (of a neighbouring ``l2``); it changes the time, not the result.

    Raises:
        DataError: shapes do not fit, a feature is not finite, or l2 is not positive.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise DataError(f"a probe needs features [batch, dim] with a label each: {list(features.shape)}, {len(labels)}")
    if not features.isfinite().all():
        raise DataError(f"the features of sample {int((~features.isfinite().all(1)).nonzero()[0])} are not finite")
    if l2 <= 0:
        raise DataError(f"l2 must be above 0, not {l2}: on separable features the optimum would lie at infinity")
    count = int(labels.max()) + 1 if classes is None else classes
    x, y = features.detach().double(), labels.long()
    weight = x.new_zeros(count, x.shape[1]) if start is None else start.weight.double().clone()
    bias = x.new_zeros(count) if start is None else start.bias.double().clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-7, tolerance_change=1e-14, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        optimizer.zero_grad()
        # Divided by the number of samples, which moves no optimum and keeps the tolerances meaningful.
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + l2 / (2 * len(x)) * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return LinearProbe(weight.detach(), bias.detach(), l2)


def sweep_linear_probe(
    features: Float[Tensor, "batch dim"],
    labels: Int[Tensor, "batch"],
    validation_features: Float[Tensor, "validation dim"],
    validation_labels: Int[Tensor, "validation"],
    *,
    sweep: Sequence[float] = L2_SWEEP,
    refit: bool = True,
    max_iterations: int = 1000,
) -> tuple[LinearProbe, dict[float, float]]:
    """Choose the penalty by validation accuracy and train with it.

    Args:
        features: training features.
        labels: their classes.
        validation_features: features on which the strength is chosen; never the test set.
        validation_labels: their classes.
        sweep: strengths to try.
        refit: train the final probe on both splits together, as CLIP does.
        max_iterations: of L-BFGS.

    Returns:
        the probe, and each strength's validation accuracy. Equal accuracies go to the larger strength.
    """
    classes = int(max(labels.max(), validation_labels.max())) + 1
    accuracy: dict[float, float] = {}
    probe: LinearProbe | None = None
    best: LinearProbe | None = None
    for l2 in sorted(sweep, reverse=True):
        probe = fit_linear_probe(features, labels, l2=l2, classes=classes, max_iterations=max_iterations, start=probe)
        right = probe.scores(validation_features).argmax(1) == validation_labels
        accuracy[l2] = right.double().mean().item()
        if best is None or accuracy[l2] > accuracy[best.l2]:
            best = probe
    if best is None:
        raise DataError("the sweep holds no strength")
    if refit:
        both = torch.cat([features, validation_features]), torch.cat([labels, validation_labels])
        best = fit_linear_probe(*both, l2=best.l2, classes=classes, max_iterations=max_iterations, start=best)
    return best, accuracy
