"""The training processes of one life of a run, as a group under Ray Train, and why they ended."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.ray_pool import num_cpus
from jobs.recipe import Recipe
from pipeline.errors import UserError

LOOK_FOR_DRAIN_EVERY_S = 2.0

_is_preempted = threading.Event()
"""In a worker: whether it or a node of the group will be taken away."""


@dataclass(frozen=True)
class Devices:
    """What each training process takes one of."""

    resource: Literal["GPU", "CPU"]
    num_processes: int
    """Of the group, when nothing is missing."""

    def room(self, leaving: set[str]) -> int:
        """Processes that the nodes of the cluster have room for, but those that are leaving it."""
        import ray

        staying = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
        return sum(int(node["Resources"].get(self.resource, 0)) for node in staying)

    def free(self) -> int:
        """Processes that there is room for beside all that runs now."""
        import ray

        return int(ray.available_resources().get(self.resource, 0))


def devices_of(recipe: Recipe) -> Devices:
    """On the cluster that is joined: by default one process a GPU, or one a CPU core where there is none."""
    import ray

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    return Devices("GPU" if num_gpus else "CPU", recipe.run.workers or num_gpus or num_cpus())


@dataclass(frozen=True)
class Loss:
    """Why a group ended before its time, or did not start."""

    kind: Literal["failure", "preemption", "no room", "more room"]
    what: str
    """In a few words."""
    details: str = ""
    is_process: bool = False
    """Whether it is known that processes died whose node lives."""
    leaving: frozenset[str] = frozenset()
    """Nodes that are being taken away."""


def run_group(
    function: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    devices: Devices,
    num_processes: int,
    storage: Path,
) -> frozenset[str]:
    """Run a function in training processes, until all have returned.

    Args:
        function: Is given the config, in this process's working directory where that exists.
        config: Anything that pickles.
        devices: What each process takes.
        num_processes: Of this group.
        storage: Folder for Ray's own records, shared by all nodes.

    Returns:
        The nodes that are being taken away, if that is why the function returned.

    Raises:
        UserError: As the function raised it.
        ray.train.TrainingFailedError: The group is lost; `why_lost` says how.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.callback import WorkerCallback

    working_dir = os.getcwd()

    def run(config: dict[str, Any]) -> list[str]:
        if Path(working_dir).is_dir():
            os.chdir(working_dir)  # Ray Train starts workers elsewhere, where the recipe's relative paths fail
        return _with_ears(function, config)

    class HearSigterm(WorkerCallback):  # type: ignore[misc] # Ray has no types
        def after_init_train_context(self) -> None:
            _hear_sigterm()

    trainer = TorchTrainer(
        run,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=num_processes, use_gpu=devices.resource == "GPU"),
        run_config=RunConfig(
            name="group",
            storage_path=str(storage.resolve()),
            callbacks=[HearSigterm()],
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        return frozenset(trainer.fit().return_value or ())
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, UserError):
                raise failure from None
        raise


def is_preempted() -> bool:
    """In a worker: whether it or a node of its group will be taken away."""
    return _is_preempted.is_set()


def why_lost(error: Exception) -> Loss:
    """What a `ray.train.TrainingFailedError` means. Raises it again where nothing can be done about it."""
    from ray.exceptions import ActorDiedError, RayActorError, RayError
    from ray.train import ControllerError, PreemptionError, WorkerGroupError
    from ray.train.v2._internal import exceptions

    if isinstance(error, PreemptionError):
        leaving = frozenset(error.preemption_info.preempted_node_ids)
        return Loss("preemption", "a node was taken away before a checkpoint was written", str(error), leaving=leaving)
    if isinstance(error, WorkerGroupError):
        causes = {rank: getattr(one, "health_check_failure", one) for rank, one in error.worker_failures.items()}
        dead = {rank: one for rank, one in causes.items() if isinstance(one, RayActorError)}
        if any(one.preempted for one in dead.values()):
            return Loss("preemption", "a node was taken away before a checkpoint was written", str(error))
        if dead:
            is_process = any(isinstance(one, ActorDiedError) for one in dead.values())  # not: cannot be reached
            where = {rank: _address(error.worker_failures[rank]) for rank in sorted(dead)}
            lost = ", ".join(f"rank {rank}{address}" for rank, address in where.items())
            return Loss("failure", f"lost the process of {lost}", str(error), is_process)
        rank, first = min(causes.items())
        words = str(first).strip().splitlines() or [""]
        return Loss("failure", f"rank {rank} failed: {type(first).__name__}: {words[-1]}", str(error))
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, exceptions.WorkerGroupStartupTimeoutError):
            return Loss("no room", "the cluster has no room for the processes")
        if isinstance(cause, exceptions.WorkerGroupStartupFailedError | RayError):
            return Loss("failure", "a process was lost while they started", str(error))
    raise error


def _address(failure: Exception) -> str:
    """Where a process was, as Ray's message says it."""
    found = re.search(r"node_ip='([^']+)'", str(failure))
    return f" on {found[1]}" if found else ""


def _with_ears(function: Callable[[dict[str, Any]], None], config: dict[str, Any]) -> list[str]:
    """In a worker: run the function while it is watched whether a node of the group is drained. Returns these."""
    leaving: list[str] = []
    threading.Thread(target=_watch_for_drain, args=(leaving,), daemon=True).start()
    function(config)
    return leaving


def _watch_for_drain(leaving: list[str]) -> None:
    """Ray marks a node that is sent SIGTERM, or that its autoscaler gives back, as draining for some 30 s."""
    import ray
    from ray.train import get_preemption_info

    with contextlib.suppress(ray.exceptions.RayError):  # the group is ending
        while not (info := get_preemption_info()):  # a collective, so that all ranks hear of it
            time.sleep(LOOK_FOR_DRAIN_EVERY_S)
        leaving += info.preempted_node_ids
        _is_preempted.set()


def _hear_sigterm() -> None:
    """In a worker's main thread, where Ray would end the process at once. Asked a second time, it ends."""

    def hear(number: int, frame: Any) -> None:
        if _is_preempted.is_set():
            raise SystemExit(1)
        _is_preempted.set()

    signal.signal(signal.SIGTERM, hear)
