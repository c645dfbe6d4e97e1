"""A local cache of blocks of remote files, which the processes of a node share without talking to each other.

A block appears by an atomic rename and ends in its checksum; a block that is missing, short or damaged is fetched
again. The folder carries a marker file: without it nothing in a folder is ever deleted or added to.
"""

import errno
import hashlib
import os
import re
import struct
import time
import uuid
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.data.counters import Counters

MARKER = "genlip-cache"
BLOCK_BYTES = 8 * 2**20
"""Large enough that an object store's waiting time is a small part of a request."""
_TRAILER = struct.Struct("<8sQI")
_MAGIC = b"genlip-1"
_OUR_FILES = re.compile(r"[0-9a-f]{32}-\d+(\.[0-9a-f]{32}\.tmp)?")
_TOUCH_S = 1.0
"""A block's time of last use is written at most this often."""
_MAX_VERIFIED = 100_000
_NUM_FETCH_LOCKS = 256
_PRUNE_SHARE, _SLACK_SHARE = 1 / 64, 1 / 8
"""Each process prunes when it has added a 64th of the limit, down to an eighth below: room for eight at once."""

Fetch = Callable[[int, int, int], bytes]
"""(offset, size, needed) -> the range's bytes; where the file ends, at least the needed first ones."""


class BlockCache:
    """Blocks of files in a folder; the ones not used for longest are deleted first."""

    def __init__(self, folder: Path, max_bytes: int, counters: Counters, block_bytes: int = BLOCK_BYTES) -> None:
        """Args:
            max_bytes: Of all blocks together.
            counters: Of cache_hits, cache_misses and cache_errors (damaged blocks, failed writes).

        Raises:
            UserError: The folder has other files in it, or cannot be made.
        """
        _claim(folder)
        self._folder = folder
        self._max_bytes = max_bytes
        self._block_bytes = block_bytes
        self._counters = counters
        self._verified: dict[str, tuple[int, int]] = {}
        self._bytes_added = 0
        self._fetch_locks = [Lock() for _ in range(_NUM_FETCH_LOCKS)]

    def read(self, file: str, offset: int, size: int, fetch: Fetch) -> bytes:
        """A range of a file, from its blocks; blocks that are not here are fetched whole.

        Args:
            file: Stands for one content: two files, or two versions of one, need different words.
        """
        digest = hashlib.sha256(file.encode()).hexdigest()[:32]
        parts = []
        for block in range(offset // self._block_bytes, -(-(offset + size) // self._block_bytes)):
            begin = block * self._block_bytes
            start, stop = max(offset - begin, 0), min(offset + size - begin, self._block_bytes)
            parts.append(self._read_block(f"{digest}-{block}", begin, start, stop, fetch))
        return b"".join(parts)

    def _read_block(self, name: str, begin: int, start: int, stop: int, fetch: Fetch) -> bytes:
        body = self._find(name, start, stop)
        if body is None:
            with self._fetch_locks[hash(name) % _NUM_FETCH_LOCKS]:  # the other threads wait for one fetch
                body = self._find(name, start, stop)
                if body is None:
                    self._counters.add(cache_misses=1)
                    if not self._is_cache():
                        self._counters.add(cache_errors=1)
                        return fetch(begin + start, stop - start, stop - start)
                    whole = fetch(begin, self._block_bytes, stop)
                    self._add(name, whole)
                    return whole[start:stop]
        self._counters.add(cache_hits=1)
        return body

    def _find(self, name: str, start: int, stop: int) -> bytes | None:
        """A part of a block; None where the block is not here, or not that far."""
        try:
            descriptor = os.open(f"{self._folder}/{name}", os.O_RDONLY)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if self._verified.get(name) != (status.st_ino, status.st_mtime_ns):
                self._verify(name, descriptor, status)
            if stop > status.st_size - _TRAILER.size:
                return None
            now = time.time()
            if now - status.st_atime > _TOUCH_S:
                os.utime(descriptor, ns=(int(now * 1e9), status.st_mtime_ns))
            return os.pread(descriptor, stop - start, start)
        except OSError:
            self._counters.add(cache_errors=1)
            self._delete(name)
            return None
        finally:
            os.close(descriptor)

    def _verify(self, name: str, descriptor: int, status: os.stat_result) -> None:
        """Compare a block with its checksum, once for each file.

        Raises:
            OSError: It is damaged.
        """
        content = os.pread(descriptor, status.st_size, 0)
        body = memoryview(content)[: -_TRAILER.size]
        if content[len(body) :] != _TRAILER.pack(_MAGIC, len(body), zlib.crc32(body)):
            raise OSError("a damaged block")
        if len(self._verified) >= _MAX_VERIFIED:
            self._verified.clear()
        self._verified[name] = (status.st_ino, status.st_mtime_ns)

    def _add(self, name: str, body: bytes) -> None:
        """Keep a block. A disk that is full or fails costs the block, not the run."""
        temporary = self._folder / f"{name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("wb") as stream:
                stream.write(body)
                stream.write(_TRAILER.pack(_MAGIC, len(body), zlib.crc32(body)))
            temporary.rename(self._folder / name)
            self._bytes_added += len(body)
            if self._bytes_added > self._max_bytes * _PRUNE_SHARE:
                self._bytes_added = 0
                self._prune()
        except OSError as error:
            self._counters.add(cache_errors=1)
            with suppress(OSError):
                temporary.unlink()
            with suppress(OSError):
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self._prune(is_disk_full=True)

    def _prune(self, is_disk_full: bool = False) -> None:
        """Delete the blocks not used for longest until there is room again, on a full disk whatever the limit says."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # Another process may delete or rename it meanwhile.
                with suppress(FileNotFoundError):
                    if _OUR_FILES.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_atime, status.st_size, entry.name))
        num_bytes = sum(size for _, size, _ in found)
        limit = min(num_bytes, self._max_bytes) if is_disk_full else self._max_bytes
        excess = num_bytes - limit * (1 - _SLACK_SHARE)
        for _, size, name in sorted(found):
            if excess <= 0:
                return
            self._delete(name)
            excess -= size

    def _delete(self, name: str) -> None:
        if self._is_cache():
            with suppress(OSError):  # another process was first, or it is not allowed
                os.unlink(self._folder / name)

    def _is_cache(self) -> bool:
        return (self._folder / MARKER).exists()


def _claim(folder: Path) -> None:
    """Make a folder a cache, if it is empty or not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = os.listdir(folder)
        if not names:
            text = "A cache of genlip: blocks of remote shards. Delete the whole folder when no run uses it.\n"
            (folder / MARKER).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            "the cache folder cannot be made",
            where=str(folder),
            why=error.strerror or str(error),
            next_step="choose another with --set train.reading.cache_dir=FOLDER",
            exit_code=EXIT_ENVIRONMENT,
        ) from error
    if names and MARKER not in names:
        raise UserError(
            "the cache folder has other files in it; nothing was touched",
            where=str(folder),
            why=f"it has no {MARKER} file, so it is not a cache",
            next_step="choose an empty folder with --set train.reading.cache_dir=FOLDER",
        )
