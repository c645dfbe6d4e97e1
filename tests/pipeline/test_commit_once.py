"""Several runs of one unit: one ledger stands, with its raw file, whoever was first and whatever went wrong."""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from pipeline.ledger import CommitRecord, Outcome, commit, read_commit
from pipeline.outcomes import SUCCESS
from pipeline.store import Store
from tests.s3_server import S3Server, serve_s3

NUM_RUNS = 6
NUM_UNITS = 25


def _run(store: Store, unit: str, content: str) -> CommitRecord:
    """What a run of a unit does at its end: the raw file, named after its content, and the commit."""
    raw = f"raw/{unit}-{content}.tar"
    store.write(raw, content.encode())
    record = CommitRecord(raw, content, len(content), {SUCCESS: 1}, {})
    return commit(store, unit, [Outcome("key", f"http://host/{content}", "", SUCCESS)], record)


def _run_all(store: Store, content: str, barrier: "Barrier | threading.Barrier") -> list[CommitRecord]:
    stands = []
    for number in range(NUM_UNITS):
        barrier.wait(60)
        stands.append(_run(store, f"u{number:08d}", content))
    return stands


def _check(store: Store, stands: Sequence[CommitRecord]) -> None:
    """One record for each unit, which all runs were told, and exactly the raw files of these records."""
    records = [read_commit(store, f"u{number:08d}") for number in range(NUM_UNITS)]
    assert set(map(repr, stands)) == set(map(repr, records))
    assert [f"raw/{name}" for name in store.names("raw", "")] == [record.raw for record in records]
    for record in records:
        assert store.read(record.raw).decode() == record.sha256
    ledgers = [store.read_table(f"ledger/{name}").to_pylist()[0]["url"] for name in store.names("ledger", "")]
    assert ledgers == [f"http://host/{record.sha256}" for record in records]


@pytest.fixture
def bucket() -> Iterator[tuple[S3Server, Store]]:
    with serve_s3() as (server, url):
        yield server, Store(f"{url}/store")


@pytest.mark.parametrize("contents", ["abcdef", "aabbcc"])
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_of_runs_at_the_same_moment_one_wins(
    kind: str, contents: str, tmp_path: Path, bucket: tuple[S3Server, Store]
) -> None:
    store = Store(str(tmp_path)) if kind == "folder" else bucket[1]
    barrier = threading.Barrier(NUM_RUNS)
    with ThreadPoolExecutor(NUM_RUNS) as threads:
        stands = list(threads.map(lambda content: _run_all(store, content, barrier), contents))
    _check(store, list(chain(*stands)))


def test_of_processes_at_the_same_moment_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    store = Store(str(tmp_path))
    processes = [context.Process(target=_run_all, args=(store, content, barrier)) for content in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    _check(store, [read_commit(store, f"u{number:08d}") for number in range(NUM_UNITS)])
    assert not [name for name in os.listdir(tmp_path / "ledger") if name.startswith(".")]


def test_a_run_of_long_ago_stands(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = _run(store, "u00000000", "first")
    assert _run(store, "u00000000", "second") == first
    assert store.names("raw", "") == [Path(first.raw).name]


def test_a_commit_whose_answer_is_lost_is_made_once(bucket: tuple[S3Server, Store]) -> None:
    server, store = bucket
    for fault in ("reset", "busy", "lost"):
        store.write(f"raw/{fault}-x.tar", b"x")
        record = CommitRecord(f"raw/{fault}-x.tar", "x", 1, {SUCCESS: 1}, {})
        server.plan_others.append(fault)
        assert commit(store, fault, [Outcome("key", "", "", SUCCESS)], record) == record
        assert read_commit(store, fault) == record
        assert store.exists(record.raw)
    assert not server.plan_others


def test_a_server_without_conditional_requests_keeps_what_is_there(bucket: tuple[S3Server, Store]) -> None:
    server, store = bucket
    server.knows_conditions = False
    first = _run(store, "u00000000", "first")
    assert _run(store, "u00000000", "second") == first
    assert store.names("raw", "") == [Path(first.raw).name]


def test_a_file_system_without_links_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as FAT and some network file systems do
    store = Store(str(tmp_path))
    assert store.create("ledger/a", b"first")
    assert not store.create("ledger/a", b"second")
    assert store.read("ledger/a") == b"first"
    assert os.listdir(tmp_path / "ledger") == ["a"]
