"""`genlip train`: inside a process group if a launcher made one, else under Ray Train on this machine or a cluster."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.console import say
from jobs.ray_pool import num_cpus, ray_session
from jobs.recipe import Recipe
from jobs.runs import open_run
from pipeline.errors import EXIT_PREEMPTED, UserError
from train.faults import STOP_SIGNALS
from train.metrics import (
    EVALUATIONS,
    Evaluation,
    LogTail,
    StepMetrics,
    read_metrics,
    render,
    render_evaluation,
)
from train.plan import plan_lines
from train.recipe import STOP_FILE
from train.setup import set_up

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
        (run_dir / STOP_FILE).unlink(missing_ok=True)
        _say_plan(run_dir, int(os.environ["WORLD_SIZE"]))
    return run_training(
        run_dir,
        on_log=lambda metrics: say(render(metrics, recipe.train.length)),
        on_evaluation=lambda evaluation: say(render_evaluation(evaluation)),
        allowed=allowed,
    ).samples_seen


def _train_under_ray(recipe: Recipe, run_dir: Path, allowed: Sequence[str]) -> int:
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    with ray_session(recipe.run.ray_address), _stop_on_signal(run_dir), _tail(run_dir, recipe.train.length):
        config = {"run_dir": str(run_dir.resolve()), "allowed": list(allowed)}
        _say_plan(run_dir, num_workers(recipe))
        run_in_workers(ray_worker, config, recipe, run_dir / "ray", recipe.run.max_failures)
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    return int(read_metrics(run_dir)[-1]["samples"])


def ray_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs in each worker. Checkpoints and metrics are the trainer's own files."""
    from train.main import run_training

    run_training(Path(config["run_dir"]), allowed=config["allowed"])


def num_workers(recipe: Recipe) -> int:
    """Training processes on the cluster that is joined: by default one a GPU, or one a CPU core where there is none."""
    return recipe.run.workers or _num_gpus() or num_cpus()


def _num_gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def run_in_workers(
    function: Callable[[dict[str, Any]], None], config: dict[str, Any], recipe: Recipe, storage: Path, max_failures: int
) -> None:
    """Run a function in the training processes, as a group, under Ray Train.

    Args:
        function: Is given the config, in this process's working directory where that exists.
        config: Anything that pickles.
        recipe: Says how many processes.
        storage: Folder for Ray's own records, shared by all nodes.
        max_failures: How often the group is started again after one of its processes died.

    Raises:
        UserError: As the function raised it.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    working_dir = os.getcwd()

    def run(config: dict[str, Any]) -> None:
        if Path(working_dir).is_dir():
            os.chdir(working_dir)  # Ray Train starts workers elsewhere, where the recipe's relative paths fail
        function(config)

    trainer = TorchTrainer(
        run,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_workers(recipe), use_gpu=_num_gpus() > 0),
        run_config=RunConfig(
            name=recipe.name,
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in error.worker_failures.values() if hasattr(error, "worker_failures") else ():
            if isinstance(failure, UserError):
                raise failure from None
        raise


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
def _tail(run_dir: Path, length: int) -> Iterator[None]:
    """Say the lines that the workers add to the metrics: Ray's own log forwarding would prefix and repeat them."""
    stop = threading.Event()
    log, evaluations = LogTail(run_dir), LogTail(run_dir, EVALUATIONS)
    for tail in (log, evaluations):
        tail.read()  # what the run has logged before

    def follow() -> None:
        while not stop.wait(TAIL_EVERY_S):
            flush()

    def flush() -> None:
        for entry in log.read():
            say(render(StepMetrics(**entry), length))
        for entry in evaluations.read():
            say(render_evaluation(Evaluation(**entry)))

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
