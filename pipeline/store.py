"""A store: a folder at any fsspec URL where data is written first and its commit record last.

What has no commit record does not exist, so a kill at any moment leaves nothing half there. Layout: STORE.md.
"""

import errno
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import EXIT_ENVIRONMENT, StoreError, UserError
from pipeline.file_state import file_state
from pipeline.listing import list_files

FORMAT_VERSION = 2
STORE_FILE = "store.json"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What a file system without hard links says."""

for _protocol, _class in {
    "s3": "object_store.S3FileSystem",
    "gs": "object_store.GoogleFileSystem",
    "az": "object_store.AzureFileSystem",
    "http": "web_files.WebFileSystem",
    "https": "web_files.WebFileSystem",
}.items():  # imported when such a URL is opened
    fsspec.register_implementation(_protocol, f"pipeline.{_class}", clobber=True)


def open_fs(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path inside it.

    Raises:
        UserError: fsspec knows no such protocol, or lacks the package for it.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        next_step = "install the package for it, or use a folder or another URL"
        raise UserError("no file system for this URL", where=url, why=str(error), next_step=next_step) from error
    return fs, str(path)


@dataclass(frozen=True)
class Store:
    """A store's files by their path relative to its root."""

    root: str
    _fs: fsspec.AbstractFileSystem = field(init=False, repr=False, compare=False)
    _base: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fs, base = open_fs(self.root)
        object.__setattr__(self, "_fs", fs)
        object.__setattr__(self, "_base", base.rstrip("/"))

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.root,)

    def path(self, name: str) -> str:
        """The full path of a file, for messages and for other readers."""
        store, name = self.locate(name)
        return f"{store._base}/{name}"

    def locate(self, name: str) -> tuple["Store", str]:
        """The store that holds a file, and its name there.

        An absolute path or a URL names a file of others, read where it lies: its folder is then the store.
        """
        if not name.startswith("/") and "://" not in name:
            return self, name
        folder, _, base = name.rpartition("/")
        return _store_at(folder or "/"), base

    def _own_path(self, name: str) -> str:
        """The path of a file to write or delete, which is never one of others."""
        store, _ = self.locate(name)
        if store is not self:
            raise ValueError(f"not a file of this store: {name}")
        return self.path(name)

    @property
    def is_local(self) -> bool:
        """Whether the files can be opened by their path on this machine."""
        return isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)

    def exists(self, name: str) -> bool:
        store, name = self.locate(name)
        return bool(store._fs.exists(store.path(name)))

    def modified_unix_s(self, name: str) -> float:
        """When a file was written, in seconds since 1970."""
        return float(self._fs.modified(self.path(name)).timestamp())

    def names(self, folder: str, suffix: str) -> list[str]:
        """Sorted names of the files in a folder; an absent folder has none."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self.path(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (str(path).rsplit("/", 1)[-1] for path in found)
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def iter_files(self, folder: str, suffix: str) -> Iterator[str]:
        """Names of the files in a folder without folders, in no order and page by page: for folders of a million."""
        return (name for name, _ in list_files(self._fs, self.path(folder), suffix, with_info=False))

    def iter_states(self, folder: str, suffix: str) -> Iterator[tuple[str, str]]:
        """The same names, each with a fingerprint of the file's size and version (`pipeline.file_state`)."""
        for name, info in list_files(self._fs, self.path(folder), suffix, with_info=True):
            yield name, file_state(self._fs, self.path(f"{folder}/{name}"), info)[1]

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A stream whose content appears under `name` when the block ends well, and not at all otherwise."""
        final = self._own_path(name)
        if not self.is_local:
            # Object stores show an object when its upload is complete. A remote stream is no use here: closing it,
            # which an error does as well, completes the upload of what was written so far.
            with tempfile.NamedTemporaryFile() as stream:
                yield cast(BinaryIO, stream)
                stream.flush()
                try:
                    self._fs.put_file(stream.name, final)
                except OSError as error:
                    raise storage_error(error, final) from error
            return
        with _beside(final) as temporary:
            with open(temporary, "wb") as stream:
                yield stream
                _sync(stream)
            os.replace(temporary, final)

    def create(self, name: str, body: bytes) -> bool:
        """Write a file that is not there yet; False where there is one, which stays. Of several writers one wins.

        Where a file system can neither link nor put on condition, it is looked up first: two writers at the same
        moment may then both believe that they won, and the last one's file stays.
        """
        final = self._own_path(name)
        if self.is_local:
            with _beside(final) as temporary:
                with open(temporary, "wb") as stream:
                    stream.write(body)
                    _sync(stream)
                return _publish_new(temporary, final)
        if hasattr(self._fs, "create"):
            try:
                return bool(self._fs.create(final, body))
            except OSError as error:
                raise storage_error(error, final) from error
        if self.exists(name):
            return False
        self.write(name, body)
        return True

    def write(self, name: str, body: bytes) -> None:
        with self.writing(name) as stream:
            stream.write(body)

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """A stream of a file's content."""
        store, name = self.locate(name)
        with store._fs.open(store.path(name), "rb") as stream:
            yield cast(BinaryIO, stream)

    def read(self, name: str) -> bytes:
        store, name = self.locate(name)
        return cast(bytes, store._fs.cat_file(store.path(name)))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends."""
        store, name = self.locate(name)
        return cast(bytes, store._fs.cat_file(store.path(name), start=offset, end=offset + size))

    def request_range(self, name: str, offset: int, size: int) -> bytes:
        """As `read_range`, but what fails is not tried again here: for callers that do so."""
        store, name = self.locate(name)
        request = getattr(store._fs, "request_range", store._fs.cat_file)
        return cast(bytes, request(store.path(name), offset, offset + size))

    def read_ranges(self, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """The bytes at each (offset, size), opening the file once."""
        bodies = []
        with self.reading(name) as stream:
            for offset, size in ranges:
                stream.seek(offset)
                bodies.append(stream.read(size))
        return bodies

    def write_table(self, name: str, table: pa.Table) -> None:
        with self.writing(name) as stream:
            pq.write_table(table, stream)

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        return pq.read_table(io.BytesIO(self.read(name)), columns=columns)

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing where there is none."""
        path = self._own_path(name)
        if self.exists(name):
            with suppress(FileNotFoundError):  # another may delete it too
                self._fs.rm(path, recursive=True)

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, json.dumps(content, indent=1, sort_keys=True).encode())

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))


