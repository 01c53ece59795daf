"""PPO as a method: TRL's trainer line by line, an update by hand, what a gradient does not depend on, whole runs."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from odonata.app.api import load
from odonata.app.cli import main
from odonata.errors import DataError, RecipeError
from odonata.language.decoder import Decoder
from odonata.language.sampling import Sampling
from odonata.language.sequences import Sequences, pad_sequences, token_logprobs
from odonata.nn.lora import LoRALinear, add_lora
from odonata.posttrain.build import build
from odonata.posttrain.build_scorers import share_frozen
from odonata.posttrain.ppo import PPO, PPOOptions, adapted, explained_variance, whiten_ended
from odonata.posttrain.recipes import by_name
from odonata.posttrain.reference import Reference
from odonata.posttrain.rewards.interface import Judged
from odonata.posttrain.rollout import Answers, Rollout
from odonata.posttrain.scorer import Scorer
from posttrain.offline_setting import assert_same_gradients, directory, quick_base, start_ranks, train
from posttrain.online_setting import TOKENIZER, Said, apart_from_itself, asking_with, engine_for, gpt2, items, nano
from posttrain.online_setting import gradients_of as gradients_of_update
from posttrain.scorer_setting import (
    FACTS,
    RECORDED,
    assert_gradients_as_trl,
    assert_loss_as_trl,
    plain_scorer,
    qwen,
    qwen_scorer,
)

TASK = "digits-sum:digits=2"


def answers_of(prompts, said, scores, finished, logprobs=None, decoder=None, temperature=1.0) -> Answers:
    """Answers as a policy would have given them; a score of None could not be judged."""
    sequences = pad_sequences(prompts, said, 0)
    if logprobs is None:
        with torch.no_grad():
            logprobs, _ = token_logprobs(decoder, sequences, temperature=temperature)
    return Answers(
        items(*["1="] * len(prompts)), 1, [""] * len(prompts), Judged(list(scores), {"said": list(scores)}),
        torch.tensor(finished), torch.tensor([len(ids) for ids in said]), sequences, logprobs,
    )  # fmt: skip


def ppo_of(decoder, value, reference=None, asking=None, **options) -> PPO:
    return PPO(decoder, value, PPOOptions(**options), asking or asking_with(group=1), reference)


# ---- TRL's trainer ---------------------------------------------------------------------------------------------------


def recorded_ppo() -> tuple[PPO, Answers]:
    """The models and answers that TRL had."""
    rows, given = FACTS["ppo"], FACTS["ppo/options"]
    method = ppo_of(
        qwen(), qwen_scorer("value "), Reference(qwen(apart=0.1)), temperature=given["temperature"],
        beta=given["kl_coef"], score_at="after_eos", missing_eos_penalty=given["missing_eos_penalty"],
        lam=given["lam"], gamma=given["gamma"], clip=given["cliprange"], value_clip=given["cliprange_value"],
        value_coef=given["vf_coef"],
    )  # fmt: skip
    prompts, said = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    scores = qwen_scorer("judge ").at_end(pad_sequences(prompts, said, 0)).tolist()
    assert scores == pytest.approx(RECORDED["ppo/scores"].tolist(), rel=1e-5)
    finished = [row["answer"][-1] == 1 for row in rows]
    assert finished.count(False) == 1
    answers = answers_of(prompts, said, scores, finished, decoder=qwen(apart=0.05), temperature=0.7)
    return method, answers


def beside(method_rows: torch.Tensor, answers: Answers, width: int) -> torch.Tensor:
    """What stands at answers, moved to the left as TRL's responses stand."""
    found = torch.zeros(len(method_rows), width, dtype=method_rows.dtype)
    for row, scored in enumerate(answers.sequences.scored):
        first = int(scored.nonzero()[0]) - 1
        part = method_rows[row, first : first + width]
        found[row, : len(part)] = part
    return found


