"""The block cache: the right bytes whatever happens to the folder, its limit kept, no file of the user's lost."""

import errno
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from train.data.cache import MARKER, BlockCache
from train.data.counters import Counters

BLOCK = 1000
BODY = random.Random(0).randbytes(20 * BLOCK + 345)


def make_cache(folder: Path, max_bytes: int = 100 * BLOCK) -> BlockCache:
    return BlockCache(folder, max_bytes, make_counters(), block_bytes=BLOCK)


def make_counters() -> Counters:
    return Counters("cache_hits", "cache_misses", "cache_errors")


class Origin:
    """The file that is cached; knows which blocks were fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def __call__(self, offset: int, size: int, needed: int) -> bytes:
        self.fetched.append(offset // BLOCK)
        return BODY[offset : offset + size]


def blocks_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != MARKER)


def read_block(cache: BlockCache, origin: Origin, block: int) -> None:
    begin = block * BLOCK
    assert cache.read("x", begin + 5, 10, origin) == BODY[begin + 5 : begin + 15]


ranges = st.tuples(st.integers(0, len(BODY) - 1), st.integers(1, 3 * BLOCK))


@settings(deadline=None)
@given(st.lists(ranges, max_size=20))
def test_any_ranges_are_the_files_bytes_and_no_block_is_fetched_twice(wanted: list[tuple[int, int]]) -> None:
    origin = Origin()
    with tempfile.TemporaryDirectory() as folder:
        cache = make_cache(Path(folder))
        for offset, size in wanted:
            stop = min(offset + size, len(BODY))
            assert cache.read("x", offset, stop - offset, origin) == BODY[offset:stop]
    assert len(origin.fetched) == len(set(origin.fetched))


damages: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.integers(0, BLOCK + 19).map(lambda at: lambda body: body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]),
    st.integers(0, BLOCK + 19).map(lambda size: lambda body: body[:size]),
    st.binary(min_size=1).map(lambda more: lambda body: body + more),
)


@settings(deadline=None)
@given(damages, st.booleans())
def test_a_damaged_block_is_noticed_and_fetched_again(damage: Callable[[bytes], bytes], same_process: bool) -> None:
    origin = Origin()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = make_cache(folder)
        for _ in range(2):
            read_block(cache, origin, 3)
        (file,) = blocks_in(folder)
        file.write_bytes(damage(file.read_bytes()))
        os.utime(file, (1, 1))
        cache = cache if same_process else make_cache(folder)
        for _ in range(2):
            assert cache.read("x", 3 * BLOCK, BLOCK, origin) == BODY[3 * BLOCK : 4 * BLOCK]
    assert origin.fetched == [3, 3]
    assert cache._counters.read()["cache_errors"] == 1


def test_a_block_that_came_short_is_fetched_when_more_of_it_is_needed(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path), Origin()
    assert cache.read("x", 0, 10, lambda offset, size, needed: BODY[:needed]) == BODY[:10]
    assert cache.read("x", 5, 5, origin) == BODY[5:10]
    assert origin.fetched == []
    assert cache.read("x", 5, 6, origin) == BODY[5:11]
    assert origin.fetched == [0]


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="other files in it") as raised:
        make_cache(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_path_that_cannot_be_a_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot be made"):
        make_cache(tmp_path / "file")


def test_the_blocks_used_last_are_kept(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path / "new" / "cache", 8 * BLOCK), Origin()
    for block in range(6):
        read_block(cache, origin, block)
        age_all(tmp_path / "new" / "cache")
    read_block(cache, origin, 0)
    for block in range(6, 10):
        read_block(cache, origin, block)
    origin.fetched.clear()
    read_block(cache, origin, 0)
    read_block(cache, origin, 9)
    assert origin.fetched == []
    read_block(cache, origin, 1)
    assert origin.fetched == [1]
    assert sum(file.stat().st_size for file in blocks_in(tmp_path / "new" / "cache")) <= 8 * BLOCK


def age_all(folder: Path) -> None:
    """As if a minute had gone by since the last use of each block."""
    for file in blocks_in(folder):
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns - 60 * 10**9, status.st_mtime_ns))


def test_the_time_of_use_is_written_whatever_the_mount_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, origin = make_cache(tmp_path), Origin()
    read_block(cache, origin, 0)
    written = blocks_in(tmp_path)[0].stat().st_mtime_ns
    later = time.time() + 3600
    monkeypatch.setattr("train.data.cache.time", SimpleNamespace(time=lambda: later))
    read_block(cache, origin, 0)
    status = blocks_in(tmp_path)[0].stat()
    assert status.st_atime == pytest.approx(later)
    assert status.st_mtime_ns == written  # else the other processes would take it for a new block, and verify it


def test_files_of_the_user_are_never_deleted(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path, 3 * BLOCK), Origin()
    mine = [tmp_path / "thesis.tex", tmp_path / "0123456789abcdef0123456789abcdef-1.txt"]
    for file in mine:
        file.write_bytes(bytes(10 * BLOCK))
        os.utime(file, (1, 1))
    for block in range(20):
        read_block(cache, origin, block)
    assert all(file.stat().st_size == 10 * BLOCK for file in mine)
    assert len(blocks_in(tmp_path)) <= len(mine) + 3


def test_without_its_marker_a_folder_is_no_longer_touched(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path, 3 * BLOCK), Origin()
    read_block(cache, origin, 0)
    (tmp_path / MARKER).unlink()
    before = blocks_in(tmp_path)
    before[0].write_bytes(b"damaged")
    for block in range(6):
        read_block(cache, origin, block)
    assert blocks_in(tmp_path) == before
    assert before[0].read_bytes() == b"damaged"


def test_what_a_killed_process_left_is_deleted_in_its_turn(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path, 4 * BLOCK), Origin()
    left = tmp_path / f"{'a' * 32}-7.{'b' * 32}.tmp"
    left.write_bytes(bytes(BLOCK))
    os.utime(left, (1, 1))
    for block in range(4):
        read_block(cache, origin, block)
    assert not left.exists()


def test_a_folder_that_is_gone_costs_the_cache_and_not_the_read(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path / "cache"), Origin()
    (tmp_path / "cache" / MARKER).unlink()
    (tmp_path / "cache").rmdir()
    read_block(cache, origin, 0)
    read_block(cache, origin, 0)
    assert origin.fetched == [0, 0]
    assert cache._counters.read()["cache_errors"] == 2


def test_a_full_disk_makes_the_cache_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, origin = make_cache(tmp_path), Origin()
    for block in range(10):
        read_block(cache, origin, block)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(Path, "rename", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        read_block(cache, origin, 10)
    assert len(blocks_in(tmp_path)) == 8
    read_block(cache, origin, 10)
    read_block(cache, origin, 10)
    assert origin.fetched == [*range(11), 10]


def test_threads_that_need_one_block_wait_for_one_fetch(tmp_path: Path) -> None:
    cache, origin = make_cache(tmp_path), Origin()
    together = Barrier(8)

    def read(_: int) -> None:
        together.wait()
        for block in range(20):
            read_block(cache, origin, block)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert sorted(origin.fetched) == list(range(20))
    totals = cache._counters.read()
    assert (totals["cache_hits"], totals["cache_misses"]) == (7 * 20, 20)


_RANK = """
import random, sys
from pathlib import Path
from test_cache import BLOCK, BODY, Origin, make_cache
cache, draw = make_cache(Path(sys.argv[1]), 8 * BLOCK), random.Random(int(sys.argv[2]))
for _ in range(1000):
    offset = draw.randrange(len(BODY) - 300)
    assert cache.read("x", offset, 300, Origin()) == BODY[offset : offset + 300]
"""


def test_processes_share_a_folder_that_is_too_small_for_them(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), str(Path(__file__).parent)])}
    ranks = [
        subprocess.Popen([sys.executable, "-c", _RANK, str(tmp_path / "cache"), str(seed)], env=environment)
        for seed in range(3)
    ]
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    files = blocks_in(tmp_path / "cache")
    assert sum(file.stat().st_size for file in files) <= 8 * BLOCK
    assert not [file.name for file in files if file.suffix == ".tmp"]
