"""PPO for control: it learns, resumes to the same bits, is shared by processes, acts, and is converted."""

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import odonata
from odonata.app.cli import main
from odonata.decide.build import build
from odonata.decide.control_env import make_env
from odonata.decide.control_policy import play_episodes, recognises
from odonata.decide.ppo_control import PPOControlConfig, RolloutKey, explained_variance, play
from odonata.decide.recipes import ppo_control
from odonata.engine.distributed import World
from odonata.engine.fit import train
from odonata.engine.recipe import Schedule
from odonata.errors import OdonataError, RecipeError, WeightsError

WORLD = World(0, 1, torch.device("cpu"))
RECORDED = np.load(Path(__file__).parents[1] / "fixtures/stable_baselines3.npz")


class Side(gymnasium.Env):
    """One step an episode: 1 for the action that names the sign of what is seen, else 0."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seen = self.np_random.choice([-1.0, 1.0], 1).astype(np.float32)
        return self.seen.copy(), {}

    def step(self, action):
        return self.seen.copy(), float((self.seen[0] > 0) == (action == 1)), True, False, {}


gymnasium.register("OdonataSide-v0", entry_point=Side)


def recipe_of(method=None, data=None, **fields):
    base = ppo_control()
    return dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, **(method or {})),
        data=dataclasses.replace(base.data, **(data or {})),
        **{"device": "cpu", "log_every": 1, **fields},
    )


def trained(recipe, folder=None):
    torch.manual_seed(recipe.seed)
    task = build(recipe)
    return task, train(task.recipe, task, folder, WORLD)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few updates on CartPole."""
    folder = tmp_path_factory.mktemp("control") / "run"
    trained(recipe_of(steps=4, evaluation=dataclasses.replace(ppo_control().evaluation, episodes=2)), folder)
    return folder


@pytest.mark.shows("ppo-control", "trains")
def test_thirty_thousand_steps_of_cart_pole_are_worth_a_hundred():
    torch.manual_seed(0)
    untrained = build(recipe_of(steps=58)).method
    before = play_episodes(untrained.policy.acting(), make_env("CartPole-v1", 50, (9,)), np.random.default_rng(0))
    assert 15 < before.returns.mean() < 35
    task, figures = trained(recipe_of(steps=58))
    assert figures["return_last_100"] > 100
    assert figures["return_greedy"] > 150
    assert task.method.env.finished[0] > 150


@pytest.mark.shows("ppo-control", "trains")
def test_an_environment_of_gymnasiums_is_learned_to_the_last_step():
    recipe = recipe_of({"env": "gymnasium:OdonataSide-v0"}, {"num_envs": 2, "num_steps": 64}, steps=25)
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, lr=5e-3))
    _, figures = trained(recipe)
    assert figures["return_greedy"] == figures["length_greedy"] == 1
    assert figures["return_last_100"] > 0.9


@pytest.mark.slow
def test_acrobot_learns_to_swing_up_from_never_reaching_the_bar():
    recipe = recipe_of({"env": "Acrobot-v1", "timesteps": 120_000})
    torch.manual_seed(0)
    policy = build(recipe).method.policy
    before = play_episodes(policy.acting(), make_env("Acrobot-v1", 20, (9,)), np.random.default_rng(0))
    assert before.returns.mean() < -450
    _, figures = trained(recipe)
    assert figures["return_last_100"] > -250


class Stopped(Exception):
    """Ends a run between two checkpoints."""


class Ending:
    def __init__(self, batches, at):
        self.batches, self.at = batches, at

    def start(self, step=0, rank=0, world=1):
        for number, batch in enumerate(self.batches.start(step, rank, world), step):
            if number == self.at:
                raise Stopped
            yield batch


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1", "MountainCar-v0"])
def test_a_run_that_was_stopped_resumes_to_the_same_bits(tmp_path, env):
    recipe = recipe_of({"env": env}, {"num_envs": 2, "num_steps": 130}, steps=6, save_every=2)
    whole, figures = trained(recipe, tmp_path / "whole")
    torch.manual_seed(recipe.seed)
    part = build(recipe)
    part.batches = Ending(part.batches, 5)
    with pytest.raises(Stopped):
        train(part.recipe, part, tmp_path / "part", WORLD)
    torch.manual_seed(99)  # whatever the process did in between must not matter
    resumed = build(recipe, tmp_path / "part/assets")
    again = train(resumed.recipe, resumed, tmp_path / "part", WORLD, resume=True)
    assert again == figures
    for name, value in whole.method.policy.state_dict().items():
        assert torch.equal(resumed.method.policy.state_dict()[name], value)
    for name, buffer in whole.method.named_buffers():
        assert torch.equal(dict(resumed.method.named_buffers())[name], buffer)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("whole", "part")]
    for one, other in zip(*logs, strict=True):
        assert all(one[key] == other[key] for key in one if key not in ("samples_per_s", "wait"))


