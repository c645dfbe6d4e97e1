"""What each verb needs of a cluster, and the command that it is there."""

from enum import StrEnum
from typing import Any

from jobs.cluster.spec import WorkersSpec
from jobs.recipe import Recipe
from pipeline.errors import UserError


class Verb(StrEnum):
    """What can be submitted."""

    INGEST = "ingest"
    CURATE = "curate"
    TOKENIZER = "tokenizer"
    TRAIN = "train"
    EVAL = "eval"
    COMPARE = "compare"
    CLUSTER = "cluster"
    """The cluster alone, to which others are submitted with `--to ray`."""


ON_GPUS = (Verb.TRAIN, Verb.EVAL, Verb.COMPARE)


def command(verb: Verb, recipe: Recipe, recipe_file: str) -> list[str]:
    """The command of a verb, without the program's name."""
    return [verb.value, str(recipe.run_dir) if verb is Verb.EVAL else recipe_file]


def workers_of(verb: Verb, recipe: Recipe) -> dict[str, WorkersSpec]:
    """The groups of workers that a verb has use for, by name."""
    groups = {"cpu": recipe.cluster.cpu_workers, "gpu": recipe.cluster.gpu_workers}
    if verb in ON_GPUS:
        del groups["cpu"]
    elif verb is not Verb.CLUSTER and not _annotates_on_gpus(recipe):
        del groups["gpu"]
    return {name: group for name, group in groups.items() if group.most}


def entrypoint_gpus(verb: Verb, recipe: Recipe) -> int:
    """GPUs of the command's own process: `eval` and `compare` compute in it, the others only direct their workers."""
    gpus = recipe.cluster.gpu_workers.gpus
    return {Verb.EVAL: min(1, gpus), Verb.COMPARE: gpus}.get(verb, 0)


def on_cluster(recipe: Recipe, **run: Any) -> Recipe:
    """The recipe as the command gets it there: it joins the Ray that is running; `run` replaces values of that name."""
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"ray_address": "auto", **run})})


def require_shared(recipe: Recipe, root: str, why: str, next_step: str) -> None:
    """Refuse paths that only this machine, or only one process of the cluster, would see.

    Args:
        recipe: Its store, run folders and input table are looked at.
        root: Folder that all machines share; URLs are shared anyway.
        why: What would happen to other paths.
        next_step: What the user is to do.

    Raises:
        UserError: Naming the key.
    """
    paths = {"store": recipe.store, "runs": recipe.runs, "ingest.source.urls": recipe.ingest.source.urls}
    for key, path in paths.items():
        if "://" not in path and not path.startswith(root):
            what = f"{path} is not shared by the machines of the cluster"
            raise UserError(what, where=key, why=why, next_step=next_step)


def _annotates_on_gpus(recipe: Recipe) -> bool:
    return any(one.num_gpus > 0 for one in recipe.curate.build_annotators())