@pytest.mark.shows("ppo", "parity")
def test_scores_values_advantages_and_returns_are_those_of_trls_trainer():
    method, answers = recorded_ppo()
    rollout, figures = method.learn_from(answers)
    width = RECORDED["ppo/advantages"].shape[1]
    steps, tokens = (~torch.from_numpy(RECORDED[f"ppo/padding_mask{p}"]) for p in ("_p1", ""))
    for name, where in (("values", steps), ("returns", steps), ("advantages", tokens)):
        found = beside(getattr(rollout, name), answers, width)
        expected = torch.from_numpy(RECORDED[f"ppo/{name}"])
        error = float((found - expected)[where].norm() / expected[where].norm())
        assert error < 1e-5, f"{name}: {error:.1e}"
    assert torch.equal(beside(rollout.mask, answers, width), tokens)
    assert torch.equal(beside(rollout.sequences.scored[:, 1:], answers, width), steps)
    # One of six answers never ended, and pays.
    assert float(figures["score"]) == pytest.approx(RECORDED["ppo/scores"].mean() - 1 / 6, rel=1e-5)


@pytest.mark.shows("ppo", "parity")
def test_the_update_has_trls_losses_and_gradients_of_policy_and_values():
    method, answers = recorded_ppo()
    rollout, _ = method.learn_from(answers)
    values, gradients = gradients_of_update(method, rollout)
    assert_loss_as_trl("ppo/policy_loss", torch.tensor(values["policy_loss"]), 1e-5)
    assert_loss_as_trl("ppo/value_loss", torch.tensor(values["value_loss"]), 1e-5)
    assert_loss_as_trl("ppo/loss", torch.tensor(values["loss"]), 1e-5)
    assert values["clip_fraction"] == pytest.approx(FACTS["ppo/clipped"])
    policy = {f"model.{n.removeprefix('decoder.')}": g for n, g in gradients.items() if n.startswith("decoder.")}
    value = {n.removeprefix("value.").replace("decoder.", "model."): g for n, g in gradients.items() if "value." in n}
    assert_gradients_as_trl("ppo/0", policy)
    assert_gradients_as_trl("ppo/1", value)


# ---- by hand ---------------------------------------------------------------------------------------------------------


class FixedValues(Scorer):
    """A value network that says what it is told: a value for each token of the vocabulary, before what follows it."""

    def __init__(self, values):
        super().__init__(nano())
        self.table = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, ids):
        return self.table[ids][..., None]


def two_tokens(score_at: str, **options):
    """An answer of two tokens, 5 and the end, to a prompt that ends with 4; values 0.5 and 0.25 stand before them."""
    values = [0.0] * 24
    values[4], values[5], values[1] = 0.5, 0.25, 0.125
    decoder, reference, _ = apart_from_itself()
    fields = {"beta": 0.1, "lam": 0.5, "whiten_advantages": False, "missing_eos_penalty": 0.0} | options
    method = ppo_of(decoder, FixedValues(values), reference, score_at=score_at, **fields)
    answers = answers_of([(3, 4)], [(5, 1)], [2.0], [True], decoder=decoder)
    delta = (answers.old_logprobs - reference.logprobs(answers.sequences))[0, 1:].tolist()
    return method, answers, delta


def test_advantages_of_two_tokens_by_hand_where_the_score_is_earned_at_the_end():
    method, answers, delta = two_tokens("eos")
    rollout, _ = method.learn_from(answers)
    # r = (−0.1 δ₁, 2 − 0.1 δ₂), V = (0.5, 0.25), γ = 1, λ = ½
    second = 2 - 0.1 * delta[1] - 0.25
    first = -0.1 * delta[0] + 0.25 - 0.5 + 0.5 * second
    assert rollout.advantages[0].tolist() == pytest.approx([0, first, second], rel=1e-6)
    assert rollout.returns[0].tolist() == pytest.approx([0, first + 0.5, second + 0.25], rel=1e-6)
    assert rollout.sequences.scored[0].tolist() == [False, False, True, True]


