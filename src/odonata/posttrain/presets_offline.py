"""What the papers on examples, preferences, reward models and PPO set, and what TRL sets by default. Needs no torch.

Names are fields of the recipe, those with a dot outside the method's own. TRL's are those of version 1.16;
of PPO and process reward models those of 1.12, the last version that has them.

Notable: TRL's `CPOConfig(loss_type="simpo")` keeps a likelihood term (`cpo_alpha` 1) that SimPO has not, and a β of 0.1
where the paper has 2. Its KTO leaves both kinds of answers with a weight of 1. Its PPO divides by a temperature of 0.7.
"""

from __future__ import annotations

from collections.abc import Mapping

from odonata.engine.explanation import NOT_PRINTED
from odonata.posttrain.presets import Option

OFFLINE: Mapping[str, Mapping[str, Option]] = {
    "sft": {
        "optim.lr": Option(9.65e-6, 2e-5),
        "schedule.kind": Option("cosine", "linear"),
        "data.batch_size": Option(32, 8),
        "data.max_length": Option(NOT_PRINTED, 1024),
    },
    "reward": {
        "margin": Option(0.0, 0.0),
        "centering": Option(0.0, 0.0),
        "optim.lr": Option(9e-6, 1e-4),
        "schedule.kind": Option("cosine", "linear"),
        "data.batch_size": Option(64, 8),
        "data.max_length": Option(NOT_PRINTED, 1024),
    },
    "prm": {
        "labels": Option("steps", "steps"),
        "separator": Option("\n", "\n"),
        "neutral": Option("good", NOT_PRINTED),
        "optim.lr": Option(NOT_PRINTED, 1e-5),
        "data.batch_size": Option(NOT_PRINTED, 8),
        "data.max_length": Option(NOT_PRINTED, 1024),
    },
    "dpo": {
        "loss": Option("sigmoid", "sigmoid"),
        "beta": Option(0.1, 0.1),
        "label_smoothing": Option(0.0, 0.0),
        "precompute_reference": Option(False, False),
        "optim.lr": Option(1e-6, 1e-6),
        "schedule.warmup": Option(150, 0),
        "data.batch_size": Option(64, 8),
        "data.max_length": Option(512, 1024),
    },
    "ipo": {
        "beta": Option(NOT_PRINTED, 0.1),
        "normalised": Option(False, True),
        "precompute_reference": Option(False, False),
        "optim.lr": Option(NOT_PRINTED, 1e-6),
        "data.batch_size": Option(NOT_PRINTED, 8),
    },
    "kto": {
        "beta": Option(0.1, 0.1),
        "balance": Option(1.0, None),
        "optim.lr": Option(5e-6, 1e-6),
        "data.batch_size": Option(NOT_PRINTED, 8),
        "data.max_length": Option(NOT_PRINTED, 1024),
    },
    "simpo": {
        "beta": Option(2.0, 0.1),
        "gamma": Option(1.0, 0.5),
        "optim.lr": Option(6e-7, 1e-6),
        "data.batch_size": Option(128, 8),
    },
    "ppo": {
        "beta": Option(0.05, 0.05),
        "kl": Option("k1", "k1"),
        "kl_target": Option(0.0, 0.0),
        "score_at": Option("after_eos", "after_eos"),
        "missing_eos_penalty": Option("score is -1", 0.0),
        "gamma": Option(1.0, 1.0),
        "lam": Option(0.95, 0.95),
        "whiten_rewards": Option(False, False),
        "whiten_advantages": Option(True, True),
        "clip": Option(0.2, 0.2),
        "value_clip": Option(0.2, 0.2),
        "value_coef": Option(0.1, 0.1),
        "epochs": Option(4, 4),
        "minibatches": Option(1, 1),
        "temperature": Option(0.7, 0.7),
        "max_new_tokens": Option(53, 53),
        "optim.lr": Option(3e-6, 3e-6),
        "data.batch_size": Option(512, 8),
    },
}
"""Method → field of the recipe → (as the paper has it, TRL's default)."""

OFFLINE_SOURCES: Mapping[str, str] = {
    "sft": "Ouyang et al. 2022, arXiv:2203.02155, appendix C.1 (16 epochs; the rate is that of 1.3B and 6B weights).",
    "reward": "Ouyang et al. 2022, arXiv:2203.02155, appendix C.2 (one epoch over 64 prompts a batch). The margin is "
    "Llama 2's, centering is of Eisenstein et al. 2023, arXiv:2312.09244, who take 0.01; both are off by default.",
    "prm": "Lightman et al. 2023, arXiv:2305.20050, section 2.6 (a step is a line; neutral steps count as good), whose "
    "rates are not printed. TRL's rows have no neutral steps.",
    "dpo": "Rafailov et al. 2023, arXiv:2305.18290, appendix B (RMSprop; β 0.5 for TL;DR); the length is the "
    "authors' code's.",
    "ipo": "Azar et al. 2023, arXiv:2310.12036, trains no language model: it shows bandits with τ from 0.1 to 1. TRL "
    "divides log-ratios by lengths, on the word of the authors.",
    "kto": "Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2, and the authors' code. TRL's weights are 1 and 1 "
    "whatever the counts (here: --balance None).",
    "ppo": "Huang et al. 2024, arXiv:2403.17031 (PPO on TL;DR), whose settings TRL 1.12 takes. InstructGPT, "
    "arXiv:2203.02155, appendix C.4, has a β of 0.02, one pass, and a temperature of 1.",
    "simpo": "Meng et al. 2024, arXiv:2405.14734, section 3, and the authors' code (the row of Llama 3 8B Base). TRL's "
    "are those of `CPOConfig`, where γ is `simpo_gamma` and `cpo_alpha` 1 adds a likelihood term.",
}
"""Where each is printed, and what is not."""
