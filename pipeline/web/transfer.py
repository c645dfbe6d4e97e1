"""One download's clock and its share of memory."""

import asyncio
import time
from dataclasses import dataclass

LEAST_HELD_BYTES = 1 << 16
"""What a body counts at least, so that many small ones are bounded too."""


@dataclass
class Memory:
    """Bytes of bodies that are being downloaded, or wait to be delivered."""

    held_bytes: int = 0


class Transfer:
    """Watches one attempt. `check` is called every now and then for all that run: one timer for all is enough."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._deadline_at = 0.0
        self._marked_at = 0.0
        self._marked_bytes = 0
        self._num_bytes = 0
        self._held_bytes = 0
        self.timeout = asyncio.timeout(None)
        self.verdict = ""
        """Why it was stopped."""
        self.answered = False
        """Whether the host has said anything."""

    def start(self, timeout_s: float) -> None:
        """The clock starts."""
        self._deadline_at = time.monotonic() + timeout_s

    def expect(self, num_bytes: int) -> None:
        """The body begins, so many bytes long as far as is known."""
        self._marked_at = time.monotonic()
        self._hold(max(num_bytes, LEAST_HELD_BYTES))

    def add(self, num_bytes: int) -> int:
        """So many more bytes have come; returns how many there are now."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._held_bytes:
            self._hold(self._num_bytes)
        return self._num_bytes

    def close(self) -> None:
        """The body is gone."""
        self._hold(0)

    def check(self, now: float, min_bytes_per_s: float, slow_for_s: float) -> None:
        """Stop the attempt if it is late or slow."""
        if self.verdict:
            return
        if now >= self._deadline_at:
            self._stop("timeout")
        elif self._marked_at and now - self._marked_at >= slow_for_s:
            if self._num_bytes - self._marked_bytes < min_bytes_per_s * (now - self._marked_at):
                self._stop("too_slow")
            self._marked_at, self._marked_bytes = now, self._num_bytes

    def _stop(self, verdict: str) -> None:
        self.verdict = verdict
        self.timeout.reschedule(asyncio.get_running_loop().time())

    def _hold(self, num_bytes: int) -> None:
        self._memory.held_bytes += num_bytes - self._held_bytes
        self._held_bytes = num_bytes