@contextmanager
def _beside(final: str) -> Iterator[str]:
    """The path of a temporary file in the folder of another one; it is gone when the block ends."""
    folder, base = os.path.split(final)
    temporary = f"{folder}/.{base}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        os.makedirs(folder, exist_ok=True)
        yield temporary
    except OSError as error:
        raise storage_error(error, final) from error
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _publish_new(temporary: str, final: str) -> bool:
    """Give a file its name where no other has it; of several links to one name, a file system makes one."""
    try:
        os.link(temporary, final)
        return True
    except FileExistsError:
        # A network file system may repeat a request whose answer was lost, and then refuses what it has done.
        return os.path.samefile(temporary, final)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    if os.path.exists(final):
        return False
    os.replace(temporary, final)
    return True


@lru_cache(maxsize=256)
def _store_at(root: str) -> Store:
    return Store(root)


def storage_error(error: OSError, path: str) -> UserError:
    """The user's words for what the disk said."""
    if isinstance(error, StoreError):
        return error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            "no space left",
            where=path,
            next_step="free some space and run the same command again: what is committed is kept",
            exit_code=EXIT_ENVIRONMENT,
        )
    return UserError(
        "the store cannot be written",
        where=path,
        why=error.strerror or str(error),
        next_step="check the path and its permissions, or choose another with --set store=PATH",
        exit_code=EXIT_ENVIRONMENT,
    )


def open_store(root: str, content: dict[str, Any]) -> Store:
    """Open the store of these recipe sections, or begin it; see `check_store`."""
    store = check_store(root, content)
    begin_store(store, content)
    return store


def check_store(root: str, content: dict[str, Any]) -> Store:
    """The store, which may not exist yet.

    Raises:
        UserError: It was begun by another recipe (the differing keys are named), or cannot be read.
    """
    store = Store(root)
    try:
        if not store.exists(STORE_FILE):
            return store
        known = store.read_json(STORE_FILE)
    except StoreError:
        raise
    except OSError as error:
        raise UserError(
            "the store cannot be read",
            where=root,
            why=error.strerror or str(error),
            next_step="check the path and its permissions",
            exit_code=EXIT_ENVIRONMENT,
        ) from error
    if known["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"the store has format {known['format_version']}, this version reads {FORMAT_VERSION}",
            where=store.path(STORE_FILE),
            next_step="use the version of genlip that wrote it, or another store with --set store=PATH",
        )
    refuse_changes(known["recipe"], content, store.path(STORE_FILE), "choose another store with --set store=PATH")
    return store


def begin_store(store: Store, content: dict[str, Any]) -> None:
    """Write down which recipe sections a store is of, where nothing is written yet."""
    if not store.exists(STORE_FILE):
        store.write_json(STORE_FILE, {"format_version": FORMAT_VERSION, "recipe": content})


def refuse_changes(
    known: dict[str, Any], wanted: dict[str, Any], where: str, alternative: str, allowed: Sequence[str] = ()
) -> list[str]:
    """Raise a UserError that names the keys in which a recipe differs from the one that made `where`.

    Args:
        known: what made it.
        wanted: what is asked now.
        where: for the message.
        alternative: what else can be done than to restore the values.
        allowed: keys that may differ, with all below them: `train.optim` for `train.optim.lr`.

    Returns:
        The differences that were allowed.
    """
    differing = dict(sorted(_differences(known, wanted)))
    waived = [key for key in differing if any(f"{key}.".startswith(f"{one}.") for one in allowed)]
    if len(waived) < len(differing):
        raise UserError(
            "made by another recipe; nothing was touched",
            where=where,
            why="; ".join(text for key, text in differing.items() if key not in waived),
            next_step=f"restore these values, or {alternative}",
        )
    return [differing[key] for key in waived]


def _differences(known: Any, wanted: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Each key that differs, with the difference in words."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in known.keys() | wanted.keys():
            yield from _differences(known.get(key), wanted.get(key), f"{at}.{key}" if at else str(key))
    elif known != wanted:
        yield at, f"{at} was {known!r}, is {wanted!r}"
