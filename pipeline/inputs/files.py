"""The files of a source: which there are, whether they are the same as before, and their bytes without compression."""

import csv
import hashlib
import lzma
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

from pipeline.each import ahead
from pipeline.errors import UserError
from pipeline.inputs.spec import SourceSpec
from pipeline.store import open_fs

READ_ERRORS = (pa.ArrowException, OSError, EOFError, lzma.LZMAError, csv.Error)
"""What a file that is damaged, or not what it seems, makes its readers raise."""

_FORMATS = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "json", "ndjson": "json"}
_COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2", "xz": "xz"}
_SUFFIX_OF_DATASET = {"img2dataset": ".parquet", "webdataset": ".tar", "images_parquet": ".parquet"}
_TAIL_BYTES = 64 << 10
READ_THREADS = 8
"""Files whose footers or tails are read at a time."""


@dataclass(frozen=True)
class InputFile:
    """A file of the source."""

    url: str
    format: str
    """`parquet`, `csv`, `tsv`, `json` (an array, or objects one after the other), or the name of a dataset's format."""
    compression: str
    """`gzip`, `zstd`, `bz2`, `xz` or nothing."""
    num_bytes: int


def list_files(spec: SourceSpec, store_url: str = "") -> list[InputFile]:
    """The source's files in the order of their names.

    Args:
        spec: the source.
        store_url: a store, whose own files are none of the source's even where it lies in the source's folder.

    Raises:
        UserError: There is none, they have different formats, or one's format is unknown.
    """
    fs, path = open_fs(spec.urls)
    found = _find(fs, path, spec)
    if store_url:
        found = {
            name: size for name, size in found.items() if not fs.unstrip_protocol(name).startswith(store_url + "/")
        }
    if spec.format == "img2dataset":
        found = _finished_shards(fs, found)
    if not found:
        raise UserError(
            "no table of URLs here" if not spec.holds_images else f"no files of {spec.format} here",
            where=f"ingest.source.urls = {spec.urls}",
            next_step="check the path, or set it with --set ingest.source.urls=PATH",
        )
    files = [_input_file(str(fs.unstrip_protocol(name)), num_bytes, spec) for name, num_bytes in sorted(found.items())]
    _refuse_mixed_formats(files)
    return files


def fingerprints(files: Sequence[InputFile]) -> list[str]:
    """A hash per file of its size and its last 64 KiB, which hold a parquet file's footer."""
    return list(ahead(_fingerprint, files, READ_THREADS))


@contextmanager
def open_plain(file: InputFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's bytes without compression, and the stream as stored, which tells how far reading has come."""
    fs, path = open_fs(file.url)
    with fs.open(path, "rb") as stored:
        if file.compression == "xz":
            with lzma.open(stored) as plain:
                yield cast(BinaryIO, plain), stored
        elif file.compression:
            yield cast(BinaryIO, pa.CompressedInputStream(stored, file.compression)), stored
        else:
            yield stored, stored


def unreadable(file: InputFile, error: Exception) -> UserError:
    """The user's words for what a reader raised."""
    return UserError(
        f"the file cannot be read as {file.format}",
        where=file.url,
        why=str(error) or type(error).__name__,
        next_step="repair it, or name its format with --set ingest.source.format=FORMAT",
    )


def _find(fs: fsspec.AbstractFileSystem, path: str, spec: SourceSpec) -> dict[str, int]:
    """Paths and sizes in bytes."""
    if any(mark in path for mark in "*?["):
        found = fs.glob(path, detail=True)
    elif not fs.exists(path):
        return {}
    elif fs.isdir(path):
        found = {name: info for name, info in fs.find(path, detail=True).items() if _belongs(name, path, spec)}
    else:
        found = {path: fs.info(path)}
    return {name: int(info["size"]) for name, info in found.items() if info["type"] != "directory"}


def _belongs(name: str, folder: str, spec: SourceSpec) -> bool:
    """Whether a file in a folder is one of the source; names with a leading dot or underscore are others' notes."""
    if any(part.startswith((".", "_")) for part in name.removeprefix(folder).strip("/").split("/")):
        return False
    if spec.holds_images:
        return name.endswith(_SUFFIX_OF_DATASET[spec.format])
    return bool(_format_of_name(name)[0])


def _finished_shards(fs: fsspec.AbstractFileSystem, found: dict[str, Any]) -> dict[str, int]:
    """img2dataset's shards. It writes a shard's statistics last, so one without them is unfinished.

    Where there are none at all they were deleted, and every shard counts.
    """
    shards = {name: size for name, size in found.items() if re.search(r"(^|/)\d+\.parquet$", name)}
    folders = {name.rpartition("/")[0] for name in shards}
    listed = {str(name) for folder in folders for name in fs.ls(folder or ".", detail=False)}
    finished = {name: size for name, size in shards.items() if name.removesuffix(".parquet") + "_stats.json" in listed}
    return finished or shards


def _input_file(url: str, num_bytes: int, spec: SourceSpec) -> InputFile:
    if spec.holds_images:
        return InputFile(url, spec.format, "", num_bytes)
    by_name, compression = _format_of_name(url)
    named = _FORMATS.get(spec.format, "")
    found = named or by_name or _format_of_content(InputFile(url, "table", compression, num_bytes))
    if not found:
        raise UserError(
            "the format of the file is unknown",
            where=url,
            next_step="name it with --set ingest.source.format=FORMAT (parquet, csv, tsv, json, jsonl)",
        )
    return InputFile(url, found, compression, num_bytes)


def _format_of_name(name: str) -> tuple[str, str]:
    """Format and compression by the suffixes of a name; empty where they say nothing."""
    stem, _, suffix = name.lower().rpartition(".")
    compression = _COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = stem.rpartition(".")[2]
    return _FORMATS.get(suffix, ""), compression


def _format_of_content(file: InputFile) -> str:
    try:
        with open_plain(file) as (stream, _):
            first = stream.read(64)
    except READ_ERRORS as error:
        raise unreadable(file, error) from error
    if first.startswith(b"PAR1"):
        return "parquet"
    return "json" if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else ""


def _refuse_mixed_formats(files: Sequence[InputFile]) -> None:
    by_format = {file.format: file.url for file in files}
    if len(by_format) > 1:
        raise UserError(
            "the source has files of several formats",
            where=", ".join(f"{name}: {url}" for name, url in by_format.items()),
            next_step="choose some with a glob, e.g. --set ingest.source.urls='FOLDER/*.parquet'",
        )


def _fingerprint(file: InputFile) -> str:
    fs, path = open_fs(file.url)
    size = int(fs.size(path))
    tail = fs.cat_file(path, start=max(0, size - _TAIL_BYTES), end=size)
    return hashlib.sha256(f"{size} ".encode() + tail).hexdigest()[:16]
