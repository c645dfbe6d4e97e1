"""Object stores as file systems of fsspec, by the Rust clients of obstore.

Ranges are read in the caller's thread: fsspec's way, by its event loop, costs three times the CPU. Addresses and
credentials come from the usual variables of the environment: AWS_…, GOOGLE_…, AZURE_….

Whatever a server does amiss (5xx, a reset, half an answer, silence) is tried again, each part of a large upload on its
own, for two minutes or what the variable GENLIP_STORE_RETRY_S says. Then it is a `StoreError`.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsspec.asyn import AsyncFileSystem, sync
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.fsspec import BufferedFile, FsspecStore
from obstore.store import from_url

from pipeline.errors import EXIT_ENVIRONMENT, StoreError, UserError

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, ObjectStore, RetryConfig

_CLIENT: ClientConfig = {"allow_http": True, "connect_timeout": "10s", "read_timeout": "60s", "timeout": "10m"}
"""Plain http only where the endpoint's address says so. A large table may take minutes, silence may not."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_BACKOFF: BackoffConfig = {
    "init_backoff": timedelta(seconds=_FIRST_PAUSE_S),
    "base": 5,
    "max_backoff": timedelta(seconds=_LONGEST_PAUSE_S),
}
"""Each pause is drawn between the first and `base` times the one before, so that 2 would not make them grow."""
_RETRY_S = 120.0
_RETRY_VARIABLE = "GENLIP_STORE_RETRY_S"
_RETRIES = 1_000
"""Enough for the time to decide."""
_MAX_CLIENTS = 64
_PAGE_FILES = 1000
_unconditional: set[str] = set()
"""Buckets of stores that know no conditional requests."""
_BODY, _SAID = re.compile(r"<\?xml|<Error>"), re.compile("<Message>(.*?)</Message>")
_ERRORS = (BaseError, FileNotFoundError)
_REFUSALS = (PermissionDeniedError, UnauthenticatedError)
_REFUSED = "non-2xx status code"
"""In the text of what a server answered, as against what happened to a connection."""

_T = TypeVar("_T")


@lru_cache(_MAX_CLIENTS)
def _client(url: str, retries: int) -> ObjectStore:
    """The client of a bucket or web server, with its pool of connections."""
    retry_timeout = timedelta(seconds=_retry_s())
    retry: RetryConfig = {"max_retries": retries, "retry_timeout": retry_timeout, "backoff": _BACKOFF}
    try:
        return from_url(url, client_options=_CLIENT, retry_config=retry)
    except BaseError as error:  # of what the environment says of it
        raise _os_error(error, url) from error


def _retry_s() -> float:
    """For how long a request is tried again."""
    text = os.environ.get(_RETRY_VARIABLE, str(_RETRY_S))
    try:
        return max(float(text), 0.0)
    except ValueError as error:
        raise UserError(f"{_RETRY_VARIABLE}={text} in the environment: write a number of seconds") from error


def _os_error(error: Exception, where: str) -> OSError:
    """An error of obstore with what the server said, without the pages of internals."""
    text = str(error).partition("\n\nDebug source")[0]
    said = _SAID.search(text)
    why = " ".join((_BODY.split(text)[0] + said[1] if said else text).split())
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(why)
    if isinstance(error, NotSupportedError):  # a server without ranges
        return io.UnsupportedOperation(why)
    is_refused = isinstance(error, _REFUSALS)
    what = "the storage server refuses access" if is_refused else "the storage server does not do what it is asked"
    next_step = "check the address, the bucket and the credentials in the environment"
    if not is_refused:
        next_step += ", and that the server is up; then run the same command again: what is committed is kept"
    return StoreError(what, where=where, why=why, next_step=next_step, exit_code=EXIT_ENVIRONMENT)


