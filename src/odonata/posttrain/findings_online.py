"""What the log of a method that learns from its own answers shows: rewards, groups, lengths, entropy, divergence.

Notable: the same figure means two things. Groups are dead because nothing is ever right, or because everything
is; entropy is low because the policy has collapsed, or because it knows. The share of right answers decides.

Sources: DAPO, Yu et al. 2025, arXiv:2503.14476, sections 3.1 to 3.4 (entropy, dead groups, truncation); Huang et al.
2024, arXiv:2403.17031 (divergences at which models over-optimise).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from odonata.engine.findings import ENOUGH, LOWER, Curve, Finding, Record, rate_times
from odonata.posttrain.findings_rewards import (
    REWARD_MOVE,
    SOLVED,
    Rewards,
    hacking_findings,
    length_findings,
    part_findings,
    reward_findings,
    rewards_of,
    share_right,
)

HOPELESS = 0.1
"""Share of right answers below which dead groups are wrong ones: eight answers then have none right in two of five."""
DEAD = 0.5
"""Share of groups without a difference from which half of the sampling is thrown away."""
ALL_DEAD = 0.9
"""Share from which a batch of sixteen prompts has one or two that teach."""
TRUNCATED = 0.1
"""Share of cut answers from which the limit shapes what is learned (DAPO's 30 → 36 points came of this alone)."""
MOSTLY_TRUNCATED = 0.5
ENTROPY_FALL = 0.2
"""End over start: so far it falls in DAPO's figure 2, in a run that then stands still."""
ENTROPY_FLOOR = 0.01
"""Nats a token: the likeliest token has 99.9 % then, and eight answers are one."""
ENTROPY_GROWTH = 2.0
"""End over start: a policy that learns becomes surer."""
DIVERGENCE = 20.0
"""Nats an answer: models of a billion weights over-optimise at 50 to 85 (2403.17031); half of that is time to look."""
FAR_DIVERGENCE = 50.0
STILL = 1e-4
"""Nats a token of divergence below which the policy is what it was."""
OFF_POLICY = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.02}
"""Mean |ratio − 1| at the first update: 2e-7 is measured in float32, and half precision rounds log-probabilities."""
NO_POLICY = 0.1
"""From here on it is no rounding: what was sampled is not what is scored."""
CLIPPED = 0.2
"""Share of tokens that teach nothing because they are beyond the clip."""
MOSTLY_CLIPPED = 0.5
UNSCORED = 0.01
"""Share of answers without a verdict that timeouts and odd answers explain."""
MOSTLY_UNSCORED = 0.2
NEAR_ZERO = 0.05
"""Mean |loss| that people take for a bug."""


def online(record: Record) -> Iterator[Finding]:
    """Look for what goes wrong where a policy learns from its own answers."""
    rewards = rewards_of(record)
    truth = record.curve(f"reward/{rewards.truth}") or record.curve("reward")
    right = share_right(record, rewards)
    for check in (_off_policy, _unscored, _clipping, _near_zero, _values):
        yield from check(record)
    yield from _dead_groups(record, right)
    yield from _truncation(record, rewards)
    yield from _entropy(record, right)
    yield from _divergence(record)
    yield from reward_findings(record, right)
    yield from hacking_findings(record, rewards)
    yield from part_findings(record, rewards, truth)
    yield from length_findings(record, truth)


def _off_policy(record: Record) -> Iterator[Finding]:
    curve = record.curve("off_policy")
    if curve is None:
        return
    precision = str(record.option("precision", "fp32"))
    bound = OFF_POLICY.get(precision, OFF_POLICY["fp32"])
    step, worst = curve.best()
    if worst > bound:
        yield Finding(
            "off policy", "wrong" if worst > NO_POLICY else "watch",
            f"at the first update after sampling the ratio is off 1 by {worst:.2g} (step {step}); in {precision} it "
            f"must be below {bound:g}: what was sampled is not what is scored.",
            "Sampling and learning must have one temperature, no filter, one precision and the same tokens.",
            "--precision fp32" if precision != "fp32" else "",
        )  # fmt: skip


def _unscored(record: Record) -> Iterator[Finding]:
    curve = record.curve("unscored")
    if curve and (share := fmean(curve.values)) > UNSCORED:
        yield Finding(
            "unscored answers", "wrong" if share > MOSTLY_UNSCORED else "watch",
            f"{share:.1%} of the answers got no verdict, {curve.best()[1]:.0%} at step {curve.best()[0]}: the verifier "
            "times out, fails, or cannot read them. They are left out, not counted as wrong.",
            "Call the reward on some answers of rollouts.jsonl and see what it cannot judge.",
        )  # fmt: skip


