"""PPO: learn a policy from its own steps, several passes over each rollout, and never far from what collected it.

Schulman et al. 2017, arXiv:1707.06347, for numbered actions. A policy gradient is right for the policy that collected
the data and soon wrong for any other; PPO clips the ratio of new to old probability, so that a sample stops pushing
once it has moved its action by ε, and a rollout can be learned from several times. The settings are CleanRL's
(`ppo.py`), with the thirteen core details of Huang et al. 2022, "The 37 Implementation Details of Proximal Policy
Optimization": copies of the environment that step together, orthogonal weights, Adam's ε of 1e-5, a rate that falls to
nothing, generalised advantage estimation, minibatches, advantages normalised in each of them, clipped ratio, clipped
value, entropy bonus, a limit on the gradient's norm, figures that show what goes wrong, and two networks that share
nothing.

Notable:
- The actor acts in numpy. A step sees a few observations, for which a call of torch costs more than its arithmetic.
  Values and log-probabilities are computed by torch for a whole rollout at once.
- An action is the largest of logits and Gumbel noise, which is a draw from the softmax. All noise of a rollout, and the
  order of its minibatches, come from one generator of (seed, update, process).
- The state of the environments is a set of buffers, so checkpoints hold it, and a resumed run goes on to the same bits.

Deliberate differences from CleanRL: an episode that was cut by its time limit counts the value of what would have
followed (`terminated` and `truncated` are told apart, as in Stable-Baselines3; CleanRL takes both as the end), and
figures are means over all minibatches of an update instead of the last one's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn

from odonata.decide.control_env import ControlEnv
from odonata.engine.method import Method
from odonata.errors import RecipeError

if TYPE_CHECKING:
    from odonata.engine.fit import Engine

Act = Callable[[Float32[np.ndarray, "envs dim"]], Float32[np.ndarray, "envs actions"]]
"""From observations to the logits of every action."""


@dataclass(frozen=True)
class PPOControlConfig:
    """PPO for control with numbered actions."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cleanrl": {
            "hidden": (64, 64), "gamma": 0.99, "gae_lambda": 0.95, "update_epochs": 4, "num_minibatches": 4,
            "clip_range": 0.2, "value_clip_range": 0.2, "entropy_coef": 0.01, "value_coef": 0.5,
        },
        # Its mean squared error is not halved, so its coefficient of 0.5 is 1 here.
        "sb3": {"update_epochs": 10, "num_minibatches": 32, "value_clip_range": 0.0, "entropy_coef": 0.0,
                "value_coef": 1.0},
    }  # fmt: skip

    preset: str = ""
    """`cleanrl` is what stands here. `sb3`: Stable-Baselines3's defaults, with `--data.num-envs 1 --data.num-steps 2048
    --optim.lr 3e-4 --schedule.kind constant`. Fills in fields left at their defaults."""
    env: str = "CartPole-v1"
    """CartPole-v1, Acrobot-v1, MountainCar-v0, or `gymnasium:` and a name of Gymnasium's with numbered actions."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the actor, and of the critic."""
    gamma: float = 0.99
    """What a reward a step later is worth, in [0, 1]."""
    gae_lambda: float = 0.95
    """λ of the advantages, in [0, 1]: 0 trusts the critic, 1 the rewards."""
    update_epochs: int = 4
    """Passes over each rollout."""
    num_minibatches: int = 4
    """Updates in each pass."""
    clip_range: float = 0.2
    """ε: how far an action's probability may move, as a ratio, before a sample stops pushing (0 = never stops)."""
    value_clip_range: float = 0.2
    """How far a value may move before its loss stops falling (0 = never stops). Belongs to the scale of the returns."""
    normalize_advantages: bool = True
    """Bring each minibatch's advantages to mean 0 and deviation 1."""
    entropy_coef: float = 0.01
    """c₂: weight of the entropy that is asked for."""
    value_coef: float = 0.5
    """c₁: weight of the critic's loss, which is half the squared error."""
    timesteps: int = 0
    """Steps of the environment, over all copies, instead of --steps (0 = --steps counts updates)."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("gamma", 0, 1), ("gae_lambda", 0, 1), ("update_epochs", 1, math.inf), ("num_minibatches", 1, math.inf),
            ("clip_range", 0, math.inf), ("value_clip_range", 0, math.inf), ("entropy_coef", 0, math.inf),
            ("value_coef", 0, math.inf), ("timesteps", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if not low <= value <= high:
                limit = f"in [{low}, {high}]" if high < math.inf else f"{low} or more"
                raise RecipeError(f"--{name.replace('_', '-')} is {value}; it must be {limit}")
        if any(width < 1 for width in self.hidden):
            raise RecipeError(f"--hidden is {self.hidden}; widths are 1 or more")


def mlp(inputs: int, hidden: Sequence[int], outputs: int, gain: float) -> nn.Sequential:
    """Return layers with tanh between them, orthogonal weights of gain √2 (`gain` in the last) and biases of 0.

    Its parameters have CleanRL's names, `0.weight`, `2.weight`, …, and its draws are CleanRL's.
    """
    layers: list[nn.Module] = []
    widths = (inputs, *hidden, outputs)
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(before, after)
        nn.init.orthogonal_(layer.weight, gain if i == len(hidden) else math.sqrt(2))
        nn.init.zeros_(layer.bias)
        layers += [layer] if i == len(hidden) else [layer, nn.Tanh()]
    return nn.Sequential(*layers)


class ActorCritic(nn.Module):
    """A network that says which actions are good, and one that says what a situation is worth.

    Args:
        dim: numbers in an observation.
        actions: how many there are.
        hidden: widths of the layers of each.
    """

    def __init__(self, dim: int, actions: int, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.critic = mlp(dim, hidden, 1, gain=1.0)
        self.actor = mlp(dim, hidden, actions, gain=0.01)

    def logits(self, observations: Float[Tensor, "steps dim"]) -> Float[Tensor, "steps actions"]:
        """Return the actions' scores: their softmax is the policy."""
        return self.actor(observations)

    def values(self, observations: Float[Tensor, "steps dim"]) -> Float[Tensor, "steps"]:
        """Return the return that is expected."""
        return self.critic(observations).squeeze(-1)

    def acting(self) -> Act:
        """Return the actor as it is now as a function in numpy."""
        layers = [
            (layer.weight.detach().float().cpu().numpy().T, layer.bias.detach().float().cpu().numpy())
            for layer in self.actor
            if isinstance(layer, nn.Linear)
        ]

        def act(observations: Float32[np.ndarray, "envs dim"]) -> Float32[np.ndarray, "envs actions"]:
            hidden = observations
            for weight, bias in layers[:-1]:
                hidden = np.tanh(hidden @ weight + bias)
            return hidden @ layers[-1][0] + layers[-1][1]

        return act


