"""Samples from the raw files by ranged reads: in the order of the files, neighbours in one read."""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import EXIT_ENVIRONMENT, StoreError, UserError
from pipeline.raw import read_members
from pipeline.store import Store, open_fs

WINDOW_SAMPLES = 512
WINDOW_BYTES = 64 << 20
"""Samples that are in memory at a time: so many at most, and no more than one where it alone is larger."""
_MAX_GAP_BYTES = 1 << 14
"""Bytes between two samples of a file that cost less to read than a read of their own."""


@dataclass(frozen=True)
class Place:
    """Where one sample of a window is: offset and size in bytes in a tar; row, and size of the image, in parquet."""

    position: int
    raw: str
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def windows(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and one past the last of the samples that are read together, run by run."""
    start, num_bytes = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == WINDOW_SAMPLES or num_bytes + size > WINDOW_BYTES):
            yield start, i
            start, num_bytes = i, 0
        num_bytes += size
    if sizes:
        yield start, len(sizes)


def read_window(store: Store, samples: pa.Table) -> list[bytes]:
    """The tar members of each sample, in the table's order.

    Args:
        store: with the raw files.
        samples: columns `raw, offset, size`.

    Raises:
        UserError: A raw file is missing, damaged or shorter than its ledger says.
    """
    columns = (samples[name].to_pylist() for name in ("raw", "offset", "size"))
    places = [Place(position, *place) for position, place in enumerate(zip(*columns, strict=True))]
    places.sort(key=lambda place: (place.raw, place.offset))
    bodies = [b""] * len(places)
    spans = _merge([place for place in places if place.raw.endswith(".tar")])
    for span, block in zip(spans, _read_spans(store, spans), strict=True):
        first = span[0].offset
        for place in span:
            bodies[place.position] = block[place.offset - first : place.end - first]
    for raw, rows in _by_file([place for place in places if not place.raw.endswith(".tar")]):
        for place, body in zip(rows, _read_rows(store, raw, rows), strict=True):
            bodies[place.position] = body
    return bodies


def _merge(places: Sequence[Place]) -> list[list[Place]]:
    """Runs of neighbours, of places sorted by file and offset."""
    spans: list[list[Place]] = []
    for place in places:
        last = spans[-1][-1] if spans else None
        if last and last.raw == place.raw and 0 <= place.offset - last.end <= _MAX_GAP_BYTES:
            spans[-1].append(place)
        else:
            spans.append([place])
    return spans


def _by_file(places: Sequence[Place]) -> Iterator[tuple[str, list[Place]]]:
    by_file: dict[str, list[Place]] = {}
    for place in places:
        by_file.setdefault(place.raw, []).append(place)
    yield from by_file.items()


def _read_spans(store: Store, spans: Sequence[Sequence[Place]]) -> Iterator[bytes]:
    read = _read_local if store.is_local else _read_remote
    for span, block in zip(spans, read(store, spans), strict=True):
        if len(block) != span[-1].end - span[0].offset:
            raise _unreadable(store, span[0].raw, "it is shorter than its ledger says")
        yield block


def _read_local(store: Store, spans: Sequence[Sequence[Place]]) -> Iterator[bytes]:
    """One descriptor at a time is enough: the spans are in the order of the files."""
    raw, descriptor = "", -1
    try:
        for span in spans:
            if span[0].raw != raw:
                if descriptor >= 0:
                    os.close(descriptor)
                raw, descriptor = span[0].raw, -1
                descriptor = os.open(store.path(raw), os.O_RDONLY)
            yield os.pread(descriptor, span[-1].end - span[0].offset, span[0].offset)
    except OSError as error:
        raise _unreadable(store, raw, error.strerror or str(error)) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _read_remote(store: Store, spans: Sequence[Sequence[Place]]) -> Iterator[bytes]:
    """All at once: the file system has several requests in flight."""
    fs, _ = open_fs(store.root)
    paths = [store.path(span[0].raw) for span in spans]
    starts, ends = [span[0].offset for span in spans], [span[-1].end for span in spans]
    for span, block in zip(spans, fs.cat_ranges(paths, starts, ends), strict=True):
        if isinstance(block, FileNotFoundError):
            raise _unreadable(store, span[0].raw, "there is no such file") from block
        if isinstance(block, Exception):
            raise block
        yield block


def _read_rows(store: Store, raw: str, places: Sequence[Place]) -> list[bytes]:
    try:
        return read_members(store, raw, [(place.offset, place.size) for place in places])
    except StoreError:
        raise
    except (OSError, ValueError, IndexError) as error:  # pyarrow's errors are both of the latter
        raise _unreadable(store, raw, str(error)) from error


def _unreadable(store: Store, raw: str, why: str) -> UserError:
    unit = posixpath.basename(raw).rsplit("-", 1)[0]
    return UserError(
        "a raw file cannot be read",
        where=store.path(raw),
        why=why,
        next_step=f"delete {store.path(f'ledger/{unit}.parquet')} and ingest its unit again: genlip ingest RECIPE",
        exit_code=EXIT_ENVIRONMENT,
    )
