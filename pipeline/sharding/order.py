"""The global order of a dataset's samples, in files: sent by ranges of a keyed hash, then sorted part by part.

A sample's place is the rank of a hash of seed and key, so it depends on neither the units nor who sorts. The sorted
parts follow each other, and their lengths give the place of every part's first sample.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.curate.rows import Part, Rows
from pipeline.errors import UserError
from pipeline.exchange import Exchange
from pipeline.store import Store

PART_ROWS = 1 << 20
"""Samples in a part of the order, about: what is sorted in memory at a time."""
MAX_PARTS = 2_048
"""Every part reads of every writer; beyond so many, parts grow instead: to 4 M samples, about 1.5 GB, at 8e9."""
_GROUP_ROWS = 1 << 13
"""Samples in a row group of a sorted part: what a shard reads too much at most, at either end."""
_SELECTION_COLUMNS = ["unit", "row", "key"]


@dataclass(frozen=True)
class Slice:
    """Consecutive samples of one sorted part."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class Order:
    """The samples of one dataset in their global order."""

    store: Store
    folder: str
    captions: tuple[str, ...]
    """Columns with further captions, which travel with the samples."""
    num_parts: int

    @property
    def schema(self) -> pa.Schema:
        """What is known of each sample."""
        fixed: list[tuple[str, pa.DataType]] = [
            ("hash", pa.uint64()),
            ("key", pa.string()),
            ("raw", pa.string()),
            ("offset", pa.int64()),
            ("size", pa.int64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
        ]
        return pa.schema(fixed + [(column, pa.string()) for column in self.captions])

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.store, f"{self.folder}/sent", self.num_parts)

    def sorted_part(self, part: int) -> str:
        """The file of a sorted part."""
        return f"{self.folder}/sorted/part-{part:06d}.parquet"

    def read(self, slices: Sequence[Slice]) -> pa.Table:
        """The samples of these slices, one after the other."""
        return pa.concat_tables([self._read_slice(one) for one in slices])

    def _read_slice(self, one: Slice) -> pa.Table:
        groups = list(range(one.start // _GROUP_ROWS, -(-one.stop // _GROUP_ROWS)))
        with self.store.reading(self.sorted_part(one.part)) as stream:
            table = pq.ParquetFile(stream).read_row_groups(groups)
        return table.slice(one.start - groups[0] * _GROUP_ROWS, one.stop - one.start)


def make_order(store: Store, folder: str, captions: tuple[str, ...], num_samples: int) -> Order:
    """The order of so many samples, of which nothing is written yet."""
    return Order(store, folder, captions, min(max(1, -(-num_samples // PART_ROWS)), MAX_PARTS))


def keyed_hash(seed: int, keys: Sequence[str]) -> NDArray[np.uint64]:
    """64 bits of a hash of seed and key for each of N keys, [N]."""
    prefix = hashlib.sha256(f"{seed} ".encode())
    digests = bytearray()
    for key in keys:
        digest = prefix.copy()
        digest.update(key.encode())
        digests += digest.digest()[:8]
    return np.frombuffer(bytes(digests), ">u8").astype(np.uint64)


def send_part(rows: Rows, selection: str, orders: Mapping[str, Order], seed: int, part: Part) -> int:
    """Send the samples of some units to the parts of the order that their fate names.

    Args:
        rows: the store's samples.
        selection: folder with the samples' fates.
        orders: by fate; samples with another are left out.
        seed: of the order.
        part: the units.

    Returns:
        How many samples were sent.

    Raises:
        UserError: The units are not those of which the selection was made.
    """
    if all(order.exchange.has(part.name) for order in orders.values()):
        return 0
    fates = _read_fates(rows.store, selection, part)
    captions = next(iter(orders.values())).captions
    stored = rows.read(part, ["key", "raw", "offset", "size", "width", "height", *captions])
    if any(not fates[name].combine_chunks().equals(stored[name].combine_chunks()) for name in _SELECTION_COLUMNS):
        raise stale_selection(rows.store, selection)
    fate_N = fates["fate"].to_numpy()
    num_sent = 0
    for fate, order in orders.items():
        chosen = stored.filter(pa.array(fate_N == fate))
        hash_N = keyed_hash(seed, chosen["key"].to_pylist())
        sent = chosen.append_column("hash", pa.array(hash_N)).select(order.schema.names).cast(order.schema)
        order.exchange.send(part.name, sent, part_of(hash_N, order.num_parts))
        num_sent += sent.num_rows
    return num_sent


def _read_fates(store: Store, selection: str, part: Part) -> pa.Table:
    name = f"{selection}/{part.name}.parquet"
    if not store.exists(name):
        raise stale_selection(store, selection)
    with store.reading(name) as stream:
        return pq.read_table(stream, columns=[*_SELECTION_COLUMNS, "fate"])


def stale_selection(store: Store, selection: str) -> UserError:
    """The units are not those of which the selection was made."""
    return UserError(
        "the store's units have changed since the selection was made",
        where=store.path(selection),
        next_step="run: genlip select RECIPE",
    )


def part_of(hash_N: NDArray[np.uint64], num_parts: int) -> NDArray[np.int64]:
    """The part of each hash when the range of hashes is cut into equal ones, [N]."""
    upper_N = hash_N >> np.uint64(32)
    return ((upper_N * np.uint64(num_parts)) >> np.uint64(32)).astype(np.int64)


def sort_part(order: Order, part: int) -> int:
    """Write one part of the order from what was sent to it. Returns its number of samples."""
    name = order.sorted_part(part)
    if order.store.exists(name):
        with order.store.reading(name) as stream:
            return int(pq.read_metadata(stream).num_rows)
    received = order.exchange.receive(part)
    table = received.take(pc.sort_indices(received, sort_keys=[("hash", "ascending"), ("key", "ascending")]))
    with order.store.writing(name) as stream:
        pq.write_table(table, stream, row_group_size=_GROUP_ROWS, compression="zstd", write_statistics=False)
    return int(table.num_rows)


def cut(part_rows: Sequence[int], num_shards: int) -> Iterator[tuple[Slice, ...]]:
    """The slices of each of so many shards of nearly equal size, given the lengths of the sorted parts."""
    part_starts = np.concatenate([[0], np.cumsum(part_rows)])
    num_samples = int(part_starts[-1])
    bounds = (num_samples * i // num_shards for i in range(num_shards + 1))
    for start, stop in itertools.pairwise(bounds):
        first = int(np.searchsorted(part_starts, start, side="right")) - 1
        last = int(np.searchsorted(part_starts, stop, side="left"))
        overlaps = ((part, *_overlap(part_starts, part, start, stop)) for part in range(first, last))
        yield tuple(Slice(part, at, end) for part, at, end in overlaps if end > at)


def _overlap(part_starts: NDArray[np.int64], part: int, start: int, stop: int) -> tuple[int, int]:
    begin, end = int(part_starts[part]), int(part_starts[part + 1])
    return max(start, begin) - begin, min(stop, end) - begin
