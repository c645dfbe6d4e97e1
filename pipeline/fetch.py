"""URL to bytes, or the reason why not. One aiohttp session per unit; retries by class of error."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from pipeline.recipe import FetchSpec

RETRY_STATUS = frozenset({429, 500, 502, 503, 504})
BACKOFF_S = 0.2


def is_answer(reason: str) -> bool:
    """Whether a failure is the URL's own, rather than of the way there: a 404 is an answer, a time-out is not."""
    return not reason.startswith(("timeout", "dns", "connection_", "truncated", "http_429", "http_5"))


@dataclass(frozen=True)
class Fetched:
    """The body of an answer, or the reason why there is none."""

    body: bytes = b""
    error: str = ""
    opted_out: bool = False
    """The owner answered and said no: a rejection, not a failure."""


class _TryAgain(Exception):
    """The attempt failed in a way that another one may cure; the message is the reason."""


@asynccontextmanager
async def open_session(spec: FetchSpec) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with the recipe's limits; connections are kept and reused inside it."""
    connector = aiohttp.TCPConnector(limit=spec.in_flight, ttl_dns_cache=300)
    timeout = aiohttp.ClientTimeout(total=spec.timeout_s)
    headers = {"User-Agent": spec.user_agent}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        yield session


async def fetch(session: aiohttp.ClientSession, url: str, spec: FetchSpec) -> Fetched:
    """Download one URL, trying again where that can help. Never raises for the URL's own faults."""
    if not url.startswith(("http://", "https://")):
        return Fetched(error="url_not_http")
    for attempt in range(spec.retries + 1):
        try:
            return await _attempt(session, url, spec)
        except _TryAgain as failure:
            reason = str(failure)
        if attempt < spec.retries:
            await asyncio.sleep(BACKOFF_S * 2**attempt * random.uniform(0.5, 1.5))
    return Fetched(error=reason)


async def _attempt(session: aiohttp.ClientSession, url: str, spec: FetchSpec) -> Fetched:
    try:
        async with session.get(url) as response:
            if response.status in RETRY_STATUS:
                raise _TryAgain(f"http_{response.status}")
            if response.status != 200:
                return Fetched(error=f"http_{response.status}")
            refused = _opt_out(response.headers.getall("X-Robots-Tag", []), spec.obey)
            if refused:
                return Fetched(error=f"opt_out_{refused}", opted_out=True)
            return await _read_body(response, spec.max_bytes)
    except TimeoutError:
        # No second try: a slow server would cost the unit a second deadline.
        return Fetched(error="timeout")
    except aiohttp.ClientConnectorDNSError:
        raise _TryAgain("dns") from None
    except aiohttp.ClientConnectorError:
        raise _TryAgain("connection_refused") from None
    except aiohttp.ClientPayloadError:
        raise _TryAgain("truncated") from None
    except (aiohttp.InvalidURL, UnicodeError):  # UnicodeError: a host such as `a..b` that DNS cannot spell
        return Fetched(error="url_invalid")
    except (aiohttp.ClientError, OSError) as error:
        raise _TryAgain(f"connection_{type(error).__name__}") from None


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int) -> Fetched:
    parts: list[bytes] = []
    num_bytes = 0
    async for part in response.content.iter_chunked(1 << 16):
        num_bytes += len(part)
        if num_bytes > max_bytes:
            return Fetched(error="body_too_large")
        parts.append(part)
    return Fetched(body=b"".join(parts)) if num_bytes else Fetched(error="body_empty")


def _opt_out(headers: list[str], obeyed: tuple[str, ...]) -> str:
    """The first obeyed directive in the X-Robots-Tag headers, or the empty string.

    A header may hold several directives, and an agent's name before a colon: `otherbot: noai, noimageai`. A
    directive addressed to one agent is obeyed too: it says what the owner wants.
    """
    for header in headers:
        for directive in header.replace(":", ",").split(","):
            if directive.strip().lower() in obeyed:
                return directive.strip().lower()
    return ""