def test_advantages_of_two_tokens_by_hand_where_the_score_follows_the_end():
    method, answers, delta = two_tokens("after_eos")
    rollout, _ = method.learn_from(answers)
    # A third place, before which the end token's value 0.125 stands, earns the score.
    third = 2 - 0.125
    second = -0.1 * delta[1] + 0.125 - 0.25 + 0.5 * third
    first = -0.1 * delta[0] + 0.25 - 0.5 + 0.5 * second
    assert rollout.advantages[0].tolist() == pytest.approx([0, first, second, third], rel=1e-6)
    assert rollout.returns[0].tolist() == pytest.approx([0, first + 0.5, second + 0.25, third + 0.125], rel=1e-6)
    assert rollout.mask[0].tolist() == [False, True, True, False]
    assert rollout.sequences.scored[0].tolist() == [False, False, True, True, True]


def test_where_the_score_is_earned_changes_nothing_if_lambda_is_1():
    found = [two_tokens(place, lam=1.0)[0].learn_from(two_tokens(place)[1])[0] for place in ("eos", "after_eos")]
    assert found[0].returns[0].tolist() == pytest.approx(found[1].returns[0, :3].tolist(), rel=1e-6)


def test_an_update_of_two_tokens_by_hand():
    """Losses, and what is clipped: of two ratios and two values one is within its clip and one beyond."""
    method, answers, _ = two_tokens("eos", value_coef=0.1)
    rollout, _ = method.learn_from(answers)
    logs = torch.tensor([[0.0, math.log(1.1), math.log(1.5)]]).double()
    rollout = dataclasses.replace(
        rollout, old_logprobs=(rollout.old_logprobs - logs) * rollout.mask,
        advantages=torch.tensor([[0.0, 1.0, 2.0]]).double(), values=torch.tensor([[0.0, 0.4, 0.9]]).double(),
        returns=torch.tensor([[0.0, 1.0, 1.0]]).double(),
    )  # fmt: skip
    values, gradients = gradients_of_update(method, rollout)
    policy = -(1.1 * 1.0 + 1.2 * 2.0) / 2
    # New values 0.5 and 0.25; the second is more than 0.2 from 0.9, and counts as 0.7 if that is worse; it is not.
    value = 0.5 * ((0.5 - 1) ** 2 + (0.25 - 1) ** 2) / 2
    assert values["policy_loss"] == pytest.approx(policy, rel=1e-6)
    assert values["value_loss"] == pytest.approx(value, rel=1e-6)
    assert values["loss"] == pytest.approx(policy + 0.1 * value, rel=1e-6)
    assert values["clip_fraction"] == 0.5 and values["value_clip_fraction"] == 0.0
    assert values["off_policy"] == pytest.approx((0.1 + 0.5) / 2, rel=1e-6)
    table = gradients["value.table"]
    assert table[4].item() == pytest.approx(0.1 * (0.5 - 1) / 2) and table[5].item() == pytest.approx(0.1 * -0.75 / 2)
    # A value that has gone past its clip in the good direction has no gradient.
    stuck = dataclasses.replace(rollout, values=torch.tensor([[0.0, 0.4, -0.5]]).double())
    values, gradients = gradients_of_update(method, stuck)
    assert values["value_clip_fraction"] == 0.5 and gradients["value.table"][5].item() == 0.0


def test_answers_that_never_ended_pay_and_do_not_scale_the_others():
    method, answers, _ = two_tokens("eos", missing_eos_penalty=1.5, beta=0.0)
    cut = dataclasses.replace(answers, finished=torch.tensor([False]))
    whole, paid = (method.learn_from(a)[1]["score"] for a in (answers, cut))
    assert float(whole) == 2.0 and float(paid) == 0.5
    rewards = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, -90.0]]).double()
    steps, finished = torch.ones(3, 2).bool(), torch.tensor([True, True, False])
    found = whiten_ended(rewards, steps, finished)
    ended = rewards[:2].flatten()
    # The mean is kept; the deviation is that of the two that ended.
    expected = (rewards - ended.mean()) / ended.std() + ended.mean()
    assert torch.allclose(found, expected, rtol=1e-6)
    alone = whiten_ended(rewards, steps, torch.zeros(3).bool())
    assert torch.allclose(alone, (rewards - rewards.mean()) / rewards.std() + rewards.mean(), rtol=1e-6)


