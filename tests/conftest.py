"""What the tests of several packages share: the shipped corpus, an image server, URL tables and ingestion recipes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from pipeline.recipe import AcceptUnitSpec, FetchSpec, IngestSpec, SourceSpec

# Shared cores: an example that is slow once says nothing.
settings.register_profile("genlip", deadline=None)
settings.load_profile("genlip")


@pytest.fixture(scope="session")
def fixture_corpus() -> Path:
    """The corpus folder that ships with genlip: 237 small WebP images with captions."""
    return FIXTURES


@pytest.fixture(scope="session")
def server_url(fixture_corpus: Path) -> Iterator[str]:
    """Base URL of a server of the fixture corpus, with the faults of the web."""
    with start_server(fixture_corpus) as base_url:
        yield base_url


@pytest.fixture(scope="session")
def url_table(fixture_corpus: Path) -> Callable[[str, Path], Path]:
    """Writes the fixture corpus's URL table, bad rows included: `url_table(base_url, folder)` returns its path."""

    def write(base_url: str, folder: Path) -> Path:
        return write_url_table(read_corpus(fixture_corpus), base_url, folder / "urls.parquet", seed=0).path

    return write


@pytest.fixture(scope="session")
def ingest_spec() -> Callable[..., IngestSpec]:
    """An `ingest` section for a URL table, impatient enough for tests: `ingest_spec(path, unit_samples=100)`."""

    def make(urls: Path, unit_samples: int = 100, fetched_at_least: float = 0.5) -> IngestSpec:
        return IngestSpec(
            source=SourceSpec(urls=str(urls)),
            unit_samples=unit_samples,
            fetch=FetchSpec(
                timeout_s=2.0, retries=1, in_flight=32, per_host=32, spill=0, allow_addresses=("127.0.0.0/8",)
            ),
            accept_unit_if=AcceptUnitSpec(fetched_at_least=fetched_at_least),
        )

    return make
