"""What a completion earned: rewards that can be checked, and those of a reward model. The index imports no torch.

`reward_named("math")` gives a reward, `judge(rewards, weights, answers)` a batch of totals with their parts. A reward
that could not judge says `None`, never 0: a failed verifier must not read as a wrong answer.
"""

from odonata.posttrain.rewards.interface import Answered, Judged, Reward, judge
from odonata.posttrain.rewards.names import NAMES, reward_named

__all__ = ["NAMES", "Answered", "Judged", "Reward", "judge", "reward_named"]
