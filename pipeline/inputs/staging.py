"""Rows copied into the store, one row group per unit, where the source's own files do not give them up cheaply."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.batches import units_table
from pipeline.store import Store, storage_error

_UNITS_PER_PART = 128
"""The footer, which every unit reads, grows with them."""


def write_units(store: Store, folder: str, units: Iterable[pa.Table]) -> pa.Table:
    """Write the rows of units to part files in a folder of the store; returns the table of the units."""
    files: list[str] = []
    first_rows: list[int] = []
    num_rows: list[int] = []
    waiting = iter(units)
    unit = next(waiting, None)
    while unit is not None:
        name = f"{folder}/part-{len(files) // _UNITS_PER_PART:05d}.parquet"
        with store.writing(name) as stream, _part_writer(stream, unit.schema) as writer:
            first_row = 0
            for _ in range(_UNITS_PER_PART):
                writer.write_table(unit, row_group_size=len(unit))
                files.append(name)
                first_rows.append(first_row)
                num_rows.append(len(unit))
                first_row += len(unit)
                unit = next(waiting, None)
                if unit is None:
                    break
    # No fingerprints: the parts are ours, and are never changed.
    return units_table(files, [""] * len(files), first_rows, num_rows)


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
