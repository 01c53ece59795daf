"""What a person sees while a run trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REFRESH = 0.2  # seconds between redraws
_LINE = 15.0  # seconds between lines where there is no terminal


class ProgressBar:
    """Step count, speed, share of time spent waiting for data, loss, and time left.

    Args:
        title: the run's name.
        steps: updates in the whole run.
        start: the step that the run goes on from.
        shown: False on all ranks but the first.
    """

    def __init__(self, title: str, steps: int, start: int = 0, shown: bool = True) -> None:
        self.console = Console(stderr=True)
        self.shown, self.title, self.steps = shown, title, steps
        self.drawn = time.perf_counter()
        self.began, self.start = self.drawn, start
        self.bar: Progress | None = None
        if shown and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                auto_refresh=False,
            )
            self.task = self.bar.add_task(title, total=steps, completed=start, figures="")
            self.bar.start()

    def due(self) -> bool:
        """Whether it is time to call `update`; cheap enough to ask at every step."""
        return self.shown and time.perf_counter() - self.drawn > (_REFRESH if self.bar else _LINE)

    def update(self, step: int, figures: Mapping[str, float], samples_per_second: float, waiting: float) -> None:
        """Redraw.

        Args:
            step: updates done.
            figures: the newest scalars, such as the loss.
            samples_per_second: over all ranks.
            waiting: share of the time spent waiting for data, in [0, 1].
        """
        self.drawn = time.perf_counter()
        text = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
        text = f"{text}  {samples_per_second:,.0f} samples/s  data wait {waiting:.0%}"
        if self.bar:
            self.bar.update(self.task, completed=step, figures=text)
            self.bar.refresh()
        elif self.shown:
            left = (self.drawn - self.began) / max(1, step - self.start) * (self.steps - step)
            self.console.print(
                f"{self.title}  {step}/{self.steps}  {text}  {left:.0f} s left", highlight=False, soft_wrap=True
            )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            (self.bar.console if self.bar else self.console).print(
                message, highlight=False, markup=False, soft_wrap=True
            )

    def close(self, step: int) -> None:
        """Draw the last state and leave the terminal as it was."""
        if self.bar:
            self.bar.update(self.task, completed=step)
            self.bar.refresh()
            self.bar.stop()
