"""Plain functions fanned out over a Ray cluster that changes while they run.

The work in flight follows what the cluster has at the moment. A task that takes far too long may be run once more
elsewhere, and a request to stop lets the tasks that run finish. Ray is imported inside the functions: it reads its
authentication settings while it is imported.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar, cast

from pipeline.errors import EXIT_ENVIRONMENT, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

TASK_RETRIES = 3
"""How often Ray runs a task again whose worker process or machine died."""
TASKS_PER_SLOT = 2
"""In flight, so that no slot waits for the driver and an autoscaler sees a demand for twice what there is."""
LOOK_EVERY_S = 5.0
"""Between two looks at the cluster's nodes."""
POLL_S = 1.0
STOP_GRACE_S = 100.0
"""For the tasks that run when a stop is asked for: less than the two minutes that schedulers give."""
NUM_REMEMBERED = 200
"""Finished tasks that the median is taken of."""


@dataclass(frozen=True)
class Done(Generic[Item, Result]):
    """A finished task: its result, or the error it ended with."""

    item: Item
    result: Result | None = None
    error: Exception | None = None
    node: str = ""
    """The address of the machine that ran it; empty where it never began."""


@dataclass(frozen=True)
class Stragglers:
    """When a task is run a second time: never while others wait for their first."""

    factor: float = 3.0
    """It has run for so many times the median of the finished ones,"""
    floor_s: float = 120.0
    """and for so long."""


@dataclass(frozen=True)
class Policy:
    """What a fan-out does beside running each task until it ends."""

    stragglers: Stragglers | None = None
    """Only for functions that may run twice at the same time, and on any machine."""
    should_stop: Callable[[], bool] = lambda: False
    """Once it says so, no task begins, and those that run get `STOP_GRACE_S` to finish."""
    note: Callable[[str], None] = lambda _: None
    """Told in words what the cluster does."""


PLAIN = Policy()


def fan_out(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_cpus: float = 1,
    num_gpus: float = 0,
    policy: Policy = PLAIN,
) -> Iterator[Done[Item, Result]]:
    """Run `function` on each item as a Ray task; yield the results as they come, exactly one for each item.

    The driver holds neither all items nor all results. A task that needs a GPU keeps its process, and with it the
    model that it has loaded. What a lost machine ran is run again, and nothing else.

    Raises:
        UserError: The cluster has no GPU, and the tasks need one.
    """
    yield from _FanOut(function, items, _Cluster(num_cpus, num_gpus, policy.note), policy).results()


class _Cluster:
    """What the cluster has for tasks of some needs."""

    def __init__(self, num_cpus: float, num_gpus: float, note: Callable[[str], None]) -> None:
        self.num_cpus, self.num_gpus = num_cpus, num_gpus
        self._note = note
        self._slots: dict[str, int] = {}
        self._addresses: dict[str, str] = {}
        self._looked_s = 0.0
        self._look()
        if num_gpus and not self._slots:
            raise UserError(
                f"a task needs {num_gpus:g} GPU, and no machine of the cluster has that",
                next_step="name a cluster with GPUs: --set run.ray_address=ADDRESS",
                exit_code=EXIT_ENVIRONMENT,
            )

    @property
    def slots(self) -> int:
        """Tasks that fit at a time. One at least, so that an autoscaler which begins with nothing sees a demand."""
        return max(1, sum(self._slots.values()))

    @property
    def has_others(self) -> bool:
        """Whether there are two machines that can run a task."""
        return len(self._slots) > 1

    def address(self, node: str) -> str:
        """Of a node that is or was there."""
        return self._addresses.get(node, node)

    def watch(self) -> None:
        """Look who is there, every few seconds."""
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        before = self._slots
        self._look()
        joined, left = self._slots.keys() - before.keys(), before.keys() - self._slots.keys()
        if joined or left:
            lost = f", {len(left)} left ({', '.join(sorted(map(self.address, left)))})" if left else ""
            self._note(
                f"nodes: {len(joined)} joined{lost}; now {len(self._slots)} nodes with room for {self.slots:,} tasks"
            )

    def _look(self) -> None:
        import ray

        self._looked_s = time.monotonic()
        alive = [node for node in ray.nodes() if node["Alive"]]
        self._addresses |= {node["NodeID"]: node["NodeManagerAddress"] for node in alive}
        found = {node["NodeID"]: self._fit(node["Resources"]) for node in alive}
        self._slots = {node: slots for node, slots in found.items() if slots}

    def _fit(self, resources: dict[str, float]) -> int:
        slots = resources.get("CPU", 0) / max(self.num_cpus, 0.01)
        if self.num_gpus:
            slots = min(slots, resources.get("GPU", 0) / self.num_gpus)
        return int(slots + 1e-6)


@dataclass(frozen=True)
class _Started:
    """What a task says first. Without it the driver could not tell one that runs from one that waits for a slot."""

    node: str


@dataclass
class _Task(Generic[Item]):
    item: Item
    attempts: list[Any] = field(default_factory=list)
    """Those in flight."""
    node: str = ""
    """Where the first attempt began."""
    started_s: float = 0.0
    is_repeated: bool = False


