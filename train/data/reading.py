"""Reads ranges of shards, from local disk or from any fsspec URL, for many threads of one rank at once."""

import os
from collections import OrderedDict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated

from pydantic import Field

from pipeline.section import Section
from pipeline.store import Store
from train.data.cache import BlockCache
from train.data.counters import Counters
from train.data.remote import RemoteReader

MAX_OPEN_FILES = 256
"""Local shards kept open: some blocks of the order, a quarter of the usual limit of a process."""


class ReadingSpec(Section):
    """How shards are read. All but the cache concerns remote stores only."""

    retries: Annotated[int, Field(ge=0)] = 12
    """Further requests after failed ones, with growing pauses, before a sample counts as unreadable."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Longest wait for the answer to one request."""
    parallel: Annotated[int, Field(ge=1)] = 32
    """Requests under way at a time in each process; those of a row are sent together."""
    max_hedges: Annotated[int, Field(ge=0)] = 8
    """Second requests under way at a time for reads slower than 95 % of the recent ones; 0 sends none."""
    cache_dir: Path | None = None
    """A folder on a local disk for blocks of remote shards; the ranks of a node share it."""
    cache_max_bytes: Annotated[int, Field(ge=2**28)] = 100 * 2**30
    """Above it, the blocks that were not read for longest are deleted."""


class ShardReader:
    """Reads ranges of files in stores. Every method may be called by many threads at once."""

    def __init__(self, spec: ReadingSpec) -> None:
        """Raises:
        UserError: The cache folder has other files in it.
        """
        self._counters = Counters(
            "bytes_asked",
            "bytes_delivered",
            "bytes_fetched",
            "bytes_wasted",
            "requests",
            "retries",
            "hedges",
            "cache_hits",
            "cache_misses",
            "cache_errors",
        )
        self._files = _OpenFiles(MAX_OPEN_FILES)
        self._remote = RemoteReader(spec.retries, spec.timeout_s, spec.max_hedges, self._counters)
        self._cache = BlockCache(spec.cache_dir, spec.cache_max_bytes, self._counters) if spec.cache_dir else None

    def read(self, store: Store, path: str, offset: int, size: int, version: str = "") -> bytes:
        """The bytes of a range of a file.

        Args:
            path: Relative to the store.
            version: Of the file's content, such as its checksum: a cached block of another version is not read.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: It cannot be read there, or ends before.
        """
        delivered = 0
        try:
            if store.is_local:
                body = self._read_local(store.path(path), offset, size)
            else:
                body = self._read_remote(store, path, offset, size, version)
            delivered = len(body)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OSError(f"cannot read {size} bytes at byte {offset} of {path} in {store.root}: {error}") from error
        finally:
            self._counters.add(bytes_asked=size, bytes_delivered=delivered)
        return body

    def counters(self) -> dict[str, int]:
        """Totals since the start.

        Bytes asked by the callers, delivered to them, fetched from the stores, and wasted: fetched for nothing, as the
        later answer to a hedged read. A block that is fetched for the cache is not waste, whatever is read of it.
        """
        return self._counters.read()

    def close(self) -> None:
        """Close the local files; one that a thread is reading is closed when it is done."""
        self._files.clear()

    def _read_local(self, path: str, offset: int, size: int) -> bytes:
        file = self._files.get(path)
        body = os.pread(file.descriptor, size, offset)
        num_requests = 1
        while len(body) < size:
            more = os.pread(file.descriptor, size - len(body), offset + len(body))
            if not more:
                raise OSError(f"the file ends at byte {offset + len(body)}")
            body += more
            num_requests += 1
        self._counters.add(bytes_fetched=size, requests=num_requests)
        return body

    def _read_remote(self, store: Store, path: str, offset: int, size: int, version: str) -> bytes:
        request = partial(store.request_range, path)
        if self._cache is None:
            return self._remote.read(request, offset, size, size)
        return self._cache.read(f"{store.root}\n{path}\n{version}", offset, size, partial(self._remote.read, request))


class _OpenFile:
    """A descriptor that is closed when nobody refers to it any more: not while a thread reads from it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class _OpenFiles:
    """The files read last, open."""

    def __init__(self, max_files: int) -> None:
        self._max_files = max_files
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def get(self, path: str) -> _OpenFile:
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                self._files.move_to_end(path)
                return file
        file = _OpenFile(os.open(path, os.O_RDONLY))  # may take long on a network disk: without the lock
        with self._lock:
            self._files[path] = file
            if len(self._files) > self._max_files:
                self._files.popitem(last=False)
        return file

    def clear(self) -> None:
        with self._lock:
            self._files.clear()
