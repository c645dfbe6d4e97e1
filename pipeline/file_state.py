"""Whether a file of others is as it was, from what its file system says; no content is read."""

import hashlib
from typing import Any

import fsspec

from pipeline.errors import UserError

_VERSIONS = ("ETag", "etag", "e_tag", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems say of a file's version, the most telling first."""


def file_state(fs: fsspec.AbstractFileSystem, path: str, info: dict[str, Any] | None = None) -> tuple[int, str]:
    """A file's size in bytes, and its fingerprint: `stat:` and a hash of size and version (ETag or time of change).

    Args:
        fs: as `pipeline.store.open_fs` gives it.
        path: of the file there.
        info: what a listing says of it; asked for where that is not enough.

    Raises:
        UserError: The size is unknown.
        OSError: There is no such file.
    """
    if info is None or info.get("size") is None or info.keys().isdisjoint(_VERSIONS):
        info = dict(fs.info(path))
    if info.get("size") is None:
        next_step = "copy the file to a disk or an object store, and index that"
        raise UserError("the server does not say how large the file is", where=path, next_step=next_step)
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    num_bytes = int(info["size"])
    digest = hashlib.sha256(f"{num_bytes} {version}".encode()).hexdigest()[:16]
    return num_bytes, f"stat:{digest}"
