"""Rows sent by value from many writers to many readers, through files: the shuffle under everything global.

Each writer leaves one file that begins with the place of each reader's rows in it; a reader takes its range of every
file. Nobody holds more than one part, a killed writer leaves nothing, and a finished one need not run again.
"""

import io
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.store import Store

_PLACE = np.dtype("<i8")
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True)
class Exchange:
    """A folder of a store through which rows change hands."""

    store: Store
    folder: str
    num_parts: int

    def has(self, writer: str) -> bool:
        """Whether this writer has sent everything."""
        return self.store.exists(self._file(writer))

    def send(self, writer: str, rows: pa.Table, part_N: NDArray[np.integer]) -> None:
        """Send each row to its part, in the order of the rows; all or nothing.

        Args:
            writer: names the sender; sending again replaces what it sent.
            rows: N rows; all writers of an exchange have the same schema.
            part_N: reader of each row, in [0, num_parts).
        """
        if len(part_N) != rows.num_rows or (len(part_N) and not 0 <= part_N.min() <= part_N.max() < self.num_parts):
            raise ValueError(f"{rows.num_rows} rows need as many parts, each in [0, {self.num_parts})")
        order = np.argsort(part_N, kind="stable")
        bounds = np.searchsorted(part_N[order], np.arange(self.num_parts + 1))
        sorted_rows = rows.take(pa.array(order)).combine_chunks()
        places = np.zeros(self.num_parts + 1, _PLACE)
        body = io.BytesIO()
        for part, (start, end) in enumerate(itertools.pairwise(bounds)):
            places[part] = places.nbytes + body.tell()
            with pa.ipc.new_stream(body, rows.schema, options=_OPTIONS) as stream:
                stream.write_table(sorted_rows.slice(start, end - start))
        places[-1] = places.nbytes + body.tell()
        with self.store.writing(self._file(writer)) as file:
            file.write(places.tobytes())
            file.write(body.getbuffer())

    def receive(self, part: int, writers: Iterable[str] | None = None) -> pa.Table:
        """All rows sent to a part, ordered by the writer's name, then as they were sent.

        Args:
            part: the reader's number.
            writers: whose rows; by default those of every writer that left a file.
        """
        if writers is None:
            writers = [name.removesuffix(".rows") for name in self.store.names(self.folder, ".rows")]
        return pa.concat_tables([self._read(writer, part) for writer in writers])

    def remove(self) -> None:
        """Delete the files."""
        self.store.remove(self.folder)

    def _file(self, writer: str) -> str:
        return f"{self.folder}/{writer}.rows"

    def _read(self, writer: str, part: int) -> pa.Table:
        name = self._file(writer)
        start, end = np.frombuffer(
            self.store.read_range(name, part * _PLACE.itemsize, 2 * _PLACE.itemsize), _PLACE
        ).tolist()
        return pa.ipc.open_stream(self.store.read_range(name, start, end - start)).read_all()