class _Patience:
    """For how long a call is repeated: the client does not, where an answer breaks off, or a conditional upload."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._give_up_at = time.monotonic() + _retry_s()
        self._pause_s = _FIRST_PAUSE_S

    def pause_s(self, error: Exception) -> float:
        """How long to wait before the call is repeated.

        Raises:
            OSError: It is not to be repeated.
        """
        is_broken = "HTTP error" in str(error) and _REFUSED not in str(error)
        is_lost = "NoSuchUpload" in str(error)  # its parts were put together, but the answer did not arrive
        if not (is_broken or is_lost) or time.monotonic() > self._give_up_at:
            raise _os_error(error, self._where) from error
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s


def _insist(where: str, call: Callable[[], _T]) -> _T:
    """The result of a call, made again while connections break."""
    patience = _Patience(where)
    while True:
        try:
            return call()
        except _ERRORS as error:
            pause_s = patience.pause_s(error)
        time.sleep(pause_s)


def _read_range(url: str, key: str, start: int, end: int, retries: int) -> bytes:
    """The bytes from `start` to `end`; fewer where the file ends."""
    if end <= start:
        return b""
    try:
        return _client(url, retries).get_range(key, start=start, end=end).to_bytes()
    except _ERRORS as error:
        if "416 Range Not Satisfiable" in str(error):  # it has no class of its own
            return b""
        raise _os_error(error, f"{url}/{key}") from error


class RangeReader(AsyncFileSystem):  # type: ignore[misc]
    """A file system whose ranges are read by obstore."""

    def _place(self, path: str) -> tuple[str, str] | None:
        """The URL of the client and the key there; None for what only fsspec can read."""
        raise NotImplementedError

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        place = self._place(path)
        if place is None or start is None or end is None:
            return cast(bytes, sync(self.loop, self._cat_file, path, start=start, end=end))
        return _read_range(*place, start, end, _RETRIES)

    def request_range(self, path: str, start: int, end: int) -> bytes:
        """As `cat_file`, by one request, for callers that themselves try again."""
        place = self._place(path)
        if place is None:
            return self.cat_file(path, start, end)
        return _read_range(*place, start, end, 0)


class _File(BufferedFile):  # type: ignore[misc]
    """An object as a stream."""

    def read(self, length: int = -1) -> bytes:
        try:
            return cast(bytes, super().read(length))
        except (BaseError, OSError) as error:  # its readers raise both
            raise _os_error(error, self.fs._url(self.path)) from error


class ObjectFileSystem(RangeReader, FsspecStore):  # type: ignore[misc]
    """What the three kinds of object stores have in common."""

    _cat_ranges = AsyncFileSystem._cat_ranges  # obstore's raises the errors that are to be returned

    def _construct_store(self, bucket: str) -> ObjectStore:
        return _client(f"{self.protocol}://{bucket}", _RETRIES)

    def _place(self, path: str) -> tuple[str, str]:
        bucket, _, key = path.removeprefix(f"{self.protocol}://").partition("/")
        return f"{self.protocol}://{bucket}", key

    def _url(self, path: str) -> str:
        return "/".join(self._place(path))

    async def _insist(self, path: str, call: Callable[[], Awaitable[_T]]) -> _T:
        """As the function of this name."""
        patience = _Patience(self._url(path))
        while True:
            try:
                return await call()
            except _ERRORS as error:
                pause_s = patience.pause_s(error)
            await asyncio.sleep(pause_s)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        return cast(bytes, await self._insist(path, partial(super()._cat_file, path, start, end)))

    async def _info(self, path: str, **_kwargs: Any) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await self._insist(path, partial(super()._info, path))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no such file: {path}") from error
        return info | {"name": self._strip_protocol(path)}  # obstore's has no bucket

    def modified(self, path: str) -> datetime:
        return cast(datetime, self.info(path)["last_modified"])

    async def _ls(self, path: str, detail: bool = True, **_kwargs: Any) -> list[Any]:
        return cast(list[Any], await self._insist(path, partial(super()._ls, path, detail)))

    def list_files(self, path: str) -> Iterator[tuple[str, Any]]:
        """Name and `size`, `e_tag`, `last_modified` of each file of a folder, a page of the server at a time."""
        url, key = self._place(path)
        patience, last = _Patience(self._url(path)), ""
        while True:
            try:
                for page in _client(url, _RETRIES).list(key, offset=last or None, chunk_size=_PAGE_FILES):
                    for info in page:
                        name = info["path"].removeprefix(f"{key}/")
                        if info["path"] > last and "/" not in name:  # in their order; some servers know no offset
                            yield name, info
                    patience, last = _Patience(self._url(path)), page[-1]["path"]
                return
            except _ERRORS as error:
                pause_s = patience.pause_s(error)
            time.sleep(pause_s)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":  # an absent file would leave half an object of obstore's, which complains when it is deleted
            kwargs["size"] = self.info(path)["size"]
        return _File(self, path, mode, **kwargs)

    async def _put_file(self, lpath: str, rpath: str, **_kwargs: Any) -> None:
        await self._insist(rpath, partial(super()._put_file, lpath, rpath))

    def create(self, path: str, body: bytes) -> bool:
        """Put an object where there is none. False where there is one: it may be ours, if the answer to a try was lost.

        Where the store knows no conditional requests, it is looked up first: two writers at the same moment may then
        both put theirs, and the last one's stays.
        """
        return _insist(self._url(path), lambda: self._create(path, body))

    def _create(self, path: str, body: bytes) -> bool:
        url, key = self._place(path)
        for retries in (0, _RETRIES):  # at first none: a client would repeat for minutes what a store does not know
            if url in _unconditional:
                break
            try:
                _client(url, retries).put(key, body, mode="create", use_multipart=False)
                return True
            except AlreadyExistsError:
                return False
            except GenericError as error:
                if "501 Not Implemented" in str(error):
                    _unconditional.add(url)
                elif retries:
                    raise
        if self.exists(path):
            return False
        _client(url, _RETRIES).put(key, body, use_multipart=False)
        return True

    async def _rm(self, path: str, recursive: bool = False, **_kwargs: Any) -> None:
        await self._insist(path, partial(self._remove, path, recursive))

    async def _remove(self, path: str, recursive: bool) -> None:
        url, key = self._place(path)
        client = _client(url, _RETRIES)
        inside = [found["path"] async for batch in client.list(key) for found in batch] if recursive else []
        await client.delete_async(inside or key)


class S3FileSystem(ObjectFileSystem):
    """Amazon S3 and what speaks its protocol."""

    protocol = "s3"


class GoogleFileSystem(ObjectFileSystem):
    """Google Cloud Storage."""

    protocol = "gs"


class AzureFileSystem(ObjectFileSystem):
    """Azure Blob Storage."""

    protocol = "az"