def test_the_price_moves_towards_its_target_as_ziegler_has_it():
    options = PPOOptions(kl_target=6.0, kl_horizon=10_000)
    assert adapted(torch.tensor(6.0), options, 512) == 1.0
    assert adapted(torch.tensor(6.6), options, 512) == pytest.approx(1 + 0.1 * 512 / 10_000)
    assert adapted(torch.tensor(60.0), options, 512) == pytest.approx(1 + 0.2 * 512 / 10_000)
    assert adapted(torch.tensor(0.0), options, 512) == pytest.approx(1 - 0.2 * 512 / 10_000)
    method, answers, _ = two_tokens("eos", kl_target=1e-3, kl_horizon=10.0)
    _, figures = method.learn_from(answers)
    expected = 0.1 * adapted(figures["kl_answer"], method.options, 1)
    assert float(figures["beta"]) == 0.1 and float(method.beta) == pytest.approx(expected) != 0.1
    assert "beta" in method.state_dict()  # a resumed run goes on with it


def test_explained_variance_by_hand():
    steps = torch.tensor([[True, True, True, False]])
    returns, values = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[1.0, 2.0, 4.0, -9.0]])
    # Var(0, 0, −1) = 2/9 and Var(1, 2, 3) = 2/3
    assert float(explained_variance(values, returns, steps)) == pytest.approx(1 - (2 / 9) / (2 / 3))
    assert float(explained_variance(values, torch.ones(1, 4), steps)) == 0.0


# ---- what a gradient does not depend on ------------------------------------------------------------------------------


def rollout_with_values() -> tuple[PPO, Rollout]:
    decoder, reference, rollout = apart_from_itself()
    torch.manual_seed(3)
    noise = [torch.randn(rollout.mask.shape).double().masked_fill(~rollout.mask, 0) for _ in range(3)]
    rollout = dataclasses.replace(rollout, advantages=noise[0], values=noise[1], returns=noise[2])
    return ppo_of(decoder, plain_scorer(), reference), rollout


def test_neither_micro_batches_nor_padding_nor_order_change_a_gradient():
    method, rollout = rollout_with_values()
    values, whole = gradients_of_update(method, rollout)
    assert any(name.startswith("value.score") for name in whole) and any(n.startswith("decoder.") for n in whole)
    for accumulate in (2, 3, 8):
        split_values, split = gradients_of_update(method, rollout, accumulate)
        assert_same_gradients(split, whole, 1e-9)
        assert split_values == pytest.approx(values, rel=1e-6, abs=1e-12)
    turned = rollout.rows(torch.arange(7, -1, -1))
    assert_same_gradients(gradients_of_update(method, turned)[1], whole, 1e-9)

    def wider(x, fill):
        return None if x is None else torch.nn.functional.pad(x, (0, 4), value=fill)

    names = ("old_logprobs", "advantages", "ref_logprobs", "values", "returns")
    padded = Rollout(
        sequences=Sequences(wider(rollout.sequences.ids, 9), wider(rollout.sequences.scored, False)),
        mask=wider(rollout.mask, False), **{name: wider(getattr(rollout, name), math.nan) for name in names},
    )  # fmt: skip
    assert_same_gradients(gradients_of_update(method, padded)[1], whole, 1e-9)


def test_values_do_not_depend_on_the_parts_they_are_read_in():
    method, answers = recorded_ppo()
    whole, split = method.learn_from(answers, 1)[0], method.learn_from(answers, 3)[0]
    for name in ("values", "returns", "advantages", "ref_logprobs"):
        assert torch.allclose(getattr(whole, name), getattr(split, name), atol=1e-6)


def sevens(answer):
    return float(answer.completion.count("7"))