def gae(
    rewards: Float[Tensor, "time envs"],
    values: Float[Tensor, "time envs"],
    next_values: Float[Tensor, "time envs"],
    terminated: Bool[Tensor, "time envs"],
    ended: Bool[Tensor, "time envs"],
    gamma: float,
    gae_lambda: float,
) -> Float[Tensor, "time envs"]:
    """Return generalised advantage estimates (Schulman et al. 2015, arXiv:1506.02438, eq. 16; PPO's eq. 11 and 12).

    Args:
        rewards: of each step.
        values: of what each step began with.
        next_values: of what it led to, before any new episode began.
        terminated: what followed is worth nothing.
        ended: the next row belongs to another episode, by termination or truncation.
        gamma: discount.
        gae_lambda: λ.
    """
    deltas = rewards + gamma * next_values * ~terminated - values
    carried = gamma * gae_lambda * (~ended).to(values)
    advantage, found = torch.zeros_like(values[0]), list[Tensor]()
    for delta, share in zip(reversed(deltas.unbind()), reversed(carried.unbind()), strict=True):
        advantage = torch.addcmul(delta, share, advantage)
        found.append(advantage)
    return torch.stack(found[::-1])


def normalized(advantages: Float[Tensor, "steps"]) -> Float[Tensor, "steps"]:
    """Return advantages with mean 0 and standard deviation 1; a single one as it is."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def policy_loss(
    ratio: Float[Tensor, "steps"], advantages: Float[Tensor, "steps"], clip_range: float
) -> Float[Tensor, ""]:
    """Return −L^CLIP (Schulman et al. 2017, eq. 7), or −L^CPI (eq. 6) where `clip_range` is 0.

    Args:
        ratio: probability of each action over that under the policy which took it.
        advantages: of those actions.
        clip_range: ε.
    """
    surrogate = ratio * advantages
    if clip_range:
        surrogate = torch.minimum(surrogate, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    return -surrogate.mean()


def value_loss(
    values: Float[Tensor, "steps"],
    old_values: Float[Tensor, "steps"],
    returns: Float[Tensor, "steps"],
    clip_range: float,
) -> Float[Tensor, ""]:
    """Return half the mean squared error, the worse of it and that of values held near the old ones.

    OpenAI's baselines, `ppo2/model.py`, lines 68 to 75; plain where `clip_range` is 0.
    """
    error = (values - returns).square()
    if clip_range:
        held = old_values + (values - old_values).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * error.mean()


def explained_variance(values: Float[Tensor, "steps"], returns: Float[Tensor, "steps"]) -> float:
    """Return 1 − Var(returns − values) / Var(returns): 1 of a perfect critic, 0 of a constant, or of equal returns."""
    spread = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / spread if spread > 0 else 0.0


def recent_means(env: ControlEnv) -> tuple[float, float] | None:
    """Return mean return and length of the last episodes, over all processes; None before the first has ended."""
    episodes = torch.from_numpy(env.last_episodes())
    total = torch.cat([episodes.sum(1), torch.tensor([float(episodes.shape[1])])])
    if dist.is_initialized():
        dist.all_reduce(total)
    count = float(total[2])
    return (float(total[0]) / count, float(total[1]) / count) if count else None


@dataclass
class RolloutKey:
    """What a step of training is made of before it is played: its number and the process that plays it."""

    step: int
    rank: int


@dataclass
class Rollout:
    """What was seen and done, a row for each step of all copies."""

    observations: Float32[np.ndarray, "time envs dim"]
    final: Float32[np.ndarray, "time envs dim"]
    """What each step led to, before any new episode."""
    actions: Int64[np.ndarray, "time envs"]
    rewards: Float32[np.ndarray, "time envs"]
    terminated: Bool[np.ndarray, "time envs"]
    truncated: Bool[np.ndarray, "time envs"]


@dataclass
class Experience:
    """Steps to learn from, in any order."""

    observations: Float[Tensor, "steps dim"]
    actions: Int64[Tensor, "steps"]
    logprobs: Float[Tensor, "steps"]
    """Of the actions, under the policy that took them."""
    values: Float[Tensor, "steps"]
    """Of the observations, by the critic of that time."""
    advantages: Float[Tensor, "steps"]
    returns: Float[Tensor, "steps"]
    """Advantages and values together: what the critic learns."""

    def rows(self, chosen: Int64[Tensor, "rows"]) -> Experience:
        """Return some of the steps."""
        return Experience(**{name: value[chosen] for name, value in vars(self).items()})


def play(env: ControlEnv, act: Act, noise: Float[np.ndarray, "time envs actions"]) -> Rollout:
    """Take a step of all copies for each row of noise and return what happened.

    Args:
        env: goes on from where it stands.
        act: the actor.
        noise: Gumbel noise to sample, zeros to take the likeliest action.
    """
    time, copies, _ = noise.shape
    seen, final = (np.empty((time, copies, env.dim), np.float32) for _ in range(2))
    actions, rewards = np.empty((time, copies), np.int64), np.empty((time, copies), np.float32)
    terminated, truncated = (np.empty((time, copies), bool) for _ in range(2))
    for t in range(time):
        seen[t] = env.observations
        actions[t] = (act(env.observations) + noise[t]).argmax(axis=1)
        _, rewards[t], terminated[t], truncated[t], final[t] = env.step(actions[t])
    return Rollout(seen, final, actions, rewards, terminated, truncated)


class PPOControl(Method):
    """PPO on copies of an environment.

    Args:
        config: its options.
        env: the copies that this process plays, at the beginning of an episode.
        num_steps: of each copy in a rollout.
        seed: of the noise and of the order of minibatches.
    """

    def __init__(self, config: PPOControlConfig, env: ControlEnv, num_steps: int, seed: int = 0) -> None:
        super().__init__()
        self.config, self.env, self.num_steps, self.seed = config, env, num_steps, seed
        self.policy = ActorCritic(env.dim, env.num_actions, config.hidden)
        for name, value in env.state().items():
            self.register_buffer(f"env_{name}", torch.from_numpy(np.array(value)), persistent=False)

    def loss(self, batch: Experience) -> dict[str, Tensor]:
        """Return eq. 9's loss for a minibatch whose advantages are normalised, and the figures that show its health."""
        config = self.config
        all_logprobs = self.policy.logits(batch.observations).log_softmax(-1)
        logratio = all_logprobs.gather(1, batch.actions[:, None]).squeeze(1) - batch.logprobs
        ratio = logratio.exp()
        entropy = -(all_logprobs.exp() * all_logprobs).sum(-1).mean()
        policy = policy_loss(ratio, batch.advantages, config.clip_range)
        value = value_loss(self.policy.values(batch.observations), batch.values, batch.returns, config.value_clip_range)
        loss = policy - config.entropy_coef * entropy + config.value_coef * value
        with torch.no_grad():
            moved = (ratio - 1).abs()
            figures = {
                # An estimate of KL(old, new) that is never negative (Schulman 2020, "Approximating KL divergence").
                "approx_kl": (ratio - 1 - logratio).mean(),
                # Of those that moved by the usual ε, where nothing is clipped.
                "clip_fraction": (moved > (config.clip_range or 0.2)).float().mean(),
                "ratio_error": moved.max(),
            }
        return {"loss": loss, "policy_loss": policy, "value_loss": value, "entropy": entropy, **figures}

    def step(self, batch: RolloutKey, engine: Engine) -> dict[str, Tensor]:
        """Play one rollout, learn from it in every pass and minibatch, and return the figures' means.

        `ratio_at_start` is the largest distance of a ratio from 1 before the first update: all but 0, or the policy
        that learns is not the one that played.
        """
        draws = np.random.default_rng([self.seed, batch.step, batch.rank])
        experience = self.learnable(self.collect(draws))
        rows, made = len(experience.values), list[dict[str, Tensor]]()
        for _ in range(self.config.update_epochs):
            order = torch.from_numpy(draws.permutation(rows)).to(experience.values.device)
            for chosen in order.tensor_split(self.config.num_minibatches):
                minibatch = experience.rows(chosen)
                if self.config.normalize_advantages:
                    minibatch.advantages = normalized(minibatch.advantages)
                made.append(engine.minimise(self, minibatch))
        figures = {name: torch.stack([one[name] for one in made]).mean() for name in made[0] if name != "ratio_error"}
        return figures | {"ratio_at_start": made[0]["ratio_error"]} | self.health(experience, engine)

    def collect(self, draws: np.random.Generator) -> Rollout:
        """Play one rollout from where the buffers say that the environments stand, and take note of where it ends."""
        held = {name: getattr(self, f"env_{name}") for name in self.env.state()}
        self.env.restore({name: buffer.cpu().numpy() for name, buffer in held.items()})
        noise = draws.gumbel(size=(self.num_steps, self.env.copies, self.env.num_actions))
        rollout = play(self.env, self.policy.acting(), noise)
        for name, value in self.env.state().items():
            held[name].copy_(torch.from_numpy(value))
        return rollout

    @torch.no_grad()
    def learnable(self, rollout: Rollout) -> Experience:
        """Return a rollout with values, log-probabilities, advantages and returns, its steps in one row."""
        device = next(self.policy.parameters()).device
        found = {name: torch.from_numpy(value).to(device) for name, value in vars(rollout).items()}
        seen, actions = found["observations"], found["actions"]
        values = self.policy.critic(seen).squeeze(-1)
        next_values = self.policy.critic(found["final"]).squeeze(-1)
        ended = found["terminated"] | found["truncated"]
        advantages = gae(
            found["rewards"], values, next_values, found["terminated"], ended, self.config.gamma, self.config.gae_lambda
        )
        logprobs = self.policy.actor(seen).log_softmax(-1).gather(2, actions[..., None]).squeeze(2)
        columns = (seen, actions, logprobs, values, advantages, advantages + values)
        return Experience(*(column.flatten(0, 1) for column in columns))

    def health(self, experience: Experience, engine: Engine) -> dict[str, Tensor]:
        """Return how training goes: steps played, mean return and length of the last episodes, the critic's worth."""
        played = (engine.step + 1) * len(experience.values) * engine.world.size
        explained = explained_variance(experience.values, experience.returns)
        found: dict[str, float] = {"explained_variance": explained, "env_steps": float(played)}
        if means := recent_means(self.env):
            found["return"], found["length"] = means
        return {name: torch.tensor(value) for name, value in found.items()}