def test_the_log_shows_what_tells_a_sound_run(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").open()]
    assert [row["env_steps"] for row in rows[:4]] == [512, 1024, 1536, 2048]
    for row in rows[:4]:
        assert row["ratio_at_start"] < 1e-5  # the policy that learns is the one that played
        assert 0 <= row["clip_fraction"] < 0.5 and -1e-6 < row["approx_kl"] < 0.1
        assert 0.5 < row["entropy"] <= np.log(2) + 1e-6
        assert 10 < row["return"] == row["length"] < 60
        assert row["explained_variance"] < 1
    assert [row["lr"] for row in rows[:4]] == pytest.approx([2.5e-4 * share for share in (1, 0.75, 0.5, 0.25)])
    assert {"return_greedy", "return_sampled", "return_last_100"} < rows[4].keys()


def test_sampled_actions_have_the_policys_probabilities_and_the_actor_in_numpy_is_torchs():
    torch.manual_seed(1)
    task = build(recipe_of())
    method = task.method
    method.policy.actor[-1].weight.data *= 100
    seen = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    logits = method.policy.logits(torch.from_numpy(seen)).detach()
    assert torch.allclose(torch.from_numpy(method.policy.acting()(seen)), logits, rtol=1e-5, atol=1e-6)
    noise = np.random.default_rng(0).gumbel(size=(20_000, 6, 2))
    shares = torch.from_numpy((logits.numpy() + noise).argmax(2) == 1).double().mean(0)
    assert torch.allclose(shares, logits.softmax(1)[:, 1].double(), atol=4 * 0.5 / 20_000**0.5)


def test_a_rollout_holds_what_was_seen_before_each_action_and_what_followed():
    torch.manual_seed(0)
    method = build(recipe_of({}, {"num_envs": 2, "num_steps": 60})).method
    rollout = method.collect(np.random.default_rng(0))
    ended = rollout.terminated | rollout.truncated
    assert ended.sum() >= 2
    same = (rollout.observations[1:] == rollout.final[:-1]).all(2)
    assert np.array_equal(same, ~ended[:-1])
    again = make_env("CartPole-v1", 2, (0, 0))
    again.begin()
    noise = np.full((60, 2, 2), -np.inf)
    np.put_along_axis(noise, rollout.actions[..., None], 0.0, 2)
    assert np.array_equal(play(again, method.policy.acting(), noise).observations, rollout.observations)


def test_a_critic_is_worth_what_it_explains():
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((3,), 7.0), returns) == 0
    assert explained_variance(torch.tensor([3.0, 2.0, 1.0]), returns) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones(3)) == 0


@pytest.mark.slow
def test_two_processes_share_the_copies_and_end_with_one_policy(tmp_path):
    command = [sys.executable, "-m", "odonata.app.cli", "train", "ppo-control", "--devices", "2", "--steps", "6",
               "--log-every", "1", "--device", "cpu", "--save-every", "6", "--out", "run"]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").open()]
    assert rows[5]["env_steps"] == 6 * 512 and rows[-1]["return_last_100"] > 10
    ranks = [torch.load(tmp_path / f"run/checkpoints/step-00000006/rank-{rank}.pt")["buffers"] for rank in (0, 1)]
    assert all(len(rank["env_episodes"]) == 2 for rank in ranks)
    assert not torch.equal(ranks[0]["env_variable"], ranks[1]["env_variable"])
    assert 0 <= odonata.load(tmp_path / "run", device="cpu").act([0.0, 0, 0, 0]) < 2


@pytest.mark.shows("ppo-control", "weights")
@pytest.mark.parametrize(
    ("layout", "file"), [("odonata", "model.safetensors"), ("cleanrl", "ppo.cleanrl_model"), ("sb3", "policy.pth")]
)
def test_a_policy_comes_back_to_the_bit_from_every_layout(run, tmp_path, layout, file):
    model = odonata.load(run, device="cpu")
    assert model.convert(tmp_path / layout, layout)
    assert (tmp_path / layout / file).is_file()
    state = model.policy.state_dict()
    for path in (tmp_path / layout, tmp_path / layout / file):
        assert recognises(path)
        back = odonata.load(path, device="cpu")
        assert all(torch.equal(back.policy.state_dict()[name], value) for name, value in state.items())
    again = odonata.load(tmp_path / layout, device="cpu")
    again.convert(tmp_path / "again", layout)
    assert (tmp_path / "again" / file).read_bytes()[-400:] == (tmp_path / layout / file).read_bytes()[-400:]
    assert again.play(2, env="CartPole-v1").returns.tolist() == model.play(2).returns.tolist()


