"""GRPO and its kin: TRL's numbers through a model, what changes no gradient, what is learned, what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from odonata.errors import RecipeError
from odonata.language.assets import LoRA, adapt
from odonata.language.sampling import Sampling
from odonata.language.sequences import pad_sequences
from odonata.posttrain.grpo import GRPO, Learned, live_of
from odonata.posttrain.recipes import by_name
from odonata.posttrain.reference import Reference
from odonata.posttrain.rollout import Rollout, minibatches
from posttrain.offline_setting import FACTS as QWEN
from posttrain.offline_setting import assert_same_gradients, qwen
from posttrain.online_setting import (
    KIN,
    LIMIT,
    TOKENIZER,
    Said,
    apart_from_itself,
    asking_with,
    engine_for,
    gpt2,
    gradients_of,
    items,
    method_of,
    nano,
    options_of,
)

RECORDED = dict(np.load(Path(__file__).parents[1] / "fixtures/trl_grpo.npz"))
FACTS = json.loads(bytes(RECORDED.pop("json")))
AS_TRL = {
    "grpo": {"beta": 0.3},
    "dr-grpo": {},
    "dapo": {"temperature": 0.7, "filter_truncated": False, "overlong_buffer": 0, "resample": 0},
    "rloo": {"clip_low": 0.2, "clip_high": 0.2, "beta": 0.0},
    # TRL's bound is that of the weight itself, ours its distance from 1.
    "cispo": {"kind": "cispo", "aggregation": "token", "clip_low": None, "clip_high": 0.15, "beta": 0.0},
}
"""Our options where the recorded run of TRL had others than the method's recipe."""


def recorded_rollout(name: str) -> Rollout:
    """The batch that TRL's trainer was given, its log-probabilities at their places in whole sequences."""
    sequences = pad_sequences(FACTS["prompts"], FACTS["answers"], 0)
    where, mask = sequences.scored[:, 1:], torch.from_numpy(RECORDED["mask"])

    def placed(side: str) -> torch.Tensor:
        values = torch.from_numpy(RECORDED[f"{name}/{side}"])[mask]
        return torch.zeros(where.shape, dtype=values.dtype).masked_scatter(where, values)

    advantages = torch.from_numpy(RECORDED[f"{name}/advantages"])[:, None]
    return Rollout(sequences, placed("old"), where, advantages, placed("ref"))


def assert_as_trl(name: str) -> dict[str, float]:
    assert QWEN["sizes"] == FACTS["sizes"]
    decoder = qwen()
    # A reference that was recorded is asked nothing; that there is one puts its price into the loss.
    reference = Reference(decoder) if name == "grpo" else None
    method = method_of(
        name if name in KIN else "grpo", decoder, reference, asking=asking_with(limit=FACTS["limit"]), **AS_TRL[name]
    )
    values, gradients = gradients_of(method, recorded_rollout(name))
    assert abs(values["loss"] / float(RECORDED[f"{name}/loss"]) - 1) < 1e-6
    norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
    assert abs(norm / float(RECORDED[f"{name}/norm"]) - 1) < 1e-5
    tensors = [key for key in RECORDED if key.startswith(f"{name}/model.")]
    assert len(tensors) == 4
    for key in tensors:
        expected = torch.from_numpy(RECORDED[key])
        found = gradients["decoder." + key.removeprefix(f"{name}/model.")]
        assert float((found - expected).norm() / expected.norm()) < 1e-5, key
    return values


@pytest.mark.shows("grpo", "parity")
def test_grpo_has_trls_loss_and_gradients_through_a_model():
    assert assert_as_trl("grpo")["clip_fraction"] == pytest.approx(FACTS["grpo/clipped"], abs=1e-6)


@pytest.mark.shows("dr-grpo", "parity")
def test_dr_grpo_has_trls_loss_and_gradients_through_a_model():
    assert assert_as_trl("dr-grpo")["clip_fraction"] == pytest.approx(FACTS["dr-grpo/clipped"], abs=1e-6)


