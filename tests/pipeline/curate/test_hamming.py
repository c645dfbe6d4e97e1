"""Every pair within the distance is found, once, and no other; the nearest is the nearest."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.curate import hamming
from pipeline.curate.hamming import HashIndex, Tables, pairs_in, parse_hashes, plan_tables

HASHES = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),  # skewed: most of the bits are alike
    st.lists(st.integers(0, 63), max_size=5).map(lambda bits: sum(1 << bit for bit in set(bits))),
    st.lists(st.integers(0, 63), max_size=5).map(lambda bits: 2**64 - 1 - sum(1 << bit for bit in set(bits))),
)
SETS = st.lists(HASHES, max_size=60, unique=True).map(lambda values: np.array(values, np.uint64))


def _found(hash_N: NDArray[np.uint64], tables: Tables) -> list[tuple[int, int]]:
    pairs = []
    for group in tables.groups:
        for table in group.tables:
            assert table.mask & group.mask == group.mask
            for a_P, b_P in pairs_in(hash_N, table, tables.max_bits):
                pairs += list(zip(a_P.tolist(), b_P.tolist(), strict=True))
    return sorted(pairs)


def _brute_force(hash_N: NDArray[np.uint64], max_bits: int) -> list[tuple[int, int]]:
    sorted_N = np.sort(hash_N)
    close = np.triu(np.bitwise_count(sorted_N[:, None] ^ sorted_N[None, :]) <= max_bits, 1)
    return [(int(sorted_N[a]), int(sorted_N[b])) for a, b in np.argwhere(close)]


@given(SETS, st.integers(0, 8), st.integers(0, 3), st.integers(1, 40))
def test_pairs_are_those_of_brute_force(
    hash_N: NDArray[np.uint64], max_bits: int, more_blocks: int, num_parts: int
) -> None:
    blocks = max_bits + 1 + more_blocks
    for first in range(1, blocks - max_bits + 1):
        tables = Tables(len(hash_N), max_bits, num_parts, blocks, first)
        assert len(tables.groups) == tables.num_groups
        assert sum(len(group.tables) for group in tables.groups) == tables.num_tables
        assert _found(hash_N, tables) == _brute_force(hash_N, max_bits)


@given(SETS, st.integers(0, 12))
def test_the_plan_of_any_size_finds_all_pairs(hash_N: NDArray[np.uint64], max_bits: int) -> None:
    for num_hashes in (len(hash_N), 10_000_000):
        assert _found(hash_N, plan_tables(num_hashes, max_bits, 5)) == _brute_force(hash_N, max_bits)


@pytest.mark.slow
def test_50_000_hashes_with_planted_clusters() -> None:
    rng = np.random.default_rng(5)
    centres = rng.integers(0, 2**64, 40_000, dtype=np.uint64)
    copies = rng.choice(centres[:3_000], 10_000)
    for _ in range(5):
        copies ^= np.left_shift(np.uint64(1), rng.integers(0, 64, len(copies), dtype=np.uint64))
    hash_N = np.unique(np.concatenate([centres, copies]))
    expected = []
    for start in range(0, len(hash_N), 500):
        close = np.bitwise_count(hash_N[start : start + 500, None] ^ hash_N[None, :]) <= 6
        for a, b in np.argwhere(close):
            if start + a < b:
                expected.append((int(hash_N[start + a]), int(hash_N[b])))
    assert len(expected) > 10_000
    assert _found(hash_N, plan_tables(len(hash_N), 6)) == sorted(expected)


def test_a_long_run_comes_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_CHUNK", 1_000)
    hash_N = np.arange(1_024, dtype=np.uint64)
    (group,) = plan_tables(2, 10).groups[:1]
    sizes = [len(a_P) for a_P, _ in pairs_in(hash_N, group.tables[0], 10)]
    assert max(sizes) < 2_100  # one more shift of the run at most
    assert _found(hash_N[:200], plan_tables(2, 10)) == _brute_force(hash_N[:200], 10)


def test_more_hashes_are_cut_into_more_blocks_and_the_arithmetic_is_told() -> None:
    plans = [plan_tables(num_hashes, 6, 512) for num_hashes in (1_000, 10_000_000, 8_000_000_000)]
    blocks = [plan.num_blocks for plan in plans]
    assert blocks == sorted(blocks)
    assert blocks[0] < blocks[-1]
    for plan in plans:
        assert f"C({plan.num_blocks}, 6) = {plan.num_tables:,} tables" in plan.describe()
        assert f"{plan.num_groups:,} × {plan.num_hashes:,} × 8 B" in plan.describe()
    # A part gets some of the values that rows are sent by, not one of a few.
    assert 2 ** (64 * plans[-1].num_first_blocks / plans[-1].num_blocks) >= 512


@given(SETS.filter(len), SETS, st.integers(0, 8))
def test_the_nearest_is_that_of_brute_force(
    known_M: NDArray[np.uint64], query_N: NDArray[np.uint64], max_bits: int
) -> None:
    index_N, bits_N = HashIndex(known_M, max_bits).nearest(query_N)
    distance = np.bitwise_count(query_N[:, None] ^ known_M[None, :]).astype(int)
    for row in range(len(query_N)):
        if distance[row].min() > max_bits:
            assert index_N[row] == -1
        else:
            assert index_N[row] == distance[row].argmin()
            assert bits_N[row] == distance[row].min()


def test_the_nearest_in_bounded_chunks_and_of_equal_hashes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_CHUNK", 16)
    known_M = np.zeros(100, np.uint64)
    known_M[70:] = 1
    query_N = np.array([1, 0, 3, 2**40 - 1, 2] * 5, np.uint64)
    index_N, bits_N = HashIndex(known_M, 2).nearest(query_N)
    assert index_N.tolist() == [70, 0, 70, -1, 0] * 5
    assert bits_N[index_N >= 0].tolist() == [0, 0, 1, 1] * 5


def test_nothing_is_near_an_empty_set() -> None:
    index_N, _ = HashIndex(np.zeros(0, np.uint64), 6).nearest(np.arange(3, dtype=np.uint64))
    assert index_N.tolist() == [-1, -1, -1]


@given(st.lists(st.none() | st.integers(0, 2**64 - 1)))
def test_hashes_are_parsed_and_nulls_left_out(values: list[int | None]) -> None:
    texts = [None if value is None else f"{value:016x}" for value in values]
    column = pa.chunked_array([pa.array(texts[:2], pa.string()), pa.array(texts[2:], pa.string())])
    assert parse_hashes(column).tolist() == [value for value in values if value is not None]
    assert parse_hashes(column.combine_chunks()).tolist() == [value for value in values if value is not None]


@pytest.mark.parametrize("text", ["", "0123", "0123456789abcdeg", "0123456789abcdef0", "0123456789abcdé"])
def test_anything_else_is_no_hash(text: str) -> None:
    with pytest.raises(ValueError, match="16 hexadecimal digits"):
        parse_hashes(pa.array(["0" * 16, text]))


def test_a_distance_beyond_the_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="64"):
        plan_tables(10, 64)


def test_it_warns_where_chance_would_join_strangers() -> None:
    assert plan_tables(8_000_000_000, 6).warning() == ""
    assert "near_bits" in plan_tables(8_000_000_000, 8).warning()
