"""What the log of a method that learns from files shows: preferences, judgements, reward models, examples.

Notable:
- A preference loss compares. Its margin rises as well when both answers grow less likely, the rejected one faster. So
  the chosen answers' log-probability is looked at beside it.
- What is learned from a fixed set of pairs gets worse at some step, while loss, margin and accuracy on these pairs get
  better to the end. Only held-back rows or prompts tell; the best step is named.

Sources: Rafailov et al. 2023, arXiv:2305.18290, section 4 (the gradient); Pal et al. 2024, arXiv:2402.13228 (chosen
answers that grow less likely); Rafailov et al. 2024, arXiv:2406.02900 (over-optimisation in direct alignment).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from odonata.engine.findings import ENOUGH, LOWER, Curve, Finding, Record, rate_times

LESS_LIKELY = math.log(2)
"""Nats by which the chosen answers must fall: an answer is half as likely then."""
MARGIN_RISE = 0.1
"""In units of β ln π/π_ref; below it nothing has been learned yet."""
PERFECT = 0.99
"""Share of the training pairs told apart from which they are known by heart."""
GAP = 0.15
"""How much better learned pairs are told apart than others: it is the pairs that are learned, not the preference."""
REVERSED = 0.25
"""Share of training pairs told apart after training; half is chance, and less takes labels that are exchanged."""
CHANCE = 0.55
"""Held-back accuracy at which a judge of pairs has learned nothing: half, and two standard errors of 256 pairs."""
KNOWN_BY_HEART = 0.01
"""Nats a token below which a text is being recited."""
_RIGHT = {"prm": "steps are judged right", "kto": "answers are judged right"}
"""What accuracy is of; of other methods it is of pairs."""
FIRST_LOSS = 1e-3
"""How far DPO's loss may be from ln 2 before the first update: it is equal to the last bit in float32."""


def preferences(record: Record) -> Iterator[Finding]:
    """Look for what goes wrong where pairs or judgements are learned."""
    yield from _first_loss(record)
    yield from _chosen(record)
    yield from _accuracy(record)
    yield from best_passed(record)


def examples(record: Record) -> Iterator[Finding]:
    """Look for what goes wrong where texts are learned; held-back losses are looked at for every method."""
    loss, held = record.curve("loss"), record.curve("heldout/loss")
    if (
        loss
        and len(loss) >= ENOUGH
        and loss.end.mean < KNOWN_BY_HEART
        and held
        and held.values[-1] > 10 * loss.end.mean
    ):
        yield Finding(
            "known by heart", "watch",
            f"the loss is {loss.end.mean:.2g} nats a token, and {held.values[-1]:.2g} on held-back rows: texts are "
            "recited.",
            "Train for fewer steps, or on more rows.", "--steps",
        )  # fmt: skip
    yield from best_passed(record)


def _first_loss(record: Record) -> Iterator[Finding]:
    loss = record.curve("loss")
    plain = record.method == "dpo" and record.option("method.loss", "sigmoid") != "hinge"
    if (
        plain
        and not record.option("method.lora.dropout")
        and loss
        and loss.steps[0] == 1
        and abs(loss.values[0] - math.log(2)) > FIRST_LOSS
    ):
        yield Finding(
            "first loss", "wrong",
            f"before the first update the loss is {loss.values[0]:.4f}, not ln 2 = {math.log(2):.4f}: policy and "
            "reference differ from the start.",
            "The reference must be the model that training begins with.",
        )  # fmt: skip


def _chosen(record: Record) -> Iterator[Finding]:
    chosen, margin = record.curve("chosen_logprob"), record.curve("margin")
    if chosen is None or margin is None or not margin.rises(MARGIN_RISE) or not chosen.falls(LESS_LIKELY):
        return
    held = record.curve("heldout/right") or record.curve("heldout/accuracy")
    worse = held is not None and held.lost()
    beta = record.option("method.beta") or 0.1
    yield Finding(
        "chosen answers fall", "wrong" if worse else "watch",
        f"the margin rises from {margin.start.mean:.2g} to {margin.end.mean:.2g} while the chosen answers fall from "
        f"{chosen.start.mean:.1f} to {chosen.end.mean:.1f} nats (steps {chosen.start.last} to {chosen.end.last}): the "
        "rejected ones only fall faster"
        + (f", and {_best(held, 'held-back answers')}." if worse and held else "."),
        "Stop earlier, tie the policy more to the reference, or lower the rate.", f"--beta {3 * beta:.2g}",
    )  # fmt: skip


def _accuracy(record: Record) -> Iterator[Finding]:
    trained, what = record.curve("accuracy"), _RIGHT.get(record.method, "pairs are told apart")
    # Steps are mostly good, so a judge of steps that calls all of them good is right about most.
    balanced = record.method == "prm"
    held = record.curve("heldout/balanced" if balanced else "heldout/accuracy")
    if trained is None or len(trained) < ENOUGH:
        return
    end = trained.end.mean
    if end < REVERSED:
        yield Finding(
            "preferences reversed", "wrong",
            f"{end:.0%} of the training {what} (steps {trained.end.first}–{trained.end.last}).",
            "See whether chosen and rejected are exchanged in the rows, or the rate is far too high.",
        )  # fmt: skip
        return
    if held and record.method in ("reward", "prm") and held.values[-1] < CHANCE:
        yield Finding(
            "nothing learned", "wrong",
            f"{held.values[-1]:.0%} of the held-back {what}{', both kinds alike' * balanced} at step "
            f"{held.steps[-1]}: that is chance.",
            "Train longer, raise the rate, or see whether rows say what they should.",
            rate_times(record, 1 / LOWER),
        )  # fmt: skip
        return
    gap = end - held.values[-1] if held and not balanced else 0.0
    if held and gap > GAP:
        yield Finding(
            "rows known by heart", "watch",
            f"{end:.0%} of the training {what}, and {held.values[-1]:.0%} of those held back.",
            "Train for fewer steps, or on more rows.", "--steps",
        )  # fmt: skip
    elif end >= PERFECT:
        yield Finding(
            "nothing left to learn", "ok" if held else "watch",
            f"{end:.1%} of the training {what} since step {_since(trained)}"
            + (f", and {held.values[-1]:.0%} of those held back" if held else "; none is held back")
            + ": more steps only widen the margin.",
            "Stop there, and hold rows back to know when.", f"--steps {_since(trained)}",
        )  # fmt: skip


def best_passed(record: Record) -> Iterator[Finding]:
    """Look whether a held-back share was better before; names the step."""
    for name, what in (
        ("heldout/right", "right answers to held-back prompts"),
        ("heldout/accuracy", "held-back pairs"),
    ):
        curve = record.curve(name)
        if curve is None or not curve.lost():
            continue
        step = curve.best()[0]
        margin = record.curve("margin")
        wider = f", while the margin goes on to {margin.values[-1]:.2g}" if margin else ""
        yield Finding(
            "over-optimisation", "wrong", f"{_best(curve, what)}{wider}.",
            f"Use the best checkpoint (step {step}), or train no longer.", f"--steps {step}",
        )  # fmt: skip
        return


def _best(curve: Curve, what: str) -> str:
    step, best = curve.best()
    return f"{what} were {best:.1%} at step {step} and are {curve.values[-1]:.1%} at step {curve.steps[-1]}"


def _since(curve: Curve) -> int:
    last = max((i for i, value in enumerate(curve.values) if value < PERFECT), default=-1)
    return curve.steps[min(last + 1, len(curve) - 1)]
