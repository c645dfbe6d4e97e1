"""`genlip train --dry-run` and `genlip overfit`: a run tried out before it costs anything."""

import json
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.console import duration, say
from jobs.ray_pool import ray_session
from jobs.ray_train import devices_of, run_group
from jobs.recipe import Recipe
from jobs.training import in_group, is_first
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from train.recipe import TrainJob

if TYPE_CHECKING:
    from train.trial import DryRun

_LINES = 10
"""Of the loss curve."""


def dry_run(recipe: Recipe) -> int:
    """Take two steps at full size where the run would take them, and say what they cost. Returns the exit code."""
    job, run_dir = _job(recipe), recipe.run_dir
    if in_group():
        from train.trial import dry_run as run

        found = run(run_dir, job)
    else:
        found = _dry_run_under_ray(recipe, job, run_dir)
    if is_first():
        _say_dry_run(found, recipe)
    return 0


def _dry_run_under_ray(recipe: Recipe, job: TrainJob, run_dir: Path) -> "DryRun":
    from train.trial import DryRun

    scratch = run_dir / f".dry-run-{uuid.uuid4().hex[:8]}"  # in the run folder, which all nodes share
    try:
        with ray_session(recipe.run.ray_address):
            config = {"run_dir": str(run_dir.resolve()), "job": job.model_dump(mode="json")}
            config["result"] = str(scratch.resolve() / "result.json")
            devices = devices_of(recipe)
            run_group(_dry_run_worker, config, devices, devices.num_processes, scratch)
        return DryRun(**json.loads((scratch / "result.json").read_text(encoding="utf-8")))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dry_run_worker(config: dict[str, Any]) -> None:
    from train.trial import dry_run as run

    found = run(Path(config["run_dir"]), TrainJob.model_validate(config["job"]))
    if is_first():
        Path(config["result"]).write_text(json.dumps(asdict(found)), encoding="utf-8")


def _say_dry_run(found: "DryRun", recipe: Recipe) -> None:
    total_s = recipe.train.length / found.num_samples * found.step_s
    of_device = f" of {found.device_gib:.1f}" if found.device_gib else ""
    say(
        f"dry run    2 steps on {found.world_size} processes: losses {found.losses[0]:.4f}, {found.losses[1]:.4f};"
        " every parameter got a finite gradient"
    )
    say(f"memory     {found.memory_gib:.2f}{of_device} GiB in the process that used most")
    say(
        f"time       {found.step_s:.2f} s for a step of {found.num_samples:,} samples; {recipe.train.length:,} samples"
        f" would take {duration(total_s)} at this pace"
    )
    say("nothing was written; next: genlip train RECIPE")


def overfit(recipe: Recipe, num_steps: int) -> int:
    """Repeat one micro-batch on this machine. Returns the exit code: failure unless the loss falls below half.

    Raises:
        UserError: A launcher started several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("one process overfits one batch", next_step="run genlip overfit without a launcher")
    from train.trial import overfit as run

    losses = run(recipe.run_dir, _job(recipe), num_steps)
    for number in sorted({*range(0, num_steps, max(1, num_steps // _LINES)), num_steps - 1}):
        say(f"step {number + 1:>5,} · loss {losses[number]:.4f}")
    if losses[-1] < losses[0] / 2:
        say(f"the loss of one batch fell to {losses[-1] / losses[0]:.1%}: model, loss and optimiser work together")
        return 0
    say(f"the loss of one batch fell only to {losses[-1] / losses[0]:.1%}, which is not below half")
    say("next: more --steps, or look at train.optim.lr and train.init_from")
    return EXIT_FAILED_UNITS


def _job(recipe: Recipe) -> TrainJob:
    return TrainJob.model_validate(recipe.model_dump(mode="json"))
