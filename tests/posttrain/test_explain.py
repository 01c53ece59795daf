"""What `odonata explain` says of this room: equations and presets name options that there are, and TRL's are TRL's."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from odonata.engine.option_help import option_lines
from odonata.errors import RecipeError
from odonata.posttrain import METHODS
from odonata.posttrain.equations import EQUATIONS
from odonata.posttrain.explain import compared, explained, value_at
from odonata.posttrain.presets import PRESETS, RELATIVES, applied, named
from odonata.posttrain.presets_offline import OFFLINE, OFFLINE_SOURCES
from odonata.posttrain.recipes import by_name

PRESET_CASES = [(method, preset) for method in PRESETS for preset in named(method) if method in METHODS]


@pytest.mark.parametrize("method", METHODS)
def test_every_option_of_an_equation_exists(method):
    recipe = by_name(method)
    assert EQUATIONS[method]
    for equation in EQUATIONS[method]:
        assert "arXiv" in equation.source and equation.text
        for option in equation.options:
            value_at(recipe, option)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "r1"])
def test_every_option_beside_the_papers_exists_and_has_help(method):
    recipe = by_name(method)
    told = explained(recipe)
    assert told.source and {row.flag for row in told.beside}
    flags = {line.flag: line.help for line in option_lines(recipe.method)}
    for field, row in zip(compared(method), told.beside, strict=True):
        value = value_at(recipe, field)
        assert row.here in (value, "-") or field == "resample"
        assert "." in field or flags[row.flag]


def test_a_star_stands_where_values_differ():
    rows = {row.flag: row for row in explained(by_name("grpo")).beside}
    assert not rows["--scale"].differs and (rows["--scale"].trl == "group")
    assert rows["--beta"].differs and (rows["--beta"].here, rows["--beta"].paper, rows["--beta"].trl) == (
        0.04,
        0.04,
        0.0,
    )
    dapo = {row.flag: row for row in explained(by_name("dapo")).beside}
    assert dapo["--resample"].here == "3 more rounds" and dapo["--resample"].differs
    assert dapo["--kl-corrected"][1:] == ("-", "-", "-") and not dapo["--kl-corrected"].differs  # β is 0 everywhere
    assert rows["--kl-corrected"][1:] == (False, False, "-")
    rloo = {row.flag: row for row in explained(by_name("rloo")).beside}
    assert rloo["--clip-low"].paper is None and rloo["--clip-low"].differs


def test_every_method_without_groups_has_its_source():
    assert set(OFFLINE) == set(OFFLINE_SOURCES) and not set(OFFLINE) & set(PRESETS)
    assert set(PRESETS) | set(OFFLINE) >= set(METHODS) - {"r1"}


CONFIGS = json.loads((Path(__file__).parents[1] / "fixtures/trl_configs.json").read_text())
RATE = {"optim.lr": "learning_rate", "data.batch_size": "per_device_train_batch_size", "data.max_length": "max_length"}
TRL = {
    "sft": ("SFTConfig", {"schedule.kind": "lr_scheduler_type"}),
    "reward": ("RewardConfig", {"schedule.kind": "lr_scheduler_type", "centering": "center_rewards_coefficient"}),
    "prm": ("PRMConfig", {"separator": "step_separator"}),
    "dpo": (
        "DPOConfig",
        {"beta": "beta", "label_smoothing": "label_smoothing", "precompute_reference": "precompute_ref_log_probs",
         "schedule.warmup": "warmup_steps", "loss": "loss_type"},
    ),
    "ipo": ("DPOConfig", {"beta": "beta", "precompute_reference": "precompute_ref_log_probs"}),
    "kto": ("KTOConfig", {"beta": "beta"}),
    "simpo": ("CPOConfig", {"beta": "beta", "gamma": "simpo_gamma"}),
    "ppo": (
        "PPOConfig",
        {"beta": "kl_coef", "kl": "kl_estimator", "gamma": "gamma", "lam": "lam", "whiten_rewards": "whiten_rewards",
         "missing_eos_penalty": "missing_eos_penalty", "clip": "cliprange", "value_clip": "cliprange_value",
         "value_coef": "vf_coef", "epochs": "num_ppo_epochs", "minibatches": "num_mini_batches",
         "temperature": "temperature", "max_new_tokens": "response_length"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", OFFLINE)
def test_trls_column_is_what_trl_has(method):
    config, names = TRL[method]
    theirs = {ours: CONFIGS[config][name] for ours, name in (RATE | names).items() if ours in OFFLINE[method]}
    plain = {ours: value[0] if isinstance(value, list) else value or 0.0 for ours, value in theirs.items()}
    assert {ours: OFFLINE[method][ours].trl or 0.0 for ours in theirs} == plain and len(theirs) >= 3
    assert CONFIGS["KTOConfig"]["desirable_weight"] == CONFIGS["KTOConfig"]["undesirable_weight"] == 1.0  # no balance
    assert CONFIGS["CPOConfig"]["cpo_alpha"] == 1.0 and not CONFIGS["PRMConfig"]["train_on_last_step_only"]


@pytest.mark.parametrize(("method", "preset"), PRESET_CASES)
def test_a_preset_gives_a_recipe_that_can_be_run(method, preset):
    default = by_name(method)
    asked = dataclasses.replace(default, method=dataclasses.replace(default.method, preset=preset))
    recipe = applied(asked, default)
    recipe.method.check("")
    assert recipe.method.preset == "" and recipe.optim.lr == 1e-6
    column = named(method)[preset]
    different = {name for name, value in column.items() if "." not in name and getattr(recipe.method, name) != value}
    assert different <= {"kl_corrected"}  # which does nothing without a divergence


def test_what_is_set_by_hand_stays():
    default = by_name("dapo")
    method = dataclasses.replace(default.method, preset="paper", group=4)
    recipe = applied(
        dataclasses.replace(default, method=method, optim=dataclasses.replace(default.optim, lr=5e-5)), default
    )
    assert (recipe.method.group, recipe.optim.lr) == (4, 5e-5)
    assert (recipe.method.max_new_tokens, recipe.method.overlong_buffer) == (20480, 4096)


def test_trls_correction_comes_back_with_a_divergence():
    default = by_name("grpo")
    recipe = applied(
        dataclasses.replace(default, method=dataclasses.replace(default.method, preset="trl", beta=0.1)), default
    )
    assert recipe.method.beta == 0.1 and recipe.method.kl_corrected


def test_an_unknown_preset_is_refused_with_those_that_there_are():
    default = by_name("rloo")
    asked = dataclasses.replace(default, method=dataclasses.replace(default.method, preset="bnpo"))
    with pytest.raises(RecipeError, match="--preset 'bnpo' is unknown; there are paper, trl"):
        applied(asked, default)
    assert RELATIVES["grpo"] == ("bnpo", "cispo")


def test_a_buffer_that_no_answer_of_the_task_reaches_is_refused_before_its_base_is_made():
    from odonata.posttrain.build import build

    default = by_name("dapo")
    asked = dataclasses.replace(default, method=dataclasses.replace(default.method, preset="paper", task="digits-sum"))
    with pytest.raises(RecipeError, match="--overlong-buffer 4096 must be below the 16 tokens"):
        build(asked)


def test_equations_and_presets_need_no_torch():
    code = "import sys, odonata.posttrain.explain; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
