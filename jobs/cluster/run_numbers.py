"""The numbers of a run as far as its folders tell them: no process of the run is asked, and none needs to be there."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.recipe import Recipe
from pipeline.inputs.batches import read_plan
from pipeline.ledger import committed_units, read_commit
from pipeline.store import Store
from train.jsonl import read_lines
from train.metrics import REFUSED_STEPS, LogTail

RECOUNT_EVERY_S = 60.0
"""A large store has many ledgers to list."""


@dataclass
class IngestNumbers:
    """What the ledgers of a store add up to. Each is read once; sums only grow, as Prometheus wants of counters."""

    rows: Counter[str] = field(default_factory=Counter)
    """By `status` or `status:reason`; a row that is asked for again counts again."""
    stored_bytes: int = 0
    units_committed: int = 0
    units_planned: int = 0


class IngestCounts:
    """Keeps `IngestNumbers` up to date."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._numbers = IngestNumbers()
        self._seen: set[str] = set()
        self._num_batches = 0
        self._counted_s: float | None = None

    def read(self) -> IngestNumbers:
        """The numbers, at most a minute old."""
        if self._counted_s is None or self._clock() - self._counted_s >= RECOUNT_EVERY_S:
            self._count()
            self._counted_s = self._clock()
        return self._numbers

    def _count(self) -> None:
        numbers = self._numbers
        for name in committed_units(self._store):
            if name not in self._seen:
                record = read_commit(self._store, name)
                numbers.rows.update(record.reasons)
                numbers.stored_bytes += record.num_bytes
                self._seen.add(name)
        numbers.units_committed = len(self._seen)
        num_batches = len(self._store.names("plan", ".parquet"))
        if num_batches != self._num_batches:
            numbers.units_planned, self._num_batches = read_plan(self._store).num_units, num_batches


@dataclass(frozen=True)
class TrainNumbers:
    """How far a training is."""

    latest: dict[str, Any]
    """The newest line of the log, see `train.metrics.StepMetrics`."""
    length: int
    num_refused_steps: int
    checkpoint_unix_s: float
    """Of the newest checkpoint; where there is none, of the log's first line."""


class TrainingLog:
    """Follows the run folder of a training."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self._recipe, self._run_dir = recipe, run_dir
        self._tail = LogTail(run_dir)
        self._first_unix_s = 0.0
        self._latest: dict[str, Any] = {}

    def read(self) -> TrainNumbers | None:
        """The numbers now; None where nothing is logged yet."""
        new = self._tail.read()
        if new:
            self._first_unix_s = self._first_unix_s or new[0]["unix_s"]
            self._latest = new[-1]
        if not self._latest:
            return None
        num_refused = len(read_lines(self._run_dir / REFUSED_STEPS))
        return TrainNumbers(self._latest, self._recipe.train.length, num_refused, self._checkpoint_unix_s())

    def _checkpoint_unix_s(self) -> float:
        from train.checkpoints.folder import committed_names, open_checkpoints  # here, because it loads torch
        from train.checkpoints.record import COMMITTED

        store = open_checkpoints(self._run_dir, self._recipe.train.checkpoint)
        names = committed_names(store)
        return store.modified_unix_s(f"{names[-1]}/{COMMITTED}") if names else self._first_unix_s
