"""Names to addresses with c-ares, in this process: no daemon, no root, one cache for all units."""

import asyncio
import random
import socket
import time
from dataclasses import dataclass
from typing import Any

import aiodns
import pycares

from pipeline.web.addresses import has_route
from pipeline.web.failures import Failed, LocalFailure
from pipeline.web.memory import Remembered
from pipeline.web.spec import FetchSpec

MAX_CACHED = 200_000
_TTL_S = (60.0, 3_600.0)
_ABSENT_TTL_S = 600.0
_FAILURE_TTL_S = 2.0
_TIMEOUT_S, _TRIES = 2.0, 2
_CANARY_TTL_S = 1.0

_ABSENT = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA})
_INVALID = frozenset({aiodns.error.ARES_EBADNAME, aiodns.error.ARES_EBADQUERY})
_SERVER_SAYS_NO = frozenset(
    {aiodns.error.ARES_EFORMERR, aiodns.error.ARES_ESERVFAIL, aiodns.error.ARES_ENOTIMP, aiodns.error.ARES_EREFUSED}
)


@dataclass(frozen=True)
class Known:
    """What is known of a host: its addresses, or the reason why it has none."""

    addresses: tuple[str, ...] = ()
    reason: str = ""


class Resolver:
    """Asks the resolvers, on the running event loop; each host once, however many wait for it."""

    def __init__(self, spec: FetchSpec, cache: Remembered[Known]) -> None:
        self._servers = list(spec.resolvers) or None
        self._cache = cache
        self._channel = self._open_channel()
        self._asking: dict[str, asyncio.Task[Known]] = {}
        self._has_ipv6 = has_route(socket.AF_INET6)
        self._canary = asyncio.Lock()
        self._canary_at, self._canary_sings = -_CANARY_TTL_S, False

    async def addresses(self, host: str) -> tuple[str, ...]:
        """The host's addresses; IPv6 only where it has no other and this machine has a route.

        Raises:
            Failed: `dns_nx`, `dns_fail`, `dns_timeout`, `url_invalid`, or `connect` for IPv6 without a route.
            LocalFailure: no resolver answers anything.
        """
        answer = self._cache.get(host)
        if answer is None:
            task = self._asking.get(host)
            if task is None:
                task = self._asking[host] = asyncio.create_task(self._ask(host))
                task.add_done_callback(lambda task: self._forget(host, task))
            answer = await asyncio.shield(task)
        if answer.reason:
            raise Failed(answer.reason)
        return answer.addresses

    async def is_alive(self) -> bool:
        """Whether any resolver answers a question about the root; asked at most once a second."""
        async with self._canary:
            if time.monotonic() - self._canary_at >= _CANARY_TTL_S:
                self._canary_sings = await self._ask_canary()
                self._canary_at = time.monotonic()
            return self._canary_sings

    async def close(self) -> None:
        """Stop asking."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._channel.close()

    def _open_channel(self) -> aiodns.DNSResolver:
        # No search domains: `img` is not `img.my-company.example`. The hosts file counts, as for everybody else.
        return aiodns.DNSResolver(
            self._servers, timeout=_TIMEOUT_S, tries=_TRIES, flags=pycares.ARES_FLAG_NOSEARCH, lookups="fb"
        )

    def _forget(self, host: str, task: asyncio.Task[Known]) -> None:
        del self._asking[host]
        if not task.cancelled():
            task.exception()  # taken note of, in case that nobody waits any more

    async def _ask(self, host: str) -> Known:
        try:
            nodes = await self._query(host)
        except aiodns.error.DNSError as error:
            reason, ttl_s = await self._judge(int(error.args[0]))
            return self._cache.put(host, Known(reason=reason), ttl_s)
        addresses = [node.addr[0].decode() for node in nodes]
        if ":" in addresses[0] and not self._has_ipv6:
            return self._cache.put(host, Known(reason="connect"), _TTL_S[0])
        random.shuffle(addresses)
        ttl_s = min(node.ttl for node in nodes)
        return self._cache.put(host, Known(tuple(addresses)), min(max(ttl_s, _TTL_S[0]), _TTL_S[1]))

    async def _query(self, host: str) -> list[Any]:
        """IPv4 first, so that the usual host costs one question."""
        try:
            result = await self._channel.getaddrinfo(host, family=socket.AF_INET)
        except aiodns.error.DNSError as error:
            if error.args[0] != aiodns.error.ARES_ENODATA:
                raise
            result = await self._channel.getaddrinfo(host, family=socket.AF_INET6)
        return list(result.nodes)

    async def _judge(self, code: int) -> tuple[str, float]:
        """The reason and its time to live, for what c-ares reports."""
        if code in _ABSENT:
            return "dns_nx", _ABSENT_TTL_S
        if code in _INVALID:
            return "url_invalid", _ABSENT_TTL_S
        reason = "dns_timeout" if code == aiodns.error.ARES_ETIMEOUT else "dns_fail"
        if not await self.is_alive():
            raise LocalFailure("no DNS resolver answers", reason)
        return reason, _FAILURE_TTL_S

    async def _ask_canary(self) -> bool:
        # A channel of its own, because the usual one would answer from its cache.
        try:
            channel = self._open_channel()
        except pycares.AresError:  # no descriptors left
            return False
        try:
            await channel.query_dns(".", "NS")
        except aiodns.error.DNSError as error:
            # A stub that has lost its network says SERVFAIL or REFUSED to everything: it is not an answer.
            return error.args[0] in _ABSENT
        finally:
            await channel.close()
        return True
