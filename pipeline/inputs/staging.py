"""Rows copied into the store, one row group per unit, where the source's own files do not give them up cheaply."""

import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.batches import units_table
from pipeline.store import Store, storage_error

_UNITS_PER_PART = 128
"""The footer, which every unit reads, grows with them."""


def write_units(store: Store, folder: str, units: Iterable[pa.Table]) -> pa.Table:
    """Write the rows of units to part files in a folder of the store; returns the table of the units."""
    files: list[str] = []
    num_rows = array("q")
    waiting = iter(units)
    unit = next(waiting, None)
    while unit is not None:
        files.append(f"{folder}/part-{len(files):05d}.parquet")
        with store.writing(files[-1]) as stream, _part_writer(stream, unit.schema) as writer:
            for _ in range(_UNITS_PER_PART):
                writer.write_table(unit, row_group_size=len(unit))
                num_rows.append(len(unit))
                unit = next(waiting, None)
                if unit is None:
                    break
    num_rows_U = np.array(num_rows, np.int64)
    file_U = np.arange(len(num_rows_U), dtype=np.int32) // _UNITS_PER_PART
    before_U = np.cumsum(num_rows_U) - num_rows_U
    first_U = before_U - before_U[::_UNITS_PER_PART][file_U]
    # No fingerprints: the parts are ours, and are never changed.
    return units_table(files, [""] * len(files), file_U, first_U, num_rows_U)


@contextmanager
def spooled(blocks: Iterator[pa.Table], num_rows: int) -> Iterator[tuple[bool, Iterator[pa.Table]]]:
    """Whether there are at least `num_rows` rows, and all the blocks. Those read to find out wait on the local disk.

    Raises:
        UserError: The local disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="genlip-plan-") as folder:
        path = str(Path(folder) / "spool")
        try:
            num_read = _spool(blocks, num_rows, path)
        except OSError as error:
            raise storage_error(error, folder) from error
        yield num_read >= num_rows, _unspooled(path, blocks) if num_read else iter(())


def _spool(blocks: Iterator[pa.Table], num_rows: int, path: str) -> int:
    """Write blocks until there are enough rows; returns how many there are."""
    block = next(blocks, None)
    if block is None:
        return 0
    num_read = 0
    with pa.ipc.new_stream(path, block.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        while block is not None:
            writer.write_table(block)
            num_read += len(block)
            block = next(blocks, None) if num_read < num_rows else None
    return num_read


def _unspooled(path: str, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(path) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])
    yield from rest


def _part_writer(stream: BinaryIO, schema: pa.Schema) -> pq.ParquetWriter:
    # Dictionaries and statistics are of no use to one who reads whole row groups.
    return pq.ParquetWriter(
        stream, schema, compression="zstd", compression_level=1, use_dictionary=False, write_statistics=False
    )