def _clipping(record: Record) -> Iterator[Finding]:
    curve = record.curve("clip_fraction")
    if curve and (share := curve.end.mean) > CLIPPED:
        yield Finding(
            "clipping", "wrong" if share > MOSTLY_CLIPPED else "watch",
            f"{share:.0%} of the tokens are beyond the clip at the last update ({_span(curve)}).",
            "Lower the rate, or make fewer updates a rollout.",
            "--epochs 1" if _updates(record) > 1 else rate_times(record, LOWER),
        )  # fmt: skip


def _near_zero(record: Record) -> Iterator[Finding]:
    loss, norm = record.curve("loss"), record.curve("grad_norm")
    if loss is None or norm is None or _updates(record) != 1 or record.curve("value_loss") is not None:
        return
    level = fmean(abs(value) for value in loss.values)
    if level < NEAR_ZERO and norm.end.mean > 0:
        yield Finding(
            "loss near zero", "ok",
            f"the loss is about {level:.1g} and says nothing: with one update a rollout the ratio is 1 and advantages "
            f"have mean 0. Its gradient is not 0: the norm is {norm.end.mean:.2g}. Look at the reward.",
        )  # fmt: skip


def _values(record: Record) -> Iterator[Finding]:
    curve = record.curve("explained_variance")
    if curve and len(curve) >= ENOUGH and curve.end.mean <= 0:
        yield Finding(
            "values foresee nothing", "watch",
            f"the value network explains {curve.end.mean:.0%} of the returns' variance ({_span(curve)}): a constant "
            "would do as well, and advantages are as noisy as rewards.",
            "Begin it from the reward model, or weigh its loss more.", "--value-coef",
        )  # fmt: skip


def _if_used(record: Record, field: str, option: str) -> str:
    """Return an option where the method has it."""
    return "" if record.option(f"method.{field}", option) is option else option


def _span(curve: Curve) -> str:
    return f"steps {curve.end.first}–{curve.end.last}"


def _updates(record: Record) -> int:
    return int(record.option("method.epochs", 1) or 1) * int(record.option("method.minibatches", 1) or 1)


def _dead_groups(record: Record, right: float) -> Iterator[Finding]:
    live = record.curve("live_groups")
    if live is None:
        return
    dead, group = 1 - live.end.mean, int(record.option("method.group", 8) or 8)
    if dead < DEAD:
        return
    seen = f"{dead:.0%} of the groups show no difference ({_span(live)}) and teach nothing"
    kinds = _dead_kinds(record)
    seen += f"; of those logged {kinds[0]} have only good answers, {kinds[1]} only bad ones" if any(kinds) else ""
    if right >= SOLVED:
        yield Finding(
            "dead groups", "ok", f"{seen}: {right:.0%} of the answers are right, the prompts are learned.",
            "Stop here, or take harder prompts.",
        )  # fmt: skip
    elif right <= HOPELESS:
        yield Finding(
            "dead groups", "wrong" if dead >= ALL_DEAD else "watch",
            f"{seen}: {right:.1%} of the answers are right, so hardly any group has one.",
            "Teach the form first (sft), take easier prompts, or more answers to each.", f"--group {2 * group}",
        )  # fmt: skip
    else:
        resampled = int(record.option("method.resample", 0) or 0)
        rounds = record.curve("rounds")
        seen += f"; {rounds.end.mean:.1f} of {resampled + 1} rounds are sampled for a step" if rounds else ""
        collapsed = _collapsed(record.curve("entropy"))
        why = (
            "answers to a prompt have become one, see the entropy" if collapsed else "prompts are too easy or too hard"
        )
        yield Finding(
            "dead groups", "wrong" if dead >= ALL_DEAD else "watch", f"{seen}: {why}.",
            "Sample on until groups differ, or give more answers to each prompt.",
            f"--resample {resampled + 2}" if not resampled else f"--group {2 * group}",
        )  # fmt: skip


