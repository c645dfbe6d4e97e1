"""Shards hold exactly the selected samples in the order of a keyed hash, whatever units and parts they come through."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sharding.order import cut
from pipeline.sharding.read import windows
from tests.pipeline.sharding.selections import (
    dataset_files,
    key_of,
    keys,
    make,
    numbered_store,
    read_dataset,
    shard_sizes,
    write_selection,
)
from tests.stores import shard_rows

FATES = ("train", "train", "train", "heldout", "too_short")


@pytest.fixture(autouse=True, scope="module")
def _small_parts() -> Iterator[None]:
    """So that a few samples make several parts, row groups and windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.curate.rows.UNITS_PER_PART", 2)
        patch.setattr("pipeline.sharding.order.PART_ROWS", 9)
        patch.setattr("pipeline.sharding.order._GROUP_ROWS", 4)
        patch.setattr("pipeline.sharding.read.WINDOW_SAMPLES", 3)
        yield


def _by_keyed_hash(seed: int, chosen: list[str]) -> list[str]:
    return sorted(chosen, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest()[:8])


@st.composite
def _units(draw: st.DrawFn) -> list[list[int]]:
    """Distinct numbers, dealt to some units of which some may be empty."""
    numbers = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True))
    num_units = draw(st.integers(1, 7))
    units: list[list[int]] = [[] for _ in range(num_units)]
    for number in numbers:
        units[draw(st.integers(0, num_units - 1))].append(number)
    return units


@settings(max_examples=40, deadline=None)
@given(_units(), st.data(), st.integers(1, 9), st.integers(0, 3))
def test_shards_are_a_permutation_of_the_selection(
    units: list[list[int]], data: st.DataObject, shard_samples: int, seed: int
) -> None:
    store = numbered_store(units)
    numbers = [number for unit in units for number in unit]
    drawn = data.draw(st.lists(st.sampled_from(FATES), min_size=len(numbers), max_size=len(numbers)))
    fates = dict(zip(map(key_of, numbers), ["train", *drawn[1:]], strict=True))
    write_selection(store, "d", fates.__getitem__)
    made = make(store, shard_samples=shard_samples, seed=seed)
    for dataset, fate in (("d", "train"), ("d-heldout", "heldout")):
        chosen = [key for key in fates if fates[key] == fate]
        assert keys(store, dataset) == _by_keyed_hash(seed, chosen)
        if chosen:
            sizes = shard_sizes(store, dataset)
            assert len(sizes) == -(-len(chosen) // shard_samples)
            assert max(sizes) - min(sizes) <= 1
        else:
            assert not store.names(f"shards/{dataset}", "")
    counts = Counter(fates.values())
    assert (made.num_samples, made.num_heldout, made.num_refused) == (counts["train"], counts["heldout"], 0)
    assert made.num_shards == len(store.names("shards/d", ".tar"))
    assert not store.exists("shards/d/.plan")


@settings(max_examples=15, deadline=None)
@given(_units(), st.integers(1, 60), st.integers(1, 5))
def test_neither_units_nor_the_size_of_parts_change_a_byte(
    units: list[list[int]], part_rows: int, window_samples: int
) -> None:
    numbers = sorted(number for unit in units for number in unit)
    tars = []
    for store, rows, window in (
        (numbered_store(units), part_rows, window_samples),
        (numbered_store([numbers]), 1 << 20, 512),
    ):
        write_selection(store, "d")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.sharding.order.PART_ROWS", rows)
            patch.setattr("pipeline.sharding.read.WINDOW_SAMPLES", window)
            make(store)
        tars.append(dataset_files(store))
    assert {name: body for name, body in tars[0].items() if name.endswith(".tar")} == {
        name: body for name, body in tars[1].items() if name.endswith(".tar")
    }
    assert tars[0]["shards/d/index.parquet"] == tars[1]["shards/d/index.parquet"]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any), st.integers(1, 9))
def test_cut_covers_every_sorted_part_once_and_evenly(part_rows: list[int], num_shards: int) -> None:
    num_shards = min(num_shards, sum(part_rows))
    shards = list(cut(part_rows, num_shards))
    taken = [(one.part, row) for slices in shards for one in slices for row in range(one.start, one.stop)]
    assert taken == [(part, row) for part, rows in enumerate(part_rows) for row in range(rows)]
    sizes = [sum(one.stop - one.start for one in slices) for slices in shards]
    assert len(sizes) == num_shards
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(0, 1000)), st.integers(1, 6), st.integers(1, 1500))
def test_windows_cover_all_samples_and_keep_both_limits(sizes: list[int], max_samples: int, max_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sharding.read.WINDOW_SAMPLES", max_samples)
        patch.setattr("pipeline.sharding.read.WINDOW_BYTES", max_bytes)
        found = list(windows(sizes))
    assert [i for start, stop in found for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in found:
        assert 1 <= stop - start <= max_samples
        assert stop - start == 1 or sum(sizes[start:stop]) <= max_bytes


def test_samples_whose_hashes_collide_stand_in_the_order_of_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sharding.order.keyed_hash", lambda seed, keys: np.zeros(len(keys), np.uint64))
    store = numbered_store([[5, 1, 9], [3, 7, 0], [2]])
    write_selection(store, "d")
    make(store)
    assert keys(store, "d") == [key_of(number) for number in (0, 1, 2, 3, 5, 7, 9)]


def test_another_seed_gives_another_order_of_the_same_samples() -> None:
    orders = []
    for seed in (1, 2):
        store = numbered_store([range(60)])
        write_selection(store, "d")
        make(store, seed=seed)
        orders.append(keys(store, "d"))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_samples_of_a_unit_are_spread_over_the_shards() -> None:
    store = numbered_store([range(50 * unit, 50 * unit + 50) for unit in range(6)])
    write_selection(store, "d")
    make(store, shard_samples=60)
    for row in shard_rows(store, "d"):
        units = Counter(int(key, 16) // 50 for key in row["keys"])
        assert len(units) == 6  # ten of each are expected
        assert max(units.values()) < 30
        follows = sum(int(b, 16) - int(a, 16) == 1 for a, b in zip(row["keys"], row["keys"][1:], strict=False))
        assert follows < 5


def test_the_samples_are_those_of_the_store() -> None:
    store = numbered_store([range(20), range(20, 40)])
    write_selection(store, "d")
    make(store)
    for sample in read_dataset(store, "d"):
        assert sample.caption == f"the picture {sample.key}"
    for row in shard_rows(store, "d"):
        assert row["widths"] == [32] * row["num_samples"]
        assert row["heights"] == [24] * row["num_samples"]
