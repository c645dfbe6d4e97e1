"""How many downloads run at a time: fewer under stress, slowly more when all is well."""

from collections import deque

LEAST = 8
MAX_LAG_S = 0.25
MAX_TIMEOUT_SHARE = 0.3
NUM_LATEST = 50


class Throttle:
    """Additive increase, multiplicative decrease. Stress is a late event loop, or many time-outs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._least = min(LEAST, most)
        self._limit = float(most)
        self._latest: deque[bool] = deque(maxlen=NUM_LATEST)

    @property
    def limit(self) -> int:
        """Most downloads that may run now."""
        return int(self._limit)

    def record(self, timed_out: bool) -> None:
        """A download has ended."""
        self._latest.append(timed_out)
        if len(self._latest) == NUM_LATEST and sum(self._latest) > MAX_TIMEOUT_SHARE * NUM_LATEST:
            self._latest.clear()
            self._lower(0.7)

    def tick(self, lag_s: float) -> None:
        """Called at a steady pace with the delay of the event loop, in seconds."""
        if lag_s > MAX_LAG_S:
            self._lower(0.7)
        else:
            self._limit = min(self._limit + max(1.0, self._most / 64), self._most)

    def halve(self) -> None:
        """There are no descriptors left for so many."""
        self._lower(0.5)

    def _lower(self, factor: float) -> None:
        self._limit = max(self._limit * factor, self._least)
