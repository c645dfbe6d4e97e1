"""`genlip train`: inside a process group if a launcher made one, else under Ray Train on this machine or a cluster."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.console import say
from jobs.elastic import ElasticRun
from jobs.meter import TrainingMeter
from jobs.ray_pool import ray_session
from jobs.ray_train import devices_of, is_preempted
from jobs.recipe import Recipe
from jobs.runs import open_run
from pipeline.errors import EXIT_PREEMPTED
from train.faults import STOP_SIGNALS
from train.metrics import (
    EVALUATIONS,
    Evaluation,
    LogTail,
    StepMetrics,
    render,
    render_evaluation,
)
from train.plan import plan_lines
from train.recipe import RESTART_FILE, STOP_FILE
from train.setup import set_up, world_sizes

TAIL_EVERY_S = 0.5


def train(recipe: Recipe, allowed: Sequence[str] = ()) -> int:
    """Train or resume the recipe's run. Returns the exit code: that of a run to go on with where it was stopped.

    Args:
        recipe: Of the run.
        allowed: Keys in which it may differ from what the run was so far.
    """
    run_dir = open_run(recipe, allowed)
    start = _train_in_group if in_group() else _train_under_ray
    samples_seen = start(recipe, run_dir, allowed)
    if not is_first():
        return 0 if samples_seen >= recipe.train.length else EXIT_PREEMPTED
    if samples_seen < recipe.train.length:
        say(f"stopped on request: {samples_seen:,} of {recipe.train.length:,} samples seen, and a checkpoint written")
        say("next: the same command goes on from there")
        return EXIT_PREEMPTED
    say(f"done: {samples_seen:,} samples seen; checkpoints in {run_dir / 'checkpoints'}")
    say(f"next: genlip eval {run_dir}")
    return 0


def in_group() -> bool:
    """Whether a launcher started this process as one of a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this process speaks for its group."""
    return os.environ.get("RANK", "0") == "0"


def _train_in_group(recipe: Recipe, run_dir: Path, allowed: Sequence[str]) -> int:
    """As one process of torchrun, deepspeed or srun. Returns the samples seen."""
    from train.main import run_training

    if is_first():
        for name in (STOP_FILE, RESTART_FILE):
            (run_dir / name).unlink(missing_ok=True)
        for line in plan_lines(set_up(run_dir), int(os.environ["WORLD_SIZE"])):
            say(line)
    meter = TrainingMeter(recipe, run_dir)

    def on_log(metrics: StepMetrics) -> None:
        say(render(metrics, recipe.train.length))
        meter.tell()

    return run_training(
        run_dir,
        on_log=on_log,
        on_evaluation=lambda evaluation: say(render_evaluation(evaluation)),
        allowed=allowed,
    ).samples_seen


def _train_under_ray(recipe: Recipe, run_dir: Path, allowed: Sequence[str]) -> int:
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    with ray_session(recipe.run.ray_address), _stop_on_signal(run_dir), _tail(recipe, run_dir):
        devices, setup, spec = devices_of(recipe), set_up(run_dir), recipe.run
        sizes = world_sizes(setup, devices.num_processes, spec.min_workers)
        for line in plan_lines(setup, devices.num_processes, min_world_size=spec.min_workers):
            say(line)
        config = {"run_dir": str(run_dir.resolve()), "allowed": list(allowed)}
        samples_seen = ElasticRun(run_dir, recipe.train.length, spec, devices, sizes).train(ray_worker, config)
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    return samples_seen


def ray_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker. Checkpoints and metrics are the trainer's own files."""
    from train.main import run_training

    run_training(Path(config["run_dir"]), allowed=config["allowed"], is_preempted=is_preempted)


@contextmanager
def _stop_on_signal(run_dir: Path) -> Iterator[None]:
    """Pass a request to stop on to the workers, which Ray may run on other machines, by way of the run folder."""

    def ask(number: int, frame: Any) -> None:
        (run_dir / STOP_FILE).touch()

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _tail(recipe: Recipe, run_dir: Path) -> Iterator[None]:
    """Say the lines that the workers add to the metrics: Ray's own log forwarding would prefix and repeat them."""
    stop = threading.Event()
    log, evaluations, meter = LogTail(run_dir), LogTail(run_dir, EVALUATIONS), TrainingMeter(recipe, run_dir)
    for tail in (log, evaluations):
        tail.read()  # what the run has logged before

    def follow() -> None:
        while not stop.wait(TAIL_EVERY_S):
            flush()

    def flush() -> None:
        for entry in log.read():
            say(render(StepMetrics(**entry), recipe.train.length))
        for entry in evaluations.read():
            say(render_evaluation(Evaluation(**entry)))
        meter.tell()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        flush()
