"""What the results of the stages tell of a run, where no command has left a record, and what is next."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jobs.recipe import Recipe
from jobs.status.rows import Row
from pipeline.dataset_files import index_file
from pipeline.inputs.batches import read_plan
from pipeline.inputs.committed import committed
from pipeline.store import Store
from train.jsonl import last_line
from train.metrics import METRICS, REFUSED_STEPS
from train.recipe import TOKENIZER_FOLDER

LIST_EVERY_S = 60.0
"""A large store has many ledgers to list."""
LOOK_EVERY_S = 10.0
# As `train.checkpoints` and `jobs.evaluation` call them, which load torch.
COMMITTED, EVAL_FILE = "COMMITTED", "eval.json"

Value = TypeVar("Value")


class _Cached(Generic[Value]):
    """What a function returned, for a while."""

    def __init__(self, function: Callable[[], Value], max_age_s: float) -> None:
        self._function, self._max_age_s = function, max_age_s
        self._value: Value | None = None
        self._read_s = -max_age_s

    def __call__(self) -> Value:
        if self._value is None or time.monotonic() - self._read_s >= self._max_age_s:
            self._value, self._read_s = self._function(), time.monotonic()
        return self._value


@dataclass(frozen=True)
class Training:
    """How far the training log and the checkpoints are."""

    step: int
    samples: int
    length: int
    loss: float
    samples_per_s: float
    data_wait: float
    """Share of the time in which the first process waits for data."""
    eta_s: float
    logged_unix_s: float
    num_refused_steps: int
    checkpoint_unix_s: float | None
    """When the newest one was complete."""


class RunFiles:
    """Looks at the results of a run, at most every so often."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self._recipe, self._run_dir = recipe, run_dir
        self.units = _Cached(self._count_units, LIST_EVERY_S)
        """Committed and planned ones."""
        self.has_shards = _Cached(self._look_for_shards, LOOK_EVERY_S)
        self._checkpoint_unix_s = _Cached(self._look_for_checkpoint, LOOK_EVERY_S)

    def row(self, verb: str) -> Row:
        """Of one of the five stages that each run has."""
        if verb == "ingest":
            return _counted(verb, *self.units(), "units")
        if verb == "curate":
            return _there(verb, self.has_shards())
        if verb == "tokenizer":
            return _there(verb, (self._run_dir / TOKENIZER_FOLDER).exists())
        if verb == "eval":
            return _there(verb, (self._run_dir / EVAL_FILE).exists())
        training = self.training()
        return _counted(verb, training.samples, training.length, "samples") if training else _there(verb, False)

    def training(self) -> Training | None:
        """None where nothing is logged yet."""
        step = last_line(self._run_dir / METRICS)
        if step is None:
            return None
        refused = self._run_dir / REFUSED_STEPS
        return Training(
            step=step["step"],
            samples=step["samples"],
            length=self._recipe.train.length,
            loss=step["loss"],
            samples_per_s=step["samples_per_s"],
            data_wait=step["time_shares"]["data"],
            eta_s=step["eta_s"],
            logged_unix_s=step["unix_s"],
            num_refused_steps=refused.read_bytes().count(b"\n") if refused.exists() else 0,
            checkpoint_unix_s=self._checkpoint_unix_s() or None,
        )

    def _count_units(self) -> tuple[int, int]:
        store = Store(self._recipe.store)
        return len(committed(store)), read_plan(store).num_units

    def _look_for_shards(self) -> bool:
        return bool(self._recipe.train.sources) or Store(self._recipe.store).exists(
            index_file(self._recipe.shards.name)
        )

    def _look_for_checkpoint(self) -> float:
        """Zero where there is none."""
        folder = self._recipe.train.checkpoint.folder.rstrip("/")
        store = Store(f"{folder}/{self._run_dir.resolve().name}" if folder else str(self._run_dir / "checkpoints"))
        names = [name for name in store.names("", "") if name.startswith("step-")]
        for name in sorted(names, key=lambda name: (len(name), name), reverse=True):
            if store.exists(f"{name}/{COMMITTED}"):
                return store.modified_unix_s(f"{name}/{COMMITTED}")
        return 0.0


def _there(verb: str, is_there: bool) -> Row:
    state, share = ("done", 1.0) if is_there else ("not begun", None)
    return Row(verb, verb, state, "files", share=share)  # type: ignore[arg-type]


def _counted(verb: str, done: int, total: int, unit: str) -> Row:
    if not total:
        return _there(verb, False)
    state = "done" if done >= total else "partial"
    return Row(verb, verb, state, "files", done, total, unit, share=done / total)  # type: ignore[arg-type]
