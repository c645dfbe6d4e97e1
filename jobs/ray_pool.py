"""Ray, as the jobs use it: a session that cleans up, begun when there is something to do.

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
from pathlib import Path
from types import TracebackType
from typing import Any

from jobs.fan_out import PLAIN, TASK_RETRIES, Done, Item, Policy, Result, fan_out, result_of
from pipeline.each import in_turn

OBJECT_STORE_BYTES = 256 << 20
"""Only manifests and shard assignments cross the object store, never images."""


@contextmanager
def ray_session(address: str) -> Iterator[None]:
    """Start a Ray on this machine (`local`), or join the cluster at an address, for the length of the block."""
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        _guard_embedded_ray()
        common |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):  # Ray would take all cores of a node that others share
            common["num_cpus"] = int(cpus)
    # Ray would run a task that does not fit into a node's memory again without end.
    os.environ.setdefault("RAY_task_oom_retries", str(TASK_RETRIES))
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

    def start(self) -> None:
        """Start Ray, or join the cluster, where that has not been done."""
        if not self._is_started:
            self._stack.enter_context(ray_session(self._address))
            self._is_started = True

    def fan_out(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        num_cpus: float = 1,
        num_gpus: float = 0,
        policy: Policy = PLAIN,
    ) -> Iterator[Done[Item, Result]]:
        """See the function of the same name."""
        self.start()
        return fan_out(function, items, num_cpus, num_gpus, policy)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """An `Each` (see `pipeline.each`). A single item is dealt with here: it would only wait for Ray."""
        waiting = iter(items)
        first = list(itertools.islice(waiting, 2))
        if len(first) < 2 and not self._is_started:
            yield from in_turn(function, first)
            return
        for done in self.fan_out(function, itertools.chain(first, waiting)):
            yield done.item, result_of(done)
