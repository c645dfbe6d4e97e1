"""The files of a folder as they are listed, one after the other: a million of them are never in memory together."""

import os
from collections.abc import Iterator
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

Info = dict[str, Any]


def list_files(fs: fsspec.AbstractFileSystem, path: str, suffix: str, with_info: bool) -> Iterator[tuple[str, Info]]:
    """Name and information of each file of a folder that has files only, in no order; none where there is no folder.

    Args:
        fs: as `pipeline.store.open_fs` gives it.
        path: of the folder there.
        suffix: of the files' names. Those with a leading dot are not finished, and are left out.
        with_info: whether size and version are wanted. On a disk that is one more call for each file.
    """
    try:
        found = _on_disk(fs, path, suffix, with_info) if isinstance(fs, LocalFileSystem) else _listed(fs, path)
        for name, info in found:
            if name.endswith(suffix) and not name.startswith("."):
                yield name, info
    except (FileNotFoundError, NotADirectoryError):
        return


def _on_disk(fs: fsspec.AbstractFileSystem, path: str, suffix: str, with_info: bool) -> Iterator[tuple[str, Info]]:
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                yield entry.name, fs.info(entry) if with_info and entry.name.endswith(suffix) else {}
            except FileNotFoundError:  # since it was listed
                continue


def _listed(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[str, Info]]:
    if hasattr(fs, "list_files"):
        return cast(Iterator[tuple[str, Info]], fs.list_files(path))
    fs.invalidate_cache()
    return ((str(info["name"]).rpartition("/")[2], info) for info in fs.ls(path, detail=True))
