"""What a process remembers between units: of bounded size, oldest out first, and each entry for its time."""

import math
import time
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Remembered(Generic[Entry]):
    """Entries by name."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: dict[str, tuple[Entry, float]] = {}

    def get(self, name: str) -> Entry | None:
        """The entry, if it still counts."""
        entry, expires_at = self._entries.get(name, (None, 0.0))
        return entry if time.monotonic() < expires_at else None

    def put(self, name: str, entry: Entry, ttl_s: float = math.inf) -> Entry:
        """Remember an entry for so many seconds; returns it."""
        self._entries.pop(name, None)
        if len(self._entries) >= self._max_entries:
            del self._entries[next(iter(self._entries))]
        self._entries[name] = (entry, time.monotonic() + ttl_s)
        return entry
