"""The raw file of a unit: its kept samples in the input's order, as a webdataset tar or a parquet file.

Samples arrive in the order in which they are finished. They wait on a scratch disk, not in memory, until the unit
closes; then they are written in order, under a name that ends in a hash of the content.
"""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards import Sample, ShardWriter, parse_sample, sample_members
from pipeline.store import Store

RawFormat = Literal["webdataset", "parquet"]

_EXTENSION = {"webdataset": "tar", "parquet": "parquet"}
_GROUP_SAMPLES = 64
"""Samples in a row group of a parquet file: what one random access reads."""
_PARQUET_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("extension", pa.string()),
        ("caption", pa.string()),
        ("json", pa.string()),
    ]
)

Place = tuple[int, int]
"""Of a sample in its raw file: offset and size in bytes in a tar; row and size of the image in a parquet file."""


@dataclass(frozen=True)
class RawFile:
    """A written raw file."""

    name: str
    sha256: str
    num_bytes: int
    places: dict[int, Place]
    """By the sample's position in the unit."""


class Scratch:
    """Finished samples of one unit, on disk in the order of arrival."""

    def __init__(self) -> None:
        self._file = cast(BinaryIO, tempfile.TemporaryFile(prefix="genlip-unit-"))  # noqa: SIM115 closed by __exit__
        self._places: dict[int, Place] = {}
        self._num_bytes = 0

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def put(self, position: int, sample: Sample) -> None:
        """Keep a sample."""
        members = sample_members(sample)
        self._file.write(members)
        self._places[position] = (self._num_bytes, len(members))
        self._num_bytes += len(members)

    def write(self, store: Store, unit_name: str, raw_format: RawFormat) -> RawFile:
        """Write the samples in the order of their positions. Twice through the scratch: once for the name."""
        digest = hashlib.sha256()
        for _, members in self._in_order():
            digest.update(members)
        name = f"raw/{unit_name}-{digest.hexdigest()[:8]}.{_EXTENSION[raw_format]}"
        with store.writing(name) as stream:
            hashed = _HashingStream(stream)
            write = _write_tar if raw_format == "webdataset" else _write_parquet
            places = write(cast(BinaryIO, hashed), self._in_order())
        return RawFile(name, hashed.sha256, hashed.num_bytes, places)

    def _in_order(self) -> Iterator[tuple[int, bytes]]:
        for position in sorted(self._places):
            offset, size = self._places[position]
            self._file.seek(offset)
            yield position, self._file.read(size)


def read_members(store: Store, name: str, places: Sequence[Place]) -> list[bytes]:
    """The samples at these places as tar members, whatever the raw file's format."""
    if name.endswith(".tar"):
        return _read_run(store, name, places) if _is_run(places) else store.read_ranges(name, list(places))
    with store.reading(name) as stream:
        return _read_parquet(pq.ParquetFile(stream), [row for row, _ in places])


def _is_run(places: Sequence[Place]) -> bool:
    """Whether the samples follow each other without a gap, as those of a unit do."""
    return all(offset + size == place[0] for (offset, size), place in itertools.pairwise(places))


def _read_run(store: Store, name: str, places: Sequence[Place]) -> list[bytes]:
    """By one request, which an object store counts and charges for."""
    if not places:
        return []
    first = places[0][0]
    block = store.read_range(name, first, sum(size for _, size in places))
    return [block[offset - first : offset - first + size] for offset, size in places]


class _HashingStream:
    """A writable stream that knows the hash and the length of what went through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, block: bytes) -> int:
        self._hash.update(block)
        self.num_bytes += len(block)
        return self._stream.write(block)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def _write_tar(stream: BinaryIO, samples: Iterator[tuple[int, bytes]]) -> dict[int, Place]:
    writer = ShardWriter(stream)
    places = {position: writer.add_raw(members) for position, members in samples}
    writer.close()
    return places


def _write_parquet(stream: BinaryIO, samples: Iterator[tuple[int, bytes]]) -> dict[int, Place]:
    places: dict[int, Place] = {}
    waiting: list[dict[str, object]] = []
    with pq.ParquetWriter(stream, _PARQUET_SCHEMA) as writer:
        for position, members in samples:
            sample = parse_sample(members)
            places[position] = (len(places), len(sample.image))
            meta = json.dumps(sample.meta, ensure_ascii=False, sort_keys=True)
            waiting.append(
                {
                    "key": sample.key,
                    "image": sample.image,
                    "extension": sample.extension,
                    "caption": sample.caption,
                    "json": meta,
                }
            )
            if len(waiting) == _GROUP_SAMPLES:
                writer.write_table(pa.Table.from_pylist(waiting, _PARQUET_SCHEMA))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_pylist(waiting, _PARQUET_SCHEMA))
    return places


def _read_parquet(parquet: pq.ParquetFile, rows: Sequence[int]) -> list[bytes]:
    """Reads each row group once, in the order of the file."""
    members: dict[int, bytes] = {}
    for group in sorted({row // _GROUP_SAMPLES for row in rows}):
        table = parquet.read_row_group(group)
        wanted = [row for row in rows if row // _GROUP_SAMPLES == group]
        for row, record in zip(wanted, table.take([row % _GROUP_SAMPLES for row in wanted]).to_pylist(), strict=True):
            sample = Sample(
                record["key"], record["image"], record["caption"], json.loads(record["json"]), record["extension"]
            )
            members[row] = sample_members(sample)
    return [members[row] for row in rows]
