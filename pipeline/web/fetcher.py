"""All URLs of a unit to bytes, each once, or the reason why not."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from yarl import URL

from pipeline.outcomes import FAILED, find_reason
from pipeline.web.addresses import check_identity, is_literal
from pipeline.web.client import Answer, Client, build_tls_context
from pipeline.web.dns import MAX_CACHED, Known, Resolver
from pipeline.web.failures import Failed, LocalFailure, NodeUnavailable
from pipeline.web.health import Health
from pipeline.web.hosts import MAX_RETRY_AFTER_S, Hosts, is_trouble
from pipeline.web.memory import Remembered
from pipeline.web.robots import MAX_REMEMBERED, Robots, Rules
from pipeline.web.schedule import Job, Schedule
from pipeline.web.spec import FetchSpec
from pipeline.web.throttle import Throttle
from pipeline.web.transfer import Memory, Transfer
from pipeline.web.urls import host_key, parse_url, public_text

__all__ = ["Fetched", "Node", "NodeUnavailable", "check_identity", "fetch_all"]

_log = logging.getLogger(__name__)

BUFFER_BYTES = 64 << 20
NUM_PRERESOLVED = 32
TICK_S = 0.25
MAX_LOCAL_FAILURES = 5
_BACKOFF_S = {"dns_fail": 3.0, "dns_timeout": 3.0, "http_429": 2.0}
_OTHER_BACKOFF_S = 0.5
_NO_RETRY = frozenset({"timeout", "too_slow", "tls", "host_down", "spilled"})
"""One deadline is enough, and a certificate does not heal within seconds."""
_TIMEOUTS = frozenset({"timeout", "connect_timeout", "dns_timeout"})


@dataclass(frozen=True)
class Fetched:
    """The body of an answer, or the reason why there is none."""

    body: bytes = b""
    reason: str = ""
    """A word of `pipeline.outcomes`; empty is success."""
    final_url: str = ""
    """After redirects, without user name and password."""


Deliver = Callable[[int, Fetched], Awaitable[None]]


class Node:
    """What one process remembers between units: names, robots.txt files, hosts, its pace, and the TLS context."""

    def __init__(self, spec: FetchSpec) -> None:
        self.dns: Remembered[Known] = Remembered(MAX_CACHED)
        self.robots: Remembered[Rules] = Remembered(MAX_REMEMBERED)
        self.hosts = Hosts(spec.per_host_rate)
        self.throttle = Throttle(spec.in_flight)
        self.tls = build_tls_context(spec.ca_file)
        self.pauses: list[str] = []
        """Troubles of this machine that are over, in words; whoever tells them on empties the list."""


async def fetch_all(urls: Sequence[str], spec: FetchSpec, node: Node, deliver: Deliver) -> None:
    """Download the URLs and deliver each position once, in any order.

    No download starts while `BUFFER_BYTES` of bodies are on their way or undelivered, so a slow `deliver` slows the
    downloads down. URLs' faults are delivered, never raised.

    Raises:
        NodeUnavailable: this node's own trouble has lasted longer than `pause_limit_s`; what was delivered is void.
        UserError: the next address is public, and the user agent names no contact.
    """
    if not urls:
        return
    resolver = Resolver(spec, node.dns)
    try:
        async with Client(spec, node.tls, resolver) as client:
            robots = Robots(spec, client, node.robots)
            try:
                await _Run(len(urls), spec, node, client, robots, resolver, deliver).go(urls)
            except BaseExceptionGroup as group:
                raise _first(group) from None
            finally:
                await robots.close()
    finally:
        await resolver.close()


class _Run:
    """One unit's downloads."""

    def __init__(
        self,
        num_rows: int,
        spec: FetchSpec,
        node: Node,
        client: Client,
        robots: Robots,
        resolver: Resolver,
        deliver: Deliver,
    ) -> None:
        self._spec = spec
        self._client = client
        self._robots = robots
        self._resolver = resolver
        self._deliver = deliver
        self._throttle = node.throttle
        self._schedule = Schedule(node.hosts, spec.per_host)
        self._health = Health(spec.pause_limit_s, resolver.is_alive, node.pauses)
        self._memory = Memory()
        self._transfers: set[Transfer] = set()
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._all_delivered = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._num_undelivered = num_rows
        self._tail = _Tail(num_rows, spec)

    async def go(self, urls: Sequence[str]) -> None:
        """Run to the end."""
        async with self._group:
            for position, url in enumerate(urls):
                try:
                    self._schedule.add(Job(position, parse_url(url)), is_open=False)
                except Failed as failure:
                    await self._finish(position, Fetched(reason=failure.reason))
            lines = iter(self._schedule.hostnames())
            helpers = [self._group.create_task(self._preresolve(lines)) for _ in range(NUM_PRERESOLVED)]
            helpers.append(self._group.create_task(self._watch()))
            helpers.append(self._group.create_task(self._dispatch()))
            await self._all_delivered.wait()
            for helper in helpers:
                helper.cancel()

    async def _preresolve(self, lines: Iterator[tuple[str, str]]) -> None:
        """Resolve hosts ahead of their rows, which wait in line without costing a download's place."""
        for name, hostname in lines:
            await self._health.wait()
            try:
                if not is_literal(hostname):
                    await self._resolver.addresses(hostname)
            except Failed:
                pass  # remembered: the rows will hear of it
            except LocalFailure as failure:
                self._health.report(str(failure))
            self._schedule.open(name)

    async def _dispatch(self) -> None:
        """Start rows, as long as there is room for them."""
        while True:
            while len(self._running) >= self._throttle.limit or self._memory.held_bytes > BUFFER_BYTES:
                self._room.clear()
                await self._room.wait()
            job = await self._schedule.next()
            await self._health.wait()
            self._running[job] = self._group.create_task(self._run(job))

    async def _watch(self) -> None:
        """Keep the clocks of all that runs."""
        spec = self._spec
        while True:
            due_at = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self._throttle.tick(now - due_at)
            self._room.set()
            for transfer in self._transfers:
                transfer.check(now, spec.min_bytes_per_s, spec.slow_for_s)
            if self._health.trouble:
                self._tail.restart(now)
            elif self._tail.is_over(now):
                await self._spill()

    async def _run(self, job: Job) -> None:
        """One attempt at a row, and what follows from it."""
        name = host_key(job.url)
        transfer = Transfer(self._memory)
        try:
            try:
                result = await self._ask(job, name, transfer)
            finally:
                self._running.pop(job, None)
                self._schedule.release(name)
                self._room.set()
            if result is not None:
                await self._finish(job.position, result)
        finally:
            transfer.close()
            self._room.set()

    async def _ask(self, job: Job, name: str, transfer: Transfer) -> Fetched | None:
        """The row's end, or None if it stands in a line again."""
        host = self._schedule.host(name)
        began_at = time.monotonic()
        if host.is_down(began_at):
            return Fetched(reason=job.last_reason or "host_down")
        reason, retry_after_s = "", None
        try:
            answer = await self._attempt(job, name, transfer)
        except LocalFailure as failure:
            return self._again_after_trouble(job, failure)
        except Failed as failure:
            reason, retry_after_s = failure.reason, failure.retry_after_s
            host.slow_down(time.monotonic(), retry_after_s or 0.0)
        self._throttle.record(reason in _TIMEOUTS)
        if is_trouble(reason):
            if not job.num_failures:  # what fails again says nothing new: the last rows of a unit are mostly such
                host.fail(began_at, time.monotonic())
        elif transfer.answered:
            host.succeed()
        if transfer.answered:
            self._health.worked()
        if reason:
            return self._again_or_end(job, reason, retry_after_s)
        job.spent_s += time.monotonic() - began_at
        if answer.location is not None:
            return self._follow(job, answer.location)
        return Fetched(answer.body, final_url=public_text(job.url))

    async def _attempt(self, job: Job, name: str, transfer: Transfer) -> Answer:
        if self._spec.robots:
            await self._robots.check(job.url, self._schedule.host(name))
        transfer.start(self._spec.timeout_s - job.spent_s)
        self._transfers.add(transfer)
        try:
            async with transfer.timeout:
                return await self._client.get_image(job.url, transfer, keep=self._schedule.has_more(name))
        except TimeoutError:
            raise Failed(transfer.verdict) from None
        finally:
            self._transfers.discard(transfer)

    def _again_after_trouble(self, job: Job, failure: LocalFailure) -> Fetched | None:
        """The attempt does not count, unless others work and this row again and again does not."""
        self._health.report(str(failure))
        if failure.out_of_sockets:
            self._throttle.halve()
        else:
            job.local_since = job.local_since or time.monotonic()
            job.num_local += 1
            if job.num_local >= MAX_LOCAL_FAILURES and self._health.last_worked_at > job.local_since:
                return Fetched(reason=failure.reason)
        self._schedule.add(job)
        return None

    def _again_or_end(self, job: Job, reason: str, retry_after_s: float | None) -> Fetched | None:
        """Another attempt later where that can help; if the host has said when, its line knows."""
        entry = find_reason(reason)
        may_pass = entry.status == FAILED and not entry.is_answer and reason not in _NO_RETRY
        is_far_off = retry_after_s is not None and retry_after_s > MAX_RETRY_AFTER_S
        if not may_pass or is_far_off or job.num_failures >= self._spec.retries:
            return Fetched(reason=reason)
        backoff_s = _BACKOFF_S.get(reason, _OTHER_BACKOFF_S) * 2**job.num_failures * random.uniform(0.5, 1.5)
        if retry_after_s is not None:
            backoff_s = 0.0
        job.num_failures += 1
        job.spent_s = 0.0
        job.last_reason = reason
        self._schedule.add(job, delay_s=backoff_s)
        return None

    def _follow(self, job: Job, location: str) -> Fetched | None:
        """Stand in the line of the redirect's target."""
        if job.num_redirects >= self._spec.max_redirects:
            return Fetched(reason="redirect_limit")
        job.num_redirects += 1
        try:
            target = parse_url(str(job.url.join(URL(location)))) if location else None
        except (Failed, ValueError):
            target = None
        if target is None:
            return Fetched(reason="redirect_invalid")
        job.url = target
        self._schedule.add(job)
        return None

    async def _spill(self) -> None:
        """Give up the last rows."""
        jobs = self._schedule.drain() + list(self._running)
        _log.warning("given up as spilled: %d rows", len(jobs))
        for task in self._running.values():
            task.cancel()
        self._running.clear()
        for job in jobs:
            await self._finish(job.position, Fetched(reason="spilled"))

    async def _finish(self, position: int, result: Fetched) -> None:
        self._tail.ended()
        await self._deliver(position, result)
        self._num_undelivered -= 1
        if not self._num_undelivered:
            self._all_delivered.set()


class _Tail:
    """When to give up the last rows: they get one and a half deadlines from when only they are left."""

    def __init__(self, num_rows: int, spec: FetchSpec) -> None:
        self._num_open = num_rows
        self._num_last = math.ceil(spec.spill * num_rows)
        self._patience_s = 1.5 * spec.timeout_s
        self._began_at = time.monotonic()

    def ended(self) -> None:
        """A row has ended."""
        if self._num_open > self._num_last:
            self._began_at = time.monotonic()
        self._num_open -= 1

    def restart(self, now: float) -> None:
        """The node was in trouble: nobody could have ended."""
        self._began_at = now

    def is_over(self, now: float) -> bool:
        """Whether the rows that are left have had their time."""
        return 0 < self._num_open <= self._num_last and now - self._began_at > self._patience_s


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that ended a group."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
