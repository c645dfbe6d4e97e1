"""`genlip exporter`: the numbers of a run for Prometheus, from its folders alone, over HTTP or as a text file."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.cluster.run_numbers import IngestCounts, IngestNumbers, TrainingLog, TrainNumbers
from jobs.console import say
from jobs.recipe import Recipe, load_recipe
from jobs.runs import read_run
from pipeline.errors import EXIT_ENVIRONMENT, UserError
from pipeline.store import Store

INGEST: dict[str, tuple[str, Callable[[IngestNumbers], float]]] = {
    "genlip_ingest_units_total": ("Work units that are committed.", lambda one: one.units_committed),
    "genlip_ingest_units_planned": ("Work units of the plan.", lambda one: one.units_planned),
    "genlip_ingest_stored_bytes_total": ("Bytes of the raw files.", lambda one: one.stored_bytes),
}
ROWS = "genlip_ingest_rows_total"
TRAIN: dict[str, tuple[str, Callable[[TrainNumbers], float | None]]] = {
    "genlip_train_samples_total": ("Samples seen.", lambda one: one.latest["samples"]),
    "genlip_train_samples_planned": ("Samples that the run will have seen at its end.", lambda one: one.length),
    "genlip_train_steps_total": ("Optimiser steps.", lambda one: one.latest["step"]),
    "genlip_train_loss_nats": ("Loss per labelled token of the global batch.", lambda one: one.latest["loss"]),
    "genlip_train_grad_norm": ("Norm of the gradient before clipping.", lambda one: one.latest["grad_norm"]),
    "genlip_train_learning_rate": ("Learning rate.", lambda one: one.latest["lr"]),
    "genlip_train_samples_per_second": ("Samples a second.", lambda one: one.latest["samples_per_s"]),
    "genlip_train_tokens_per_second": ("Tokens a second.", lambda one: one.latest["tokens_per_s"]),
    "genlip_train_mfu_ratio": ("Model FLOPs over what the devices can do.", lambda one: one.latest["mfu"]),
    "genlip_train_data_wait_ratio": (
        "Share of the time in which the first process waits for data.",
        lambda one: one.latest["time_shares"]["data"],
    ),
    "genlip_train_checkpoint_stall_seconds": (
        "Time that the loop stood still for checkpoints since the line before.",
        lambda one: one.latest["checkpoint_stall_s"],
    ),
    "genlip_train_bad_samples_total": (
        "Unreadable samples since the start.",
        lambda one: one.latest["num_bad_samples"],
    ),
    "genlip_train_refused_steps_total": (
        "Steps that were not taken: a loss or gradient that is not finite, or a spike.",
        lambda one: one.num_refused_steps,
    ),
    "genlip_train_memory_bytes": (
        "Largest memory of the device, or of the process without one.",
        lambda one: one.latest["memory_gib"] * 2**30,
    ),
    "genlip_train_eta_seconds": ("Time to the end at the present rate.", lambda one: one.latest["eta_s"]),
    "genlip_train_log_timestamp_seconds": ("When the latest line was logged.", lambda one: one.latest["unix_s"]),
    "genlip_train_checkpoint_timestamp_seconds": (
        "When the newest checkpoint was complete; before the first, when the run began.",
        lambda one: one.checkpoint_unix_s,
    ),
}
METRICS = (ROWS, *INGEST, *TRAIN)
"""All names there are, for the rules and the dashboard."""


class RunCollector(Collector):
    """Reads the run whenever it is asked. What there is nothing of yet has no metric."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self._run = recipe.name
        self._ingest = IngestCounts(Store(recipe.store))
        self._training = TrainingLog(recipe, run_dir)
        self._lock = threading.Lock()  # each request has a thread

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            ingest, training = self._ingest.read(), self._training.read()
            yield self._rows(ingest)
            yield from (self._metric(name, text, number(ingest)) for name, (text, number) in INGEST.items())
            if training:
                values = {name: number(training) for name, (_, number) in TRAIN.items()}
                yield from (self._metric(name, TRAIN[name][0], v) for name, v in values.items() if v is not None)

    def _metric(self, name: str, text: str, value: float) -> Metric:
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        metric = kind(name, text, labels=["run"])
        metric.add_metric([self._run], value)
        return metric

    def _rows(self, ingest: IngestNumbers) -> Metric:
        metric = CounterMetricFamily(ROWS, "Rows by what became of them.", labels=["run", "status", "reason"])
        for label, count in ingest.rows.items():
            status, _, reason = label.partition(":")
            metric.add_metric([self._run, status, reason], count)
        return metric


def export(run: Path, port: int, textfile: Path | None) -> int:
    """Serve a run's numbers until the process is ended, or write them once. Returns the exit code.

    Args:
        run: A run folder; or, before training has made it, the recipe.
        port: To serve at, on all addresses.
        textfile: To write instead.

    Raises:
        UserError: There is no such run, or the port is taken.
    """
    recipe = load_recipe(run) if run.is_file() else read_run(run)
    registry = CollectorRegistry()
    registry.register(RunCollector(recipe, recipe.run_dir if run.is_file() else run))  # which reads all ledgers once
    if textfile:
        write_to_textfile(str(textfile), registry)
        return 0
    try:
        _, thread = start_http_server(port, registry=registry)
    except OSError as error:
        next_step = "choose another: --port PORT"
        why = error.strerror or str(error)
        raise UserError(f"port {port}", why=why, next_step=next_step, exit_code=EXIT_ENVIRONMENT) from error
    say(f"serving http://0.0.0.0:{port}/metrics")
    thread.join()
    return 0
