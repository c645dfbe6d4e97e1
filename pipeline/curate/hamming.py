"""All pairs of 64-bit hashes that differ in few bits, exactly and without comparing all with all.

Cut 64 bits into B blocks. Two hashes within d bits agree in at least B - d whole blocks, so a table for each choice of
B - d blocks, in which hashes that agree in these stand together, has every pair (Manku, Jain, Das Sarma: Detecting
near-duplicates for web crawling, 2007). More blocks are more tables, with fewer candidates in each: `plan_tables`.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

NUM_BITS = 64
_MAX_TABLES = 10_000
_ROW_COST_NS, _COMPARE_COST_NS = 80.0, 1.8
"""To sort one hash into a table; to compare two that stand together. Measured; the plan needs their ratio only."""
_SLAB_HASHES = 1 << 15
"""Compared at a time: what stays in a core's cache."""
_CHUNK = 1 << 22
"""Pairs or candidates in memory at a time."""
_BIT_STRIDE = 11
"""Bits are dealt to blocks with this stride, for neighbours are alike: the highest frequencies of pictures without
detail are all zero, and a block of them would put half the web into one run."""

_NIBBLE = np.full(256, 255, np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdefABCDEF", np.uint8)] = [*range(16), *range(10, 16)]


@dataclass(frozen=True)
class Table:
    """A choice of blocks."""

    mask: int
    """Their bits."""
    skipped: tuple[int, ...]
    """Bits of the blocks before the last of them that are not chosen. A pair belongs to the one table of the first
    blocks in which it agrees: it agrees in none of these."""


@dataclass(frozen=True)
class Group:
    """Tables whose first blocks are the same: rows that are sent by these serve all of them."""

    mask: int
    """The bits of the first blocks."""
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Tables:
    """How the hashes are compared."""

    num_hashes: int
    max_bits: int
    num_parts: int
    num_blocks: int
    num_first_blocks: int
    """Blocks by which a hash is sent to a part."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All tables: C(B, d) in C(d + r, r) groups, for r first blocks."""
        block_masks = _block_masks(self.num_blocks)
        by_first: dict[tuple[int, ...], list[Table]] = {}
        for blocks in itertools.combinations(range(self.num_blocks), self.num_blocks - self.max_bits):
            skipped = tuple(block_masks[i] for i in range(blocks[-1]) if i not in blocks)
            table = Table(sum(block_masks[i] for i in blocks), skipped)
            by_first.setdefault(blocks[: self.num_first_blocks], []).append(table)
        return tuple(Group(sum(block_masks[i] for i in first), tuple(all_)) for first, all_ in by_first.items())

    @property
    def num_tables(self) -> int:
        return math.comb(self.num_blocks, self.max_bits)

    @property
    def num_groups(self) -> int:
        return math.comb(self.max_bits + self.num_first_blocks, self.num_first_blocks)

    @property
    def key_bits(self) -> float:
        """Bits in which the hashes of a run agree, on average."""
        return NUM_BITS * (self.num_blocks - self.max_bits) / self.num_blocks

    @property
    def num_candidates(self) -> float:
        """Expected pairs to compare, for uniform hashes."""
        return float(self.num_tables * self.num_hashes**2 / 2 / 2**self.key_bits)

    @property
    def cpu_s(self) -> float:
        """Expected work of comparing."""
        return (self.num_tables * self.num_hashes * _ROW_COST_NS + self.num_candidates * _COMPARE_COST_NS) / 1e9

    @property
    def num_chance_pairs(self) -> float:
        """Expected pairs of uniform hashes within the distance. More than half as many as hashes connect most of them
        to one group, whatever they show."""
        near = sum(math.comb(NUM_BITS, bits) for bits in range(self.max_bits + 1))
        return float(self.num_hashes**2 / 2 * near / 2**NUM_BITS)

    def warning(self) -> str:
        """What is to be said where chance alone would join strangers; otherwise empty."""
        if self.num_chance_pairs <= self.num_hashes / 2:
            return ""
        return (
            f"WARNING: of {self.num_hashes:,} hashes, {self.num_chance_pairs:.2g} pairs are within {self.max_bits} bits"
            " by chance: groups would join strangers; lower curate.select.dedup.near_bits"
        )

    def describe(self) -> str:
        """The arithmetic in a line."""
        sent_gb = self.num_groups * self.num_hashes * 8 / 1e9
        return (
            f"{self.num_hashes:,} hashes within {self.max_bits} bits: {self.num_blocks} blocks,"
            f" C({self.num_blocks}, {self.max_bits}) = {self.num_tables:,} tables of {self.key_bits:.1f} bits"
            f" in {self.num_groups:,} groups; {self.num_groups:,} × {self.num_hashes:,} × 8 B = {sent_gb:,.2f} GB sent"
            f" to {self.num_parts:,} parts; {self.num_tables:,} × {self.num_hashes:,} rows sorted,"
            f" {self.num_tables:,} × {self.num_hashes:,}² ÷ 2 ÷ 2^{self.key_bits:.1f} = {self.num_candidates:.2g} pairs"
            f" compared, of which {self.num_chance_pairs:.2g} near by chance; about {self.cpu_s / 3600:,.2f} core hours"
        )


def plan_tables(num_hashes: int, max_bits: int, num_parts: int = 1) -> Tables:
    """The number of blocks with the least work.

    Args:
        num_hashes: distinct hashes to be compared with each other.
        max_bits: largest distance of a pair, below 64.
        num_parts: memory-sized parts that the hashes are sent to.
    """
    if not 0 <= max_bits < NUM_BITS:
        raise ValueError(f"a distance of {max_bits} bits, of {NUM_BITS}")

    def plan(num_blocks: int) -> Tables:
        first = 1
        while first < num_blocks - max_bits and first * NUM_BITS // num_blocks < math.log2(max(num_parts, 1)):
            first += 1
        return Tables(num_hashes, max_bits, num_parts, num_blocks, first)

    plans = [plan(num_blocks) for num_blocks in range(max_bits + 1, NUM_BITS + 1)]
    # More tables than that cost more than they save at any size; with no bit to spare a single one is all there is.
    return min((one for one in plans if one.num_tables <= _MAX_TABLES), key=lambda one: one.cpu_s)


def table_keys(hash_N: Hashes, table: Table | Group) -> Hashes:
    """What hashes that may be a pair of this table have in common, [N]."""
    return hash_N & np.uint64(table.mask)


def pairs_in(hash_N: Hashes, table: Table, max_bits: int) -> Iterator[tuple[Hashes, Hashes]]:
    """The pairs that belong to a table, each once over all tables.

    Args:
        hash_N: distinct hashes.
        table: of the plan.
        max_bits: largest distance.

    Yields:
        a_P, b_P with a < b, a bounded number of pairs at a time.
    """
    key_N = table_keys(hash_N, table)
    order = np.argsort(key_N)
    hash_N, key_N = hash_N[order], key_N[order]
    start_R = np.flatnonzero(np.r_[True, key_N[1:] != key_N[:-1]][: len(key_N)])
    length_R = np.diff(np.r_[start_R, len(key_N)])
    waiting: list[tuple[Hashes, Hashes]] = []
    num_waiting = 0
    for a, b in _close_in_runs(hash_N, start_R, length_R, max_bits):
        for mask in table.skipped:
            belongs = (a ^ b) & np.uint64(mask) != 0
            a, b = a[belongs], b[belongs]
        waiting.append((np.minimum(a, b), np.maximum(a, b)))
        num_waiting += len(a)
        if num_waiting >= _CHUNK:
            yield _joined(waiting)
            waiting, num_waiting = [], 0
    if num_waiting:
        yield _joined(waiting)


def _close_in_runs(
    hash_N: Hashes, start_R: NDArray[np.int64], length_R: NDArray[np.int64], max_bits: int
) -> Iterator[tuple[Hashes, Hashes]]:
    """Pairs within each run. Runs of one length are compared side by side: as columns, shifted against themselves."""
    for length in np.unique(length_R[length_R > 1]):
        starts = start_R[length_R == length]
        width = max(1, _SLAB_HASHES // int(length))
        for at in range(0, len(starts), width):
            slab_LR = hash_N[np.arange(length)[:, None] + starts[None, at : at + width]]
            for shift in range(1, length):
                upper, lower = slab_LR[shift:], slab_LR[:-shift]
                close = np.bitwise_count(upper ^ lower) <= max_bits
                if close.any():
                    yield upper[close], lower[close]


def _joined(pairs: list[tuple[Hashes, Hashes]]) -> tuple[Hashes, Hashes]:
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


class HashIndex:
    """A known set of hashes, a few million at most, in which the nearest to others is looked up."""

    def __init__(self, known_M: Hashes, max_bits: int) -> None:
        self.max_bits = max_bits
        self._known_M = known_M
        self._tables: list[tuple[Table, Hashes, NDArray[np.int64]]] = []
        for group in plan_tables(len(known_M), max_bits).groups:
            for table in group.tables:
                key_M = table_keys(known_M, table)
                order = np.argsort(key_M, kind="stable")
                self._tables.append((table, key_M[order], order))

    def nearest(self, query_N: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The nearest known hash within `max_bits` of each query, the first of equally near ones.

        Returns:
            index_N, -1 where none is near enough; bits_N, the distance, where there is one.
        """
        num_known = max(1, len(self._known_M))
        # Distance × M + index, of which the minimum is the nearest; at first, farther than any.
        best_N = np.full(len(query_N), (NUM_BITS + 1) * num_known, np.int64)
        for table, key_M, order_M in self._tables:
            key_N = table_keys(query_N, table)
            first_N, end_N = np.searchsorted(key_M, key_N, "left"), np.searchsorted(key_M, key_N, "right")
            found = np.flatnonzero(end_N > first_N)
            for some in _bounded(found, (end_N - first_N)[found]):
                count = (end_N - first_N)[some]
                group_start = np.cumsum(count) - count
                place = np.arange(count.sum()) + np.repeat(first_N[some] - group_start, count)
                index = order_M[place]
                bits = np.bitwise_count(np.repeat(query_N[some], count) ^ self._known_M[index]).astype(np.int64)
                best_N[some] = np.minimum(best_N[some], np.minimum.reduceat(bits * num_known + index, group_start))
        bits_N, index_N = np.divmod(best_N, num_known)
        return np.where(bits_N <= self.max_bits, index_N, -1), bits_N


def _bounded(rows: NDArray[np.int64], count: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows in runs of at most `_CHUNK` candidates, single rows excepted."""
    chunk = (np.cumsum(count) - 1) // _CHUNK
    yield from (some for some in np.split(rows, np.flatnonzero(np.diff(chunk)) + 1) if len(some))


def parse_hashes(column: pa.Array | pa.ChunkedArray) -> Hashes:
    """Hashes of 16 hexadecimal digits as numbers, the nulls left out: [number of valid ones].

    Raises:
        ValueError: One of them is something else.
    """
    valid = pc.drop_null(column).cast(pa.binary())
    digits = b"".join(valid.to_pylist())
    nibble_VD = _NIBBLE[np.frombuffer(digits, np.uint8)]
    wrong = not pc.all(pc.equal(pc.binary_length(valid), 16), min_count=0).as_py()
    if wrong or nibble_VD.max(initial=0) > 15:
        raise ValueError("a perceptual hash is not 16 hexadecimal digits")
    nibble_VD = nibble_VD.reshape(-1, 16)
    return (nibble_VD[:, ::2] << 4 | nibble_VD[:, 1::2]).view(">u8").ravel().astype(np.uint64)


def _block_masks(num_blocks: int) -> list[int]:
    """The bits of each block: a partition of all 64."""
    bounds = [NUM_BITS * i // num_blocks for i in range(num_blocks + 1)]
    return [
        sum(1 << (_BIT_STRIDE * bit % NUM_BITS) for bit in range(start, end))
        for start, end in itertools.pairwise(bounds)
    ]
