"""The numbers of a run under the names that Prometheus sees: one table for stats.json, `genlip exporter` and Ray."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from jobs.recipe import Recipe
from train.jsonl import last_line, read_lines
from train.metrics import METRICS as METRICS_FILE
from train.metrics import REFUSED_STEPS

Numbers = Mapping[str, float]
"""By name, and where one has labels as Prometheus writes them: `name{status="failed",reason="http_404"}`."""

ROWS = "genlip_ingest_rows_total"
INGEST = {
    ROWS: "Rows by what became of them; a row that is asked for again counts again.",
    "genlip_ingest_stored_bytes_total": "Bytes of the raw files.",
    "genlip_ingest_pauses_total": "How often a unit waited for a trouble of its machine, by the trouble.",
    "genlip_ingest_units_committed": "Work units that are committed.",
    "genlip_ingest_units_planned": "Work units of the plan.",
    "genlip_ingest_units_failed": "Work units that this command could not commit; they stay pending.",
    "genlip_ingest_rows_per_second": "Rows a second since the command began.",
    "genlip_ingest_eta_seconds": "Time to the end at this rate.",
}
_TRAIN: dict[str, tuple[str, Callable[[Mapping[str, Any]], float | None]]] = {
    "genlip_train_samples_seen": ("Samples seen.", lambda line: line["samples"]),
    "genlip_train_step": ("Optimiser steps taken.", lambda line: line["step"]),
    "genlip_train_loss_nats": ("Loss per labelled token of the global batch.", lambda line: line["loss"]),
    "genlip_train_grad_norm": ("Norm of the gradient before clipping.", lambda line: line["grad_norm"]),
    "genlip_train_learning_rate": ("Learning rate.", lambda line: line["lr"]),
    "genlip_train_samples_per_second": ("Samples a second.", lambda line: line["samples_per_s"]),
    "genlip_train_tokens_per_second": ("Tokens a second.", lambda line: line["tokens_per_s"]),
    "genlip_train_mfu_ratio": ("Model FLOPs over what the devices can do.", lambda line: line["mfu"]),
    "genlip_train_data_wait_ratio": (
        "Share of the time in which the first process waits for data.",
        lambda line: line["time_shares"]["data"],
    ),
    "genlip_train_checkpoint_stall_seconds": (
        "Time that the loop stood still for checkpoints since the line before.",
        lambda line: line["checkpoint_stall_s"],
    ),
    "genlip_train_bad_samples_total": ("Unreadable samples.", lambda line: line["num_bad_samples"]),
    "genlip_train_memory_bytes": (
        "Largest memory of the device, or of the process without one.",
        lambda line: line["memory_gib"] * 2**30,
    ),
    "genlip_train_eta_seconds": ("Time to the end at the present rate.", lambda line: line["eta_s"]),
    "genlip_train_log_timestamp_seconds": ("When the latest line was logged.", lambda line: line["unix_s"]),
}
"""What a line of the log tells, see `train.metrics.StepMetrics`."""
LENGTH = "genlip_train_samples_planned"
REFUSED = "genlip_train_refused_steps_total"
CHECKPOINT = "genlip_train_checkpoint_timestamp_seconds"
METRICS: dict[str, str] = {
    **INGEST,
    **{name: text for name, (text, _) in _TRAIN.items()},
    LENGTH: "Samples that the run will have seen at its end.",
    REFUSED: "Steps that were not taken: a loss or gradient that is not finite, or a spike.",
    CHECKPOINT: "When the newest checkpoint was complete; before the first, when the run began or was resumed.",
}
"""All names there are, with what they mean. A name in `_total` counts up, the others go up and down."""

LOOK_FOR_CHECKPOINTS_EVERY_S = 60.0
"""It lists a folder, which may be on an object store."""


def is_counter(key: str) -> bool:
    """Whether it counts up."""
    return split_key(key)[0].endswith("_total")


@cache
def key_of(name: str, **labels: str) -> str:
    """A key of `Numbers`."""
    return f"{name}{{{','.join(f'{label}={json.dumps(value)}' for label, value in labels.items())}}}"


@cache
def split_key(key: str) -> tuple[str, Mapping[str, str]]:
    """The name and the labels of a key."""
    name, _, labels = key.partition("{")
    return name, {label: json.loads(value) for label, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*")', labels)}


def rows_by_outcome(rows: Mapping[str, int]) -> dict[str, float]:
    """Numbers of rows, given by `Outcome.label`."""
    numbers = {}
    for label, count in rows.items():
        status, _, reason = label.partition(":")
        numbers[key_of(ROWS, status=status, reason=reason)] = float(count)
    return numbers


class TrainingLog:
    """Follows the run folder of a training."""

    def __init__(self, recipe: Recipe, run_dir: Path, clock: Callable[[], float]) -> None:
        self._recipe, self._run_dir, self._clock = recipe, run_dir, clock
        self._told: tuple[dict[str, Any], int] = ({}, 0)
        self._checkpoint_unix_s = 0.0
        self._looked_s: float | None = None

    def read(self) -> dict[str, float]:
        """The numbers now; empty where there is nothing new since the last call."""
        line, num_refused = last_line(self._run_dir / METRICS_FILE), len(read_lines(self._run_dir / REFUSED_STEPS))
        if not line or (line, num_refused) == self._told:
            return {}
        self._told = line, num_refused
        self._look_for_checkpoints()
        known = {name: number(line) for name, (_, number) in _TRAIN.items()}
        numbers = {name: float(value) for name, value in known.items() if value is not None}
        numbers |= {LENGTH: self._recipe.train.length, REFUSED: num_refused}
        return numbers | {CHECKPOINT: self._checkpoint_unix_s or line["unix_s"] - line["uptime_s"]}

    def _look_for_checkpoints(self) -> None:
        from train.checkpoints.folder import committed_names, open_checkpoints  # here, because it loads torch
        from train.checkpoints.record import COMMITTED

        if self._looked_s is not None and self._clock() - self._looked_s < LOOK_FOR_CHECKPOINTS_EVERY_S:
            return
        self._looked_s = self._clock()
        store = open_checkpoints(self._run_dir, self._recipe.train.checkpoint)
        with suppress(OSError):  # pruned meanwhile, or a store in trouble: the next time
            if names := committed_names(store):
                self._checkpoint_unix_s = store.modified_unix_s(f"{names[-1]}/{COMMITTED}")
