"""Near-duplicates of a store are those of brute force; the work is done once, and goes on after a kill."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curate import near
from pipeline.curate.near import NearGroups, group_near, part_of
from pipeline.curate.rows import Rows, open_rows
from pipeline.each import in_turn
from pipeline.store import Store
from tests.stores import Stored, commit_unit, make_store

FLIPS = st.lists(st.integers(0, 63), max_size=4)
CLUSTERS = st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.just(0), st.lists(FLIPS, max_size=5)), max_size=8)


def _hashes(clusters: list[tuple[int, list[list[int]]]]) -> list[int]:
    """A chain for each cluster: each hash differs from the one before in the bits named."""
    hashes = []
    for value, chain in clusters:
        hashes.append(value)
        for flips in chain:
            for bit in flips:
                value ^= 1 << bit
            hashes.append(value)
    return hashes


def _store(hashes: list[int], root: str = "", num_units: int = 3) -> Store:
    samples = [Stored(f"k{i:06d}", image=b"x", phash=f"{value:016x}") for i, value in enumerate(hashes)]
    return make_store([samples[number::num_units] for number in range(num_units)], root)


def _labels(groups: NearGroups) -> dict[int, int]:
    labels: dict[int, int] = {}
    for part in range(groups.num_parts):
        hash_V, label_V = groups.labels(part)
        assert (part_of(hash_V, groups.num_parts) == part).all()
        assert (hash_V[1:] > hash_V[:-1]).all()
        labels |= dict(zip(hash_V.tolist(), label_V.tolist(), strict=True))
    return labels


def _brute_force(hashes: list[int], max_bits: int) -> dict[int, int]:
    distinct = np.unique(np.array(hashes, np.uint64))
    close = np.bitwise_count(distinct[:, None] ^ distinct[None, :]) <= max_bits
    label = np.arange(len(distinct))
    for _ in distinct:
        label = np.where(close, label[None, :], len(distinct)).min(axis=1)
    counts = np.bincount(label, minlength=len(distinct))
    return {int(distinct[i]): int(distinct[label[i]]) for i in range(len(distinct)) if counts[label[i]] > 1}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "ROWS_PER_PART", 50)


@settings(deadline=None, max_examples=40)
@given(CLUSTERS, st.integers(0, 6), st.sampled_from([1, 3, 12]))
def test_groups_are_those_of_brute_force(
    clusters: list[tuple[int, list[list[int]]]], max_bits: int, num_parts: int
) -> None:
    hashes = _hashes(clusters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "ROWS_PER_PART", max(1, len(hashes) // num_parts))
        groups = group_near(open_rows(_store(hashes), []), max_bits, in_turn)
    expected = _brute_force(hashes, max_bits)
    assert _labels(groups) == expected
    numbers = groups.numbers()
    assert numbers["samples"] == len(hashes)
    assert numbers["hashes"] == len(set(hashes))
    assert numbers["groups"] == len(set(expected.values()))
    assert numbers["grouped_hashes"] == len(expected)


def test_a_crowd_of_like_pictures_is_one_group(monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    monkeypatch.setattr(near, "_EDGES_IN_MEMORY", 500)
    hashes = list(range(256))
    groups = group_near(open_rows(_store(hashes), []), 2, in_turn)
    assert groups.num_parts > 1
    assert _labels(groups) == dict.fromkeys(hashes, 0)
    assert groups.numbers()["pairs"] == 256 * (8 + 28) // 2


def test_samples_without_a_hash_are_left_alone() -> None:
    store = _store([0, 1])
    rows = store.read_table("ledger/u00000000.parquet")
    metadata = rows.schema.metadata
    at = rows.schema.get_field_index("phash")
    rows = rows.set_column(at, rows.schema.field(at), pa.nulls(rows.num_rows, pa.string()))
    store.write_table("ledger/u00000000.parquet", rows.replace_schema_metadata(metadata))
    assert _labels(group_near(open_rows(store, []), 3, in_turn)) == {}


def _files(store: Store) -> dict[str, Any]:
    return {path: store._fs.modified(path) for path in store._fs.find(store.path("near"))}


def test_a_second_call_computes_nothing_and_a_new_unit_everything(small_parts: None) -> None:
    hashes = [number * 2**20 for number in range(150)]
    store = _store(hashes)
    first = group_near(open_rows(store, []), 3, in_turn)
    files = _files(store)
    assert sorted(path.rsplit("/", 1)[-1] for path in files) == [
        *(f"labels-{part:06d}.parquet" for part in range(first.num_parts)),
        "near.json",
    ]
    assert group_near(open_rows(store, []), 3, in_turn) == first
    assert _files(store) == files
    assert group_near(open_rows(store, []), 4, in_turn).folder != first.folder
    commit_unit(store, 3, [Stored("new", image=b"x", phash=f"{3 * 2**61:016x}")])
    assert group_near(open_rows(store, []), 3, in_turn).folder != first.folder


def _die_after(rows: Rows, num_calls: int) -> None:
    """Group in this process, which is killed after some parts."""
    calls = 0

    def dying(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        nonlocal calls
        for item in items:
            if calls == num_calls:
                os.kill(os.getpid(), signal.SIGKILL)
            calls += 1
            yield item, function(item)

    near.ROWS_PER_PART = 50
    group_near(rows, 3, dying)


@pytest.mark.parametrize("num_calls", [2, 6, 9, 13, 17])
def test_after_a_kill_the_finished_parts_stay(tmp_path: Path, small_parts: None, num_calls: int) -> None:
    hashes = [number * 2**20 for number in range(150)]
    rows = open_rows(_store(hashes, str(tmp_path)), [])
    process = multiprocessing.get_context("fork").Process(target=_die_after, args=(rows, num_calls))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("near/*/scratch/**/*.*")}
    touched: list[str] = []

    def watching(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for done in in_turn(function, items):
            touched.extend(str(path) for path, at in before.items() if path.stat().st_mtime_ns != at)
            yield done

    groups = group_near(rows, 3, watching)
    assert touched == []
    assert _labels(groups) == _brute_force(hashes, 3)
    assert not list(tmp_path.glob("near/*/scratch"))


def _in_processes(
    function: Callable[[Any], Any], items: Iterable[Any], pool: ProcessPoolExecutor
) -> Iterator[tuple[Any, Any]]:
    todo = list(items)
    yield from zip(todo, pool.map(function, todo), strict=True)


def test_parts_run_in_other_processes(tmp_path: Path, small_parts: None) -> None:
    hashes = [number * 2**20 for number in range(150)]
    rows = open_rows(_store(hashes, str(tmp_path)), [])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        groups = group_near(rows, 3, partial(_in_processes, pool=pool))
    assert _labels(groups) == _brute_force(hashes, 3)
