"""Object stores as file systems of fsspec, by the Rust clients of obstore.

Ranges are read in the caller's thread: fsspec's way, by its event loop, costs three times the CPU. Addresses and
credentials come from the usual variables of the environment: AWS_…, GOOGLE_…, AZURE_….
"""

from __future__ import annotations

import functools
import io
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from fsspec.asyn import AsyncFileSystem, sync
from obstore.exceptions import BaseError, NotSupportedError, PermissionDeniedError, UnauthenticatedError
from obstore.fsspec import FsspecStore
from obstore.store import from_url

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

_CLIENT: ClientConfig = {"allow_http": True, "connect_timeout": "10s", "read_timeout": "60s", "timeout": "10m"}
"""Plain http only where the endpoint's address says so. A large table may take minutes, silence may not."""
_RETRIES = 10
_MAX_CLIENTS = 64
_SAID = re.compile("<Message>(.*?)</Message>")
_KINDS: dict[type[BaseException], type[OSError]] = {
    FileNotFoundError: FileNotFoundError,
    NotSupportedError: io.UnsupportedOperation,  # a server without ranges
    PermissionDeniedError: PermissionError,
    UnauthenticatedError: PermissionError,
}


@functools.lru_cache(_MAX_CLIENTS)
def _client(url: str, retries: int) -> ObjectStore:
    """The client of a bucket or web server, with its pool of connections."""
    return from_url(url, client_options=_CLIENT, retry_config={"max_retries": retries})


def _os_error(error: Exception) -> OSError:
    """An error of obstore with what the server said, without the pages of internals."""
    text = str(error).partition("\n\nDebug source")[0]
    said = _SAID.search(text)
    return _KINDS.get(type(error), OSError)(text.partition("<?xml")[0] + said[1] if said else text)


def _read_range(client: ObjectStore, key: str, start: int, end: int) -> bytes:
    """The bytes from `start` to `end`; fewer where the file ends."""
    if end <= start:
        return b""
    try:
        return client.get_range(key, start=start, end=end).to_bytes()
    except (BaseError, FileNotFoundError) as error:
        if "416 Range Not Satisfiable" in str(error):  # it has no class of its own
            return b""
        raise _os_error(error) from error


class RangeReader(AsyncFileSystem):  # type: ignore[misc]
    """A file system whose ranges are read by obstore."""

    def _place(self, path: str) -> tuple[str, str] | None:
        """The URL of the client and the key there; None for what only fsspec can read."""
        raise NotImplementedError

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        place = self._place(path)
        if place is None or start is None or end is None:
            return cast(bytes, sync(self.loop, self._cat_file, path, start=start, end=end))
        url, key = place
        return _read_range(_client(url, _RETRIES), key, start, end)

    def request_range(self, path: str, start: int, end: int) -> bytes:
        """As `cat_file`, by one request, for callers that themselves try again."""
        place = self._place(path)
        if place is None:
            return self.cat_file(path, start, end)
        url, key = place
        return _read_range(_client(url, 0), key, start, end)


class ObjectFileSystem(RangeReader, FsspecStore):  # type: ignore[misc]
    """What the three kinds of object stores have in common."""

    _cat_ranges = AsyncFileSystem._cat_ranges  # obstore's raises the errors that are to be returned

    def _construct_store(self, bucket: str) -> ObjectStore:
        return _client(f"{self.protocol}://{bucket}", _RETRIES)

    def _place(self, path: str) -> tuple[str, str]:
        bucket, _, key = path.removeprefix(f"{self.protocol}://").partition("/")
        return f"{self.protocol}://{bucket}", key

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        try:
            return cast(bytes, await super()._cat_file(path, start, end))
        except (BaseError, FileNotFoundError) as error:
            raise _os_error(error) from error

    async def _info(self, path: str, **_kwargs: Any) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await super()._info(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no such file: {path}") from error
        except BaseError as error:
            raise _os_error(error) from error
        return info | {"name": self._strip_protocol(path)}  # obstore's has no bucket

    def modified(self, path: str) -> datetime:
        return cast(datetime, self.info(path)["last_modified"])

    async def _ls(self, path: str, detail: bool = True, **_kwargs: Any) -> list[Any]:
        try:
            return cast(list[Any], await super()._ls(path, detail))
        except BaseError as error:
            raise _os_error(error) from error

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":  # an absent file would leave half an object of obstore's, which complains when it is deleted
            kwargs["size"] = self.info(path)["size"]
        return super()._open(path, mode, **kwargs)

    async def _put_file(self, lpath: str, rpath: str, **_kwargs: Any) -> None:
        try:
            await super()._put_file(lpath, rpath)
        except (BaseError, FileNotFoundError) as error:
            raise _os_error(error) from error

    async def _rm(self, path: str, recursive: bool = False, **_kwargs: Any) -> None:
        url, key = self._place(path)
        client = _client(url, _RETRIES)
        try:
            inside = [found["path"] async for batch in client.list(key) for found in batch] if recursive else []
            await client.delete_async(inside or key)
        except (BaseError, FileNotFoundError) as error:
            raise _os_error(error) from error


class S3FileSystem(ObjectFileSystem):
    """Amazon S3 and what speaks its protocol."""

    protocol = "s3"


class GoogleFileSystem(ObjectFileSystem):
    """Google Cloud Storage."""

    protocol = "gs"


class AzureFileSystem(ObjectFileSystem):
    """Azure Blob Storage."""

    protocol = "az"
