"""`genlip submit`: a verb of a recipe, rendered for a cluster, and started there."""

from collections.abc import Sequence
from pathlib import Path

from jobs.cluster import kubernetes, ray_jobs, slurm
from jobs.cluster.work import Verb
from jobs.console import say
from jobs.recipe import Recipe, load_recipe
from pipeline.errors import UserError


def submit(
    recipe_path: Path, verb_name: str, to: str, address: str | None, only_render: bool, overrides: Sequence[str]
) -> int:
    """Start a verb on a cluster, or show what would be started. Returns the exit code.

    Args:
        recipe_path: The recipe.
        verb_name: Of `Verb`.
        to: `ray`, `kubernetes` or `slurm`.
        address: Of a running Ray cluster.
        only_render: Print and stop.
        overrides: As given to `--set`.

    Raises:
        UserError: The recipe does not suit the cluster, a tool is missing, or the job runs already.
    """
    if to not in _TARGETS:
        raise UserError(f"--to {to}: write one of {', '.join(_TARGETS)}")
    if verb_name not in list(Verb):
        raise UserError(f"{verb_name} cannot be submitted", next_step=f"write one of {', '.join(Verb)}")
    recipe = load_recipe(recipe_path, list(overrides))
    verb = Verb(verb_name)
    if to == "ray":
        _to_ray(recipe, verb, address, only_render)
    elif to == "kubernetes":
        _to_kubernetes(recipe, verb, only_render)
    else:
        _to_slurm(recipe, verb, recipe_path, overrides, only_render)
    return 0


_TARGETS = ("ray", "kubernetes", "slurm")


def _to_ray(recipe: Recipe, verb: Verb, address: str | None, only_render: bool) -> None:
    request = ray_jobs.make_request(recipe, verb)
    if only_render:
        say(f"# {request.prefix}-ATTEMPT: {request.entrypoint}")
        say(request.recipe)
        return
    submission_id = ray_jobs.submit(request, address, Path.cwd())
    at = f" --address {address}" if address else ""
    say(f"submitted as {submission_id}: {request.entrypoint}")
    say(f"next: ray job logs{at} --follow {submission_id}; ray job status{at} {submission_id}")


def _to_kubernetes(recipe: Recipe, verb: Verb, only_render: bool) -> None:
    if only_render:
        say(kubernetes.render(recipe, verb))
        return
    say(kubernetes.submit(recipe, verb).rstrip())
    name, namespace = kubernetes.job_name(recipe, verb), recipe.cluster.namespace
    kind = "raycluster" if verb is Verb.CLUSTER else "rayjob"
    say(f"next: kubectl --namespace {namespace} get {kind} {name}; its pods: kubectl get pods")


def _to_slurm(recipe: Recipe, verb: Verb, recipe_path: Path, overrides: Sequence[str], only_render: bool) -> None:
    scripts = slurm.render(recipe, verb, recipe_path, overrides)
    if only_render:
        for script in scripts:
            say(f"# ---- {script.name}{f' ({script.after} the one before)' if script.after else ''}\n{script.text}")
        return
    for script, job_id in zip(scripts, slurm.submit(scripts), strict=True):
        say(f"job {job_id}: {script.name}")
    say("next: squeue --me; the logs are NAME-JOB.out in this folder")