@pytest.mark.shows("ppo-control", "weights")
def test_names_and_shapes_are_stable_baselines3s_and_its_archive_is_read(run, tmp_path):
    theirs = {
        k.removeprefix("state/"): torch.from_numpy(RECORDED[k]).float() for k in RECORDED if k.startswith("state/")
    }
    torch.save(theirs, tmp_path / "policy.pth")
    with zipfile.ZipFile(tmp_path / "ppo_cartpole.zip", "w") as archive:
        archive.writestr("data", '{"policy_class": {":serialized:": "gAWVMAAAAA"}}')
        archive.write(tmp_path / "policy.pth", "policy.pth")
    model = odonata.load(tmp_path / "ppo_cartpole.zip", device="cpu", env="CartPole-v1")
    assert "layout sb3" in model.notes
    assert model.assets.hidden == (16, 12)
    seen = RECORDED["rollout/observations"].reshape(-1, 4)
    assert torch.allclose(model.logits(seen).log_softmax(1), torch.from_numpy(RECORDED["logits"]).float(), atol=1e-5)
    assert torch.allclose(model.values(seen), torch.from_numpy(RECORDED["values"]).float(), atol=1e-5)
    assert np.array_equal(model.act(seen), RECORDED["logits"].argmax(1))
    model.convert(tmp_path / "out", "sb3")
    written = torch.load(tmp_path / "out/policy.pth", weights_only=True)
    assert written.keys() == theirs.keys()
    assert all(torch.equal(written[name], value) for name, value in theirs.items())


def test_the_commands_train_and_convert(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--data.num-envs", "2", "--data.num-steps", "16", "--evaluation.episodes", "1"]
    assert main(["train", "ppo-control", "--env", "MountainCar-v0", "--timesteps", "70", "--out", "run", *small]) == 0
    assert "2 updates of 2 × 16 steps = 64 steps of the environment" in " ".join(capsys.readouterr().err.split())
    assert "data:image/png" in Path("run/report.html").read_text()
    assert main(["convert", "run", "sb3", "--to", "sb3"]) == 0
    assert main(["convert", "sb3", "cleanrl", "--to", "cleanrl"]) == 0
    assert Path("cleanrl/ppo.cleanrl_model").is_file()
    assert main(["train", "ppo-control", "--env", "CartPole", "--out", "other", *small]) == 2
    assert "--env 'CartPole' is unknown" in capsys.readouterr().err
    assert not Path("other").exists()


@pytest.mark.shows("ppo-control", "manners")
@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"gamma": 1.5}, r"--gamma is 1.5; it must be in \[0, 1\]"),
        ({"gae_lambda": -0.1}, "--gae-lambda is -0.1"),
        ({"update_epochs": 0}, "--update-epochs is 0; it must be 1 or more"),
        ({"clip_range": -0.2}, "--clip-range is -0.2"),
        ({"entropy_coef": float("nan")}, "--entropy-coef is nan"),
        ({"hidden": (64, 0)}, r"--hidden is \(64, 0\)"),
    ],
)
def test_options_out_of_range_are_named(method, message):
    with pytest.raises(RecipeError, match=message):
        PPOControlConfig(**method)


