"""Fetching a list of URLs, in a test's process or in a child."""

import asyncio
from collections.abc import Sequence

from pipeline.web.fetcher import Fetched, Node, fetch_all
from pipeline.web.spec import FetchSpec


def fetch_list(urls: Sequence[str], spec: FetchSpec, node: Node) -> list[Fetched]:
    """All URLs' ends in order; each must be delivered once."""
    ends: dict[int, Fetched] = {}

    async def deliver(position: int, fetched: Fetched) -> None:
        assert position not in ends
        ends[position] = fetched

    asyncio.run(fetch_all(urls, spec, node, deliver))
    return [ends[position] for position in range(len(urls))]
