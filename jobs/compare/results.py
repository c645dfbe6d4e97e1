"""What a comparison found, as `compare.json` holds it and the report shows it."""

from dataclasses import dataclass, field
from typing import Any

from train.recipe import Objective


@dataclass(frozen=True)
class Value:
    """A metric of an objective."""

    mean: float
    """Over the seeds."""
    low: float | None
    high: float | None
    """Bounds of the 95 % bootstrap interval over images and seeds; None for a metric that no single image has."""
    seed_std: float | None
    """Standard deviation of the seeds' values; None with one seed."""
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Difference:
    """The first objective's mean less another's."""

    mean: float
    low: float | None
    high: float | None
    """Bounds of the 95 % bootstrap interval over the same images, and seeds."""

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the two can be told apart; None where there is no interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Row:
    """A metric of all objectives."""

    name: str
    """TASK/METRIC."""
    unit: str
    better: str
    """higher, lower, or empty."""
    chance: float | None
    values: dict[str, Value]
    """By objective, as the next two."""
    reasons: dict[str, str]
    """Why an objective has no value."""
    differences: dict[str, Difference]
    """From the first objective."""

    @property
    def task(self) -> str:
        return self.name.partition("/")[0]

    def is_best(self, objective: str) -> bool:
        """Whether no other objective has a better mean, and not all have the same."""
        means = {value.mean for value in self.values.values()}
        if not self.better or objective not in self.values or len(means) < 2:
            return False
        return self.values[objective].mean == (max(means) if self.better == "higher" else min(means))


@dataclass(frozen=True)
class System:
    """An objective as it was trained."""

    parameters: int
    backbone_parameters: int
    """Of the vision transformer, which is the same for all; GenLIP's text tokens pass through it too."""
    flops_per_sample: float
    samples_seen: dict[int, int]
    """By seed, as the next two."""
    train_s: dict[int, float]
    eval_s: dict[int, float]


@dataclass(frozen=True)
class Curve:
    """Measurements during the training of a run; P points."""

    seed: int
    samples_P: list[float]
    flops_P: list[float]
    values_P: dict[str, list[float]]
    """By metric."""


@dataclass(frozen=True)
class Missing:
    """A run that was not trained or measured to the end."""

    title: str
    command: str
    """Shows why."""


@dataclass(frozen=True)
class Comparison:
    """All of it."""

    name: str
    objectives: tuple[Objective, ...]
    """Those that were asked for; the first is the one that the others are compared with."""
    seeds: tuple[int, ...]
    samples: int
    """Length of each run."""
    num_images: int
    systems: dict[str, System]
    rows: list[Row]
    curves: dict[str, list[Curve]]
    missing: list[Missing]
    notes: dict[str, list[str]]
    """What the evaluations said, by objective."""
    details: dict[str, dict[str, Any]]
    """Tables and samples of the first seed's evaluation, by objective."""
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)
