"""Samples survive the way through a tar, any webdataset reader can read it, and damage is noticed."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards import (
    NoCaption,
    Sample,
    ShardError,
    ShardWriter,
    iter_samples,
    parse_sample,
)

KEYS = st.text("0123456789abcdef", min_size=20, max_size=20)
VALUES = st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False))
SAMPLES = st.lists(
    st.builds(Sample, KEYS, st.binary(max_size=1500), st.text(), st.dictionaries(st.text(), VALUES, max_size=4)),
    max_size=5,
    unique_by=lambda sample: sample.key,
)
THREE = [Sample(f"{n:020x}", bytes([n]) * n * 300, f"number {n} ☃", {"n": n}) for n in range(3)]


def _tar(samples: list[Sample]) -> tuple[bytes, list[tuple[int, int]]]:
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    places = [writer.add(sample) for sample in samples]
    num_bytes, sha256 = writer.close()
    tar = stream.getvalue()
    assert (num_bytes, sha256) == (len(tar), hashlib.sha256(tar).hexdigest())
    return tar, places


def _read(tar: bytes) -> list[Sample]:
    return list(iter_samples(io.BytesIO(tar)))


@given(SAMPLES)
def test_round_trip_through_the_tar_and_by_range(samples: list[Sample]) -> None:
    tar, places = _tar(samples)
    assert _read(tar) == samples
    assert [parse_sample(tar[offset : offset + size]) for offset, size in places] == samples


@settings(max_examples=30)
@given(SAMPLES)
def test_the_bytes_depend_on_the_samples_alone(samples: list[Sample]) -> None:
    turned = [Sample(s.key, s.image, s.caption, dict(reversed(s.meta.items()))) for s in samples]
    assert _tar(samples) == _tar(turned)


@settings(max_examples=30)
@given(SAMPLES, st.randoms(use_true_random=False))
def test_raw_copies_in_another_order_are_what_adding_gives(samples: list[Sample], rng: Any) -> None:
    tar, places = _tar(samples)
    order = rng.sample(range(len(samples)), len(samples))
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    for n in order:
        offset, size = places[n]
        writer.add_raw(tar[offset : offset + size])
    writer.close()
    assert stream.getvalue() == _tar([samples[n] for n in order])[0]


def test_the_webdataset_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(_tar(THREE)[0])
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [(entry["__key__"], entry["jpg"], entry["txt"].decode(), json.loads(entry["json"])) for entry in read] == [
        (sample.key, sample.image, sample.caption, sample.meta) for sample in THREE
    ]


def test_the_members_names_are_the_documented_ones_without_time_or_owner() -> None:
    with tarfile.open(fileobj=io.BytesIO(_tar(THREE)[0])) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{s.key}.{ext}" for s in THREE for ext in ("jpg", "txt", "json")]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


# ---------------------------------------------------------------- damage


def test_cut_anywhere_is_an_error() -> None:
    tar, _ = _tar(THREE)
    for size in [*range(0, len(tar), 100), *range(0, len(tar), 512), len(tar) - 1]:
        with pytest.raises(ShardError):
            _read(tar[:size])


@settings(max_examples=200)
@given(st.data(), st.integers(1, 255))
def test_a_damaged_byte_never_loses_or_renames_a_sample_silently(data: st.DataObject, change: int) -> None:
    tar = bytearray(_tar(THREE)[0])
    tar[data.draw(st.integers(0, len(tar) - 1))] ^= change
    try:
        keys = [sample.key for sample in _read(bytes(tar))]
    except ShardError:
        return
    assert keys == [sample.key for sample in THREE]


def test_a_damaged_header_is_not_the_end_of_the_archive() -> None:
    tar, places = _tar(THREE)
    damaged = bytearray(tar)
    damaged[places[1][0]] ^= 1
    with pytest.raises(ShardError, match=f"byte {places[1][0]}"):
        _read(bytes(damaged))


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 512), (0, -512), (0, -1), (512, None), (1, None)], ids=str)
def test_a_range_that_is_not_one_sample_is_an_error(start: int, end: int | None) -> None:
    tar, places = _tar(THREE)
    offset, size = places[1]
    with pytest.raises(ShardError):
        parse_sample(tar[offset : offset + size][start:end])


def test_the_range_of_two_samples_is_an_error() -> None:
    tar, places = _tar(THREE)
    with pytest.raises(ShardError, match="expected the members of one sample"):
        parse_sample(tar[: places[2][0]])


@pytest.mark.parametrize(("name", "what"), [("00.txt", "txt"), ("00.jpg", "image")])
def test_a_missing_member_is_named(name: str, what: str) -> None:
    with pytest.raises(ShardError, match=f"lacks .*{what}"):
        _read(_tar_of({"00.txt": b"a", "00.json": b"{}", "00.jpg": b""} | {name: None}))


@pytest.mark.parametrize(("txt", "meta"), [(b"\xff", b"{}"), (b"a cat", b"{"), (b"a cat", b"[]")])
def test_a_caption_or_json_that_is_none_names_the_sample(txt: bytes, meta: bytes) -> None:
    with pytest.raises(ShardError, match="sample 00"):
        _read(_tar_of({"00.jpg": b"", "00.txt": txt, "00.json": meta}))


# ---------------------------------------------------------------- tars of others


def _tar_of(members: Mapping[str, bytes | None]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, body in members.items():
            if body is not None:
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def test_further_members_upper_case_and_a_missing_json_do_not_matter() -> None:
    tar = _tar_of({"v1.0/00.cls": b"7", "v1.0/00.JPEG": b"image", "v1.0/00.pyd": b"\x80", "v1.0/00.TXT": b"a cat"})
    assert _read(tar) == [Sample("v1.0/00", b"image", "a cat", {}, "jpeg")]


def test_the_caption_may_stand_in_a_field_of_the_json() -> None:
    tar = _tar_of({"00.png": b"image", "00.txt": b"short", "00.json": b'{"long": "longer", "n": 1}'})
    meta = {"long": "longer", "n": 1}
    assert list(iter_samples(io.BytesIO(tar), "json:long")) == [Sample("00", b"image", "longer", meta, "png")]
    for field in ("n", "absent"):
        with pytest.raises(NoCaption, match=f"lacks json:{field}"):
            list(iter_samples(io.BytesIO(tar), f"json:{field}"))
