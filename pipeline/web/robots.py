"""robots.txt by RFC 9309: asked for once per origin, remembered for a day."""

import asyncio
import math
from dataclasses import dataclass

from protego import Protego
from yarl import URL

from pipeline.outcomes import FAILED, find_reason
from pipeline.web.client import REDIRECTS, Client
from pipeline.web.consent import product_token
from pipeline.web.failures import Failed
from pipeline.web.hosts import Host
from pipeline.web.memory import Remembered
from pipeline.web.spec import FetchSpec
from pipeline.web.urls import parse_url

MAX_BYTES = 500 << 10
MAX_REDIRECTS = 5
TTL_S = 24 * 3600.0
UNREACHABLE_TTL_S = 1.0
MAX_REMEMBERED = 20_000


@dataclass(frozen=True)
class Rules:
    """An origin's rules; none is everything allowed. With a reason, it could not be asked just now."""

    parsed: Protego | None = None
    reason: str = ""


class Robots:
    """Asks the origins of one unit; each once, however many rows wait for it."""

    def __init__(self, spec: FetchSpec, client: Client, cache: Remembered[Rules]) -> None:
        self._timeout_s = spec.timeout_s
        self._agent = product_token(spec.user_agent)
        self._client = client
        self._cache = cache
        self._asking: dict[str, asyncio.Task[Rules]] = {}

    async def check(self, url: URL, host: Host) -> None:
        """Return if the URL may be asked; its origin's Crawl-delay becomes the host's pace.

        Raises:
            Failed: `robots_txt`; or, while the file cannot be had, why (a 5xx or no connection: not allowed for now).
            LocalFailure: this node could not ask.
        """
        origin = str(url.origin())
        rules = self._cache.get(origin)
        if rules is None:
            task = self._asking.get(origin)
            if task is None:
                task = self._asking[origin] = asyncio.create_task(self._ask(origin, host))
                task.add_done_callback(lambda task: self._forget(origin, task))
            rules = await asyncio.shield(task)
        if rules.reason:
            raise Failed(rules.reason, retry_after_s=UNREACHABLE_TTL_S)
        if rules.parsed is not None and not rules.parsed.can_fetch(str(url), self._agent):
            raise Failed("robots_txt")

    async def close(self) -> None:
        """Stop asking."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    def _forget(self, origin: str, task: asyncio.Task[Rules]) -> None:
        del self._asking[origin]
        if not task.cancelled():
            task.exception()  # taken note of, in case that nobody waits any more

    async def _ask(self, origin: str, host: Host) -> Rules:
        try:
            async with asyncio.timeout(self._timeout_s):
                text = await self._download(URL(origin).with_path("/robots.txt"))
        except TimeoutError:
            return self._cache.put(origin, Rules(reason="timeout"), UNREACHABLE_TTL_S)
        except Failed as failure:
            return self._cache.put(origin, Rules(reason=failure.reason), UNREACHABLE_TTL_S)
        parsed = Protego.parse(text) if text.strip() else None
        delay_s = parsed.crawl_delay(self._agent) if parsed else None
        if delay_s and math.isfinite(delay_s):
            host.limit_rate(delay_s)
        return self._cache.put(origin, Rules(parsed), TTL_S)

    async def _download(self, url: URL) -> str:
        """The file's text; empty where there is none, which allows everything."""
        for num_redirects in range(MAX_REDIRECTS + 1):
            try:
                status, text, location = await self._client.get_text(url, MAX_BYTES)
                if status in REDIRECTS:
                    url = parse_url(str(url.join(URL(location))))
                    continue
            except Failed as failure:
                if num_redirects and not _may_pass(failure.reason):
                    return ""
                raise
            except ValueError:  # the redirect's target is no URL
                return ""
            if status == 429 or status >= 500:
                raise Failed(f"http_{status}")
            return text
        return ""


def _may_pass(reason: str) -> bool:
    entry = find_reason(reason)
    return entry.status == FAILED and not entry.is_answer
