"""Ranged reads from object stores: retried at the offset reached, with a second request against a slow first one."""

import random
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from math import exp2, inf, log2
from queue import SimpleQueue
from threading import BoundedSemaphore, Condition, Lock, Semaphore, Thread

from train.counters import Counters

_HEDGED_SHARE = 0.05
"""Of the reads, the slowest, that get a second request (Dean and Barroso, The Tail at Scale, 2013)."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

RangeRequest = Callable[[int, int], bytes]
"""(offset, size) -> the range's bytes, maybe fewer. Raises FileNotFoundError if there is no file, else anything."""


class RemoteReader:
    """Reads ranges by requests that may fail, be cut short, or take long."""

    def __init__(self, retries: int, timeout_s: float, max_hedges: int, counters: Counters) -> None:
        """Args:
        retries: Further requests after failed ones.
        timeout_s: Longest wait for an answer.
        max_hedges: Second requests under way at a time.
        counters: Of bytes_fetched, bytes_wasted, requests, retries and hedges.
        """
        self._retries = retries
        self._timeout_s = timeout_s
        self._hedges = BoundedSemaphore(max_hedges) if max_hedges else None
        self._counters = counters
        self._latencies = _Latencies()
        self._workers = _Workers()

    def read(self, request: RangeRequest, offset: int, size: int, needed: int) -> bytes:
        """A range; where the file ends before, at least the `needed` first bytes of it.

        Raises:
            FileNotFoundError: There is no such file; not tried again.
            OSError: The last attempt's, or the file ends before the needed bytes.
        """
        body = b""
        try:
            while len(body) < needed:
                body += self._read_part(request, offset + len(body), size - len(body))
        except OSError:
            self._counters.add(bytes_wasted=len(body))
            raise
        return body

    def _read_part(self, request: RangeRequest, offset: int, size: int) -> bytes:
        """The beginning of a range, as far as the answer goes."""
        for failures in range(self._retries + 1):
            try:
                part = self._attempt(partial(request, offset, size))
                break
            except FileNotFoundError:
                raise
            except OSError:
                if failures == self._retries:
                    raise
                longest_s = min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S)
                time.sleep(random.uniform(0, longest_s))  # at random: the ranks shall not come back together
                self._counters.add(retries=1)
        if not part:
            raise OSError(f"the file ends at byte {offset}")
        if len(part) > size:
            # Whoever ignores the range sends the whole file. That is longer than any range but one from the beginning.
            self._counters.add(bytes_wasted=len(part))
            raise OSError(f"the server does not serve ranges: it sent {len(part)} bytes for {size}")
        return part

    def _attempt(self, request: Callable[[], bytes]) -> bytes:
        """The first answer to a request, which is sent a second time when that takes long."""
        began = time.monotonic()
        race = _Race(request, self._workers, self._counters)
        race.start()
        usual_s = self._latencies.usual_s()
        is_slow = usual_s < self._timeout_s and not race.wait(usual_s)
        if is_slow and self._hedges and self._hedges.acquire(blocking=False):
            self._counters.add(hedges=1)
            race.start(when_all_ended=self._hedges.release)
        race.wait(began + self._timeout_s - time.monotonic())
        body = race.result(TimeoutError(f"no answer in {self._timeout_s:g} s"))
        self._latencies.add(time.monotonic() - began)
        return body


class _Race:
    """Identical requests, of which the first good answer counts; the bytes of later ones are wasted."""

    def __init__(self, request: Callable[[], bytes], workers: "_Workers", counters: Counters) -> None:
        self._request = request
        self._workers = workers
        self._counters = counters
        self._changed = Condition()
        self._num_running = 0
        self._body: bytes | None = None
        self._error: Exception | None = None
        self._is_over = False
        self._when_all_ended: Callable[[], None] | None = None

    def start(self, when_all_ended: Callable[[], None] | None = None) -> None:
        """Send the request once more."""
        with self._changed:
            self._num_running += 1
            self._when_all_ended = when_all_ended
        self._counters.add(requests=1)
        self._workers.run(self._run)

    def wait(self, timeout_s: float) -> bool:
        """Until there is a good answer or nothing to wait for. Returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._body is not None or not self._num_running, timeout_s)

    def result(self, too_late: Exception) -> bytes:
        """The answer, or its error; `too_late` if there is neither. What comes later is wasted."""
        with self._changed:
            self._is_over = True
            if self._body is not None:
                return self._body
            error = self._error or too_late
        if isinstance(error, OSError):
            raise error
        raise OSError(f"{type(error).__name__}: {error}") from error

    def _run(self) -> None:
        body, error = b"", None
        try:
            body = self._request()
        except Exception as caught:  # noqa: BLE001 each file system has its own errors; `result` raises them
            error = caught
        with self._changed:
            self._num_running -= 1
            is_late = self._is_over or self._body is not None
            if error is not None:
                self._error = error
            elif not is_late:
                self._body = body
            last_act = self._when_all_ended if not self._num_running else None
            self._counters.add(bytes_fetched=len(body), bytes_wasted=len(body) if is_late else 0)
            self._changed.notify()
        if last_act is not None:
            last_act()


class _Workers:
    """Threads that run calls. One more starts when all are busy: a call that hangs holds up no other, nor the exit."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._idle = Semaphore(0)

    def run(self, call: Callable[[], None]) -> None:
        self._calls.put(call)
        if not self._idle.acquire(blocking=False):
            Thread(target=self._work, name="range-request", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._calls.get()()
            self._idle.release()


class _Latencies:
    """How long the latest reads took: a histogram with four bins per octave that forgets by halves."""

    _SHORTEST_S, _NUM_BINS = 1e-4, 80  # to 100 s
    _FEWEST, _MOST = 32, 1024

    def __init__(self) -> None:
        self._counts = [0] * self._NUM_BINS
        self._lock = Lock()

    def add(self, seconds: float) -> None:
        at = int(4 * log2(max(seconds / self._SHORTEST_S, 1)))
        with self._lock:
            self._counts[min(at, self._NUM_BINS - 1)] += 1
            if sum(self._counts) >= self._MOST:
                self._counts = [count // 2 for count in self._counts]

    def usual_s(self) -> float:
        """In which all but the slowest were done; infinite while few are known."""
        with self._lock:
            totals = list(accumulate(self._counts))
        if totals[-1] < self._FEWEST:
            return inf
        at = bisect_left(totals, totals[-1] * (1 - _HEDGED_SHARE))
        return self._SHORTEST_S * exp2((at + 1) / 4)
