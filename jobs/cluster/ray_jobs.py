"""A running Ray cluster, by its Jobs API."""

import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cluster.package import RECIPE_FILE, pack
from jobs.cluster.work import Verb, command, entrypoint_gpus, on_cluster, require_shared
from jobs.recipe import Recipe, recipe_yaml
from jobs.stages import SUBMITTED_BY
from pipeline.errors import EXIT_ENVIRONMENT, UserError

RUNNING = ("PENDING", "RUNNING")


@dataclass(frozen=True)
class Request:
    """What is asked of the cluster; the working directory is packed when it is sent."""

    prefix: str
    """The submission id is this and the number of the attempt."""
    entrypoint: str
    num_gpus: int
    """Of the command's own process."""
    recipe: str


def make_request(recipe: Recipe, verb: Verb) -> Request:
    """The job of a verb.

    Raises:
        UserError: The cluster is to be submitted to itself, or a path of the recipe lies in the job's own folder.
    """
    if verb is Verb.CLUSTER:
        raise UserError("a Ray that is asked for a cluster is one", next_step="--to kubernetes, or: ray up FILE")
    why = "a relative path lies in the job's folder, which each node has for itself and which goes with the job"
    require_shared(recipe, "/", why, "give a URL, or a path from / that all nodes mount")
    entrypoint = shlex.join(["python", "-m", "jobs.cli", *command(verb, recipe, RECIPE_FILE)])
    text = recipe_yaml(on_cluster(recipe))
    return Request(f"{recipe.name}-{verb}", entrypoint, entrypoint_gpus(verb, recipe), text)


def submit(request: Request, address: str | None, folder: Path) -> str:
    """Start the job. Returns its submission id.

    Args:
        request: From `make_request`.
        address: Of the cluster's dashboard; None takes RAY_API_SERVER_ADDRESS, or the Ray on this machine.
        folder: Goes along with the job.

    Raises:
        UserError: There is no such cluster, the same job is running there, or the folder is too large.
    """
    client = _connect(address)
    submission_id = _next_id(request.prefix, client)
    with tempfile.TemporaryDirectory() as scratch:
        package = pack(folder, request.recipe, Path(scratch))
        try:
            return str(
                client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=submission_id,
                    runtime_env={
                        "working_dir": str(package),
                        "env_vars": {SUBMITTED_BY: shlex.join(["genlip", *sys.argv[1:]])},
                    },
                    entrypoint_num_gpus=request.num_gpus or None,
                )
            )
        except RuntimeError as error:
            if "already exists" in str(error):  # submitted by another in this moment
                raise _is_running(submission_id) from error
            raise UserError("the cluster does not take the job", why=str(error), exit_code=EXIT_ENVIRONMENT) from error


def _connect(address: str | None) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError(
            "the Ray cluster wants a token that is not this one",
            where=address or "RAY_API_SERVER_ADDRESS",
            next_step="set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as they were where the cluster was started",
            exit_code=EXIT_ENVIRONMENT,
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            "no Ray cluster answers",
            where=address or "RAY_API_SERVER_ADDRESS",
            why=str(error),
            next_step="name the address of its dashboard: --address http://HEAD:8265",
            exit_code=EXIT_ENVIRONMENT,
        ) from error


def _next_id(prefix: str, client: Any) -> str:
    """An id that says which attempt this is.

    Raises:
        UserError: An earlier one is not over.
    """
    attempts = {0: ""}
    for job in client.list_jobs():
        match = re.fullmatch(re.escape(prefix) + r"-(\d+)", job.submission_id or "")
        if match:
            attempts[int(match[1])] = job.status
            if job.status in RUNNING:
                raise _is_running(job.submission_id)
    return f"{prefix}-{max(attempts) + 1}"


def _is_running(submission_id: str) -> UserError:
    return UserError(
        f"this is running already, as {submission_id}",
        why="two of a kind would do the same work twice",
        next_step=f"watch it: ray job logs --follow {submission_id}; or end it: ray job stop {submission_id}",
    )
