"""The soft punishment of overlong answers (DAPO, arXiv:2503.14476, equation 13).

Deliberate difference: DAPO counts tokens; an `Answered` holds text, so LIMIT and MARGIN are in characters here, and
whether the generator's own limit in tokens was hit comes as `finished`.
"""

from __future__ import annotations

from collections.abc import Sequence

from odonata.errors import RecipeError
from odonata.posttrain.rewards.interface import Answered


class LengthReward:
    """0 for answers that leave room, -1 for those that were cut, and in between a straight line.

    >>> from odonata.posttrain.rewards.interface import Answered
    >>> LengthReward(10, 4)([Answered("", "x" * n, {}, True) for n in (6, 8, 10, 11)])
    [0.0, -0.5, -1.0, -1.0]
    """

    name = "length"

    def __init__(self, limit: int | None = None, margin: int | None = None):
        """Take `limit` and `margin` in characters, 0 < margin <= limit; neither: only a cut answer is punished.

        Raises:
            RecipeError: one without the other, or a margin outside its range.
        """
        if (limit is None) != (margin is None):
            raise RecipeError("the reward 'length' needs LIMIT and MARGIN together, or neither")
        if limit is not None and margin is not None and not 0 < margin <= limit:
            raise RecipeError(f"length:{limit}:{margin}: the margin must lie between 1 and the limit")
        self.limit, self.margin = limit, margin

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return a number between -1 and 0 an answer."""
        return [self._punish(answer) for answer in answers]

    def _punish(self, answer: Answered) -> float:
        if not answer.finished:
            return -1.0
        if self.limit is None or self.margin is None:
            return 0.0
        over = len(answer.completion) - (self.limit - self.margin)
        return -min(1.0, max(0.0, over / self.margin)) + 0.0