def step_of(method, engine):
    return method.step(items("12=", "3=", "77=", "456="), engine)


def test_the_first_update_is_on_policy_and_further_ones_are_as_many_as_asked_for():
    decoder = nano()
    method = ppo_of(decoder, Scorer(copy.deepcopy(decoder)), Reference(decoder), epochs=3, minibatches=2)
    engine = engine_for(method, real=True)
    made = []
    engine.update = lambda name="main", update=engine.update: (made.append(name), update(name))
    figures = {name: float(value) for name, value in step_of(method, engine).items()}
    assert len(made) == 6
    assert figures["off_policy"] < 1e-6 and figures["kl"] < 1e-10 and abs(figures["kl_answer"]) < 1e-5
    assert {"reward", "reward/sevens", "score", "entropy", "length", "truncated", "explained_variance",
            "value_loss", "policy_loss", "clip_fraction", "value_clip_fraction", "beta"} <= figures.keys()  # fmt: skip
    assert "live_groups" not in figures


def test_dropout_of_the_models_is_off_and_uneven_mini_batches_are_as_many_as_asked_for():
    decoder = gpt2(dropout=0.3)
    method = ppo_of(decoder, Scorer(copy.deepcopy(decoder)), Reference(decoder), epochs=1, minibatches=3)
    engine = engine_for(method, real=True)
    made = []
    engine.update = lambda name="main", update=engine.update: (made.append(name), update(name))
    assert float(step_of(method, engine)["off_policy"]) < 1e-5  # of four answers
    assert len(made) == 3


def test_temperature_is_in_sampling_old_new_and_reference_alike():
    decoder = nano()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    asking = asking_with(Said(sevens), 1, sampling=Sampling(0.5))
    method = ppo_of(decoder, Scorer(copy.deepcopy(decoder)), Reference(decoder), asking, temperature=0.5)
    figures = step_of(method, engine_for(method))
    assert float(figures["off_policy"]) < 1e-5 and abs(float(figures["kl_answer"])) < 1e-4
    # Scored at another temperature than it was sampled at, the first ratio is not 1.
    method.options = dataclasses.replace(method.options, temperature=1.0)
    assert float(step_of(method, engine_for(method))["off_policy"]) > 0.01


def test_answers_that_could_not_be_judged_teach_nothing():
    decoder = nano()
    method = ppo_of(decoder, Scorer(copy.deepcopy(decoder)), Reference(decoder))
    said = [(5, 6, 1), (7, 1), (8, 9, 1)]
    answers = answers_of([(3,), (4,), (3, 4)], said, [1.0, None, 0.5], [True] * 3, decoder=decoder)
    rollout, figures = method.learn_from(answers)
    assert not rollout.mask[1].any() and not rollout.sequences.scored[1].any()
    assert rollout.mask.sum() == 6 and float(figures["score"]) == 0.75
    without = answers_of([(3,), (3, 4)], [said[0], said[2]], [1.0, 0.5], [True] * 2, decoder=decoder)
    kept = method.learn_from(without)[0]
    for name in ("advantages", "returns"):
        assert torch.allclose(getattr(rollout, name)[[0, 2]], getattr(kept, name), atol=1e-6)
    nothing = dataclasses.replace(answers, judged=Judged([None] * 3, {}))
    values, gradients = gradients_of_update(method, method.learn_from(nothing)[0])
    assert values["loss"] == 0.0 and all(not gradient.any() for gradient in gradients.values())


def test_without_a_price_no_reference_is_kept(tmp_path):
    model = directory(tmp_path / "hf")
    recipe = by_name("ppo")
    for beta, kept in ((0.0, False), (0.05, True)):
        method = dataclasses.replace(recipe.method, model=str(model), beta=beta)
        task = build(dataclasses.replace(recipe, method=method))
        assert (task.method.reference is not None) == kept


