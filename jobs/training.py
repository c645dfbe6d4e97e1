"""`genlip train`: inside a process group if a launcher made one, else under Ray Train on this machine or a cluster."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.console import say
from jobs.ray_pool import num_cpus, ray_session
from jobs.recipe import Recipe
from jobs.runs import open_run
from pipeline.errors import UserError
from train.metrics import StepMetrics, read_metrics, render
from train.plan import plan_lines
from train.setup import set_up

TAIL_EVERY_S = 0.5


def train(recipe: Recipe) -> int:
    """Train or resume the recipe's run. Returns the exit code."""
    run_dir = open_run(recipe)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _train_in_group(recipe, run_dir)
    else:
        _train_under_ray(recipe, run_dir)
    return 0


def _train_in_group(recipe: Recipe, run_dir: Path) -> None:
    """As one process of torchrun, deepspeed or srun."""
    from train.main import run_training

    first = os.environ["RANK"] == "0"
    if first:
        _say_plan(run_dir, int(os.environ["WORLD_SIZE"]))
    state = run_training(run_dir, on_log=lambda metrics: say(render(metrics, recipe.train.length)))
    if first:
        _say_end(run_dir, state.samples_seen)


def _train_under_ray(recipe: Recipe, run_dir: Path) -> None:
    with ray_session(recipe.run.ray_address):
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        workers = recipe.run.workers or num_gpus or num_cpus()
        _say_plan(run_dir, workers)
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config={"run_dir": str(run_dir.resolve()), "working_dir": os.getcwd()},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=num_gpus > 0),
            run_config=RunConfig(
                name=recipe.name,
                storage_path=str((run_dir / "ray").resolve()),
                failure_config=FailureConfig(max_failures=recipe.run.max_failures),
            ),
        )
        with _tail(run_dir, recipe.train.length):
            _fit(trainer)
    last = read_metrics(run_dir)[-1]
    _say_end(run_dir, last["samples"])


def ray_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker. Checkpoints and metrics are the trainer's own files."""
    from train.main import run_training

    if Path(config["working_dir"]).is_dir():
        os.chdir(config["working_dir"])  # Ray Train starts workers elsewhere, where the recipe's relative paths fail
    run_training(Path(config["run_dir"]))


def _fit(trainer: Any) -> None:
    from ray.train import TrainingFailedError

    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in error.worker_failures.values() if hasattr(error, "worker_failures") else ():
            if isinstance(failure, UserError):
                raise failure from None
        raise


@contextmanager
def _tail(run_dir: Path, length: int) -> Iterator[None]:
    """Say the lines that the workers add to the metrics: Ray's own log forwarding would prefix and repeat them."""
    stop = threading.Event()
    printed = {entry["step"] for entry in read_metrics(run_dir)}

    def follow() -> None:
        while not stop.wait(TAIL_EVERY_S):
            flush()

    def flush() -> None:
        for entry in read_metrics(run_dir):
            if entry["step"] not in printed:
                printed.add(entry["step"])
                say(render(StepMetrics(**entry), length))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        flush()


def _say_plan(run_dir: Path, world_size: int) -> None:
    for line in plan_lines(set_up(run_dir), world_size):
        say(line)


def _say_end(run_dir: Path, samples_seen: int) -> None:
    say(f"done: {samples_seen:,} samples seen; checkpoints in {run_dir / 'checkpoints'}")
    say(f"next: genlip eval {run_dir}")