@pytest.mark.shows("ppo-control", "manners")
@pytest.mark.parametrize(
    ("method", "data", "fields", "message"),
    [
        ({"num_minibatches": 9}, {"num_envs": 2, "num_steps": 4}, {}, "--num-minibatches 9: a rollout has 8 steps"),
        ({"timesteps": 100}, {}, {}, "--timesteps 100 is less than one rollout of 512 steps"),
        ({"preset": "atari"}, {}, {}, "--preset 'atari' is unknown; there are cleanrl, sb3"),
        ({}, {}, {"parallel": "fsdp"}, "--parallel fsdp"),
        ({}, {"num_envs": 0}, {}, "--data.num-envs is 0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(method, data, fields, message):
    with pytest.raises(RecipeError, match=message):
        build(recipe_of(method, data, **fields))


def test_presets_fill_in_what_was_left_alone():
    assert build(recipe_of({"preset": "cleanrl"})).recipe.method == PPOControlConfig()
    found = build(recipe_of({"preset": "sb3", "entropy_coef": 0.05}, {"num_envs": 1, "num_steps": 2048})).recipe.method
    assert (found.update_epochs, found.num_minibatches, found.value_coef, found.entropy_coef) == (10, 32, 1.0, 0.05)


def test_a_rollout_is_learned_in_so_many_minibatches_and_passes():
    task = build(recipe_of({"update_epochs": 3, "num_minibatches": 5}, {"num_envs": 2, "num_steps": 8}))
    sizes = []

    class Counting:
        step, world = 0, WORLD

        def minimise(self, network, batch):
            sizes.append(len(batch.values))
            assert abs(float(batch.advantages.mean())) < 1e-6
            return network.loss(batch)

    task.method.step(RolloutKey(0, 0), Counting())
    assert sizes == [4, 3, 3, 3, 3] * 3


@pytest.mark.shows("ppo-control", "manners")
def test_weights_that_are_no_policy_are_refused(run, tmp_path):
    model = odonata.load(run, device="cpu")
    state = dict(model.policy.state_dict())
    cases = {
        "log_std": (state | {"actor_logstd": torch.zeros(1, 2)}, "a policy for continuous actions"),
        "missing": ({k: v for k, v in state.items() if k != "critic.2.bias"}, "critic.2.bias"),
        "other": ({"weight": torch.zeros(2)}, "no policy of cleanrl or sb3"),
        "shapes": (state | {"actor.2.weight": torch.zeros(64, 32)}, "the actor's layers do not follow one another"),
        "unlike": (state | {"critic.4.weight": torch.zeros(2, 64)}, "differ in their hidden layers"),
    }
    from odonata.decide.control_policy import load

    for name, (held, message) in cases.items():
        torch.save(held, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / f"{name}.pth", None, torch.device("cpu"))
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    with pytest.raises(
        WeightsError, match=r"broken.zip is no saved model of Stable-Baselines3: it holds no policy.pth"
    ):
        load(tmp_path / "broken.zip", None, torch.device("cpu"))
    assert not recognises(tmp_path / "broken.zip") and not recognises(tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="layout 'hf' is unknown: odonata, cleanrl, sb3"):
        model.convert(tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.shows("ppo-control", "manners")
def test_wrong_observations_environments_and_descriptions_are_named(run, tmp_path):
    model = odonata.load(run, device="cpu")
    with pytest.raises(RecipeError, match=r"an observation has 4 numbers here; got shape \[3\]"):
        model.act([0.0, 1.0, 2.0])
    with pytest.raises(
        RecipeError, match="Acrobot-v1 shows 6 numbers and takes 3 actions; the policy was made for 4 and 2"
    ):
        model.play(1, env="Acrobot-v1")
    model.convert(tmp_path / "cleanrl", "cleanrl")
    with pytest.raises(RecipeError, match="the weights do not tell their environment"):
        odonata.load(tmp_path / "cleanrl", device="cpu").play(1)
    with pytest.raises(RecipeError, match="--num-heads says nothing of a policy"):
        odonata.load(tmp_path / "cleanrl", device="cpu", num_heads=4)
    model.convert(tmp_path / "own", "odonata")
    plain = json.loads((tmp_path / "own/model.json").read_text())
    (tmp_path / "own/model.json").write_text(json.dumps(plain | {"hidden": [64, 32]}))
    with pytest.raises(WeightsError, match=r"actor.2.weight has shape \[64, 64\], the model wants \[32, 64\]"):
        odonata.load(tmp_path / "own", device="cpu")
    (tmp_path / "own/model.json").write_text(json.dumps({"kind": "control-policy"}))
    with pytest.raises(OdonataError, match="cannot read the policy's description"):
        odonata.load(tmp_path / "own", device="cpu")


def test_drawn_actions_follow_torchs_generator(run):
    model = odonata.load(run, device="cpu")
    rows = np.zeros((400, 4))
    torch.manual_seed(3)
    drawn = model.act(rows, greedy=False)
    torch.manual_seed(3)
    assert np.array_equal(model.act(rows, greedy=False), drawn)
    assert 0.3 < drawn.mean() < 0.7 and len(set(model.act(rows))) == 1


def test_the_rate_falls_from_rollout_to_rollout_as_cleanrl_anneals_it():
    schedule = ppo_control().schedule
    assert isinstance(schedule, Schedule)
    assert [schedule.factor(step, 976) for step in range(976)] == pytest.approx([1 - step / 976 for step in range(976)])
