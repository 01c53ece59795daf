"""What the log of a method that learns from its own answers shows of its rewards: hacking, and parts that mislead.

Notable:
- `truth` is the reward that says whether an answer is right: one of weight 0 if there is one, else the task's, else the
  first. Everything else that is earned is a proxy for it, and what a policy finds is the difference of the two.
- Which part of a reward matters is seen in its spread within groups, for nothing else enters an advantage.

Sources: Gao et al. 2022, arXiv:2210.10760 (over-optimisation); Liu et al. 2025, arXiv:2503.20783 (length).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance

from odonata.engine.findings import ENOUGH, ERRORS, LOWER, Curve, Finding, Record, rate_times

SOLVED = 0.9
"""Share of right answers from which dead groups, low entropy and a flat reward are what one wants."""
MODEL = "run:"
"""How names of reward models begin, whose scores are no shares."""
REWARD_MOVE = 0.02
"""A reward that moves by less has not moved, whatever its noise."""
TRUTH_FALL = 0.05
"""Right answers lost while the reward rises: a part that is worth looking at, whatever its noise."""
SATURATED = 0.95
"""Share of answers in the asked format from which it teaches nothing more."""
DOMINANT = 0.9
"""Share of the spread within groups that one part makes up."""
LONGER = 1.2
"""Length at the end over that at the start."""


@dataclass(frozen=True)
class Rewards:
    """What is earned, by name."""

    weights: Mapping[str, float | None]
    """Name of a part → its weight; None: not known."""
    truth: str
    """The part that says whether an answer is right; empty: there is one reward without parts."""

    @property
    def weighted(self) -> list[str]:
        """Parts that count."""
        return [name for name, weight in self.weights.items() if weight != 0]


def rewards_of(record: Record) -> Rewards:
    """Return what a run earns by, from its recipe and its log."""
    parts = [name.removeprefix("reward/") for name in record.names("reward/")]
    named: Sequence[str] = record.option("method.reward") or ()
    weights: Sequence[float] = record.option("method.reward_weights") or ()
    truth = parts[0] if parts else ""
    if parts and not record.option("data.path"):
        from odonata.posttrain.tasks import TASKS  # imports torch; runs of tasks alone need it

        task = str(record.option("method.task") or next(iter(TASKS)))
        if built_in := TASKS.get(task.partition(":")[0]):
            weights = weights or (() if named else built_in.weights)
            truth = built_in.truth if built_in.truth in parts else truth
    weights = weights or [1.0] * len(parts)
    known = dict(zip(parts, weights if len(weights) == len(parts) else [None] * len(parts), strict=True))
    unpaid = [name for name, weight in known.items() if weight == 0]
    return Rewards(known, unpaid[0] if unpaid else truth)


def share_right(record: Record, rewards: Rewards) -> float:
    """Return the share of right answers at the end; NaN where the truth is a score that has no 1 for right."""
    truth = record.curve(f"reward/{rewards.truth}")
    if truth is None or not all(0 <= value <= 1 for value in truth.values) or rewards.truth.startswith(MODEL):
        return math.nan
    return truth.end.mean


def reward_findings(record: Record, right: float) -> Iterator[Finding]:
    """Look whether the reward has moved; `right` is the share of right answers, or NaN."""
    curve = record.curve("reward")
    if curve is None or len(curve) < ENOUGH:
        return
    seen = f"from {curve.start.mean:.3g} (steps {curve.start.first}–{curve.start.last}) to {curve.end.mean:.3g} (steps "
    seen += f"{curve.end.first}–{curve.end.last})"
    if curve.falls(REWARD_MOVE):
        yield Finding(
            "reward falls", "wrong", f"the reward falls {seen}; it was best at step {curve.best()[0]}.",
            "Lower the rate, or hold the policy nearer to the reference.", rate_times(record, LOWER),
        )  # fmt: skip
    elif not curve.rises(REWARD_MOVE):
        if right >= SOLVED:
            yield Finding("reward flat", "ok", f"the reward stays {seen}: {right:.0%} of the answers are right.")
            return
        yield Finding(
            "reward flat", "watch",
            f"the reward has not risen beyond its noise, {seen}; two standard errors are {ERRORS * curve.error:.2g}.",
            "See the other findings; if there is none, train longer, or raise the rate.",
        )  # fmt: skip


def hacking_findings(record: Record, rewards: Rewards) -> Iterator[Finding]:
    """Look whether the proxy rises while the truth falls, in training or on held-back prompts."""
    proxy, beta = record.curve("reward"), record.option("method.beta") or 0.0
    if proxy is None:
        return
    remedy, option = "Use the best checkpoint, make leaving the reference dearer, or mend the reward.", (
        f"--beta {2.5 * beta:.2g}" if beta else "--beta 0.04"
    )  # fmt: skip
    truth = record.curve(f"reward/{rewards.truth}")
    if truth and proxy.rises() and truth.falls(TRUTH_FALL):
        yield Finding(
            "hacking", "wrong",
            f"the reward rises from {proxy.start.mean:.3g} to {proxy.end.mean:.3g} while {rewards.truth} falls from "
            f"{truth.start.mean:.3g} to {truth.end.mean:.3g}; it was best at step {truth.best()[0]}.",
            remedy, option,
        )  # fmt: skip
        return
    held = record.curve("heldout/right")
    if held is None or not held.lost():
        return
    step, best = held.best()
    after = [value for at, value in zip(proxy.steps, proxy.values, strict=True) if at > step]
    before = [value for at, value in zip(proxy.steps, proxy.values, strict=True) if at <= step][-len(after) :]
    if after and before:
        rising = fmean(after) > fmean(before) - REWARD_MOVE
        yield Finding(
            "hacking" if rising else "best step passed", "wrong",
            f"right answers to held-back prompts were {best:.1%} at step {step} and are {held.values[-1]:.1%} at step "
            f"{held.steps[-1]}, while the reward {'holds or rises' if rising else 'falls'}.",
            remedy, option,
        )  # fmt: skip


def part_findings(record: Record, rewards: Rewards, truth: Curve | None) -> Iterator[Finding]:
    """Look whether parts of the reward crowd the truth out."""
    if len(rewards.weights) < 2 or truth is None:
        return
    for name in rewards.weighted:
        part = record.curve(f"reward/{name}")
        if "format" in name and name != rewards.truth and part and part.end.mean >= SATURATED and truth.end.mean < 0.5:
            yield Finding(
                "format without substance", "watch",
                f"{part.end.mean:.0%} of the answers keep to {name} since step {_since(part)}, and "
                f"{truth.end.mean:.0%} are right by {rewards.truth}: the format teaches nothing more.",
                "Lower its weight, or ask for it only where the answer is right.", "--reward-weights",
            )  # fmt: skip
    shares = _shares(record, rewards)
    for name, share in shares.items():
        if share > DOMINANT and name != rewards.truth:
            yield Finding(
                "one part dominates", "watch",
                f"{share:.0%} of the differences within groups come from {name}; the truth, {rewards.truth}, has "
                f"{shares.get(rewards.truth, 0.0):.0%}.",
                "Raise the weight of the truth.", "--reward-weights",
            )  # fmt: skip


def _since(part: Curve) -> int:
    return next(
        step for step, value in zip(part.steps, part.values, strict=True) if value >= min(SATURATED, part.end.mean)
    )


def _shares(record: Record, rewards: Rewards) -> dict[str, float]:
    """Each part's share of the variance within the logged groups; nothing where weights are unknown or all agree."""
    sums = {name: 0.0 for name in rewards.weighted if rewards.weights[name] is not None}
    for line in record.rollouts:
        for name in sums:
            found = [(said.get("parts") or {}).get(name) for said in line.get("answers", ())]
            known = [float(value) for value in found if isinstance(value, int | float)]
            weight = rewards.weights[name] or 0.0
            sums[name] += weight**2 * pvariance(known) if len(known) > 1 else 0.0
    whole = sum(sums.values())
    return {name: value / whole for name, value in sums.items()} if whole else {}


def length_findings(record: Record, truth: Curve | None) -> Iterator[Finding]:
    """Look whether answers grow without getting better."""
    curve = record.curve("length")
    if curve is None or truth is None or truth.rises(REWARD_MOVE):
        return
    if curve.rises() and curve.end.mean > LONGER * curve.start.mean:
        yield Finding(
            "length without reward", "watch",
            f"answers grow from {curve.start.mean:.0f} to {curve.end.mean:.0f} tokens while right ones do not: "
            f"{truth.start.mean:.2f} to {truth.end.mean:.2f}.",
            "Weigh all tokens alike or by a constant, which does not favour long wrong answers.",
            "--aggregation constant" if record.option("method.aggregation") == "sequence" else "",
        )  # fmt: skip
