"""PPO against Stable-Baselines3 and torchtune: networks, advantages, losses, gradients, and whole updates."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from odonata.decide.control_env import make_env
from odonata.decide.ppo_control import (
    ActorCritic,
    PPOControl,
    PPOControlConfig,
    Rollout,
    RolloutKey,
    gae,
    normalized,
    policy_loss,
    value_loss,
)
from odonata.decide.recipes import ppo_control
from odonata.engine.distributed import World
from odonata.engine.fit import Engine
from odonata.engine.recipe import Clip, Schedule
from odonata.engine.task import Task
from odonata.weights.control_policies import key_map

RECORDED = dict(np.load(Path(__file__).parents[1] / "fixtures/stable_baselines3.npz"))
GAMMA, LAMBDA = 0.97, 0.9
# Its squared error is not halved, so that a coefficient of 0.5 is 1 here; it clips values in another way, or not.
CONFIG = PPOControlConfig(
    hidden=(16, 12), gamma=GAMMA, gae_lambda=LAMBDA, num_minibatches=1, value_clip_range=0.0, value_coef=1.0
)
PARTS = ("observations", "final", "actions", "rewards", "terminated", "truncated")
BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-5}
both = pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])


def named(prefix):
    """What was recorded under a prefix, by the names of Stable-Baselines3."""
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in RECORDED.items() if k.startswith(prefix)}


def distance(found, wanted):
    """Of two tensors, relative to the second."""
    found, wanted = torch.as_tensor(found).double(), torch.as_tensor(wanted).double()
    return float((found - wanted).norm() / wanted.norm())


def method_of(dtype, **changes):
    """A method with the recorded weights, which plays the recorded rollout."""
    method = PPOControl(dataclasses.replace(CONFIG, **changes), make_env("CartPole-v1", 3), 16).to(dtype)
    ours, unused = key_map("sb3", named("state/")).to_ours(named("state/"))
    assert not unused
    method.policy.load_state_dict(ours)
    kinds = {True: torch.empty(0, dtype=dtype).numpy().dtype}
    rollout = Rollout(*(RECORDED[f"rollout/{part}"] for part in PARTS))
    played = {
        name: value.astype(kinds.get(value.dtype == np.float64, value.dtype)) for name, value in vars(rollout).items()
    }
    method.collect = lambda draws: Rollout(**played)
    return method


def engine_of(method, limit):
    base = ppo_control()
    recipe = dataclasses.replace(
        base, optim=dataclasses.replace(base.optim, lr=3e-3), schedule=Schedule("constant", warmup=0),
        clip=Clip("norm", limit), device="cpu",
    )  # fmt: skip
    return Engine(recipe, Task(method, None, 48, ""), None, World(0, 1, torch.device("cpu")))


@pytest.mark.shows("ppo-control", "parity")
@both
def test_logits_values_and_logprobs_are_stable_baselines3s(dtype):
    method = method_of(dtype)
    experience = method.learnable(method.collect(None))
    logits = method.policy.logits(experience.observations).log_softmax(1)  # it keeps them normalised
    assert distance(logits.detach(), RECORDED["logits"]) < BOUNDS[dtype]
    assert distance(experience.values, RECORDED["values"]) < BOUNDS[dtype]
    assert distance(experience.logprobs, RECORDED["log_probs"].flatten()) < BOUNDS[dtype]
    acted = method.policy.acting()(RECORDED["rollout/observations"].reshape(-1, 4).astype(np.float32))
    assert distance(torch.from_numpy(acted).log_softmax(1), RECORDED["logits"]) < 1e-5


@pytest.mark.shows("ppo-control", "parity")
@both
def test_advantages_and_returns_are_those_of_its_rollout_buffer_with_time_limits_and_ends(dtype):
    assert RECORDED["rollout/truncated"].any() and RECORDED["rollout/terminated"].any()
    method = method_of(dtype)
    experience = method.learnable(method.collect(None))
    assert distance(experience.advantages, RECORDED["advantages"].flatten()) < BOUNDS[dtype]
    assert distance(experience.returns, RECORDED["returns"].flatten()) < BOUNDS[dtype]


@pytest.mark.shows("ppo-control", "parity")
@both
def test_loss_and_gradients_are_those_of_its_first_minibatch(dtype):
    method = method_of(dtype)
    experience = method.learnable(method.collect(None))
    experience.advantages = normalized(experience.advantages)
    found = method.loss(experience)
    found["loss"].backward()
    assert distance(found["loss"].detach(), RECORDED["one/loss"]) < BOUNDS[dtype]
    assert distance(2 * found["value_loss"].detach(), RECORDED["one/value_loss"]) < BOUNDS[dtype]
    assert distance(-found["entropy"].detach(), RECORDED["one/entropy_loss"]) < BOUNDS[dtype]
    wanted, _ = key_map("sb3", named("gradient/")).to_ours(named("gradient/"))
    assert wanted.keys() == dict(method.policy.named_parameters()).keys()
    for name, parameter in method.policy.named_parameters():
        assert distance(parameter.grad, wanted[name]) < BOUNDS[dtype], name


@pytest.mark.shows("ppo-control", "parity")
@both
@pytest.mark.parametrize(("case", "epochs", "limit"), [("clipped", 1, 0.1), ("ten", 10, 0.5)])
def test_weights_after_one_pass_and_after_ten_are_its(case, epochs, limit, dtype):
    method = method_of(dtype, update_epochs=epochs)
    logs = method.step(RolloutKey(0, 0), engine_of(method, limit))
    wanted, _ = key_map("sb3", named(f"{case}/state/")).to_ours(named(f"{case}/state/"))
    for name, value in method.policy.state_dict().items():
        assert distance(value, wanted[name]) < BOUNDS[dtype], name
    bound = 1e-6 if dtype == torch.float64 else 1e-4  # its own means are of float32
    if case == "ten":
        assert float(logs["clip_fraction"]) > 0.1
        for ours, theirs in (("policy_loss", "policy_gradient_loss"), ("clip_fraction", "clip_fraction")):
            assert distance(logs[ours], RECORDED[f"ten/{theirs}"]) < bound
        # It logs the KL of the last pass; ours is the mean of all, and each is what the loss was made of.
        assert 0 < float(logs["approx_kl"]) < RECORDED["ten/approx_kl"]
    assert distance(logs["explained_variance"], RECORDED[f"{case}/explained_variance"]) < bound
    assert float(logs["ratio_at_start"]) < 1e-6


@pytest.mark.shows("ppo-control", "parity")
@both
def test_clipped_losses_and_their_gradients_are_torchtunes(dtype):
    given = {name: value.to(dtype) for name, value in named("torchtune/").items()}
    logprobs, values = given["logprobs"].requires_grad_(), given["values"].requires_grad_()
    policy = policy_loss((logprobs - given["old_logprobs"]).exp(), given["advantages"], 0.2)
    value = value_loss(values, given["old_values"], given["returns"], 0.2)
    (policy + 0.5 * value).backward()
    found = {"policy_loss": policy, "value_loss": value, "loss": policy + 0.5 * value}
    found |= {"gradient/logprobs": logprobs.grad, "gradient/values": values.grad}
    for name, item in found.items():
        assert distance(item.detach(), given[name]) < BOUNDS[dtype], name
    assert (given["gradient/values"] == 0).any() and (given["gradient/logprobs"] == 0).any()


def test_advantages_of_three_steps_by_hand():
    # One copy: a step, one that is cut by the time limit, one that ends. γ = 0.5, λ = 0.5.
    column = [
        torch.tensor(x, dtype=torch.float64)[:, None] for x in ([1.0, 2.0, 3.0], [4.0, 6.0, 8.0], [6.0, 10.0, 99.0])
    ]
    terminated, ended = torch.tensor([False, False, True])[:, None], torch.tensor([False, True, True])[:, None]
    found = gae(*column, terminated, ended, 0.5, 0.5)
    # δ = 1 + 3 − 4 = 0; 2 + 5 − 6 = 1; 3 − 8 = −5. The first carries a quarter of the second; nothing crosses an end.
    assert found[:, 0].tolist() == [0.25, 1.0, -5.0]


def test_surrogates_by_hand():
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    # Clipped at 1.2 and 0.8 where that is worse: 1.2, −1.5, 0.5, −0.8.
    assert float(policy_loss(ratio, advantages, 0.2)) == pytest.approx(0.6 / 4)
    assert float(policy_loss(ratio, advantages, 0.0)) == pytest.approx(0.0)
    # From 0 to 1 for a target of 2: held at 0.2, so the error is 1.8² instead of 1; and never less than the plain one.
    one, zero, two = (torch.tensor([x]) for x in (1.0, 0.0, 2.0))
    assert float(value_loss(one, zero, two, 0.2)) == pytest.approx(0.5 * 1.8**2)
    assert float(value_loss(one, zero, two, 0.0)) == pytest.approx(0.5)
    assert float(value_loss(-one, zero, two, 0.2)) == pytest.approx(0.5 * 9)


def test_first_weights_are_cleanrls_to_the_bit():
    # CleanRL's ppo.py: layer_init fills a Linear by orthogonal_ and constant_(bias, 0); the critic comes first.
    def layer_init(layer, std=2**0.5):
        torch.nn.init.orthogonal_(layer.weight, std)
        torch.nn.init.constant_(layer.bias, 0.0)
        return layer

    def network(outputs, std):
        return torch.nn.Sequential(
            layer_init(torch.nn.Linear(4, 64)), torch.nn.Tanh(), layer_init(torch.nn.Linear(64, 64)), torch.nn.Tanh(),
            layer_init(torch.nn.Linear(64, outputs), std=std),
        )  # fmt: skip

    torch.manual_seed(5)
    theirs = torch.nn.ModuleDict({"critic": network(1, 1.0), "actor": network(2, 0.01)})
    torch.manual_seed(5)
    ours = ActorCritic(4, 2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