def _dead_kinds(record: Record) -> tuple[int, int]:
    """Of the logged groups of the last half without a difference: those above the middle of all rewards, and below."""
    groups = [_known(line) for line in record.rollouts]
    every = [reward for group in groups for reward in group]
    if not every or min(every) == max(every):
        return 0, 0
    middle = (min(every) + max(every)) / 2
    dead = [group[0] for group in groups[len(groups) // 2 :] if group and min(group) == max(group)]
    return sum(reward > middle for reward in dead), sum(reward <= middle for reward in dead)


def _known(line: Mapping[str, Any]) -> list[float]:
    return [float(said["reward"]) for said in line.get("answers", ()) if isinstance(said.get("reward"), int | float)]


def _truncation(record: Record, rewards: Rewards) -> Iterator[Finding]:
    curve = record.curve("truncated")
    cut, ended = _cut_and_ended(record, rewards)
    if cut and ended and fmean(cut) >= fmean(ended) and fmean(cut) > 0:
        yield Finding(
            "cut answers are rewarded", "wrong",
            f"{len(cut)} logged answers that never ended earned {fmean(cut):.2f} on average, those that ended "
            f"{fmean(ended):.2f}: the policy learns that ending does not pay.",
            "Let the reward ask for an end, or learn nothing from cut answers.",
            _if_used(record, "filter_truncated", "--filter-truncated")
            or _if_used(record, "missing_eos_penalty", "--missing-eos-penalty 1"),
        )  # fmt: skip
    if curve is None or (share := curve.end.mean) <= TRUNCATED:
        return
    limit = int(record.option("method.max_new_tokens", 0) or 0)
    earned = f" They earn {fmean(cut):.2f} on average, the others {fmean(ended):.2f}." if cut and ended else ""
    yield Finding(
        "truncation", "wrong" if share > MOSTLY_TRUNCATED else "watch",
        f"{share:.0%} of the answers are cut at the limit ({_span(curve)}, {curve.start.mean:.0%} at the "
        f"start).{earned}",
        "Raise the limit, or punish answers that come near it.",
        f"--max-new-tokens {2 * limit}" if limit else "",
    )  # fmt: skip


def _cut_and_ended(record: Record, rewards: Rewards) -> tuple[list[float], list[float]]:
    """What logged answers earned of the truth: those that were cut, and those that ended."""
    cut: list[float] = []
    ended: list[float] = []
    for said in (said for line in record.rollouts for said in line.get("answers", ())):
        earned = (said.get("parts") or {}).get(rewards.truth, said.get("reward"))
        if isinstance(earned, int | float) and "finished" in said:
            (ended if said["finished"] else cut).append(float(earned))
    return cut, ended


def _entropy(record: Record, right: float) -> Iterator[Finding]:
    curve = record.curve("entropy")
    if curve is None or len(curve) < ENOUGH:
        return
    start, end = curve.start.mean, curve.end.mean
    seen = f"the entropy goes from {start:.3g} to {end:.3g} nats a token (steps {curve.start.last} to {curve.end.last})"
    low = _collapsed(curve)
    known = "" if math.isnan(right) else f", with {right:.0%} of the answers right"
    if low and right >= SOLVED:
        yield Finding("low entropy", "ok", f"{seen}{known}: the policy is sure and right.")
    elif low:
        reward = record.curve("reward")
        still = _second_half(reward) if reward else None
        stuck = still is not None and not still.rises(REWARD_MOVE)
        high = record.option("method.clip_high")
        yield Finding(
            "entropy collapse", "wrong" if stuck else "watch",
            f"{seen}{known}: answers to a prompt become one.",
            "Clip higher upwards (DAPO), lower the rate, or hold the policy nearer to the reference.",
            "--clip-high 0.28" if isinstance(high, float) and high < 0.28 else rate_times(record, LOWER),
        )  # fmt: skip
    elif curve.rises() and end > ENTROPY_GROWTH * start:
        reward = record.curve("reward")
        better = reward is not None and reward.rises(REWARD_MOVE)
        yield Finding(
            "entropy explosion", "watch" if better else "wrong",
            f"{seen}{'' if better else ' and the reward does not rise'}: the policy dissolves into noise.",
            "Lower the rate or the upper clip, or hold the policy nearer to the reference.", rate_times(record, LOWER),
        )  # fmt: skip


def _collapsed(curve: Curve | None) -> bool:
    """Whether the entropy has fallen to nearly nothing, or to a small part of what it was."""
    if curve is None or len(curve) < ENOUGH or curve.start.mean <= 0:
        return False
    return curve.end.mean < max(ENTROPY_FALL * curve.start.mean, ENTROPY_FLOOR)


def _second_half(curve: Curve) -> Curve:
    return Curve(curve.steps[len(curve) // 2 :], curve.values[len(curve) // 2 :])


def _divergence(record: Record) -> Iterator[Finding]:
    curve, length = record.curve("kl"), record.curve("length")
    if curve is None or length is None:
        return
    whole = curve.end.mean * length.end.mean
    beta = record.option("method.beta") or 0.0
    if whole > DIVERGENCE:
        yield Finding(
            "divergence", "wrong" if whole > FAR_DIVERGENCE else "watch",
            f"the divergence from the reference has grown from {curve.start.mean:.2g} to {curve.end.mean:.2g} nats a "
            f"token, {whole:.0f} nats an answer ({_span(curve)}).",
            "Make leaving the reference dearer, lower the rate, or stop at the best held-back step.",
            f"--beta {2.5 * beta:.2g}" if beta else "--beta 0.04",
        )  # fmt: skip
    reward = record.curve("reward")
    if curve.end.mean < STILL and reward and len(reward) >= ENOUGH and not reward.rises(REWARD_MOVE):
        yield Finding(
            "the policy stands still", "watch",
            f"after {curve.steps[-1]} steps it is {curve.end.mean:.1g} nats a token from where it began, and the "
            "reward has not risen.",
            "Raise the rate.", rate_times(record, 1 / LOWER),
        )  # fmt: skip
