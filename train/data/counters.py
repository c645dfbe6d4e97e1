"""Named totals that many threads add to."""

from threading import Lock


class Counters:
    """Totals by name; each starts at 0."""

    def __init__(self, *names: str) -> None:
        self._totals = dict.fromkeys(names, 0)
        self._lock = Lock()

    def add(self, **amounts: int) -> None:
        """Add to some of the totals, all at the same moment."""
        with self._lock:
            for name, amount in amounts.items():
                self._totals[name] += amount

    def read(self) -> dict[str, int]:
        """The totals as they stand."""
        with self._lock:
            return dict(self._totals)
