"""What the web's tests share: the hostile server, and a way to fetch a list of URLs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pipeline.web.fetcher import Fetched, Node
from pipeline.web.spec import FetchSpec
from tests.pipeline.web.fetching import fetch_list
from tests.pipeline.web.hostile import LIMITS, HostileServer, start_hostile_server

Fetch = Callable[..., list[Fetched]]


@pytest.fixture(scope="session")
def hostile_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileServer]:
    with start_hostile_server(tmp_path_factory.mktemp("hostile")) as server:
        yield server


@pytest.fixture
def hostile(hostile_session: HostileServer) -> HostileServer:
    """The hostile server, with its counters at zero."""
    hostile_session.hits.clear()
    hostile_session.heads.clear()
    hostile_session.starts.clear()
    hostile_session.forbidden_hits = hostile_session.most_parallel = 0
    return hostile_session


@pytest.fixture
def fetch(hostile: HostileServer) -> Fetch:
    """Fetches URLs under the table's limits, changed by keywords: one `Fetched` per URL, in order."""

    def run(urls: Sequence[str], *, node: Node | None = None, **changes: Any) -> list[Fetched]:
        spec = FetchSpec(**{**LIMITS, "ca_file": str(hostile.ca_file), **changes})
        return fetch_list(urls, spec, node or Node(spec))

    return run
