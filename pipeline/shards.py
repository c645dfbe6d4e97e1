"""Samples to and from webdataset tars, and the index that lets a reader fetch any one of them.

A sample is three tar members with one key: the image (`KEY.jpg`, `KEY.png` or `KEY.webp`), `KEY.txt` (caption, UTF-8)
and `KEY.json` (everything else).
The bytes depend on the samples alone: no time stamps, owners or order of completion.

The reading half is part of the contract with `train`; see STORE.md.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

IMAGE_EXTENSIONS = ("jpg", "png", "webp")
END_OF_TAR = b"\0" * (2 * tarfile.BLOCKSIZE)

INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("keys", pa.list_(pa.string())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
    ]
)
"""One row per shard. `offsets` and `sizes` bound all of a sample's tar members, so one range read fetches it."""


class ShardError(ValueError):
    """The bytes of a shard are not what the index says."""


@dataclass(frozen=True)
class Sample:
    """One stored image-text pair."""

    key: str
    image: bytes
    caption: str
    meta: dict[str, Any]
    extension: str = "jpg"
    """Names the image's format."""


class ShardWriter:
    """Writes samples one after the other as a tar; `close` ends the archive."""

    def __init__(self, stream: BinaryIO) -> None:
        self._hash = hashlib.sha256()
        self._stream = stream
        self._num_bytes = 0

    def add(self, sample: Sample) -> tuple[int, int]:
        """Append a sample. Returns the offset and the size of its bytes in the tar."""
        return self._append(sample_members(sample))

    def add_raw(self, members: bytes) -> tuple[int, int]:
        """Append a sample's tar members as they stand in another shard."""
        return self._append(members)

    def close(self) -> tuple[int, str]:
        """End the archive. Returns its size in bytes and its sha256."""
        self._append(END_OF_TAR)
        return self._num_bytes, self._hash.hexdigest()

    def _append(self, block: bytes) -> tuple[int, int]:
        offset = self._num_bytes
        self._stream.write(block)
        self._hash.update(block)
        self._num_bytes += len(block)
        return offset, len(block)


def sample_members(sample: Sample) -> bytes:
    """A sample as its tar members, without the end of an archive."""
    meta = json.dumps(sample.meta, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    members = {sample.extension: sample.image, "txt": sample.caption.encode(), "json": meta.encode()}
    return b"".join(_tar_member(f"{sample.key}.{extension}", body) for extension, body in members.items())


def _tar_member(name: str, body: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    info.mode = 0o644
    padding = -len(body) % tarfile.BLOCKSIZE
    return info.tobuf(tarfile.USTAR_FORMAT) + body + b"\0" * padding


def parse_sample(members: bytes) -> Sample:
    """A sample from its tar members, as one range read returns them.

    Raises:
        ShardError: The bytes are not the three members of one sample.
    """
    samples = list(iter_samples(io.BytesIO(members + END_OF_TAR)))
    if len(samples) != 1:
        raise ShardError(f"expected the members of one sample, found {len(samples)}")
    return samples[0]


def iter_samples(stream: BinaryIO) -> Iterator[Sample]:
    """The samples of a tar, in order.

    Raises:
        ShardError: The tar is damaged or cut short, or a sample lacks a member.
    """
    parts: dict[str, bytes] = {}
    current = ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if current and key != current:
                    yield _assemble(current, parts)
                    parts = {}
                current = key
                body = tar.extractfile(member)
                parts[extension] = body.read() if body else b""
                if len(parts[extension]) != member.size:
                    raise ShardError(f"sample {key}: {extension} is cut short")
            # tarfile takes a damaged header for the end of the archive.
            stream.seek(tar.offset)
            if stream.read(len(END_OF_TAR)) != END_OF_TAR:
                raise ShardError(f"not a whole tar: neither a member nor the end at byte {tar.offset}")
    except tarfile.TarError as error:
        raise ShardError(f"not a readable tar: {error}") from error
    if current:
        yield _assemble(current, parts)


def _assemble(key: str, parts: dict[str, bytes]) -> Sample:
    extension = next((name for name in IMAGE_EXTENSIONS if name in parts), IMAGE_EXTENSIONS[0])
    missing = {extension, "txt", "json"} - parts.keys()
    if missing:
        raise ShardError(f"sample {key} lacks {sorted(missing)}")
    try:
        return Sample(key, parts[extension], parts["txt"].decode(), json.loads(parts["json"]), extension)
    except ValueError as error:
        raise ShardError(f"sample {key}: {error}") from error


def index_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """An index from one mapping per shard, in the columns of `INDEX_SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)
