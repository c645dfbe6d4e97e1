"""Ranged reads from object stores: retried at the offset reached, with a second request against a slow first one."""

import random
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from io import UnsupportedOperation
from itertools import accumulate
from math import exp2, inf, log2
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Lock, Thread

from train.data.counters import Counters

_HEDGED_SHARE = 0.05
"""Of the reads, the slowest, that get a second request (Dean and Barroso, The Tail at Scale, 2013)."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

RangeRequest = Callable[[int, int], bytes]
"""(offset, size) -> the range's bytes, maybe fewer.

Raises FileNotFoundError if there is no file, UnsupportedOperation if the server has no ranges, else anything.
"""
_Answer = bytes | Exception
_Task = tuple[Callable[[], bytes], Callable[[_Answer], None]]


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
            except (FileNotFoundError, UnsupportedOperation):
                raise
            except OSError:
                if failures == self._retries:
                    raise
                longest_s = min(_FIRST_PAUSE_S * 2**failures, _LONGEST_PAUSE_S)
                time.sleep(random.uniform(0, longest_s))  # at random: the ranks shall not come back together
                self._counters.add(retries=1)
        if not part:
            raise OSError(f"the file ends at byte {offset}")
        return part

    def _attempt(self, request: Callable[[], bytes]) -> bytes:
        """The first answer to a request, which is sent a second time when that takes long."""
        began = time.monotonic()
        race = _Race(request, self._workers, self._counters)
        race.send()
        answer = race.wait(min(self._latencies.usual_s, self._timeout_s))
        is_hedged = answer is None and time.monotonic() - began < self._timeout_s and self._may_hedge()
        if is_hedged:
            self._counters.add(hedges=1)
            race.send()
        if answer is None:
            answer = race.wait(began + self._timeout_s - time.monotonic())
        race.leave(self._hedges.release if is_hedged and self._hedges else None)
        if isinstance(answer, bytes):
            self._latencies.add(time.monotonic() - began)
            return answer
        error = answer or TimeoutError(f"no answer in {self._timeout_s:g} s")
        raise error if isinstance(error, OSError) else OSError(f"{type(error).__name__}: {error}") from error

    def _may_hedge(self) -> bool:
        return self._hedges is not None and self._hedges.acquire(blocking=False)


class _Race:
    """Identical requests, of which the first good answer counts; the bytes of later ones are wasted."""

    def __init__(self, request: Callable[[], bytes], workers: "_Workers", counters: Counters) -> None:
        self._request = request
        self._workers = workers
        self._counters = counters
        self._answers: SimpleQueue[_Answer] = SimpleQueue()
        self._num_awaited = 0

    def send(self) -> None:
        """Send the request, once more if it was sent before."""
        self._counters.add(requests=1)
        self._num_awaited += 1
        self._workers.run(self._request, self._answers.put)

    def wait(self, timeout_s: float) -> "_Answer | None":
        """The first good answer, or the last error if there is none; None when the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                answer = self._answers.get(timeout=max(deadline - time.monotonic(), 0))
            except Empty:
                return None
            self._num_awaited -= 1
            if isinstance(answer, bytes):
                self._counters.add(bytes_fetched=len(answer))
                return answer
            if not self._num_awaited:
                return answer

    def leave(self, when_all_ended: Callable[[], None] | None) -> None:
        """Have the answers that are still to come counted as wasted."""
        if self._num_awaited:
            self._workers.run(self._waste, lambda _: when_all_ended() if when_all_ended else None)
        elif when_all_ended:
            when_all_ended()

    def _waste(self) -> bytes:
        for _ in range(self._num_awaited):
            answer = self._answers.get()
            if isinstance(answer, bytes):
                self._counters.add(bytes_fetched=len(answer), bytes_wasted=len(answer))
        return b""


class _Workers:
    """Threads that run calls. One more starts when all are busy: a call that hangs holds up no other, nor the exit.

    Each has a queue of its own, and the one that was busy last is taken first: of Python's ways to hand something to
    another thread the cheapest, where all of them cost as much as a small request itself.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[_Task]] = []

    def run(self, call: Callable[[], bytes], then: Callable[["_Answer"], None]) -> None:
        """Give `then` what a call returns or raises, in another thread."""
        try:
            tasks = self._idle.pop()
        except IndexError:
            tasks = SimpleQueue()
            Thread(target=self._work, args=(tasks,), name="range-request", daemon=True).start()
        tasks.put((call, then))

    def _work(self, tasks: "SimpleQueue[_Task]") -> None:
        while True:
            call, then = tasks.get()
            answer: _Answer
            try:
                answer = call()
            except Exception as error:  # noqa: BLE001 each file system has its own errors; they are raised to the reader
                answer = error
            self._idle.append(tasks)  # before the answer: who waits for it may ask again at once
            then(answer)


class _Latencies:
    """How long the latest reads took: a histogram with four bins per octave that forgets by halves."""

    _SHORTEST_S, _NUM_BINS = 1e-4, 80  # to 100 s
    _FEWEST, _MOST = 32, 1024

    def __init__(self) -> None:
        self._counts = [0] * self._NUM_BINS
        self._num_known = 0
        self._lock = Lock()
        self.usual_s = inf
        """In which all but the slowest were done; infinite while few are known."""

    def add(self, seconds: float) -> None:
        at = int(4 * log2(max(seconds / self._SHORTEST_S, 1)))
        with self._lock:
            self._counts[min(at, self._NUM_BINS - 1)] += 1
            self._num_known += 1
            if self._num_known % self._FEWEST == 0:
                self._renew()

    def _renew(self) -> None:
        totals = list(accumulate(self._counts))
        at = bisect_left(totals, totals[-1] * (1 - _HEDGED_SHARE))
        self.usual_s = self._SHORTEST_S * exp2((at + 1) / 4)
        if totals[-1] >= self._MOST:
            self._counts = [count // 2 for count in self._counts]
