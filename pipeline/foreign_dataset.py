"""A dataset of tars that others wrote: the same index as of our own shards, with each tar's path or URL in it.

A tar keeps its number for good: new ones are numbered after those that are known, changed ones are indexed again, and
a tar that is gone is an error, since runs may have begun on it.
"""

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import EXIT_FAILED_UNITS, UserError
from pipeline.foreign import CUT_SHORT, NOT_A_TAR, index_tar
from pipeline.sharding.write import REFUSED_SCHEMA, read_commit, shard_stem, write_commit
from pipeline.shards import INDEX_SCHEMA
from pipeline.store import Store, open_fs, refuse_changes

_CAPTION = re.compile(r"txt|json:.+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems say of a file's version, the most telling first."""
_NUM_THREADS = 16
_GROUP_SHARDS = 64
"""Shards in a row group of the index: what its writer holds in memory."""
_TARS_SCHEMA = pa.schema([("path", pa.string()), ("num_bytes", pa.int64()), ("fingerprint", pa.string())])


@dataclass(frozen=True)
class ForeignTar:
    """A tar where it lies."""

    path: str
    """Absolute, or a URL."""
    num_bytes: int
    fingerprint: str
    """`stat:` and a hash of the size and the file system's version (ETag or time of change); no content is read."""


@dataclass(frozen=True)
class IndexJob:
    """One tar to index."""

    dataset: str
    number: int
    tar: ForeignTar
    caption: str

    @property
    def stem(self) -> str:
        return shard_stem(self.dataset, self.number)


@dataclass(frozen=True)
class ForeignSummary:
    """What an index holds."""

    num_samples: int
    num_shards: int
    num_bytes: int
    left_out: Counter[str]
    """Samples by reason."""
    cut_short: dict[str, int]
    """Tars that end too early, with the byte up to which they were read."""
    not_tars: list[str]


def list_tars(source: str, store: Store) -> list[ForeignTar]:
    """The tars of a folder, a glob or a URL, by name; a store's own files are none of them.

    Raises:
        UserError: There is none.
    """
    fs, path = open_fs(source)
    own = f"{_absolute(*open_fs(store.root))}/"
    found = {name: info for name, info in _find(fs, path).items() if not _absolute(fs, name).startswith(own)}
    if not found:
        raise _no_tars(fs, source, path)
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        return list(threads.map(lambda name: _describe(fs, name, found[name]), sorted(found)))


def _find(fs: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """Files with what the file system says of them."""
    if any(mark in path for mark in "*?["):
        found = fs.glob(path, detail=True)
    elif not fs.exists(path):
        return {}
    elif fs.isdir(path):
        found = {name: info for name, info in fs.find(path, detail=True).items() if _is_visible_tar(name, path)}
    else:
        found = {path: fs.info(path)}
    return {name: info for name, info in found.items() if info["type"] != "directory" and not name.endswith(".parquet")}


def _is_visible_tar(name: str, folder: str) -> bool:
    """Names with a leading dot or underscore are others' notes."""
    parts = name.removeprefix(folder).strip("/").split("/")
    return name.endswith(".tar") and not any(part.startswith((".", "_")) for part in parts)


def _describe(fs: fsspec.AbstractFileSystem, name: str, info: dict[str, Any]) -> ForeignTar:
    if info.get("size") is None or info.keys().isdisjoint(_VERSIONS):
        info = fs.info(name)
    if info.get("size") is None:
        next_step = "copy the tar to a disk or an object store, and index that"
        raise UserError("the server does not say how large the tar is", where=name, next_step=next_step)
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    digest = hashlib.sha256(f"{info['size']} {version}".encode()).hexdigest()[:16]
    return ForeignTar(_absolute(fs, name), int(info["size"]), f"stat:{digest}")


def _absolute(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A path as any process can open it."""
    is_local = isinstance(fs, fsspec.implementations.local.LocalFileSystem)
    return (path if is_local else str(fs.unstrip_protocol(path))).rstrip("/")


def _no_tars(fs: fsspec.AbstractFileSystem, source: str, path: str) -> UserError:
    is_table = path.endswith(".parquet")
    if is_table or (fs.isdir(path) and any(name.endswith(".parquet") for name in fs.find(path))):
        return UserError(
            "tables of images are not read where they lie",
            where=source,
            why="a sample of a parquet file cannot be fetched by one ranged read",
            next_step="convert them with ingest.source.format: images_parquet in a recipe: genlip ingest RECIPE",
        )
    next_step = "check the path: a folder with *.tar, a glob in quotes, or the URL of a tar"
    return UserError("no tars here", where=source, next_step=next_step)


def begin_index(store: Store, dataset: str, source: str, caption: str, tars: Sequence[ForeignTar]) -> list[IndexJob]:
    """Write down what the dataset is made of. Returns the tars that are still to be indexed.

    Args:
        store: for the index.
        dataset: its name.
        source: where the tars were found.
        caption: where captions stand: `txt`, or `json:FIELD`.
        tars: of `list_tars`.

    Raises:
        UserError: The name or `caption` is none, the dataset was made of something else, or one of its tars is gone.
    """
    if not _NAME.fullmatch(dataset):
        raise UserError(f"not a name for a folder: {dataset!r}", where="--name", next_step="use letters, digits and -")
    if not _CAPTION.fullmatch(caption):
        raise UserError(f"not a place of captions: {caption!r}", where="--caption", next_step="use txt or json:FIELD")
    file, content = f"shards/{dataset}/dataset.json", {"tars": _absolute(*open_fs(source)), "caption": caption}
    if store.exists(file):
        alternative = f"choose another --name, or delete {store.path(f'shards/{dataset}')}"
        refuse_changes(store.read_json(file), content, store.path(file), alternative)
    elif store.exists(_index_file(dataset)):
        refuse_changes({}, content, store.path(_index_file(dataset)), "choose another --name")
    else:
        store.write_json(file, content)
    jobs = [IndexJob(dataset, n, tar, caption) for n, tar in enumerate(_number(store, dataset, tars))]
    committed = set(store.names(f"shards/{dataset}", ".parquet"))
    missing = [job for job in jobs if f"{posixpath.basename(job.stem)}.parquet" not in committed]
    if missing:
        store.remove(_index_file(dataset))
    return missing


def _number(store: Store, dataset: str, tars: Sequence[ForeignTar]) -> list[ForeignTar]:
    """The tars in the order of their numbers. What is known of changed ones is forgotten."""
    file = _tars_file(dataset)
    known = [ForeignTar(**row) for row in store.read_table(file).to_pylist()] if store.exists(file) else []
    by_path = {tar.path: tar for tar in tars}
    gone = [tar.path for tar in known if tar.path not in by_path]
    if gone:
        raise UserError(
            f"{len(gone):,} tars of the dataset are gone",
            where=", ".join(gone[:3]),
            next_step=f"restore them, choose another --name, or delete {store.path(f'shards/{dataset}')}",
        )
    known_paths = {tar.path for tar in known}
    numbered = [by_path[tar.path] for tar in known] + [tar for tar in tars if tar.path not in known_paths]
    if numbered != known:
        store.remove(_index_file(dataset))
        for number, (before, now) in enumerate(zip(known, numbered, strict=False)):
            if before != now:
                store.remove(f"{shard_stem(dataset, number)}.parquet")
        store.write_table(file, pa.Table.from_pylist([asdict(tar) for tar in numbered], _TARS_SCHEMA))
    return numbered


def write_tar_index(job: IndexJob, store: Store) -> int:
    """Index a tar and commit its row. Returns its samples.

    Raises:
        OSError: The tar cannot be read.
    """
    tar = job.tar
    index = index_tar(tar.path, tar.num_bytes, job.caption)
    entry = {"path": tar.path, "num_samples": len(index.keys), "num_bytes": tar.num_bytes, "sha256": tar.fingerprint}
    refused = [asdict(one) | {"shard": tar.path, "raw": tar.path} for one in index.left_out]
    write_commit(store, job.stem, entry | index.columns(), refused)
    return len(index.keys)


def finish_index(store: Store, dataset: str) -> ForeignSummary:
    """Join the rows of all tars, unless that is done, and count what there is.

    Raises:
        UserError: No sample can be trained on.
    """
    num_shards = store.read_table(_tars_file(dataset), ["path"]).num_rows
    if not store.exists(_index_file(dataset)):
        _join(store, dataset, num_shards)
    index = store.read_table(_index_file(dataset), ["num_samples", "num_bytes"])
    refused = store.read_table(_refused_file(dataset), ["shard", "offset", "reason"]).to_pylist()
    return ForeignSummary(
        num_samples=sum(index["num_samples"].to_pylist()),
        num_shards=num_shards,
        num_bytes=sum(index["num_bytes"].to_pylist()),
        left_out=Counter(row["reason"] for row in refused if row["reason"] not in (CUT_SHORT, NOT_A_TAR)),
        cut_short={row["shard"]: row["offset"] for row in refused if row["reason"] == CUT_SHORT},
        not_tars=[row["shard"] for row in refused if row["reason"] == NOT_A_TAR],
    )


def _join(store: Store, dataset: str, num_shards: int) -> None:
    """Write the index; what was left out is written first."""
    num_samples, reasons = 0, Counter[str]()
    with (
        store.writing(_index_file(dataset)) as index_stream,
        pq.ParquetWriter(index_stream, INDEX_SCHEMA) as index,
        store.writing(_refused_file(dataset)) as refused_stream,
        pq.ParquetWriter(refused_stream, REFUSED_SCHEMA) as refused,
    ):
        for rows, left_out in _commits(store, dataset, num_shards):
            index.write_table(rows)
            refused.write_table(left_out)
            num_samples += sum(rows["num_samples"].to_pylist())
            reasons.update(left_out["reason"].to_pylist())
        if not num_samples:
            folder = store.path(f"shards/{dataset}")
            raise UserError(
                "no sample can be trained on",
                where=folder,
                why=", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()),
                next_step=f"name where the captions stand with --caption json:FIELD; delete {folder} before",
                exit_code=EXIT_FAILED_UNITS,
            )


def _commits(store: Store, dataset: str, num_shards: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    for start in range(0, num_shards, _GROUP_SHARDS):
        numbers = range(start, min(start + _GROUP_SHARDS, num_shards))
        rows, left_out = zip(*(read_commit(store, shard_stem(dataset, number)) for number in numbers), strict=True)
        yield pa.concat_tables(rows).cast(INDEX_SCHEMA), pa.concat_tables(left_out)


def _index_file(dataset: str) -> str:
    return f"shards/{dataset}/index.parquet"


def _refused_file(dataset: str) -> str:
    return f"shards/{dataset}/refused.parquet"


def _tars_file(dataset: str) -> str:
    return f"shards/{dataset}/tars.parquet"
