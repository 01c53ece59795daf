"""One prompt's answers of a step, kept for people: what `odonata doctor` and the report read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from odonata.engine.tracker import JSONLines

if TYPE_CHECKING:
    from odonata.engine.fit import Engine
    from odonata.posttrain.rollout import Answers

FILE = "rollouts.jsonl"


class RolloutLog:
    """Writes a line to the run's `rollouts.jsonl` for the first prompt of every step that is logged.

    A resumed run drops the lines of steps that it makes again.
    """

    def __init__(self) -> None:
        self.lines: JSONLines | None = None

    def write(self, engine: Engine, answers: Answers, advantages: Float[Tensor, "groups group"]) -> None:
        """Keep the answers to the first prompt, if the step that is being made is one that the log shows."""
        step = engine.step + 1
        due = step % engine.recipe.log_every == 0 or step == engine.recipe.steps or step == 1
        if engine.run is None or not engine.world.leads or not due:
            return
        if self.lines is None:
            self.lines = JSONLines(engine.run.folder / FILE, upto=engine.step)
        said = [
            {
                "text": answers.texts[i],
                "reward": answers.judged.total[i],
                "parts": {name: part[i] for name, part in answers.judged.parts.items()},
                "advantage": float(advantages[0, i]),
                "finished": bool(answers.finished[i]),
                "tokens": int(answers.lengths[i]),
            }
            for i in range(answers.group)
        ]
        self.lines.log(step, {"prompt": answers.items[0].text, "answers": said})  # pyright: ignore[reportArgumentType]
