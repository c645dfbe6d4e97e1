"""A store in an S3 bucket is written, listed and read as a folder is, and what the server does amiss loses nothing."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from jobs.runs import read_run
from pipeline.errors import UserError
from pipeline.ledger import committed_units
from pipeline.store import Store, check_store
from tests.s3_server import S3Server, s3_root, serve_s3
from tests.stores import Stored, make_store
from train.data.loader import Loader
from train.data.reading import ReadingSpec, ShardReader
from train.setup import set_up

BODY = random.Random(0).randbytes(12_345_678)
SHARD = "shards/x/shard-000000.tar"
Bucket = tuple[S3Server, Store]


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """A server with one shard."""
    with serve_s3() as (server, url):
        store = Store(f"{url}/pre/fix")
        server.files[f"/{server.bucket}/pre/fix/{SHARD}"] = BODY
        yield server, store


def test_committed_units_are_found_and_removed(tmp_path: Path) -> None:
    with s3_root() as root:
        units = [[Stored(f"{number:020x}")] for number in range(5)]
        store, local = make_store(units, root), make_store(units, str(tmp_path))
        assert store.names("ledger", ".parquet") == local.names("ledger", ".parquet")
        assert store.names("", "") == local.names("", "") == ["ledger", "raw", "store.json"]
        assert list(committed_units(store)) == list(committed_units(local))
        for name in local.names("raw", ""):
            assert store.read(f"raw/{name}") == local.read(f"raw/{name}")
        store.remove("raw")
        assert store.names("raw", "") == []
        assert len(store.names("ledger", "")) == 5


def test_a_large_file_is_uploaded_in_parts() -> None:
    with s3_root() as root:
        store = Store(root)
        store.write("raw/a.tar", BODY)
        assert store.read("raw/a.tar") == BODY
        assert store.read_range("raw/a.tar", 12_000_000, 400_000) == BODY[12_000_000:]


def test_many_threads_read_ranges_from_a_server_in_trouble(bucket: Bucket) -> None:
    server, store = bucket
    server.plan.extend(random.Random(1).choices(["", "busy", "reset", "cut", "short"], [8, 1, 1, 1, 1], k=200))
    reader = ShardReader(ReadingSpec(retries=20))

    def read_all(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(40):
            size = draw.randrange(1, 20_000)
            offset = draw.randrange(len(BODY) - size)
            assert reader.read(store, SHARD, offset, size) == BODY[offset : offset + size]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_all, range(8)))
    counters = reader.counters()
    assert counters["retries"] > 10
    assert counters["requests"] == 8 * 40 + counters["retries"] + counters["hedges"]
    assert counters["bytes_asked"] == counters["bytes_delivered"]
    assert counters["bytes_fetched"] == counters["bytes_delivered"] + counters["bytes_wasted"]


def test_a_missing_object_is_not_asked_for_again(bucket: Bucket) -> None:
    _, store = bucket
    reader = ShardReader(ReadingSpec())
    with pytest.raises(FileNotFoundError):
        reader.read(store, "shards/x/none.tar", 0, 10)
    assert (reader.counters()["requests"], reader.counters()["retries"]) == (1, 0)
    with pytest.raises(FileNotFoundError):
        store.read("none")
    with pytest.raises(FileNotFoundError, match="none"):
        store.read_ranges("none", [(0, 1)])


def test_the_rest_waits_for_a_server_in_trouble_too(bucket: Bucket) -> None:
    server, store = bucket
    for name in "abcdefg":
        server.plan_others.extend(["busy", "reset"])
        store.write(f"raw/{name}.tar", BODY[:1000])
    server.plan_others.extend(["busy", "reset"])
    assert store.names("raw", ".tar") == [f"{name}.tar" for name in "abcdefg"]  # of several pages
    server.plan_others.extend(["busy", "reset"])
    assert store.read("raw/a.tar") == BODY[:1000]
    server.plan.extend(["busy", "reset", "cut"])
    assert store.read_range("raw/a.tar", 10, 20) == BODY[10:30]
    server.plan_others.extend(["busy", "reset"])
    store.remove("raw")
    assert store.names("raw", "") == []
    assert not server.plan
    assert not server.plan_others


def test_an_absent_bucket_is_a_users_error(bucket: Bucket) -> None:
    with pytest.raises(UserError, match="There is no such bucket") as raised:
        check_store("s3://elsewhere/store", {})
    assert "elsewhere/store" in str(raised.value)
    assert "credentials" in str(raised.value)


def test_a_run_reads_its_shards_from_a_bucket(make_run: Callable[..., Path]) -> None:
    local = make_run("name=local")
    folder = Path(read_run(local).store)
    with serve_s3() as (server, url):
        store = Store(f"{url}/store")
        for file in folder.rglob("*"):
            if file.is_file():
                store.write(str(file.relative_to(folder)), file.read_bytes())
        remote = make_run("name=remote", f"store={store.root}", "train.threads=4")
        # Four in a row at most: a request gives up after twelve more, and many are under way at once.
        server.plan.extend(random.Random(1).choices(["", "", "busy", "reset", "cut"], k=40))
        assert keys_of_a_pass(remote) == keys_of_a_pass(local)
        assert not server.plan


def keys_of_a_pass(run_dir: Path) -> list[list[str]]:
    setup = set_up(run_dir)
    num_steps = len(setup.stream.segment(0).rows) // setup.stream.lanes
    with closing(iter(loader := Loader(setup, run_dir))) as steps:
        keys = [batch.keys for batch in islice(steps, num_steps)]
    with closing(iter(loader)) as steps:  # again, from where it stands
        assert next(iter(next(steps).micro_batches)).num_samples
    assert loader.num_bad_samples == 0
    return keys