class _FanOut(Generic[Item, Result]):
    """The tasks in flight of one call of `fan_out`."""

    def __init__(
        self, function: Callable[[Item], Result], items: Iterable[Item], cluster: _Cluster, policy: Policy
    ) -> None:
        import ray

        def run(item: Item) -> Iterator[Any]:  # Ray wants a plain function, and `function` may be a partial
            yield _Started(ray.get_runtime_context().get_node_id())
            yield function(item)

        needs = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus}
        self._remote = ray.remote(**needs, max_retries=TASK_RETRIES, max_calls=0, num_returns="streaming")(run)
        self._waiting = iter(items)
        self._cluster, self._policy = cluster, policy
        self._attempts: dict[Any, _Task[Item]] = {}
        self._durations_s: deque[float] = deque(maxlen=NUM_REMEMBERED)
        self._stop_at_s: float | None = None

    def results(self) -> Iterator[Done[Item, Result]]:
        while self._goes_on():
            for attempt in self._ready():
                if done := self._hear(attempt):
                    yield done

    def _goes_on(self) -> bool:
        self._cluster.watch()
        if self._stop_at_s is None and self._policy.should_stop():
            self._withdraw()
        if self._stop_at_s is not None:
            return bool(self._attempts) and time.monotonic() < self._stop_at_s
        while len(self._attempts) < TASKS_PER_SLOT * self._cluster.slots:
            try:
                self._begin(_Task(next(self._waiting)))
            except StopIteration:
                break
        if self._policy.stragglers:
            self._repeat_stragglers(self._policy.stragglers)
        return bool(self._attempts)

    def _begin(self, task: _Task[Item], **options: Any) -> None:
        attempt = self._remote.options(**options).remote(task.item)
        task.attempts.append(attempt)
        self._attempts[attempt] = task

    def _ready(self) -> list[Any]:
        """The attempts that have something to say, after a wait for the first of them."""
        import ray

        attempts = list(self._attempts)
        if not ray.wait(attempts, num_returns=1, timeout=POLL_S)[0]:
            return []
        return list(ray.wait(attempts, num_returns=len(attempts), timeout=0)[0])

    def _hear(self, attempt: Any) -> Done[Item, Result] | None:
        import ray

        if attempt not in self._attempts:  # the other attempt of its task has just finished
            return None
        task = self._attempts[attempt]
        try:
            said = ray.get(next(attempt))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            return self._end(attempt, task, error=cause if isinstance(cause, Exception) else error)
        except ray.exceptions.RayError as error:
            return self._end(attempt, task, error=error)
        if not isinstance(said, _Started):
            return self._end(attempt, task, result=said)
        if not task.node:
            task.node, task.started_s = said.node, time.monotonic()
        return None

    def _end(
        self, attempt: Any, task: _Task[Item], result: Result | None = None, error: Exception | None = None
    ) -> Done[Item, Result] | None:
        """The task is done, unless this attempt failed and the other may still succeed."""
        del self._attempts[attempt]
        task.attempts.remove(attempt)
        if error and task.attempts:
            return None
        self._cancel(task)
        if not error:
            self._durations_s.append(time.monotonic() - task.started_s)
        return Done(task.item, result, error, self._cluster.address(task.node))

    def _cancel(self, task: _Task[Item]) -> None:
        import ray

        for attempt in task.attempts:
            ray.cancel(attempt, force=True)  # a hung process hears nothing else
            del self._attempts[attempt]
        task.attempts.clear()

    def _repeat_stragglers(self, stragglers: Stragglers) -> None:
        """Into slots that are free: there are none while items wait, for then more tasks are in flight than slots."""
        free = self._cluster.slots - len(self._attempts)
        if free <= 0 or not self._durations_s:
            return
        now, usual_s = time.monotonic(), median(self._durations_s)
        limit_s = max(stragglers.factor * usual_s, stragglers.floor_s)
        late = [one for one in self._attempts.values() if one.node and now - one.started_s > limit_s]
        for task in [one for one in late if not one.is_repeated][:free]:
            task.is_repeated = True
            place = {"label_selector": {"ray.io/node-id": f"!{task.node}"}} if self._cluster.has_others else {}
            self._begin(task, **place)
            where, run_s = self._cluster.address(task.node), now - task.started_s
            self._policy.note(f"a task has run for {run_s:,.0f} s on {where}, usual are {usual_s:,.0f} s: once more")

    def _withdraw(self) -> None:
        """Take back what has not begun."""
        self._stop_at_s = time.monotonic() + STOP_GRACE_S
        for task in [one for one in self._attempts.values() if not one.node]:
            self._cancel(task)
        self._policy.note(
            f"asked to stop: nothing new begins, {len(self._attempts):,} tasks that run get {STOP_GRACE_S:.0f} s;"
            " asked again, all ends at once"
        )


def result_of(done: Done[Item, Result]) -> Result:
    """The result of a task.

    Raises:
        Exception: What the task ended with.
    """
    if done.error:
        raise done.error
    return cast(Result, done.result)
