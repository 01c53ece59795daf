"""Is it collapsing, and why? A watch over the log of a run.

The commonest report on self-supervised learning is a loss that stands still at a constant, and the constant is ln K:
the model answers every question alike. What the log holds tells the kinds of collapse apart, and each has its remedy.

Sources: DINO, Caron et al. 2021, sec. 5.3 (entropy and divergence of the teacher: both collapses); SimSiam, Chen and He
2020, sec. 4.1 (spread of unit-length outputs); SwAV, Caron et al. 2020, sec. 3.1 (equal use of prototypes).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from odonata.represent.representation import Representation

log = logging.getLogger(__name__)

PATIENCE = 0.15
"""Share of the run that a loss may stand at its constant before it is called stuck."""
LINES = 3
"""Lines of the log in a row that must show a finding: a centre that starts at zero, for one, needs a few steps."""
SHORTEST = 500
"""Runs of fewer steps are judged like one of so many: the first steps of any run stand there."""


@dataclass(frozen=True)
class Finding:
    """What is wrong, by which figures, and what to try."""

    name: str
    cause: str
    remedy: str
    lines: int = LINES
    """Lines of the log in a row that must show it before it is told."""

    def __str__(self) -> str:
        return f"collapse watch: {self.name}: {self.cause}. {self.remedy}"


def diagnose(scalars: Mapping[str, float], chance: float | None, stood: float = 1.0) -> list[Finding]:
    """Return what the figures of one line of the log say.

    Args:
        scalars: `loss`; and where the method has them `teacher_entropy` and `marginal_entropy` (nats: mean entropy of
            the targets, and entropy of their mean), `prototypes_used` (share), `spread` and `feature_spread` (0 … 1),
            `feature_rank`.
        chance: ln K, the loss of a model that knows nothing; None: no such constant.
        stood: share of the run for which the loss has stood at that constant.
    """
    found: list[Finding] = []
    teacher, marginal = scalars.get("teacher_entropy"), scalars.get("marginal_entropy")
    if chance and teacher is not None and teacher > 0.98 * chance:
        found.append(
            Finding(
                "uniform targets",
                f"the teacher's entropy is {teacher:.3f} of at most ln K = {chance:.3f}: all get one answer",
                "Sharpen: lower the teacher's temperature (DINO: 0.04), or warm it up more slowly",
            )
        )
    elif chance and marginal is not None and marginal < 0.15 * chance:
        found.append(
            Finding(
                "one answer for all pictures",
                f"the entropy of the mean target is {marginal:.3f}, far below ln K = {chance:.3f}",
                "Centre the targets (or let Sinkhorn balance them), and lower the learning rate",
            )
        )
    if chance and stood >= PATIENCE and at_chance(scalars, chance):
        found.append(
            Finding(
                "loss at its constant",
                f"the loss is {scalars['loss']:.4f} and ln K = {chance:.4f}: nothing is told apart",
                "Check the effective learning rate above, raise it or lower the temperature, and see that both views "
                "show the same picture",
                lines=1,  # it has stood there long enough already
            )
        )
    used = scalars.get("prototypes_used")
    if used is not None and used < 0.05:
        found.append(
            Finding(
                "few prototypes in use",
                f"{used:.1%} of them get any picture",
                "Balance the assignments (Sinkhorn, a smaller epsilon), use fewer prototypes, or freeze them longer",
            )
        )
    spread = min((scalars[k] for k in ("spread", "feature_spread") if k in scalars), default=None)
    if spread is not None and spread < 0.05:
        found.append(
            Finding(
                "constant features",
                f"unit-length features spread {spread:.3f} of what even directions have (1)",
                "Lower the learning rate, see that the momentum encoder moves slowly, and that gradients are stopped "
                "there",
            )
        )
    rank = scalars.get("feature_rank")
    if rank is not None and rank < 2.5:
        found.append(
            Finding(
                "features on a line",
                f"their effective rank is {rank:.1f}",
                "Dimensional collapse: weaken the weight decay, strengthen the augmentation, or add a projector",
            )
        )
    return found


def at_chance(scalars: Mapping[str, float], chance: float) -> bool:
    """Whether the loss is within a hundredth of what a model that knows nothing has."""
    return "loss" in scalars and abs(scalars["loss"] - chance) < 0.01 * chance


@dataclass
class Monitor:
    """Reads each line of a run's log and warns, once for each kind, in the log and on the screen.

    Args:
        method: gives the constant of its loss.
        steps: of the run.
    """

    method: Representation
    steps: int
    said: set[str] = field(default_factory=set[str])
    lines: dict[str, int] = field(default_factory=dict[str, int])
    """Finding → lines in a row that showed it."""
    since: int | None = None
    """The step from which the loss has stood at its constant."""

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Warn of what this line and those before it show for the first time."""
        chance = self.method.chance
        if chance and "loss" in scalars:
            self.since = (step if self.since is None else self.since) if at_chance(scalars, chance) else None
        stood = (step - self.since) / max(self.steps, SHORTEST) if self.since is not None else 0.0
        findings = diagnose(scalars, chance, stood)
        evaluated = "feature_rank" in scalars  # over held-back pictures, not one batch: once is enough
        if not evaluated:
            self.lines = {finding.name: self.lines.get(finding.name, 0) + 1 for finding in findings}
        for finding in findings:
            if (evaluated or self.lines[finding.name] >= finding.lines) and finding.name not in self.said:
                self.said.add(finding.name)
                log.warning("step %d: %s", step, finding)
