"""Samples to and from webdataset tars, and the index that lets a reader fetch any one of them.

A sample is three tar members with one key: the image (`KEY.jpg`, `KEY.png` or `KEY.webp`), `KEY.txt` (caption, UTF-8)
and `KEY.json` (everything else). So they are written:
the bytes depend on the samples alone, no time stamps, owners or order of completion.
Tars of others are read as well: whatever else a sample has is passed over, and its JSON may be missing.

The reading half is part of the contract with `train`; see STORE.md.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.tar import END_OF_TAR, Read, TarError, iter_groups, iter_members, plain_files, split_name

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_FILE = "txt"
"""Where a caption stands, unless it is `json:FIELD`."""
_READ_EXTENSIONS = frozenset((*IMAGE_EXTENSIONS, CAPTION_FILE, "json"))

INDEX_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
"""Of a dataset's index: one row per shard."""
SHARD_SCHEMA = pa.schema(
    [
        *INDEX_SCHEMA,
        ("keys", pa.list_(pa.string())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
    ]
)
"""Of a shard's own file: its row of the index, and lists with one entry per sample. `offsets` and `sizes` bound all of
a sample's tar members, so one range read fetches it."""


class ShardError(ValueError):
    """The bytes of a shard are not what the index says."""


class NoCaption(ShardError):
    """A sample has none where its caption should be."""


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


def parse_sample(members: bytes, caption: str = CAPTION_FILE) -> Sample:
    """A sample from its tar members, as one range read returns them.

    Args:
        members: the bytes.
        caption: where its caption stands: `txt`, or `json:FIELD` for a field of its JSON.

    Raises:
        ShardError: The bytes are not the members of one sample.
    """
    key, parts, seen = "", dict[str, bytes](), set[str]()
    for name, body in _files(members):
        file_key, extension = split_name(name)
        if not file_key:
            continue
        if seen and (file_key != key or extension in seen):
            raise ShardError(f"expected the members of one sample, {key}, found {name}")
        key = file_key
        seen.add(extension)
        if extension in _READ_EXTENSIONS:
            parts[extension] = body
    if not seen:
        raise ShardError("expected the members of one sample, found none")
    return assemble(key, parts, caption)


def _files(members: bytes) -> list[tuple[str, bytes]]:
    """Names and bodies of the files among tar members."""
    if (plain := plain_files(members)) is not None:
        return plain
    files = []
    try:
        for member in iter_members(lambda offset, size: members[offset : offset + size], len(members)):
            body = members[member.offset : member.offset + member.size]
            if len(body) != member.size:
                raise ShardError(f"{member.name} is cut short")
            files.append((member.name, body))
    except TarError as error:
        raise ShardError(f"not a whole tar: {error}") from error
    return files


def iter_samples(stream: BinaryIO, caption: str = CAPTION_FILE) -> Iterator[Sample]:
    """The samples of a tar, in order; `caption` as in `parse_sample`.

    Raises:
        ShardError: The tar is damaged or cut short, or a sample lacks its image or caption.
    """

    def read(offset: int, size: int) -> bytes:
        stream.seek(offset)
        return stream.read(size)

    return _samples(read, caption)


def _samples(read: Read, caption: str) -> Iterator[Sample]:
    try:
        for group in iter_groups(read):
            parts: dict[str, bytes] = {}
            for extension in _READ_EXTENSIONS & group.members.keys():
                member = group.members[extension]
                parts[extension] = read(member.offset, member.size)
                if len(parts[extension]) != member.size:
                    raise ShardError(f"sample {group.key}: {extension} is cut short")
            yield assemble(group.key, parts, caption)
    except TarError as error:
        raise ShardError(f"not a whole tar: {error}") from error


def assemble(key: str, parts: Mapping[str, bytes], caption: str = CAPTION_FILE) -> Sample:
    """A sample from the content of its members, by extension; `caption` as in `parse_sample`.

    Raises:
        NoCaption: It has none.
        ShardError: It lacks an image, or a text cannot be read.
    """
    extension = next((name for name in IMAGE_EXTENSIONS if name in parts), "")
    if not extension:
        raise ShardError(f"sample {key} lacks an image: {', '.join(IMAGE_EXTENSIONS)}")
    try:
        meta = json.loads(parts.get("json", b"{}"))
        if not isinstance(meta, dict):
            raise ValueError("its JSON is not an object")
        source, _, name = caption.partition(":")
        text = meta.get(name) if source == "json" else parts[source].decode() if source in parts else None
    except ValueError as error:
        raise ShardError(f"sample {key}: {error}") from error
    if not isinstance(text, str):
        raise NoCaption(f"sample {key} lacks {caption}")
    return Sample(key, parts[extension], text, meta, extension)
