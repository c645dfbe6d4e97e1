"""Training before it counts: two steps at full size, or one batch again and again. Neither leaves anything behind."""

import copy
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.data.loader import Loader
from train.loop import StepResult, train_step
from train.main import begin
from train.meter import memory_gib
from train.recipe import TrainJob
from train.sanity import GradientCheck
from train.setup import set_up


@dataclass(frozen=True)
class DryRun:
    """What two steps at full size came to."""

    world_size: int
    num_samples: int
    """Of the second step, as is `step_s`: the first one also makes the optimiser's state."""
    step_s: float
    losses: tuple[float, float]
    memory_gib: float
    """Of the process that used most: on its device, or altogether where there is no GPU."""
    device_gib: float | None
    """What the device has; None without a GPU."""


def dry_run(run_dir: Path, job: TrainJob) -> DryRun:
    """Take the first two steps of a run as one process of its group, at the peak learning rate, and forget them.

    Args:
        run_dir: Holds the tokenizer; nothing is written here.
        job: What would be trained.

    Raises:
        UserError: The device's memory is too small, or a parameter gets no finite gradient.
    """
    setup, spec = set_up(run_dir, job), job.train
    with TemporaryDirectory() as folder:
        ranks, engine = begin(setup, Path(folder))
        loader = Loader(setup, Path(folder), ranks.rank, ranks.world_size)
        results: list[StepResult] = []
        with closing(iter(loader)) as steps, GradientCheck(engine.module, ranks) as check:
            for number in (0, 1):
                batch = next(steps)
                began = time.perf_counter()
                try:
                    results.append(train_step(engine, batch, spec.optim.lr, ranks, seed=number))
                except torch.OutOfMemoryError as error:
                    raise _too_little_memory(error, spec.micro_rows) from error
            step_s = time.perf_counter() - began
        check.verify()
    memory = torch.tensor(memory_gib(), device=ranks.device)
    dist.all_reduce(memory, op=dist.ReduceOp.MAX)
    device_gib = torch.cuda.get_device_properties().total_memory / 2**30 if torch.cuda.is_available() else None
    losses = (results[0].loss, results[1].loss)
    return DryRun(ranks.world_size, batch.num_samples, step_s, losses, float(memory), device_gib)


def _too_little_memory(error: Exception, micro_rows: int) -> UserError:
    smaller = "train.micro_rows, " if micro_rows > 1 else ""
    return UserError(
        "a micro-batch does not fit into the device's memory",
        where=f"{smaller}train.row_tokens, train.zero, train.gradient_checkpointing",
        why=str(error).split("\n")[0],
        next_step="--set train.gradient_checkpointing=full, or a higher train.zero.stage, or "
        + ("--set train.micro_rows=1" if micro_rows > 1 else "more processes"),
        exit_code=EXIT_ENVIRONMENT,
    )


def overfit(run_dir: Path, job: TrainJob, num_steps: int) -> list[float]:
    """Train on the first micro-batch of a run again and again, on one process, at the peak learning rate.

    Args:
        run_dir: Holds the tokenizer; nothing is written here.
        job: Whose model, data and optimiser to take.
        num_steps: Updates.

    Returns:
        The loss before each of them. What is drawn, such as MAE's masks, is the same in each too.
    """
    job = job.model_copy(update={"train": job.train.model_copy(update={"lanes": job.train.micro_rows})})
    setup = set_up(run_dir, job)
    with TemporaryDirectory() as folder:
        ranks, engine = begin(setup, Path(folder))
        with closing(iter(Loader(setup, Path(folder), ranks.rank, ranks.world_size))) as steps:
            batch = next(steps)
            batch = replace(batch, micro_batches=[copy.deepcopy(rows) for rows in batch.micro_batches])
    return [train_step(engine, batch, job.train.optim.lr, ranks, seed=0).loss for _ in range(num_steps)]
