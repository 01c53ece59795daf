"""The default recipes of this room's methods: what `odonata train NAME` runs.

Options of the methods are the papers'. Rates, batches and lengths are those of the small embedded tasks; for a model of
a billion weights take --optim.lr 1e-6 and the paper's group and length (`odonata explain NAME` lists them).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from odonata.engine.recipe import AdamW, Clip, Recipe, Schedule
from odonata.posttrain.evaluation import PolicyEvaluation
from odonata.posttrain.grpo import GRPOOptions
from odonata.posttrain.heldout import OfflineEvaluation
from odonata.posttrain.kto import KTOOptions
from odonata.posttrain.options import DialogueData, NoData, PromptData
from odonata.posttrain.ppo import PPOOptions
from odonata.posttrain.preference import DPOOptions, IPOOptions, SimPOOptions
from odonata.posttrain.process_reward import PRMOptions
from odonata.posttrain.r1 import R1Options
from odonata.posttrain.reward_model import RewardOptions
from odonata.posttrain.scorer import ScorerEvaluation
from odonata.posttrain.sft import SFTOptions


def _offline(
    name: str, options: Any, *, batch_size: int = 64, steps: int = 32, log_every: int = 1, eval_every: int = 8
) -> Recipe:
    return Recipe(
        name=name,
        method=options,
        data=DialogueData(batch_size=batch_size),
        evaluation=OfflineEvaluation(),
        optim=AdamW(lr=3e-4, weight_decay=0.0, betas=(0.9, 0.95)),
        schedule=Schedule("constant", warmup=0.0),
        clip=Clip("norm", 1.0),
        steps=steps,
        log_every=log_every,
        eval_every=eval_every,
    )


def sft() -> Recipe:
    """Supervised fine-tuning (2203.02155, step 1)."""
    return _offline("sft", SFTOptions(), steps=128, log_every=8, eval_every=32)


def dpo() -> Recipe:
    """DPO (2305.18290) at β = 0.1. The paper takes RMSprop at 1e-6 with 64 pairs, warmed up over 150 steps."""
    return _offline("dpo", DPOOptions())


def ipo() -> Recipe:
    """IPO (2310.12036) at τ = 0.1."""
    return _offline("ipo", IPOOptions())


def simpo() -> Recipe:
    """SimPO (2405.14734) at β = 2 and a margin of 1."""
    return _offline("simpo", SimPOOptions())


def kto() -> Recipe:
    """KTO (2402.01306) at β = 0.1, good and bad answers balanced."""
    return _offline("kto", KTOOptions(), batch_size=128)


def _scorer(name: str, options: Any, *, batch_size: int, steps: int) -> Recipe:
    return Recipe(
        name=name,
        method=options,
        data=DialogueData(batch_size=batch_size, heldout=0.125),
        evaluation=ScorerEvaluation(),
        optim=AdamW(lr=1e-3, weight_decay=0.01, betas=(0.9, 0.999)),
        schedule=Schedule("constant", warmup=0.0),
        clip=Clip("norm", 1.0),
        steps=steps,
        log_every=4,
        eval_every=max(1, steps // 8),
    )


def reward() -> Recipe:
    """A reward model (2009.01325, 2203.02155): Bradley and Terry, no margin, no centering."""
    return _scorer("reward", RewardOptions(), batch_size=64, steps=56)


def prm() -> Recipe:
    """A process reward model (2305.20050): a label on the last token of every step."""
    return _scorer("prm", PRMOptions(), batch_size=128, steps=240)


def _online(name: str, options: Any) -> Recipe:
    return Recipe(
        name=name,
        method=options,
        data=PromptData(),
        evaluation=PolicyEvaluation(),
        optim=AdamW(lr=3e-4, weight_decay=0.0, betas=(0.9, 0.95)),
        schedule=Schedule("constant", warmup=0.0),
        clip=Clip("norm", 1.0),
        steps=100,
        log_every=5,
        eval_every=50,
    )


def ppo() -> Recipe:
    """PPO with a value network (2403.17031): k1 in the reward at 0.05, four passes over 128 answers."""
    return dataclasses.replace(_online("ppo", PPOOptions()), data=PromptData(batch_size=128))


def grpo() -> Recipe:
    """GRPO (2402.03300): means within answers, deviations of groups, k3 in the loss at 0.04."""
    return _online("grpo", GRPOOptions())


def dr_grpo() -> Recipe:
    """Dr. GRPO (2503.20783): a constant in place of lengths, no deviation, no divergence."""
    return _online("dr-grpo", GRPOOptions(aggregation="constant", scale="none", beta=0.0))


def dapo() -> Recipe:
    """DAPO (2503.14476): clip 0.28 upwards, all tokens alike, live groups only, a price on overlong answers."""
    options = GRPOOptions(
        aggregation="token", clip_high=0.28, beta=0.0, resample=3, filter_truncated=True, overlong_buffer=4
    )
    return _online("dapo", options)


def rloo() -> Recipe:
    """RLOO (2402.14740): the others' mean as baseline, no clip, the divergence in the reward."""
    options = GRPOOptions(
        kind="sequence", baseline="leave-one-out", scale="none", clip_low=None, clip_high=None, beta=0.03, kl="k1",
        kl_place="reward", group=4,
    )  # fmt: skip
    return _online("rloo", options)


def r1() -> Recipe:
    """R1's stages (2501.12948) on the embedded countdown: minutes on a laptop."""
    return Recipe(
        name="r1",
        method=R1Options(),
        data=NoData(),
        evaluation=PolicyEvaluation(),
        optim=AdamW(lr=3e-4, weight_decay=0.0, betas=(0.9, 0.95)),
        steps=1,
    )


def by_name(name: str) -> Recipe:
    """Return the default recipe of a method of this room."""
    return globals()[name.replace("-", "_")]()
