"""Ray, as the jobs use it: a session that cleans up, and plain functions fanned out with bounded work in flight.

Ray is imported inside the functions: it reads its authentication settings while it is imported.
"""

import atexit
import itertools
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from pipeline.each import in_turn
from pipeline.errors import EXIT_ENVIRONMENT, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

OBJECT_STORE_BYTES = 256 << 20
"""Only manifests and shard assignments cross the object store, never images."""
TASK_RETRIES = 3
"""How often Ray runs a task again whose worker process died."""


@dataclass(frozen=True)
class Done(Generic[Item, Result]):
    """A finished task: its result, or the error it ended with."""

    item: Item
    result: Result | None = None
    error: Exception | None = None


@contextmanager
def ray_session(address: str) -> Iterator[None]:
    """Start a Ray on this machine (`local`), or join the cluster at an address, for the length of the block."""
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        _guard_embedded_ray()
        common |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # Ray would take all cores of a node that others share
            common["num_cpus"] = int(cpus)
    import ray

    ray.init(address=address, **common)
    try:
        yield
    finally:
        ray.shutdown()


def _guard_embedded_ray() -> None:
    """Give the embedded Ray a token of this process. Must come before the first `import ray`, which reads it.

    Ray would otherwise leave a token in the home folder, which a later `ray start` then asks of a client that does
    not send it.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="genlip-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)})


def num_cpus() -> int:
    """Cores of the whole Ray cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _num_slots(task_cpus: float, task_gpus: float) -> int:
    """Tasks of these needs that fit the cluster at a time.

    Raises:
        UserError: The cluster has no GPU, and the tasks need one.
    """
    import ray

    total = ray.cluster_resources()
    slots = total.get("CPU", 1) / max(task_cpus, 0.01)
    if task_gpus:
        slots = min(slots, total.get("GPU", 0) / task_gpus)
        if slots < 1:
            raise UserError(
                f"a task needs {task_gpus:g} GPU, the cluster has {total.get('GPU', 0):g}",
                next_step="name a cluster with GPUs: --set run.ray_address=ADDRESS",
                exit_code=EXIT_ENVIRONMENT,
            )
    return max(1, int(slots))


def fan_out(
    function: Callable[[Item], Result], items: Iterable[Item], num_cpus: float = 1, num_gpus: float = 0
) -> Iterator[Done[Item, Result]]:
    """Run `function` on each item as a Ray task; yield the results as they come.

    At most two tasks for each that fits the cluster are in flight, so the driver holds neither all items nor all
    results. A task that needs a GPU keeps its process, and with it the model that it has loaded.
    """
    import ray

    def run(item: Item) -> Result:  # Ray wants a plain function, and `function` may be a partial
        return function(item)

    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=TASK_RETRIES, max_calls=0)(run)
    waiting = iter(items)
    running: dict[Any, Item] = {}
    limit = 2 * _num_slots(num_cpus, num_gpus)
    while True:
        while len(running) < limit and (item := next(waiting, None)) is not None:
            running[task.remote(item)] = item
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            item = running.pop(reference)
            try:
                yield Done(item, result=ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                yield Done(item, error=cause if isinstance(cause, Exception) else error)
            except ray.exceptions.RayError as error:
                yield Done(item, error=error)


class Pool:
    """Ray for the length of a command, started when there is something for it to do."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = ExitStack()
        self._is_started = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def fan_out(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> Iterator[Done[Item, Result]]:
        """See the function of the same name."""
        if not self._is_started:
            self._stack.enter_context(ray_session(self._address))
            self._is_started = True
        return fan_out(function, items, num_cpus, num_gpus)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """An `Each` (see `pipeline.each`). A single item is dealt with here: it would only wait for Ray."""
        waiting = iter(items)
        first = list(itertools.islice(waiting, 2))
        if len(first) < 2 and not self._is_started:
            yield from in_turn(function, first)
            return
        for done in self.fan_out(function, itertools.chain(first, waiting)):
            if done.error:
                raise done.error
            yield done.item, cast(Result, done.result)