@pytest.mark.shows("dapo", "parity")
def test_dapo_has_trls_loss_and_gradients_through_a_model():
    assert assert_as_trl("dapo")["clip_fraction"] == pytest.approx(FACTS["dapo/clipped"], abs=1e-6)


@pytest.mark.shows("rloo", "parity")
def test_rloo_has_trls_loss_and_gradients_through_a_model():
    assert_as_trl("rloo")


def test_cispo_has_trls_loss_and_gradients_through_a_model():
    assert_as_trl("cispo")


@pytest.mark.shows("rloo", "parity")
def test_rloo_makes_of_rewards_and_divergences_the_advantages_that_trl_makes(monkeypatch):
    rollout = recorded_rollout("rloo")
    rewards = iter(RECORDED["rloo/rewards"].tolist())
    asking = asking_with(Said(lambda answer: next(rewards)), limit=FACTS["limit"])
    method = method_of("rloo", qwen(), Reference(qwen()), asking=asking, beta=0.3)
    monkeypatch.setattr("odonata.posttrain.grpo.reference_logprobs", lambda *_: rollout.ref_logprobs)
    with torch.no_grad():
        answers = asking.ask(qwen(), items("12=", "3="))
    answers = dataclasses.replace(answers, sequences=rollout.sequences, old_logprobs=rollout.old_logprobs)
    found = method.learn_from(answers, engine_for(method)).advantages
    expected = torch.from_numpy(RECORDED["rloo/made-advantages"]).view(2, 4)
    assert float((found - expected).norm() / expected.norm()) < 1e-6


# ---- what must not change a gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KIN)
def test_neither_micro_batches_nor_padding_nor_the_order_of_groups_change_a_gradient(name):
    decoder, reference, rollout = apart_from_itself()
    method = method_of(name, decoder, reference if name in ("grpo", "rloo") else None)
    values, whole = gradients_of(method, rollout)
    assert values["clip_fraction"] > 0 or name == "rloo"
    for accumulate in (2, 4, 7, 100):
        again, gradients = gradients_of(method, rollout, accumulate)
        assert_same_gradients(gradients, whole, 1e-10)
        assert again == pytest.approx(values, rel=1e-6)
    swapped = rollout.rows(torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]))
    assert_same_gradients(gradients_of(method, swapped)[1], whole, 1e-10)
    padded = dataclasses.replace(
        rollout,
        **{side: torch.nn.functional.pad(getattr(rollout, side), (0, 5)) for side in ("old_logprobs", "ref_logprobs")},
        mask=torch.nn.functional.pad(rollout.mask, (0, 5)),
        sequences=dataclasses.replace(
            rollout.sequences,
            ids=torch.nn.functional.pad(rollout.sequences.ids, (0, 5), value=9),
            scored=torch.nn.functional.pad(rollout.sequences.scored, (0, 5)),
        ),
    )
    assert_same_gradients(gradients_of(method, padded)[1], whole, 1e-10)


def test_answers_without_an_advantage_are_left_out_and_counted():
    decoder, _, rollout = apart_from_itself()
    rollout.advantages[2:6] = 0
    method = method_of("dapo", decoder)
    read = []
    forward = decoder.hidden
    decoder.hidden = lambda ids, *rest, **named: (read.append(len(ids)), forward(ids, *rest, **named))[1]
    pruned = gradients_of(method, rollout)[1]
    assert read == [4]
    decoder.hidden = forward
    method.reference, method.options = Reference(decoder), options_of("dapo", beta=1e-300)  # nothing is left out then
    assert_same_gradients(pruned, gradients_of(method, rollout)[1], 1e-10)


def test_a_step_without_a_live_group_still_makes_an_update_whose_gradient_is_zero():
    decoder, _, rollout = apart_from_itself()
    rollout.advantages[:] = 0
    values, gradients = gradients_of(method_of("grpo", decoder, beta=0.0), rollout, 3)
    assert values == {"loss": 0.0, "clip_fraction": 0.0, "off_policy": 0.0}
    assert len(gradients) == len(list(decoder.parameters())) and not any(g.any() for g in gradients.values())