def test_adapters_of_policy_and_values_share_the_frozen_weights():
    decoder = nano()
    add_lora(decoder, 2, 8.0, ("q_proj", "down_proj"))
    value = Scorer(copy.deepcopy(decoder))
    shared = share_frozen(decoder, value.decoder)
    frozen = {name: p for name, p in decoder.named_parameters() if not p.requires_grad}
    assert shared == sum(p.numel() for p in frozen.values())
    own = dict(value.decoder.named_parameters())
    assert all(own[name] is p for name, p in frozen.items())
    assert all(own[n] is not p for n, p in decoder.named_parameters() if p.requires_grad)
    method = ppo_of(decoder, value, Reference(decoder), asking_with(Said(sevens), 1))
    engine = engine_for(method, real=True)
    before = {name: p.clone() for name, p in frozen.items()}
    step_of(method, engine)
    assert all(torch.equal(before[name], p) for name, p in frozen.items())
    moved = [part for part in decoder.modules() if isinstance(part, LoRALinear)]
    assert any(part.lora_b.any() for part in moved) and value.score.weight.any()


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.shows("ppo", "trains")
def test_it_learns_to_say_seven():
    torch.manual_seed(0)
    decoder = nano()
    value, asking = Scorer(copy.deepcopy(decoder)), asking_with(Said(sevens), 1)
    method = ppo_of(decoder, value, Reference(decoder), asking, beta=0.01)
    engine = engine_for(method, real=True)
    batch = [f"{i}{i * 3 % 10}=" for i in range(10)] * 3
    said = [float(method.step(items(*batch, first_key=1000 * step), engine)["reward"]) for step in range(25)]
    assert sum(said[-5:]) / 5 > 3 * sum(said[:3]) / 3


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """It answers in the form of the task, by chance."""
    return quick_base(tmp_path_factory.mktemp("ppo-base") / "hf", TASK, 150)


@pytest.fixture(scope="module")
def reward_run(base, tmp_path_factory):
    run = tmp_path_factory.mktemp("ppo-reward") / "run"
    arguments = ("--steps", 4, "--data.batch-size", 8, "--sampled.prompts", 40, "--optim.lr", 1e-3)
    assert train("reward", "--model", base, "--task", TASK, *arguments, "--out", run) == 0
    return run


