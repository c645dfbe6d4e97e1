"""This node's own trouble: everything waits until it is over, and no URL is blamed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from pipeline.web.failures import NodeUnavailable

_log = logging.getLogger(__name__)

FIRST_DELAY_S, MAX_DELAY_S = 0.25, 5.0


class Health:
    """Whether new requests may start.

    `report` closes the gate. Whoever comes to the gate then asks the canary, with growing delay, until it answers. The
    trouble counts as over only when a request has got an answer too: until then its clock and the delay go on.
    """

    def __init__(self, limit_s: float, is_alive: Callable[[], Awaitable[bool]], pauses: list[str]) -> None:
        self._pauses = pauses
        self._limit_s = limit_s
        self._is_alive = is_alive
        self._gate = asyncio.Lock()
        self._began_at = 0.0
        self._delay_s = FIRST_DELAY_S
        self.trouble = ""
        """What is the matter; empty while requests may start."""
        self.last_worked_at = 0.0
        """When a host last gave an answer."""

    def report(self, trouble: str) -> None:
        """Stop new requests."""
        self._began_at = self._began_at or time.monotonic()
        if not self.trouble:
            _log.warning("downloads pause: %s", trouble)
        self.trouble = trouble

    def worked(self) -> None:
        """A host answered, so the node is in order."""
        self.last_worked_at = time.monotonic()
        if not self.trouble:
            self._began_at, self._delay_s = 0.0, FIRST_DELAY_S

    async def wait(self) -> None:
        """Until requests may start.

        Raises:
            NodeUnavailable: the trouble has lasted longer than the limit.
        """
        if not self.trouble:
            return
        async with self._gate:
            while self.trouble:
                paused_s = time.monotonic() - self._began_at
                if paused_s > self._limit_s:
                    raise NodeUnavailable(f"{self.trouble}, for {paused_s:.0f} s")
                await asyncio.sleep(self._delay_s)
                self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
                if await self._is_alive():
                    pause = f"{self.trouble}, for {time.monotonic() - self._began_at:.1f} s"
                    self._pauses.append(pause)
                    _log.warning("downloads go on: %s", pause)
                    self.trouble = ""
