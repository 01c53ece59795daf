"""What the papers of the GRPO family set, and what TRL 1.16 sets by default, side by side. Needs no torch.

`odonata explain NAME` shows them beside the recipe; `odonata train NAME --preset paper` or `--preset trl` takes them.
What the papers on pairs, judgements and examples set stands in `presets_offline.py`.

Notable: TRL's defaults are those of no paper: `loss_type="dapo"` without DAPO's higher clip, no divergence, groups of
8, 512 tokens. Where a divergence is asked for (`beta`), it is multiplied by the importance ratio, which the GRPO paper
does not do. A CISPO run with its default `epsilon_high` bounds every weight by 0.2: the option is the bound itself.

Values that a paper does not print are TRL's, or those of the source that `SOURCES` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from odonata.engine.presets import with_preset

if TYPE_CHECKING:
    from odonata.engine.recipe import Recipe

Value = str | float | int | bool | None


class Option(NamedTuple):
    """One setting."""

    ours: Value
    """As the paper has it."""
    trl: Value
    """TRL 1.16's default, in our words."""


TRL_GRPO: Mapping[str, Value] = {
    "kind": "ppo",
    "aggregation": "token",
    "baseline": "group",
    "scale": "group",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "beta": 0.0,
    "kl_place": "loss",
    "kl": "k3",
    "kl_corrected": True,
    "group": 8,
    "temperature": 1.0,
    "max_length": 512,
    "epochs": 1,
    "lr": 1e-6,
    "drop_dead_groups": False,
    "filter_truncated": False,
    "overlong_buffer": 0,
}
"""`GRPOConfig()`. `epochs` are passes over a rollout; `overlong_buffer` is where the soft punishment begins, in tokens
before the end; `kl_corrected` multiplies the divergence by the importance ratio."""

TRL_RLOO: Mapping[str, Value] = {
    **TRL_GRPO,
    "kind": "sequence",
    "aggregation": "sequence",
    "baseline": "leave-one-out",
    "scale": "none",
    "beta": 0.05,
    "kl_place": "reward",
    "kl": "k1",
    "kl_corrected": False,
    "group": 2,
}
"""`RLOOConfig()`."""


def _beside(trl: Mapping[str, Value], **ours: Value) -> dict[str, Option]:
    """Return every option with our value, which is TRL's unless it is given."""
    if unknown := set(ours) - set(trl):
        raise KeyError(f"no options {sorted(unknown)}")
    return {name: Option(ours.get(name, default), default) for name, default in trl.items()}


PRESETS: Mapping[str, Mapping[str, Option]] = {
    "grpo": _beside(
        TRL_GRPO, aggregation="sequence", beta=0.04, kl_corrected=False, group=64, max_length=1024
    ),
    "dr-grpo": _beside(TRL_GRPO, aggregation="constant", scale="none", max_length=3000),
    "dapo": _beside(
        TRL_GRPO, clip_high=0.28, group=16, max_length=20480, drop_dead_groups=True, filter_truncated=True,
        overlong_buffer=4096,
    ),
    "bnpo": _beside(TRL_GRPO),
    "cispo": _beside(TRL_GRPO, kind="cispo", clip_low=None, clip_high=4.0, scale="batch", group=16),
    "rloo": _beside(TRL_RLOO, clip_low=None, clip_high=None, beta=0.03, group=4),
}  # fmt: skip
"""Method → option → (ours, TRL's default)."""

SOURCES: Mapping[str, str] = {
    "grpo": "Shao et al. 2024, arXiv:2402.03300, sections 4.1 and 4.2 (64 outputs of at most 1,024 tokens, KL 0.04, "
    "lr 1e-6, one update a rollout); clip and temperature are not printed.",
    "dr-grpo": "Liu et al. 2025, arXiv:2503.20783, section 3.2, and the authors' scripts (8 samples of at most 3,000 "
    "tokens, no KL, lr 1e-6, one epoch).",
    "dapo": "Yu et al. 2025, arXiv:2503.14476, sections 3 and 4.1 (clips 0.2 and 0.28, 16 samples, 20,480 tokens of "
    "which the last 4,096 are punished, one pass in 16 mini-batches, lr 1e-6, no KL).",
    "bnpo": "TRL cites no paper for it: a token mean over the local batch. Here it is over the whole optimiser batch, "
    "so that nothing but the name differs from TRL's default.",
    "cispo": "MiniMax 2025, arXiv:2506.13585, section 3.1 (no lower bound). Its upper bound is not printed: a weight "
    "of at most 5, 16 samples and the batch's deviation are from ScaleRL, Khatri et al. 2025, arXiv:2510.13786.",
    "rloo": "Ahmadian et al. 2024, arXiv:2402.14740, appendix C (KL 0.03 on TL;DR, lr 1e-6), with k = 4 of its 2 and "
    "4; there is no ratio, and so no clip.",
}
"""Where each is printed, and what is not."""

FIELDS = {"max_length": "max_new_tokens", "lr": "optim.lr", "drop_dead_groups": "resample"}
"""Options whose names as fields of a recipe are others; those with a dot are not the method's own."""

ROUNDS = 3
"""Rounds of new prompts that stand for DAPO's sampling, which has no bound."""

RELATIVES = {"grpo": ("bnpo", "cispo")}
"""Presets of a method that are named after another, which is no method of its own here."""


def settings(options: Mapping[str, Value]) -> dict[str, Value]:
    """Return options as fields of a recipe."""
    fields: dict[str, Value] = {}
    for name, value in options.items():
        fields[FIELDS.get(name, name)] = ROUNDS * bool(value) if name == "drop_dead_groups" else value
    return fields


def named(method: str) -> dict[str, dict[str, Value]]:
    """Return what `--preset` takes for a method: name → fields; nothing for methods without presets."""
    if method not in PRESETS:
        return {}
    columns = {
        "paper": {k: v.ours for k, v in PRESETS[method].items()},
        "trl": {k: v.trl for k, v in PRESETS[method].items()},
    }
    columns |= {name: {k: v.ours for k, v in PRESETS[name].items()} for name in RELATIVES.get(method, ())}
    return {name: settings(options) for name, options in columns.items()}


def applied(recipe: Recipe, default: Recipe) -> Recipe:
    """Return a recipe with its preset filled in; what differs from the method's own recipe was set by hand and stays.

    Raises:
        RecipeError: there is no such preset.
    """
    presets = named(recipe.name)
    fields = presets.get(recipe.method.preset, {})
    own = {name: {k: v for k, v in column.items() if "." not in k} for name, column in presets.items()}
    method = with_preset(recipe.method, own, default.method)
    if not method.beta and not recipe.method.kl_corrected:
        # What multiplies a divergence that is not there does nothing, and is refused.
        method = dataclasses.replace(method, kl_corrected=False)
    optim = recipe.optim
    if "optim.lr" in fields and optim.lr == default.optim.lr:
        optim = dataclasses.replace(optim, lr=fields["optim.lr"])
    return dataclasses.replace(recipe, method=method, optim=optim)
