"""The numbers of a running command for Ray's metrics agent, which shows them to Prometheus beside Ray's own.

Ray puts `ray_` before the names and adds labels of the process (NodeAddress, SessionName, WorkerId, ...).
"""

import sys
from functools import cache
from typing import Any

from jobs.cluster.run_numbers import METRICS, Numbers, is_counter, split_key


class RayMetrics:
    """Publishes numbers that are given again and again. Does nothing where this process has no Ray."""

    def __init__(self, run: str, earlier: Numbers) -> None:
        """
        Args:
            run: Name of the run, a label of all metrics.
            earlier: What was counted before this command. Ray adds up what the commands on a cluster count, so each
                may count only its own.
        """
        self._run = run
        self._counted = dict(earlier)

    def publish(self, numbers: Numbers) -> None:
        """Set the levels, and add to the counters what they have gained since the last call."""
        if not _is_connected():
            return
        for key, value in numbers.items():
            name, labels = split_key(key)
            tags = {"run": self._run, **labels}
            if not is_counter(key):
                _metric(name, tuple(tags)).set(value, tags=tags)
            elif gained := self._gained(key, value):
                _metric(name, tuple(tags)).inc(gained, tags=tags)

    def _gained(self, key: str, value: float) -> float:
        """A count that has fallen began anew, as Prometheus takes it."""
        before = self._counted.get(key, 0.0)
        self._counted[key] = value
        return value - before if value >= before else value


def _is_connected() -> bool:
    if "ray" not in sys.modules:  # which reads its settings when it is imported: not here
        return False
    import ray

    return bool(ray.is_initialized())


@cache
def _metric(name: str, labels: tuple[str, ...]) -> Any:
    """A metric, made once in a process: what a second one of its name counts is counted twice."""
    from ray.util.metrics import Counter, Gauge

    return (Counter if is_counter(name) else Gauge)(name, METRICS[name], tag_keys=labels)
