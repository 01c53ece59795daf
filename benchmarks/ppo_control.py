"""Steps of CartPole a second while PPO learns, against Stable-Baselines3.

    python benchmarks/ppo_control.py            # about two minutes
    python benchmarks/ppo_control.py --quick    # one round of 2,048 steps

CleanRL's settings for both: 4 copies of the environment, rollouts of 128 steps, 4 passes in 4 minibatches of 128, two
networks of 64 × 64. All of it counts: environment, acting, advantages, updates. Stable-Baselines3 plays Gymnasium's
environments one after the other in its `DummyVecEnv`. Both begin with the same weights, and before anything is learned
their logits and values for the same observations must agree to a relative 1e-5. With one thread the time is that of the
CPU. `--peer PYTHON` takes the interpreter of another environment that has stable_baselines3.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import turns
from turns import PEERS, Contestant

COPIES, STEPS, PASSES, MINIBATCHES = 4, 128, 4, 4
FULL, QUICK = 24_576, 2_048
"""Steps of the environment in a round."""
PEER = "stable_baselines3"
BOUND = 1e-5


def observations() -> Any:
    """Return what both are asked about: the same for everybody."""
    import numpy as np

    return np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)


def prepare(name: str, folder: Path, threads: int, timesteps: int) -> tuple[dict[str, Any], Any]:
    """Load one contestant; return its version, its answers, and what it does in a round."""
    import torch

    torch.set_num_threads(threads)
    version, answers, learn = (_peer if name == PEER else _ours)(folder, timesteps)
    clock = time.process_time if threads == 1 else time.perf_counter

    def round_() -> dict[str, Any]:
        start = clock()
        learn()
        return {"seconds": clock() - start}

    return {"version": version, "answers": answers}, round_


def _ours(folder: Path, timesteps: int) -> tuple[str, list[float], Callable[[], None]]:
    import dataclasses

    import torch

    import odonata
    from odonata.decide.build import build
    from odonata.decide.control_policy import PolicyPredictor
    from odonata.decide.recipes import ppo_control
    from odonata.engine.distributed import World
    from odonata.engine.fit import train

    base = ppo_control()
    recipe = dataclasses.replace(
        base,
        method=dataclasses.replace(base.method, update_epochs=PASSES, num_minibatches=MINIBATCHES, timesteps=timesteps),
        data=dataclasses.replace(base.data, num_envs=COPIES, num_steps=STEPS),
        evaluation=dataclasses.replace(base.evaluation, episodes=0),
        device="cpu",
    )
    torch.manual_seed(0)
    task = build(recipe)
    policy = PolicyPredictor(task.method.policy, task.assets, torch.device("cpu"))
    policy.convert(folder / "sb3", "sb3")
    seen = observations()
    answers = torch.cat([policy.logits(seen).log_softmax(1).flatten(), policy.values(seen)]).tolist()
    world = World(0, 1, torch.device("cpu"))
    return odonata.__version__, answers, lambda: train(task.recipe, task, None, world) and None


def _peer(folder: Path, timesteps: int) -> tuple[str, list[float], Callable[[], None]]:
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env

    model = stable_baselines3.PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", COPIES, seed=0), learning_rate=2.5e-4, n_steps=STEPS,
        batch_size=COPIES * STEPS // MINIBATCHES, n_epochs=PASSES, gamma=0.99, gae_lambda=0.95, clip_range=0.2,
        clip_range_vf=0.2, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5, device="cpu",
    )  # fmt: skip
    model.policy.load_state_dict(torch.load(folder / "sb3/policy.pth", weights_only=True))
    seen = torch.from_numpy(observations())
    with torch.no_grad():
        logits = model.policy.get_distribution(seen).distribution.logits.flatten()
        answers = torch.cat([logits, model.policy.predict_values(seen).flatten()]).tolist()
    return stable_baselines3.__version__, answers, lambda: model.learn(timesteps) and None


def difference(found: list[float], expected: list[float]) -> float:
    """Return the relative difference of two contestants' answers.

    Raises:
        SystemExit: it is too large.
    """
    squares = sum((a - b) ** 2 for a, b in zip(found, expected, strict=True))
    error = (squares / sum(b * b for b in expected)) ** 0.5
    if not error < BOUND:
        raise SystemExit(f"{PEER} disagrees with ours in logits and values: {error:.1e}")
    return error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 2,048 steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", default="", help="Python of the environment with stable_baselines3")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    timesteps = QUICK if arguments.quick else FULL
    if arguments.child:
        name, folder, threads = arguments.child
        turns.serve(lambda: prepare(name, Path(folder), int(threads), timesteps))
        return
    if not arguments.peer:
        turns.require_peers()
    rounds, quick = (1, ["--quick"]) if arguments.quick else (arguments.rounds, list[str]())
    with tempfile.TemporaryDirectory() as made:
        contestants = [
            Contestant(name, python, [__file__, *quick, "--child", name, made, str(arguments.threads)],
                       arguments.threads)
            for name, python in (("ours", sys.executable), (PEER, arguments.peer or PEERS))
        ]  # fmt: skip
        error = difference(contestants[1].about["answers"], contestants[0].about["answers"])
        for _ in range(rounds + 1):  # the first warms up
            for contestant in contestants:
                contestant.round()
        for contestant in contestants:
            contestant.leave()
    load = f"load {os.getloadavg()[0]:.0f}" if hasattr(os, "getloadavg") else ""
    versions = json.dumps({contestant.name: contestant.about["version"] for contestant in contestants})
    print(f"PPO on CartPole-v1, {arguments.threads} threads, best of {rounds + 1} rounds, {load}; {versions}")
    turns.print_table(contestants, "steps", timesteps, {PEER: f"{error:.1e} in logits and values"})


if __name__ == "__main__":
    main()
