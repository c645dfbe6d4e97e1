"""Row groups of tables of images in memory: one read fetches a group, whose rows are wanted one by one."""

import io
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import BinaryIO, cast

from pipeline.file_state import file_state
from pipeline.row_groups import RowGroup, TableColumns, read_row_group, split_group_path
from pipeline.shards import ShardError
from pipeline.store import Store, open_fs
from train.data.reading import ShardReader


class RowGroupCache:
    """The row groups used last. May be called by many threads at once: each group is read by the first that asks."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of all that is kept; a single group may be larger."""
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._groups: OrderedDict[str, Future[RowGroup]] = OrderedDict()
        self._lock = Lock()

    def get(self, path: str, read: Callable[[], RowGroup]) -> RowGroup:
        """A row group by its place; `read` is called where it is not there.

        What `read` raises is raised to all who wait for it, and the next call tries again.
        """
        with self._lock:
            known = self._groups.get(path)
            group = self._groups.setdefault(path, Future())
            self._groups.move_to_end(path)
        if known is None:
            self._fill(path, group, read)
        return group.result()

    def _fill(self, path: str, group: Future[RowGroup], read: Callable[[], RowGroup]) -> None:
        try:
            found = read()
        except BaseException as error:  # noqa: BLE001 - it is raised again, to all who wait
            with self._lock:
                del self._groups[path]
            group.set_exception(error)
            return
        with self._lock:
            group.set_result(found)
            self.num_bytes += found.num_bytes
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        complete = [path for path, group in self._groups.items() if group.done()]
        for path in complete[:-1]:
            if self.num_bytes <= self._max_bytes:
                return
            self.num_bytes -= self._groups.pop(path).result().num_bytes


def fetch_row_group(reader: ShardReader, path: str, columns: TableColumns, fingerprint: str) -> RowGroup:
    """Read a row group through a reader.

    Args:
        reader: counts the bytes, tries again, may have a cache.
        path: of `pipeline.row_groups.group_path`; absolute or a URL.
        columns: those of images and captions.
        fingerprint: of the file when it was indexed.

    Raises:
        ShardError: The file has changed since.
        OSError: It cannot be read.
    """
    file, group = split_group_path(path)
    num_bytes = refuse_changed(file, fingerprint)
    store, name = Store("/").locate(file)
    stream = _Ranges(lambda offset, size: reader.read(store, name, offset, size, fingerprint), num_bytes)
    return read_row_group(cast(BinaryIO, stream), group, columns)


def refuse_changed(path: str, fingerprint: str) -> int:
    """The size of a table in bytes.

    Raises:
        ShardError: It has changed since it was indexed.
        OSError: It is not there.
    """
    num_bytes, found = file_state(*open_fs(path))
    if found != fingerprint:
        raise ShardError(f"the table has changed since it was indexed: {path}")
    return num_bytes


class _Ranges(io.RawIOBase):
    """A file of which each read is one request."""

    def __init__(self, read: Callable[[int, int], bytes], num_bytes: int) -> None:
        self._read, self._num_bytes, self._at = read, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._num_bytes - self._at)
        size = left if size < 0 else min(size, left)
        body = self._read(self._at, size) if size else b""
        self._at += size
        return body
