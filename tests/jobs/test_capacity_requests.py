"""The numbers of requests that the plan counts on are those that the stages send to an S3 server."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.annotate.builtin  # noqa: F401 the annotators
from jobs.capacity import requests
from jobs.demo.server import start_server
from pipeline.annotate.unit import annotate_unit
from pipeline.curate.rows import open_rows
from pipeline.curate.select import select
from pipeline.curate.spec import CurateSpec
from pipeline.each import in_turn
from pipeline.inputs.plan import extend_plan
from pipeline.ledger import committed_units
from pipeline.recipe import IngestSpec, ShardSpec, SourceSpec
from pipeline.sharding.dataset import materialise
from pipeline.store import Store, open_store
from pipeline.work import run_unit
from tests.s3_server import S3Server, serve_s3

ANNOTATORS = [{"caption_stats": {}}, {"image_stats": {}}, {"image_hashes": {}}]
UNIT_SAMPLES = 60
FIXED = 60
"""Requests of any materialisation, however small."""


class Counting:
    """What a server is asked for while something is done."""

    def __init__(self, server: S3Server) -> None:
        self._server = server

    def requests(self, do: Callable[[], object]) -> Counter[str]:
        """By method; listings, which name no object, are counted as LIST."""
        before = len(self._server.requests)
        do()
        made = [request.split(" ", 1) for request in self._server.requests[before:]]
        bucket = f"/{self._server.bucket}"
        return Counter("LIST" if path == bucket and method == "GET" else method for method, path in made)


@pytest.mark.parametrize("num_bytes", [1_000, 5 << 20, (5 << 20) + 1, 23_000_000])
def test_a_file_goes_up_by_as_many_requests_as_the_plan_says(num_bytes: int) -> None:
    with serve_s3() as (server, url):
        store = Store(f"{url}/store")
        made = Counting(server).requests(lambda: store.write("raw/a.tar", bytes(num_bytes)))
    assert made["PUT"] + made["POST"] == requests.put_requests(num_bytes)


def test_the_stages_send_as_many_requests_as_the_plan_counts_on(
    fixture_corpus: Path, url_table: Callable[[str, Path], Path], ingest_spec: Callable[..., IngestSpec], tmp_path: Path
) -> None:
    with serve_s3() as (server, url), start_server(fixture_corpus) as base_url:
        counting = Counting(server)
        server.files[f"/{server.bucket}/in/urls.parquet"] = url_table(base_url, tmp_path).read_bytes()
        spec = ingest_spec(tmp_path, UNIT_SAMPLES)
        spec = spec.model_copy(update={"source": SourceSpec(urls=f"{url}/in/urls.parquet")})
        store = open_store(f"{url}/store", spec.content())
        plan = extend_plan(store, spec.source, spec.unit_samples)
        units = list(plan.iter_units())
        made = counting.requests(lambda: [run_unit(unit, spec, store) for unit in units])
        assert made["PUT"] == len(units) * 2  # small raw files, and ledgers
        assert made["GET"] + made["HEAD"] <= len(units) * requests.GETS_PER_UNIT

        curate = CurateSpec.model_validate({"annotate": ANNOTATORS})
        annotators = curate.build_annotators()
        names = committed_units(store)
        made = counting.requests(lambda: [annotate_unit(name, store, annotators, 0.1) for name in names])
        num_batches = -(-UNIT_SAMPLES // requests.BATCH_SAMPLES)
        per_unit = requests.ANNOTATE_GETS_PER_UNIT + len(annotators) + num_batches
        assert len(names) * per_unit * 0.5 < made["GET"] + made["HEAD"] <= len(names) * per_unit
        assert made["PUT"] + made["LIST"] <= len(names) * 2 * len(annotators)

        rows = open_rows(store, annotators)
        made = counting.requests(lambda: select(rows, curate.select, 0.0, "all", 0, in_turn))
        assert made["GET"] + made["HEAD"] <= len(names) * requests.SELECT_GETS_PER_UNIT

        num_samples = 0

        def make_shards() -> None:
            nonlocal num_samples
            num_samples = materialise(rows, "all", ShardSpec(shard_samples=100), 0, in_turn).num_samples

        made = counting.requests(make_shards)
        # Neighbours of a small store are read together, which those of a large one are not.
        most = num_samples + len(names) * requests.SHARD_GETS_PER_UNIT + FIXED
        assert num_samples * 0.3 < made["GET"] + made["HEAD"] <= most
