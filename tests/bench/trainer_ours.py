"""Our trainer, as a launcher starts it: the whole loop with its checks, log and checkpoint, on shards in a store."""

import time
from pathlib import Path

from tests.bench.trainer_inputs import TrainerSetup
from tests.bench.trainer_side import Mark
from train.main import run_training
from train.metrics import StepMetrics

NAME = "genlip"


def run(setup: TrainerSetup) -> list[Mark]:
    """A mark after every step; the run's length decides how many there are."""
    marks: list[Mark] = []

    def note(metrics: StepMetrics) -> None:
        marks.append(Mark(metrics.samples, time.process_time(), time.perf_counter(), metrics.time_shares))

    run_training(Path(setup.run_dir), note)
    return marks
