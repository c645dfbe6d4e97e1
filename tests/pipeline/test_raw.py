"""Raw files: the same bytes in whatever order samples are finished, and every sample found again at its place."""

import io
import random
import uuid
from collections.abc import Sequence

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.raw import RawFile, RawFormat, Scratch, read_members
from pipeline.shards import Sample, iter_samples, parse_sample
from pipeline.store import Store


def make_sample(number: int) -> Sample:
    rng = random.Random(number)
    body = rng.randbytes(rng.randrange(1, 2000))
    extension = ("jpg", "png", "webp")[number % 3]
    return Sample(f"k{number:05d}", body, f"Bild {number}: größer", {"key": f"k{number:05d}", "n": number}, extension)


def write(order: Sequence[int], raw_format: RawFormat, store: Store) -> RawFile:
    with Scratch() as scratch:
        for position in order:
            scratch.put(position, make_sample(position))
        return scratch.write(store, "u00000007", raw_format)


@pytest.mark.parametrize("raw_format", ["webdataset", "parquet"])
@settings(max_examples=15)
@given(positions=st.sets(st.integers(0, 400), max_size=150), seed=st.integers(0, 99))
def test_samples_are_found_again_and_their_order_of_arrival_is_not_seen(
    raw_format: RawFormat, positions: set[int], seed: int
) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    shuffled = random.Random(seed).sample(sorted(positions), len(positions))
    raw = write(shuffled, raw_format, store)
    assert raw == write(sorted(positions), raw_format, store)
    assert len(store.read(raw.name)) == raw.num_bytes
    assert raw.places.keys() == positions
    members = read_members(store, raw.name, [raw.places[position] for position in shuffled])
    assert [parse_sample(part) for part in members] == [make_sample(position) for position in shuffled]


def test_a_tar_is_a_webdataset_in_the_inputs_order() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    raw = write([5, 2, 9], "webdataset", store)
    assert raw.name.startswith("raw/u00000007-")
    assert list(iter_samples(io.BytesIO(store.read(raw.name)))) == [make_sample(n) for n in (2, 5, 9)]


def test_a_parquet_file_has_the_image_and_the_caption_in_columns() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    raw = write([5, 2], "parquet", store)
    rows = pq.read_table(io.BytesIO(store.read(raw.name))).to_pylist()
    assert [(row["key"], row["image"], row["extension"], row["caption"]) for row in rows] == [
        (sample.key, sample.image, sample.extension, sample.caption) for sample in map(make_sample, (2, 5))
    ]


def test_other_samples_have_another_name() -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    assert write([1, 2], "webdataset", store).name != write([1, 3], "webdataset", store).name
