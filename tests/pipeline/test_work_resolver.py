"""The resolver dies in the middle of a unit: the unit waits, no row is blamed, and the report says what it was."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.funnel import read_funnel
from pipeline.inputs.plan import extend_plan
from pipeline.recipe import FetchSpec, IngestSpec
from pipeline.store import Store
from pipeline.work import run_unit
from tests.pipeline.web.nameserver import Nameserver, start_nameserver

NUM_HOSTS = 120
NUM_ASKED_BEFORE_DEATH = 40
DEAD_S = 2.5


def kill_and_revive(names: Nameserver) -> None:
    while sum(names.asked.values()) < NUM_ASKED_BEFORE_DEATH:
        time.sleep(0.001)
    names.stop()
    time.sleep(DEAD_S)
    names.start()


def test_a_dead_resolver_costs_time_and_no_row(
    server_url: str, ingest_spec: Callable[..., IngestSpec], tmp_path: Path
) -> None:
    port = server_url.rsplit(":", 1)[1]
    hosts = [f"host{number}.example" for number in range(NUM_HOSTS)]
    urls = [f"http://{host}:{port}/img/{number:05d}.webp" for number, host in enumerate(hosts)]
    pq.write_table(pa.table({"url": urls, "caption": ["c"] * NUM_HOSTS}), tmp_path / "urls.parquet")
    spec = ingest_spec(tmp_path / "urls.parquet", 1000)
    with start_nameserver() as names:
        names.zone |= {host: ["127.0.0.1"] for host in hosts}
        fetch = FetchSpec(**spec.fetch.model_dump() | {"resolvers": (names.address,), "retries": 0, "timeout_s": 30})
        spec = spec.model_copy(update={"fetch": fetch})
        store = Store(str(tmp_path / "store"))
        (unit,) = extend_plan(store, spec.source, spec.unit_samples).iter_units()
        killer = threading.Thread(target=kill_and_revive, args=(names,))
        killer.start()
        report = run_unit(unit, spec, store)
        killer.join()
    assert report.committed
    assert any("no DNS resolver answers" in pause for pause in report.pauses)
    assert read_funnel(store).failed == {}
    assert report.num_success == NUM_HOSTS
