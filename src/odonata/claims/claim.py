"""What a claim is: a hypothesis stated before the run, the trials that test it, and the comparisons that decide.

A claim has conditions (batch sizes, numbers of pairs) and variants (the method, and what it is compared with). A *cell*
is a variant under a condition, written ``variant@condition``. Each cell is tuned over as many settings as any other,
on a validation split with seeds of its own; the best setting is then run on the test split with the claim's seeds.
Seeds are paired: one seed means the same data, the same order and the same initialisation for every variant.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from odonata.errors import RecipeError

Setting = Mapping[str, float]
Figures = dict[str, float]
"""What a trial measured, by name."""
Split = Literal["val", "test"]


@dataclass(frozen=True)
class Trial:
    """One run of one cell."""

    claim: str
    condition: str
    variant: str
    setting: Setting
    seed: int
    split: Split
    """Which data are measured: those that settings are tuned on, or those that are reported."""
    budget: float = 1.0
    """Share of the full length; below 1 only in smoke tests."""
    folder: Path = Path()
    """Where the claim's `prepare` left its files."""

    @property
    def cell(self) -> str:
        """The cell's name."""
        return f"{self.variant}@{self.condition}"

    @property
    def name(self) -> str:
        """What a person is told."""
        setting = ", ".join(f"{key}={value:g}" for key, value in self.setting.items())
        return f"{self.claim}: {self.cell} ({setting or 'no settings'}), seed {self.seed}, {self.split}"

    @property
    def key(self) -> str:
        """What tells a trial from every other of its claim."""
        return json.dumps([self.condition, self.variant, dict(self.setting), self.seed, self.split, self.budget])

    def steps(self, full: int) -> int:
        """Return the number of steps under this trial's budget."""
        return max(2, round(full * self.budget))


@dataclass(frozen=True)
class Comparison:
    """One question with a yes-or-no answer: does `quantity` of the treatment exceed the control's by the margin?

    Args:
        name: the question in words.
        treatment: a cell, ``sigmoid@16``; or the gap between two, ``sigmoid@16 - softmax@16``.
        control: likewise, or a constant.
        quantity: which figure of the trials.
        relation: on which side of the margin the hypothesis is.
        margin: of the difference; of the ratio where `ratio`.
        ratio: compare by treatment / control; positive figures and single cells only.
        primary: whether the verdict of the claim hangs on it.
    """

    name: str
    treatment: str
    control: str | float
    quantity: str
    relation: Literal[">", "<"]
    margin: float = 0.0
    ratio: bool = False
    primary: bool = True

    def cells(self) -> list[str]:
        """Return the cells it reads."""
        sides = [self.treatment] if isinstance(self.control, float | int) else [self.treatment, self.control]
        return [cell for side in sides for cell in side.split(" - ")]


@dataclass(frozen=True)
class Plot:
    """One panel of the figure."""

    quantity: str
    label: str
    """Of the vertical axis, with its unit."""
    log: bool = False


@dataclass(frozen=True)
class Published:
    """Figures of the paper for the cells of a claim, shown beside the claim's own; they decide nothing."""

    quantity: str
    """The claim's figure that stands beside them."""
    source: str
    """Where they are printed, and what they are."""
    figures: Mapping[str, float]
    """Cell → figure."""


@dataclass(frozen=True)
class Claim:
    """A claim of a paper as an experiment.

    Args:
        name: as in the index.
        room: of the methods.
        methods: those it is about.
        source: paper, and the table, figure or section that claims it.
        hypothesis: one sentence, stated before the run.
        data: what is trained and tested on.
        scaled_down: what differs from the paper's experiment.
        trial: runs one trial; deterministic from what it is given, but for figures that are times or memory.
        conditions: names.
        variants: names.
        comparisons: at least one primary.
        plots: panels of the figure.
        axis: what the conditions are.
        grid: the settings tried for each variant, equally many for each.
        tune_by: the figure whose maximum on validation chooses the setting; `-name` for a minimum.
        seeds: of the reported trials, three or more.
        tuning_seeds: others than `seeds`.
        prepare: makes the files that all trials share (a frozen tower), in the folder it is given.
        published: the paper's own figures for these cells, where it prints them.

    Raises:
        RecipeError: the claim would not be a fair test.
    """

    name: str
    room: str
    methods: tuple[str, ...]
    source: str
    hypothesis: str
    data: str
    scaled_down: str
    trial: Callable[[Trial], Figures]
    conditions: tuple[str, ...]
    variants: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    plots: tuple[Plot, ...]
    axis: str = ""
    grid: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict[str, tuple[Setting, ...]])
    tune_by: str = ""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    tuning_seeds: tuple[int, ...] = (101,)
    prepare: Callable[[Path, float], None] | None = None
    published: Published | None = None

    def __post_init__(self) -> None:
        sizes = {variant: len(self.settings(variant)) for variant in self.variants}
        if len(set(sizes.values())) != 1:
            raise RecipeError(f"{self.name}: variants must be tuned over equally many settings, not {sizes}")
        if len(set(self.seeds)) < 3 or len(set(self.seeds)) != len(self.seeds):
            raise RecipeError(f"{self.name}: needs three different seeds or more, not {self.seeds}")
        if set(self.seeds) & set(self.tuning_seeds):
            raise RecipeError(f"{self.name}: seeds {self.tuning_seeds} tune, so they cannot be reported too")
        if self.tuned and not self.tune_by:
            raise RecipeError(f"{self.name}: there are settings to choose from, but no figure to choose by (tune_by)")
        if not any(comparison.primary for comparison in self.comparisons):
            raise RecipeError(f"{self.name}: no primary comparison, so nothing could decide it")
        self._check_cells()

    @property
    def tuned(self) -> bool:
        """Whether there is more than one setting to choose from."""
        return len(self.settings(self.variants[0])) > 1

    def settings(self, variant: str) -> tuple[Setting, ...]:
        """Return the settings tried for a variant; one empty setting where nothing is tuned."""
        return self.grid.get(variant) or ({},)

    def cells(self) -> list[tuple[str, str]]:
        """Return every (condition, variant)."""
        return [(condition, variant) for condition in self.conditions for variant in self.variants]

    def to_dict(self) -> dict[str, Any]:
        """Return what a record holds of the claim itself."""
        plain: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("name", "room", "methods", "source", "hypothesis", "data", "scaled_down", "conditions",
                        "variants", "axis", "tune_by", "seeds", "tuning_seeds")
        }  # fmt: skip
        plain["grid"] = {variant: [dict(setting) for setting in self.settings(variant)] for variant in self.variants}
        plain["comparisons"] = [asdict(comparison) for comparison in self.comparisons]
        plain["plots"] = [asdict(plot) for plot in self.plots]
        if self.published is not None:
            plain["published"] = asdict(self.published)
        return plain

    def _check_cells(self) -> None:
        known = {f"{variant}@{condition}" for condition, variant in self.cells()}
        for comparison in self.comparisons:
            for cell in comparison.cells():
                if cell not in known:
                    raise RecipeError(f"{self.name}: {comparison.name!r} reads {cell!r}, which is no cell of the claim")
        for cell in self.published.figures if self.published else ():
            if cell not in known:
                raise RecipeError(f"{self.name}: a published figure for {cell!r}, which is no cell of the claim")
