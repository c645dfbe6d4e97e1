"""External sort of a table by host group, in memory that does not grow with the table."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.inputs.hosts import Grouper, Numbers
from pipeline.store import storage_error

CHUNKS_PER_UNIT = 20
"""A domain fills at most one part in so many of a unit, until it has a larger share than that of the whole table."""

_GROUP = "_group"
_FAN_OUT_BITS = 8
_FAN_OUT = 1 << _FAN_OUT_BITS
_TOP_SHIFT = 64 - _FAN_OUT_BITS
_MAX_BUCKET_BYTES = 48 << 20
"""A bucket is in memory some four times while it is sorted."""
_MIN_BLOCK_BYTES = 12 << 20
"""Small blocks dealt to 256 buckets would be dust; a block is in memory some six times while it is dealt."""


def group_by_host(blocks: Iterable[pa.Table], url: str, unit_samples: int) -> Iterator[pa.Table]:
    """Units that hold the rows of few domains: the same rows in another order, and the same order every time.

    Rows of one group stay together in their first order, and a unit ends between two groups, so all but the last are
    at least 95 % full.

    Args:
        blocks: the table with text as bytes.
        url: the column with the URLs.
        unit_samples: rows in a unit at most.

    Raises:
        UserError: The local disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="genlip-plan-") as folder:
        try:
            numbered = _numbered(blocks, url, max(1, unit_samples // CHUNKS_PER_UNIT))
            yield from _units(_sorted(numbered, Path(folder), _TOP_SHIFT), unit_samples)
        except OSError as error:
            raise storage_error(error, folder) from error


def _numbered(blocks: Iterable[pa.Table], url: str, chunk_rows: int) -> Iterator[pa.Table]:
    """The blocks, joined to larger ones, with the column of group numbers."""
    grouper = Grouper(chunk_rows)

    def numbers(block: pa.Table) -> pa.Array:
        return pa.array(grouper.number(block.column(url).cast(pa.binary()).combine_chunks()))

    return (block.append_column(_GROUP, numbers(block)) for block in _joined(blocks))


def _joined(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for block in blocks:
        waiting.append(block)
        if sum(table.nbytes for table in waiting) >= _MIN_BLOCK_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _sorted(blocks: Iterable[pa.Table], folder: Path, shift: int) -> Iterator[pa.Table]:
    """The blocks' rows in the order of their groups: dealt to buckets by 8 bits of the group, and each bucket sorted.

    A bucket too large for memory is dealt again, by the next bits.
    """
    folder.mkdir(exist_ok=True)
    sizes = _deal(blocks, folder, shift)
    for bucket in np.flatnonzero(sizes):
        path = folder / str(bucket)
        if sizes[bucket] > _MAX_BUCKET_BYTES and shift:
            yield from _sorted(_joined(_read_bucket(path)), folder / f"{bucket}-parts", shift - _FAN_OUT_BITS)
        else:
            table = pa.concat_tables(_read_bucket(path)).combine_chunks()
            yield table.take(np.argsort(_groups(table), kind="stable"))
        path.unlink()


def _deal(blocks: Iterable[pa.Table], folder: Path, shift: int) -> Numbers:
    """Write each row to the bucket of its group; returns the buckets' bytes in memory."""
    sizes = np.zeros(_FAN_OUT, np.uint64)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
    with ExitStack() as stack:
        for bucket, part in chain.from_iterable(_parts(block, shift) for block in blocks):
            if bucket not in writers:
                writer = pa.ipc.new_stream(str(folder / str(bucket)), part.schema, options=options)
                writers[bucket] = stack.enter_context(writer)
            writers[bucket].write_table(part)
            sizes[bucket] += np.uint64(part.nbytes)
    return sizes


def _parts(block: pa.Table, shift: int) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each bucket. What a block needs is gone when its parts are."""
    buckets = (_groups(block) >> np.uint64(shift)).astype(np.uint8)
    dealt = block.take(np.argsort(buckets, kind="stable")).combine_chunks()
    counts = np.bincount(buckets, minlength=_FAN_OUT)
    ends = np.cumsum(counts)
    for bucket in map(int, np.flatnonzero(counts)):
        yield bucket, dealt.slice(ends[bucket] - counts[bucket], counts[bucket])


def _read_bucket(path: Path) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(str(path)) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _units(tables: Iterable[pa.Table], unit_samples: int) -> Iterator[pa.Table]:
    """Cut the sorted rows: each unit takes as many whole groups as fit. No group spans two tables."""
    rest: list[pa.Table] = []
    for table in tables:
        joined = pa.concat_tables([*rest, table])
        groups = _groups(joined)
        ends = np.append(np.flatnonzero(groups[1:] != groups[:-1]) + 1, len(groups))
        start = 0
        while len(groups) - start > unit_samples:
            end = int(ends[np.searchsorted(ends, start + unit_samples, side="right") - 1])
            yield joined.slice(start, end - start).drop_columns(_GROUP)
            start = end
        rest = [joined.slice(start)]
    yield from (table.drop_columns(_GROUP) for table in rest)


def _groups(table: pa.Table) -> Numbers:
    return np.asarray(table.column(_GROUP).to_numpy())
