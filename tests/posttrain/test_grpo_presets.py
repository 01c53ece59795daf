"""Presets: TRL's column is what TRL 1.16 has as defaults, and ours are settings that the functions take."""

import subprocess
import sys

import pytest
import torch

from odonata.posttrain.advantages import group_advantages, leave_one_out
from odonata.posttrain.policy_losses import denominators, policy_terms
from odonata.posttrain.presets import PRESETS, SOURCES
from posttrain.trl_records import FACTS

NAMES = {
    "temperature": "temperature", "max_length": "max_completion_length", "group": "num_generations", "beta": "beta",
    "clip_low": "epsilon", "epochs": "num_iterations", "filter_truncated": "mask_truncated_completions",
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_the_other_column_is_trls_defaults(preset):
    config = FACTS["RLOOConfig" if preset == "rloo" else "GRPOConfig"]
    ours = {name: option.trl for name, option in PRESETS[preset].items()}
    assert {name: ours[name] for name in NAMES} == {name: config[trls] for name, trls in NAMES.items()}
    assert config["epsilon_high"] is None and ours["clip_high"] == config["epsilon"]
    assert ours["lr"] == config["learning_rate"]
    if preset != "rloo":
        assert (config["loss_type"], ours["kind"], ours["aggregation"]) == ("dapo", "ppo", "token")
        assert (ours["scale"], ours["kl_corrected"]) == (config["scale_rewards"], config["use_bias_correction_kl"])
    else:
        assert not config["normalize_advantages"] and ours["scale"] == "none"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_accepted_by_the_functions(preset):
    options = {name: option.ours for name, option in PRESETS[preset].items()}
    rewards, everything = torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(3, 2).bool()
    grouped = group_advantages(rewards, scale=options["scale"])
    found = leave_one_out(rewards) if options["baseline"] == "leave-one-out" else grouped
    zero = torch.zeros(3, 2)
    terms = policy_terms(
        zero, zero, found.advantages[0], everything, kind=options["kind"], clip_low=options["clip_low"],
        clip_high=options["clip_high"],
    )  # fmt: skip
    assert terms.losses.shape == (3, 2)
    how = options["aggregation"]
    assert denominators(everything, how, options["max_length"] if how == "constant" else None) > 0
    assert set(SOURCES) == set(PRESETS) and len({frozenset(options) for options in PRESETS.values()}) == 1


def test_what_makes_each_variant():
    differ = {
        name: {key for key, option in options.items() if option.ours != PRESETS["bnpo"][key].ours}
        for name, options in PRESETS.items()
    }
    assert differ["dr-grpo"] == {"aggregation", "scale", "max_length"}
    assert {"clip_high", "drop_dead_groups", "filter_truncated", "overlong_buffer"} < differ["dapo"]
    assert PRESETS["dapo"]["clip_high"].ours == 0.28 and PRESETS["dapo"]["beta"].ours == 0
    assert PRESETS["grpo"]["beta"].ours == 0.04 and not PRESETS["grpo"]["kl_corrected"].ours


def test_presets_need_no_torch():
    code = "import sys, odonata.posttrain.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
