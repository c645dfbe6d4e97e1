"""Reading ranges: the right bytes or an error, from disks and from servers that fail, cut short and hang."""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from range_server import RangeServer, serve_ranges

import train.data.reading
from pipeline.store import Store
from train.data.cache import BLOCK_BYTES
from train.data.counters import Counters
from train.data.reading import ReadingSpec, ShardReader
from train.data.remote import RemoteReader

BODY = random.Random(0).randbytes(2 * BLOCK_BYTES + 12_345)
SHARD = "shards/x/shard-000000.tar"
Served = tuple[RangeServer, Store]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """The same file in a folder and in an object store."""
    found = [Store(str(tmp_path_factory.mktemp("store"))), Store("memory://reading")]
    for store in found:
        store.write(SHARD, BODY)
    return found


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[ShardReader]:
    """Without a cache and with one."""
    cache = tmp_path_factory.mktemp("cache")
    return [ShardReader(ReadingSpec()), ShardReader(ReadingSpec(cache_dir=cache))]


@pytest.fixture
def served() -> Iterator[Served]:
    with serve_ranges({f"/{SHARD}": BODY}) as (server, url):
        yield server, Store(url)


def eventually(is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so within a minute: for what happens behind a read."""
    deadline = time.monotonic() + 60
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_so()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(BODY) - 1), st.one_of(st.integers(1, 20_000), st.integers(1, len(BODY))))
def test_a_range_is_the_files_bytes(stores: list[Store], readers: list[ShardReader], offset: int, size: int) -> None:
    size = min(size, len(BODY) - offset)
    for store in stores:
        for reader in readers:
            assert reader.read(store, SHARD, offset, size) == BODY[offset : offset + size]


def test_many_threads_with_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.data.reading, "MAX_OPEN_FILES", 3)
    store = Store(str(tmp_path))
    for number in range(20):
        store.write(f"{number}.tar", BODY[number * 1000 : (number + 1) * 1000])
    reader = ShardReader(ReadingSpec())

    def read_all(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(2000):
            number, offset = draw.randrange(20), draw.randrange(900)
            begin = number * 1000 + offset
            assert reader.read(store, f"{number}.tar", offset, 100) == BODY[begin : begin + 100]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_all, range(8)))
    assert num_open_under(tmp_path) == 3
    reader.close()
    assert num_open_under(tmp_path) == 0
    counters = reader.counters()
    assert counters["bytes_asked"] == counters["bytes_delivered"] == counters["bytes_fetched"] == 8 * 2000 * 100
    assert counters["requests"] == 8 * 2000


def num_open_under(folder: Path) -> int:
    """Descriptors of this process on files of a folder."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))


def test_a_missing_shard_is_not_tried_again(stores: list[Store], served: Served, tmp_path: Path) -> None:
    local, *remote = [*stores, served[1]]
    for spec in ReadingSpec(), ReadingSpec(cache_dir=tmp_path):
        reader = ShardReader(spec)
        for store in local, *remote:
            with pytest.raises(FileNotFoundError):
                reader.read(store, "shards/x/none.tar", 0, 10)
        assert (reader.counters()["requests"], reader.counters()["retries"]) == (len(remote), 0)


def test_a_truncated_shard_is_named(stores: list[Store], readers: list[ShardReader]) -> None:
    for store in stores:
        for reader in readers:
            with pytest.raises(OSError, match=f"ends at byte {len(BODY)}") as raised:
                reader.read(store, SHARD, len(BODY) - 10, 11)
            for part in (store.root, SHARD, f"byte {len(BODY) - 10} of"):
                assert part in str(raised.value)


@pytest.mark.parametrize("fault", ["busy", "reset", "cut", "short"])
def test_a_failed_request_is_sent_again(served: Served, fault: str) -> None:
    server, store = served
    server.plan.extend([fault] * 2)
    reader = ShardReader(ReadingSpec())
    assert reader.read(store, SHARD, 1000, 500) == BODY[1000:1500]
    counters = reader.counters()
    assert (counters["requests"], counters["retries"]) == (3, 2)
    assert counters["bytes_fetched"] == counters["bytes_delivered"] == 500
    assert set(server.ranges) == {"bytes=1000-1499"}


def test_a_short_answer_is_continued() -> None:
    counters = Counters("bytes_fetched", "bytes_wasted", "requests", "retries", "hedges")
    asked = []

    def request(offset: int, size: int) -> bytes:
        asked.append((offset, size))
        if len(asked) == 2:
            raise ConnectionResetError
        return BODY[offset : offset + size // 2] if len(asked) < 4 else BODY[offset : offset + size]

    assert RemoteReader(5, 30, 0, counters).read(request, 1000, 400, 400) == BODY[1000:1400]
    assert asked == [(1000, 400), (1200, 200), (1200, 200), (1300, 100)]
    assert counters.read() == {"bytes_fetched": 400, "bytes_wasted": 0, "requests": 4, "retries": 1, "hedges": 0}


def test_what_was_read_before_the_last_failure_is_wasted() -> None:
    counters = Counters("bytes_fetched", "bytes_wasted", "requests", "retries", "hedges")
    answers = iter([BODY[:200]])

    def request(offset: int, size: int) -> bytes:
        for answer in answers:
            return answer
        raise OSError("busy")

    with pytest.raises(OSError, match="busy"):
        RemoteReader(2, 30, 0, counters).read(request, 0, 400, 400)
    assert counters.read() == {"bytes_fetched": 200, "bytes_wasted": 200, "requests": 4, "retries": 2, "hedges": 0}


def test_the_last_failure_names_the_place(served: Served) -> None:
    server, store = served
    server.plan.extend(["short", "busy", "busy"])
    reader = ShardReader(ReadingSpec(retries=2))
    with pytest.raises(OSError, match="503") as raised:
        reader.read(store, SHARD, 1000, 400)
    for part in (store.root, SHARD, "400 bytes at byte 1000"):
        assert part in str(raised.value)
    counters = reader.counters()
    assert (counters["requests"], counters["retries"]) == (3, 2)
    assert counters["bytes_delivered"] == 0


def test_a_server_without_ranges_is_an_error_and_not_other_bytes(served: Served) -> None:
    server, store = served
    server.plan.append("whole")
    with pytest.raises(OSError, match="Range request not supported"):
        ShardReader(ReadingSpec()).read(store, SHARD, 1000, 400)
    assert len(server.ranges) == 1  # it would not be otherwise the second time


def test_names_are_what_the_server_calls_them(served: Served) -> None:
    server, store = served
    server.files["/a%20b/50%25.tar"] = BODY
    reader = ShardReader(ReadingSpec())
    for name in ("a b/50%.tar", "a%20b/50%25.tar"):
        assert reader.read(store, name, 1000, 400) == BODY[1000:1400]
    server.files["/signed.tar?key=ab"] = BODY
    assert reader.read(store, "signed.tar?key=ab", 1000, 400) == BODY[1000:1400]


def test_a_request_that_hangs_is_given_up(served: Served) -> None:
    server, store = served
    server.plan.append("stuck")
    reader = ShardReader(ReadingSpec(timeout_s=0.5))
    assert reader.read(store, SHARD, 1000, 400) == BODY[1000:1400]
    counters = reader.counters()
    assert counters["requests"] == 1 + counters["retries"] >= 2
    assert counters["hedges"] == 0  # nothing is known yet of how long reads take
    server.release.set()
    assert eventually(lambda: reader.counters()["bytes_fetched"] == 400 * counters["requests"])
    assert reader.counters()["bytes_wasted"] == 400 * counters["retries"]


def test_the_second_request_answers_for_a_slow_first(served: Served) -> None:
    server, store = served
    reader = warmed_up(store, max_hedges=4)
    before = reader.counters()
    server.plan.append("stuck")
    assert reader.read(store, SHARD, 5000, 400) == BODY[5000:5400]
    assert server.ranges[-2:] == ["bytes=5000-5399"] * 2
    server.release.set()
    assert eventually(lambda: reader.counters()["bytes_wasted"] == before["bytes_wasted"] + 400)
    counters = reader.counters()
    assert counters["hedges"] == before["hedges"] + 1
    assert counters["retries"] == 0
    assert counters["bytes_fetched"] == counters["bytes_delivered"] + counters["bytes_wasted"]


def test_hedges_under_way_are_bounded(served: Served) -> None:
    server, store = served
    reader = warmed_up(store, max_hedges=1)
    before = reader.counters()["hedges"]
    server.plan.extend(["stuck"] * 4)
    with ThreadPoolExecutor(3) as pool:
        reads = [pool.submit(reader.read, store, SHARD, 5000 + number, 400) for number in range(3)]
        assert eventually(lambda: not server.plan)
        assert reader.counters()["hedges"] == before + 1
        server.release.set()
        assert [read.result() for read in reads] == [BODY[5000 + n : 5400 + n] for n in range(3)]


def warmed_up(store: Store, max_hedges: int) -> ShardReader:
    """A reader that knows how long reads take."""
    reader = ShardReader(ReadingSpec(max_hedges=max_hedges))
    for number in range(40):
        reader.read(store, SHARD, number * 100, 100)
    assert eventually(lambda: reader.counters()["bytes_fetched"] == 4000 + 100 * reader.counters()["hedges"])
    return reader


def test_the_cache_answers_for_the_server(served: Served, tmp_path: Path) -> None:
    server, store = served
    spec = ReadingSpec(cache_dir=tmp_path)
    border = BLOCK_BYTES - 100
    assert ShardReader(spec).read(store, SHARD, border, 200) == BODY[border : border + 200]
    assert len(server.ranges) == 2
    server.files.clear()
    reader = ShardReader(spec)
    assert reader.read(store, SHARD, 7, 2 * BLOCK_BYTES - 7) == BODY[7 : 2 * BLOCK_BYTES]
    counters = reader.counters()
    assert (counters["cache_hits"], counters["cache_misses"], counters["requests"]) == (2, 0, 0)


def test_a_cached_block_of_another_version_is_not_read(tmp_path: Path) -> None:
    store = Store("memory://versions")
    reader = ShardReader(ReadingSpec(cache_dir=tmp_path))
    store.write(SHARD, b"old")
    assert reader.read(store, SHARD, 0, 3, "checksum 1") == b"old"
    store.write(SHARD, b"new")
    assert reader.read(store, SHARD, 0, 3, "checksum 1") == b"old"
    assert reader.read(store, SHARD, 0, 3, "checksum 2") == b"new"