def test_mini_batches_share_the_answers_out_and_are_as_many_as_asked_for():
    _, _, rollout = apart_from_itself()
    rollout.advantages[:, 0] = torch.arange(1.0, 9)
    for count in (1, 3, 8):
        parts = list(minibatches(rollout, count, torch.Generator().manual_seed(5)))
        assert len(parts) == count
        assert sorted(a for part in parts for a in part.advantages[:, 0].tolist()) == list(range(1, 9))
    parts = list(minibatches(rollout, 11, torch.Generator().manual_seed(5)))
    assert [bool(part.mask.any()) for part in parts] == [True] * 8 + [False] * 3


@pytest.mark.parametrize("name", KIN)
def test_every_recipe_is_on_policy_at_its_first_update(name):
    prompts = items("1=", "12345=", "314159=")
    for decoder, changes in (
        (nano(), {}),
        (nano(), {"temperature": 0.6}),
        (gpt2(), {}),
        (gpt2(dropout=0.3), {}),  # dropout would be chance in one of two policies that are compared
        (nano(), {"epochs": 2, "minibatches": 2}),
    ):
        options = options_of(name, **changes)
        asking = asking_with(sampling=Sampling(options.temperature))
        method = GRPO(decoder, options, asking, Reference(decoder) if options.beta else None)
        engine = engine_for(method, real=True, accumulate=2)
        batch = prompts * (options.resample + 1)
        for _ in range(2):
            values = method.step(batch, engine)
            assert float(values["off_policy"]) < 1e-5, changes
        if changes.get("epochs"):
            assert engine.optimizers["main"].state_dict()["state"][0]["step"] == 8


def test_half_precision_is_nearly_on_policy_and_learns():
    for precision, bound in (("bf16", 0.05), ("fp16", 0.02)):
        method = method_of("grpo", decoder := nano(), Reference(decoder))
        before = decoder.embed_tokens.weight.clone()
        engine = engine_for(method, real=True, precision=precision, accumulate=2)
        values = method.step(items("1=", "12345="), engine)
        assert 0 < float(values["off_policy"]) < bound
        assert decoder.embed_tokens.weight.dtype == torch.float32 and not torch.equal(
            before, decoder.embed_tokens.weight
        )
        assert float(values["kl"]) < 1e-3


# ---- references, adapters, groups ---------------------------------------------------------------------------------


def test_without_a_price_no_reference_is_kept():
    assert by_name("dapo").method.beta == by_name("dr-grpo").method.beta == 0
    method = method_of("dapo", nano())
    assert method.reference is None and "kl" not in method.step(items(*["1=", "2="] * 4), engine_for(method))


def test_adapters_alone_learn_and_the_frozen_weights_are_the_reference():
    decoder = nano()
    adapt(decoder, LoRA(4))
    for name, parameter in decoder.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.zeros_(parameter)
    reference = Reference(decoder)
    assert reference.shared and reference.state() == {}
    method = method_of("grpo", decoder, reference, beta=0.5)
    engine = engine_for(method, real=True)
    frozen = {name: p.detach().clone() for name, p in decoder.named_parameters() if not p.requires_grad}
    learned = {name: p.detach().clone() for name, p in decoder.named_parameters() if p.requires_grad}
    assert set(learned) == {name for name in learned if "lora_" in name} and len(frozen) > len(learned) / 2
    first = method.step(items("1=", "23="), engine)
    assert float(first["kl"]) < 1e-10
    for _ in range(3):
        last = method.step(items("4=", "56="), engine)
    assert float(last["kl"]) > 1e-6
    assert all(torch.equal(dict(decoder.named_parameters())[name], value) for name, value in frozen.items())
    assert not any(torch.equal(dict(decoder.named_parameters())[name], value) for name, value in learned.items())
    assert all(part.scale == 8.0 for part in decoder.modules() if hasattr(part, "lora_a")), "adapters are on again"


