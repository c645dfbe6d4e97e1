"""Files that others wrote, where they lie: tars, and tables of images row group by row group."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import fsspec

from pipeline.errors import UserError
from pipeline.file_state import file_state
from pipeline.row_groups import TableColumns, group_path, group_sizes
from pipeline.store import Store, open_fs

_NUM_THREADS = 16


@dataclass(frozen=True)
class ForeignShard:
    """A tar, or a row group of a table."""

    path: str
    """Absolute, or a URL; of a row group with its number (`pipeline.row_groups.group_path`)."""
    num_bytes: int
    fingerprint: str
    """Of the file: `pipeline.file_state.file_state`."""


def list_tars(source: str, store: Store) -> list[ForeignShard]:
    """The tars of a folder, a glob or a URL, by name; a store's own files are none of them.

    Raises:
        UserError: There is none.
    """
    fs, path = open_fs(source)
    found = {name: info for name, info in _find(fs, path, ".tar", store).items() if not name.endswith(".parquet")}
    if not found:
        next_step = "check the path: a folder with *.tar, a glob in quotes, or the URL of a tar; of tables *.parquet"
        raise UserError("no tars here", where=source, next_step=next_step)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(partial(_tar, fs, found), sorted(found)))


def _tar(fs: fsspec.AbstractFileSystem, found: dict[str, dict[str, Any]], name: str) -> ForeignShard:
    return ForeignShard(absolute_path(fs, name), *file_state(fs, name, found[name]))


def list_row_groups(source: str, store: Store, columns: TableColumns) -> list[ForeignShard]:
    """The row groups of a parquet file, or of those of a glob or a folder, by name and number.

    Args:
        source: where the tables are.
        store: whose own files are none of them.
        columns: those of images and captions.

    Raises:
        UserError: There is no table; one lacks a column or has too large a row group.
    """
    fs, path = open_fs(source)
    found = _find(fs, path, ".parquet", store)
    if not found:
        next_step = "check the path: a parquet file, or several as a glob in quotes"
        raise UserError("no tables here", where=source, next_step=next_step)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        of_files = threads.map(partial(_groups, fs, found, columns), sorted(found))
        return [group for groups in of_files for group in groups]


def _groups(
    fs: fsspec.AbstractFileSystem, found: dict[str, dict[str, Any]], columns: TableColumns, name: str
) -> list[ForeignShard]:
    path, (_, fingerprint) = absolute_path(fs, name), file_state(fs, name, found[name])
    with fs.open(name, "rb") as stream:
        sizes = group_sizes(cast(BinaryIO, stream), columns, path)
    return [ForeignShard(group_path(path, number), num_bytes, fingerprint) for number, num_bytes in enumerate(sizes)]


def _find(fs: fsspec.AbstractFileSystem, path: str, suffix: str, store: Store) -> dict[str, dict[str, Any]]:
    """Files with what the file system says of them; of a folder those with the suffix."""
    if any(mark in path for mark in "*?["):
        found = fs.glob(path, detail=True)
    elif not fs.exists(path):
        return {}
    elif fs.isdir(path):
        found = {name: info for name, info in fs.find(path, detail=True).items() if _is_visible(name, path, suffix)}
    else:
        found = {path: fs.info(path)}
    own = f"{absolute_path(*open_fs(store.root))}/"
    files = {name: info for name, info in found.items() if info["type"] != "directory"}
    return {name: info for name, info in files.items() if not absolute_path(fs, name).startswith(own)}


def _is_visible(name: str, folder: str, suffix: str) -> bool:
    """Names with a leading dot or underscore are others' notes."""
    parts = name.removeprefix(folder).strip("/").split("/")
    return name.endswith(suffix) and not any(part.startswith((".", "_")) for part in parts)


def absolute_path(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A path as any process can open it."""
    is_local = isinstance(fs, fsspec.implementations.local.LocalFileSystem)
    return (path if is_local else str(fs.unstrip_protocol(path))).rstrip("/")