def logs(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


COMMON = ("--task", TASK, "--data.batch-size", 8, "--evaluation.prompts", 8, "--log-every", 1)


@pytest.mark.parametrize("options", [(), ("--lora.rank", 2), ("--value",), ("--kl-target", 0.5, "--kl-horizon", 50)])
def test_a_run_that_was_cut_short_ends_in_the_same_bits(options, base, reward_run, tmp_path):
    options = ("--value-model", reward_run) if options == ("--value",) else options
    common = ("ppo", "--model", base, *COMMON, "--steps", 4, "--save-every", 2, *options)
    for name in ("whole", "cut"):
        assert train(*common, "--out", tmp_path / name) == 0
    last = tmp_path / "cut/checkpoints/step-00000004"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    (tmp_path / "cut/checkpoints/index.json").write_text(json.dumps({"last": 2, "best": None}))
    assert main(["resume", str(tmp_path / "cut")]) == 0
    whole, cut = (load_file(tmp_path / f"{n}/checkpoints/step-00000004/model.safetensors") for n in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert "value.score.weight" in whole
    held = [[row["heldout/right"] for row in logs(tmp_path / n) if "heldout/right" in row] for n in ("whole", "cut")]
    assert held[0][-1] == held[1][-1]


def test_a_learned_reward_has_the_true_one_beside_it(base, reward_run, tmp_path):
    run = tmp_path / "run"
    named = f"run:{reward_run}"
    assert train("ppo", "--model", base, *COMMON, "--steps", 2, "--reward", named, "--out", run) == 0
    line = logs(run)[0]
    assert {f"reward/{named}", "reward/marked-answer"} <= line.keys()
    assert line["reward"] == pytest.approx(line[f"reward/{named}"])  # the true one weighs nothing
    held = [row for row in logs(run) if "heldout/right" in row][-1]
    assert 0 <= held["heldout/right"] <= 1
    config = (run / "config.yaml").read_text()
    assert "marked-answer" in config and "- 0.0" in config


def test_values_begin_from_the_reward_model_or_from_the_policy_with_a_head_of_zero(base, reward_run):
    recipe = by_name("ppo")
    method = dataclasses.replace(recipe.method, model=str(base), task=TASK)
    own = build(dataclasses.replace(recipe, method=method)).method
    assert not own.value.score.weight.any()
    assert torch.equal(own.value.decoder.norm.weight, own.decoder.norm.weight)
    begun = dataclasses.replace(method, value_model=str(reward_run))
    other = build(dataclasses.replace(recipe, method=begun)).method
    judge = load(reward_run, device="cpu")
    assert torch.equal(other.value.score.weight, judge.scorer.score.weight) and judge.scorer.score.weight.any()


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(base, tmp_path):
    common = ("train", "ppo", "--model", base, *COMMON, "--steps", 3, "--epochs", 2, "--optim.lr", 1e-3)
    ways = {"one": (), "two": ("--devices", 2), "sharded": ("--devices", 2, "--parallel", "fsdp")}
    for name, options in ways.items():
        done = start_ranks(*common, *options, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr[-2000:]
    begun = load_file(base / "model.safetensors")
    states = {n: load_file(tmp_path / f"{n}/checkpoints/step-00000003/model.safetensors") for n in ways}
    for key, value in states["one"].items():
        if not key.startswith("decoder."):
            continue
        moved = float((value - begun["model." + key.removeprefix("decoder.")]).norm())
        for name in ("two", "sharded"):
            # Adam divides by the size of a gradient, and that of a key's bias is next to nothing: rounding shows there.
            assert float((states[name][key] - value).norm()) < 1e-2 * moved, f"{name}: {key}"
    for name in ("two", "sharded"):
        for line, same in zip(logs(tmp_path / "one"), logs(tmp_path / name), strict=True):
            for figure in ("reward", "value_loss", "kl", "kl_answer", "score", "clip_fraction", "heldout/right"):
                assert line.get(figure, 0.0) == pytest.approx(same.get(figure, 0.0), rel=2e-3, abs=1e-4), figure


@pytest.mark.slow
@pytest.mark.shows("ppo", "trains")
def test_right_answers_rise_on_the_task(tmp_path):
    base, run = quick_base(tmp_path / "base", "digits-sum:digits=3", 1200), tmp_path / "run"
    assert train(
        "ppo", "--model", base, "--task", "digits-sum:digits=3", "--steps", 25, "--eval-every", 25, "--log-every", 1,
        "--out", run,
    ) == 0  # fmt: skip
    lines = logs(run)
    held = [line for line in lines if "heldout/right" in line][-1]
    assert held["heldout/right"] > lines[0]["reward/marked-answer"] + 0.2


# ---- weights in and out ----------------------------------------------------------------------------------------------


@pytest.mark.shows("ppo", "weights")
@pytest.mark.parametrize("options", [(), ("--lora.rank", 2)], ids=["", "lora"])
def test_the_policy_goes_back_to_transformers(options, base, tmp_path):
    transformers = pytest.importorskip("transformers")
    run, out = tmp_path / "run", tmp_path / "out"
    arguments = ("--steps", 2, "--optim.lr", 1e-2, *options)
    assert train("ppo", "--model", base, *COMMON, *arguments, "--out", run) == 0
    assert main(["convert", str(run), str(out), "--to", "hf"]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours = load(run, device="cpu")
    ids = torch.tensor([TOKENIZER.encode("12=3#3")])
    with torch.no_grad():
        assert torch.allclose(ours.decoder(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)
    begun = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits
    assert (begun - theirs(ids).logits).abs().max() > 1e-2


# ---- manners ---------------------------------------------------------------------------------------------------------


@pytest.mark.shows("ppo", "manners")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lam": 1.5}, "--lam is 1.5; it lies in [0, 1]"),
        ({"gamma": -0.1}, "--gamma is -0.1; it lies in [0, 1]"),
        ({"beta": -1.0}, "--beta is -1; it must be 0 or more"),
        ({"epochs": 0}, "--epochs is 0; it must be at least 1"),
        ({"temperature": 0.0}, "--temperature is 0.0; learning needs chance"),
        ({"kl_target": 6.0, "beta": 0.0}, "--kl-target adapts the price of leaving the reference"),
        ({"kl": "k3", "beta": 0.0}, "--kl k3 is not used where --beta is 0"),
        ({"kl_horizon": 5.0}, "--kl-horizon is about an adapted price"),
        ({"reward": ("math",), "reward_weights": (1.0, 2.0)}, "--reward-weights has 2 entries for 1 rewards"),
    ],
)
def test_options_that_cannot_be_used_are_named(changes, said):
    with pytest.raises(RecipeError) as error:
        PPOOptions(**changes).check("")
    assert said in str(error.value)


def refused(capsys, *arguments):
    assert train("ppo", *arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.shows("ppo", "manners")
def test_reward_models_and_values_of_another_tokenizer_are_refused(base, reward_run, tmp_path, capsys):
    other = directory(tmp_path / "other", "0123456789=#abc")
    common = ("--model", other, *COMMON, "--steps", 1, "--out", tmp_path / "run")
    said = refused(capsys, *common, "--reward", f"run:{reward_run}")
    assert f"the reward run:{reward_run} reads other tokens than the policy writes: 3 entries" in said
    said = refused(capsys, *common, "--value-model", reward_run)
    assert f"--value-model {reward_run} reads other tokens than the policy writes" in said
    said = refused(capsys, *common, "--value-model", base)
    assert "holds no reward model" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.shows("ppo", "manners")
def test_a_file_needs_a_reward_and_enough_prompts(base, tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i}1=", "answer": "2"}) + "\n" for i in range(6)))
    common = ("--model", base, "--data.path", file, "--steps", 1, "--out", tmp_path / "run")
    assert "name what is earned with --reward" in refused(capsys, *common)
    said = refused(capsys, *common, "--reward", "math")
    assert "prompts are fewer than --data.batch-size 128" in said
    said = refused(capsys, *common, "--reward", "math", "--data.batch-size", 2, "--minibatches", 3)
    assert "--minibatches 3: a process has 2 answers of a step to divide" in said


def test_an_answer_of_one_token_and_padding_that_is_the_end_token_are_nothing_special():
    """The only token is the end, which is the padding too: it is learned from, and padding is not."""
    decoder, reference, _ = apart_from_itself()
    method = ppo_of(decoder, plain_scorer(), reference, missing_eos_penalty=0.0)
    sequences = pad_sequences([(3, 4), (5,)], [(1,), (6, 1)], 1)
    with torch.no_grad():
        logprobs, _ = token_logprobs(decoder, sequences)
    answers = answers_of([(3, 4), (5,)], [(1,), (6, 1)], [1.0, 2.0], [True, True], logprobs=logprobs)
    by_end = method.learn_from(dataclasses.replace(answers, sequences=sequences))[0]
    by_other = method.learn_from(answers)[0]
    assert torch.equal(by_end.mask, by_other.mask) and by_end.mask.sum() == 3
    assert torch.allclose(by_end.advantages, by_other.advantages, atol=1e-9)
    with pytest.raises(DataError, match="has no token"):
        method.asking.ask(decoder, [dataclasses.replace(items("1=")[0], ids=())])


def test_a_decoder_with_a_head_of_its_own_loses_it_as_a_value_network():
    decoder = nano(tie_word_embeddings=False)
    assert decoder.lm_head is not None
    scorer = Scorer(copy.deepcopy(decoder))
    assert isinstance(scorer.decoder, Decoder) and scorer.decoder.lm_head is None
    assert not any("lm_head" in name for name in scorer.state_dict())
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(scorer.decoder.hidden(ids), decoder.hidden(ids))