def test_the_deviation_of_a_batch_is_taken_over_all_its_groups():
    asking = asking_with(Said(lambda answer: float(len(answer.completion))))
    found = {}
    for scale in ("none", "batch"):
        method = method_of("grpo", nano(), asking=asking, scale=scale, beta=0.0)
        engine = engine_for(method)
        with torch.no_grad():
            answers = asking.ask(method.decoder, items("1=", "12="))
            found[scale] = method.learn_from(answers, engine).advantages
    assert torch.allclose(found["batch"], found["none"] / (answers.rewards.std() + 1e-4), rtol=1e-5)


def learned_round(live: list[bool], number: int) -> Learned:
    """A round of groups of two whose rows carry the round and the group as their advantage."""
    _, _, rollout = apart_from_itself(lengths=(3, 4) * len(live), group=2)
    marks = torch.tensor([10.0 * number + group for group in range(len(live)) for _ in range(2)]).double()[:, None]
    return Learned(dataclasses.replace(rollout, advantages=marks), marks.view(-1, 2), torch.tensor(live))


def test_the_first_live_groups_of_all_rounds_are_learned_from():
    rounds = [learned_round([True, False, True], 1), learned_round([False, True, True], 2)]
    assert live_of(rounds, 3).advantages[:, 0].tolist() == [10, 10, 12, 12, 21, 21]
    assert live_of(rounds, 9).advantages[:, 0].tolist() == [10, 10, 12, 12, 21, 21, 22, 22]
    dead = live_of([learned_round([False, False], 1)], 2)
    assert len(dead.mask) == 1 and not dead.mask.any()


def test_dapo_asks_on_until_enough_groups_are_live_and_no_longer():
    def rounds_asked(reward) -> tuple[float, dict]:
        method = method_of("dapo", nano(), asking=asking_with(reward), resample=3, filter_truncated=False)
        values = method.step(items(*[f"{i}=" for i in range(8)]), engine_for(method))
        return float(values["rounds"]), values

    assert rounds_asked(Said(lambda answer: float(len(answer.completion))))[0] == 1
    asked, values = rounds_asked(Said(lambda answer: 1.0))
    assert asked == 4 and float(values["live_groups"]) == 0 and float(values["loss"]) == 0
    # Prompts of the first round never differ, all others do: every fourth is of the first.
    differs = Said(lambda answer: float(len(answer.completion)) * (answer.prompt not in ("0=", "4=")))
    assert rounds_asked(differs)[0] == 2


def test_a_price_on_length_makes_no_group_live():
    decoder = nano()
    method = method_of("dapo", decoder, asking=asking_with(Said(lambda answer: 0.0)), overlong_buffer=8, resample=1)
    with torch.no_grad():
        learned = method.learn_from(method.asking.ask(decoder, items("1=", "2=")), engine_for(method))
    assert learned.advantages.any() and not learned.live.any()


def test_answers_that_could_not_be_judged_leave_the_baseline():
    seen = iter([1.0, None, 0.0, 0.0, None, None, None, None])
    method = method_of("grpo", nano(), asking=asking_with(Said(lambda answer: next(seen))), beta=0.0, scale="none")
    with torch.no_grad():
        rollout, figures = method.roll_out(items("1=", "2="), engine_for(method))
    assert rollout.advantages[:, 0].tolist() == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3, 0, 0, 0, 0])
    assert float(figures["unscored"]) == 5 / 8 and float(figures["reward"]) == pytest.approx(1 / 3)
    assert float(figures["live_groups"]) == 0.5


# ---- what is learned ----------------------------------------------------------------------------------------------


def rises(name: str, steps: int = 40) -> tuple[float, float]:
    """Mean number of sevens in an answer of a random decoder, at first and after learning to say them."""
    method = method_of(name, decoder := nano(seed=3), asking=asking_with(group=8), resample=0, filter_truncated=False,
                       overlong_buffer=0)  # fmt: skip
    method.reference = Reference(decoder) if method.options.beta else None
    engine = engine_for(method, real=True)
    rewards = []
    for step in range(steps):
        engine.step = step
        prompts = items(*[f"{step}{i}=" for i in range(4)], first_key=1000 * step)
        rewards.append(float(method.step(prompts, engine)["reward"]))
    return sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3


