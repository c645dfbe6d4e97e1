"""Which row is asked next: rows wait in line at their host, and a line that must wait holds nobody else up."""

import asyncio
import heapq
import itertools
import time
from collections import deque
from dataclasses import dataclass, field

from yarl import URL

from pipeline.web.hosts import Host, Hosts
from pipeline.web.urls import host_key

ROWS_PER_CONNECTION = 4
"""A handshake costs several requests on an open connection, ours and the host's."""


@dataclass(eq=False)
class Job:
    """One row on its way."""

    position: int
    url: URL
    num_redirects: int = 0
    num_failures: int = 0
    """Attempts that ended in a passing failure."""
    num_local: int = 0
    """Attempts that ended in this node's own failure."""
    local_since: float = 0.0
    spent_s: float = 0.0
    """Time of this attempt that earlier redirects have used up."""
    last_reason: str = ""


@dataclass(eq=False)
class Line:
    """The rows that wait for one host."""

    hostname: str
    host: Host
    is_open: bool
    jobs: deque[Job] = field(default_factory=deque)
    num_running: int = 0
    is_ready: bool = False
    wakes_at: float = 0.0


class Schedule:
    """The lines of all hosts of one unit."""

    def __init__(self, hosts: Hosts, per_host: int) -> None:
        self._hosts = hosts
        self._per_host = per_host
        self._lines: dict[str, Line] = {}
        self._ready: deque[Line] = deque()
        self._later: list[tuple[float, int, Line, Job | None]] = []
        self._counter = itertools.count()
        self._news = asyncio.Event()

    def add(self, job: Job, *, is_open: bool = True, delay_s: float = 0.0) -> None:
        """Put a row in its host's line, perhaps later. A closed line waits for `open`."""
        name = host_key(job.url)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(job.url.raw_host or "", self._hosts.get(name), is_open)
        if delay_s:
            self._wake(line, time.monotonic() + delay_s, job)
        else:
            line.jobs.append(job)
            self._look_at(line)

    def open(self, name: str) -> None:
        """The host's name is resolved, or known not to be."""
        self._lines[name].is_open = True
        self._look_at(self._lines[name])

    def release(self, name: str) -> None:
        """A request of the host has ended."""
        self._lines[name].num_running -= 1
        self._look_at(self._lines[name])

    def has_more(self, name: str) -> bool:
        """Whether more rows wait for the host, so that its connection is worth keeping."""
        return bool(self._lines[name].jobs)

    def host(self, name: str) -> Host:
        """The host's memory."""
        return self._lines[name].host

    def hostnames(self) -> list[tuple[str, str]]:
        """The lines' names and hosts, longest line first."""
        lines = sorted(self._lines.items(), key=lambda item: -len(item[1].jobs))
        return [(name, line.hostname) for name, line in lines]

    def drain(self) -> list[Job]:
        """Take out all rows that wait."""
        jobs = [job for _, _, _, job in self._later if job is not None]
        self._later.clear()
        for line in self._lines.values():
            jobs += line.jobs
            line.jobs.clear()
        return jobs

    async def next(self) -> Job:
        """The next row to ask, as soon as there is one. `release` its host when the request has ended."""
        while True:
            now = time.monotonic()
            self._take_due(now)
            while self._ready:
                line = self._ready.popleft()
                line.is_ready = False
                if not self._may_start(line, now):
                    continue
                job = line.jobs.popleft()
                line.num_running += 1
                line.host.start(now)
                self._look_at(line)
                return job
            self._news.clear()
            delay_s = max(0.0, self._later[0][0] - now) if self._later else None
            try:
                async with asyncio.timeout(delay_s):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _may_start(self, line: Line, now: float) -> bool:
        """Whether the line can give a row now; if only time is missing, the line is looked at again then."""
        if not line.jobs or not line.is_open or line.num_running >= self._most(line):
            return False
        ready_at = line.host.ready_at()
        if ready_at > now and not line.host.is_down(now):  # the rows of a host that is down are told so at once
            if line.wakes_at <= now or ready_at < line.wakes_at:
                line.wakes_at = ready_at
                self._wake(line, ready_at, None)
            return False
        return True

    def _most(self, line: Line) -> int:
        """How many of the line's requests may run: no more connections than it has rows to make them worth while."""
        num_rows = len(line.jobs) + line.num_running
        return min(line.host.most(self._per_host), -(-num_rows // ROWS_PER_CONNECTION))

    def _look_at(self, line: Line) -> None:
        """Line up the line itself, at the front: the host at hand first, while its connections are warm."""
        if not line.is_ready and self._may_start(line, time.monotonic()):
            line.is_ready = True
            self._ready.appendleft(line)
            self._news.set()

    def _wake(self, line: Line, when: float, job: Job | None) -> None:
        heapq.heappush(self._later, (when, next(self._counter), line, job))
        self._news.set()

    def _take_due(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, _, line, job = heapq.heappop(self._later)
            if job is not None:
                line.jobs.append(job)
            self._look_at(line)
