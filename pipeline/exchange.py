"""Rows sent by value from many writers to many readers, through files: the shuffle under everything global.

Each writer leaves one parquet file with one row group for each reader; a reader takes its group of every file. Nobody
holds more than one part, a killed writer leaves nothing, and a finished one need not run again.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.store import Store


@dataclass(frozen=True)
class Exchange:
    """A folder of a store through which rows change hands."""

    store: Store
    folder: str
    num_parts: int

    def has(self, writer: str) -> bool:
        """Whether this writer has sent everything."""
        return self.store.exists(f"{self.folder}/{writer}.parquet")

    def send(self, writer: str, rows: pa.Table, part_N: NDArray[np.integer]) -> None:
        """Send each row to its part, in the order of the rows; all or nothing.

        Args:
            writer: names the sender; sending again replaces what it sent.
            rows: N rows; all writers of an exchange have the same schema.
            part_N: reader of each row, in [0, num_parts).
        """
        order = np.argsort(part_N, kind="stable")
        bounds = np.searchsorted(part_N[order], np.arange(self.num_parts + 1))
        sorted_rows = rows.take(pa.array(order)).combine_chunks()
        with (
            self.store.writing(f"{self.folder}/{writer}.parquet") as stream,
            pq.ParquetWriter(stream, rows.schema, compression="zstd", write_statistics=False) as parquet,
        ):
            for start, end in itertools.pairwise(bounds):
                # One group even where it is empty, so that a group's number is its reader's.
                parquet.write_table(sorted_rows.slice(start, end - start), row_group_size=max(end - start, 1))

    def receive(self, part: int, writers: Iterable[str] | None = None) -> pa.Table:
        """All rows sent to a part, ordered by the writer's name, then as they were sent.

        Args:
            part: the reader's number.
            writers: whose rows; by default those of every writer that left a file.
        """
        if writers is None:
            writers = [name.removesuffix(".parquet") for name in self.store.names(self.folder, ".parquet")]
        tables = []
        for writer in writers:
            with self.store.reading(f"{self.folder}/{writer}.parquet") as stream:
                tables.append(pq.ParquetFile(stream).read_row_group(part))
        return pa.concat_tables(tables)

    def remove(self) -> None:
        """Delete the files."""
        self.store.remove(self.folder)
