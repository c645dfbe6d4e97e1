"""SLURM: sbatch scripts, and their submission in the order in which they depend on each other.

The store, the run folders and the virtual environment lie on a disk that all nodes share.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.cluster.spec import WorkersSpec
from jobs.cluster.template import fill_shell
from jobs.cluster.work import ON_GPUS, Verb, command
from jobs.recipe import Recipe
from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.recipe import STOP_FILE


@dataclass(frozen=True)
class Script:
    """An sbatch script."""

    name: str
    text: str
    after: str = ""
    """What the script before it must have come to, as `sbatch --dependency` names it: afterok, afterany."""


def render(recipe: Recipe, verb: Verb, recipe_path: Path, overrides: Sequence[str]) -> list[Script]:
    """The scripts of a verb, in order.

    Args:
        recipe: The resolved recipe.
        verb: What to run.
        recipe_path: Where the nodes find the recipe, from the folder that is submitted from.
        overrides: As they were given to `--set`.

    Raises:
        UserError: SLURM has nothing to run for this verb.
    """
    if verb is Verb.CLUSTER:
        raise UserError(
            "SLURM is the cluster already", next_step="submit ingest, curate, tokenizer, train, eval or compare"
        )
    arguments = command(verb, recipe, str(recipe_path))
    if verb is not Verb.EVAL:
        arguments += [word for override in overrides for word in ("--set", override)]
    if verb is Verb.INGEST:
        return _ingest(recipe, arguments)
    if verb is Verb.TRAIN:
        return [_train(recipe, arguments)]
    group = recipe.cluster.gpu_workers if verb in ON_GPUS else recipe.cluster.cpu_workers
    return [_job(recipe, verb.value, arguments, group)]


def submit(scripts: Sequence[Script]) -> list[str]:
    """Hand the scripts to sbatch, each after the one before it. Returns the job ids.

    Raises:
        UserError: sbatch is missing, or refuses a script.
    """
    if not shutil.which("sbatch"):
        raise UserError(
            "sbatch is not installed here",
            next_step="run this on a login node of the cluster, or see the scripts: add --render",
            exit_code=EXIT_ENVIRONMENT,
        )
    job_ids: list[str] = []
    for script in scripts:
        order = [f"--dependency={script.after}:{job_ids[-1]}"] if script.after else []
        done = subprocess.run(
            ["sbatch", "--parsable", *order], input=script.text, capture_output=True, text=True, check=False
        )
        if done.returncode:
            why, next_step = done.stderr.strip(), "look at cluster.slurm and the sizes of the workers"
            raise UserError(f"sbatch does not take {script.name}", why=why, next_step=next_step)
        job_ids.append(done.stdout.strip().partition(";")[0])
    return job_ids


def _ingest(recipe: Recipe, arguments: list[str]) -> list[Script]:
    """The plan, then an array for its units, then what is left over and the curation."""
    group = recipe.cluster.cpu_workers
    values: dict[str, str | list[str]] = {"arguments": arguments, "num_tasks": str(group.most)}
    array = _fill(recipe, "array.sbatch", "ingest-units", group, values, indices=f"0-{group.most - 1}")
    return [
        _job(recipe, "ingest-plan", [*arguments, "--part", "plan"], group),
        Script("ingest-units.sbatch", array, after="afterok"),
        _job(recipe, "ingest-end", arguments, group, after="afterany"),
    ]


def _train(recipe: Recipe, arguments: list[str]) -> Script:
    group = recipe.cluster.gpu_workers
    values: dict[str, str | list[str]] = {
        "arguments": arguments,
        "stop_file": str(recipe.run_dir / STOP_FILE),
        "requeues": str(recipe.cluster.requeues),
    }
    return Script("train.sbatch", _fill(recipe, "train.sbatch", "train", group, values, num_nodes=group.replicas))


def _job(recipe: Recipe, name: str, arguments: list[str], group: WorkersSpec, after: str = "") -> Script:
    return Script(f"{name}.sbatch", _fill(recipe, "job.sbatch", name, group, {"arguments": arguments}), after)


def _fill(
    recipe: Recipe,
    template: str,
    name: str,
    group: WorkersSpec,
    values: dict[str, str | list[str]],
    indices: str = "",
    num_nodes: int = 0,
) -> str:
    """A script. With `num_nodes`, one process for each GPU of so many nodes; otherwise one process with all of them."""
    spec = recipe.cluster.slurm
    values |= {"name": f"{recipe.name}-{name}", "environment": spec.environment}
    resources = {
        "partition": spec.gpu_partition if group.gpus else spec.cpu_partition,
        "account": spec.account,
        "time": spec.time_limit,
        "array": indices,
        "nodes": str(num_nodes or 1),
        "gres": f"{spec.gres}:{group.gpus}" if group.gpus else "",
        "ntasks-per-node": str(max(1, group.gpus) if num_nodes else 1),
        "cpus-per-task": str(group.cpus // max(1, group.gpus) if num_nodes else group.cpus),
        "mem": f"{group.memory_gib}G",
    }
    lines = [f"#SBATCH --{option}={value}" for option, value in resources.items() if value]
    return fill_shell(template, values, {"resources": "\n".join(lines)})