@pytest.mark.shows("grpo", "trains")
def test_grpo_learns_to_say_seven():
    before, after = rises("grpo")
    assert before < 1 and after > 6


@pytest.mark.shows("dr-grpo", "trains")
def test_dr_grpo_learns_to_say_seven():
    before, after = rises("dr-grpo")
    assert before < 1 and after > 6


@pytest.mark.shows("dapo", "trains")
def test_dapo_learns_to_say_seven():
    before, after = rises("dapo")
    assert before < 1 and after > 6


@pytest.mark.shows("rloo", "trains")
def test_rloo_learns_to_say_seven():
    before, after = rises("rloo")
    assert before < 1 and after > 6


def test_truncated_answers_teach_nothing_where_they_are_filtered():
    method = method_of("dapo", nano(), asking=asking_with(limit=6, group=8), resample=0, overlong_buffer=0)
    with torch.no_grad():
        rollout, figures = method.roll_out(items("1=", "2=", "3="), engine_for(method))
    cut = rollout.sequences.scored.sum(1) == 6
    assert 0 < float(figures["truncated"]) < 1
    ended = (rollout.sequences.ids.gather(1, (rollout.sequences.lengths - 1)[:, None]) == TOKENIZER.end())[:, 0]
    assert rollout.mask.any(1).tolist() == (~cut | ended).tolist()


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.shows("grpo", "manners")
@pytest.mark.shows("dr-grpo", "manners")
@pytest.mark.shows("dapo", "manners")
@pytest.mark.shows("rloo", "manners")
@pytest.mark.parametrize("name", KIN)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group": 1}, "--group is 1; it must be at least 2: an answer is judged against others to the same prompt"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"minibatches": 0}, "--minibatches is 0"),
        ({"resample": -1}, "--resample is -1"),
        ({"overlong_buffer": -4}, "--overlong-buffer is -4"),
        ({"overlong_buffer": 300}, "--overlong-buffer 300 must be below --max-new-tokens 256"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"temperature": 0.0}, "--temperature is 0.0; learning needs chance"),
        ({"beta": -0.1}, "--beta is -0.1; a price is 0 or more"),
        ({"beta": float("nan")}, "--beta is nan"),
        ({"clip_low": 1.5}, "clip_low"),
        ({"baseline": "leave-one-out", "scale": "group"}, "--baseline leave-one-out has no deviation to divide by"),
        ({"kind": "sequence", "aggregation": "token"}, "--kind sequence weighs whole answers"),
        ({"kl_corrected": True, "beta": 0.0}, "--kl-corrected is about a divergence in the loss"),
        ({"kl": "k2", "beta": 0.0}, "--kl k2 --kl-place .* changes nothing while --beta is 0"),
        ({"kl": "k1", "kl_place": "loss", "beta": 0.1}, "--kl k1 in the loss has no gradient in expectation"),
        ({"lora": LoRA(4, dropout=0.1)}, "--lora.dropout is 0.1; answers are sampled and learned without dropout"),
        ({"reward": ("math",), "reward_weights": (1.0, 2.0)}, "--reward-weights has 2 entries for 1 rewards"),
    ],
)
def test_options_that_cannot_be_used_are_named(name, changes, said):
    with pytest.raises(RecipeError, match=said):
        options_of(name, **changes).check("")


def test_the_recipes_differ_in_what_their_papers_say():
    by = {name: options_of(name) for name in KIN}
    assert (by["grpo"].aggregation, by["grpo"].scale, by["grpo"].beta) == ("sequence", "group", 0.04)
    assert (by["dr-grpo"].aggregation, by["dr-grpo"].scale, by["dr-grpo"].beta) == ("constant", "none", 0)
    assert (by["dapo"].aggregation, by["dapo"].clip_low, by["dapo"].clip_high) == ("token", 0.2, 0.28)
    assert (by["rloo"].baseline, by["rloo"].kl_place, by["rloo"].clip_high) == ("leave-one-out", "reward", None)
    for options in by.values():
        options.check("")
    assert LIMIT > 8
