"""Where a running command leaves its numbers: in its stats.json, and with Ray's metrics agent where there is a Ray."""

import time
from collections.abc import Callable
from pathlib import Path

from jobs.cluster.ray_metrics import RayMetrics
from jobs.cluster.run_numbers import Numbers, TrainingLog, is_counter
from jobs.recipe import Recipe
from jobs.stages import current_stage


class Meter:
    """Passes numbers on. What they are is said by `jobs.cluster.run_numbers.METRICS`."""

    def __init__(self, run: str) -> None:
        self._stage = current_stage()
        numbers = self._stage.stats.numbers if self._stage else {}
        self.earlier: Numbers = {key: value for key, value in numbers.items() if is_counter(key)}
        """Counts of the same command's earlier attempts, as far as the run folder has them: counts go on from there."""
        self._ray = RayMetrics(run, self.earlier)

    def tell(self, done: int, total: int, unit: str, numbers: Numbers) -> None:
        """Say how far the command is."""
        if self._stage:
            self._stage.progress(done, total, unit, dict(numbers))
        self._ray.publish(numbers)

    def unit_failed(self, name: str, why: str) -> None:
        """Say that a unit stays pending."""
        if self._stage:
            self._stage.unit_failed(name, why)


class TrainingMeter:
    """Passes on what the log of a training tells."""

    def __init__(self, recipe: Recipe, run_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._length = recipe.train.length
        self._log = TrainingLog(recipe, run_dir, clock)
        self._meter = Meter(recipe.name)

    def tell(self) -> None:
        """Pass on what is new since the last call."""
        if numbers := self._log.read():
            self._meter.tell(int(numbers["genlip_train_samples_seen"]), self._length, "samples", numbers)
