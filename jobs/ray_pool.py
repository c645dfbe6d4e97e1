"""Ray, as the jobs use it: a session that cleans up, and plain functions fanned out with bounded work in flight.

Ray is imported inside the functions: it reads its authentication settings while it is imported.
"""

import atexit
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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


def fan_out(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Done[Item, Result]]:
    """Run `function` on each item as a Ray task of one core; yield the results as they come.

    At most two tasks for each core are in flight, so the driver holds neither all items nor all results.
    """
    import ray

    def run(item: Item) -> Result:  # Ray wants a plain function, and `function` may be a partial
        return function(item)

    task = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)(run)
    waiting = iter(items)
    running: dict[Any, Item] = {}
    limit = 2 * num_cpus()
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
