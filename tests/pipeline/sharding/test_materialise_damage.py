"""Damaged samples are left out and recorded; files that are missing or short stop the run and say what to do."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.curate.rows import open_rows
from pipeline.each import in_turn
from pipeline.errors import UserError
from pipeline.raw import Scratch
from pipeline.recipe import ShardSpec
from pipeline.sharding.commits import REFUSED_SCHEMA
from pipeline.sharding.dataset import materialise
from pipeline.shards import parse_sample
from pipeline.store import Store
from tests.pipeline.sharding.selections import (
    SMALL_JPEG,
    dataset_files,
    key_of,
    keys,
    make,
    numbered_store,
    read_dataset,
    write_selection,
)
from tests.stores import Stored, jpeg, make_store

VICTIM = key_of(7)


def _selected(root: str = "") -> Store:
    store = numbered_store([range(10), range(10, 20)], root)
    write_selection(store, "d")
    return store


def _ledger_row(store: Store, unit: str, key: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = store.read_table(f"ledger/{unit}.parquet").to_pylist()
    return next(row for row in rows if row["key"] == key)


def _raw(store: Store, unit: str) -> str:
    return next(f"raw/{name}" for name in store.names("raw", "") if name.startswith(unit))


def _overwrite(store: Store, key: str, at: int, body: bytes) -> None:
    """Writes over the bytes of a sample of the first unit, from so many bytes after its beginning."""
    raw = _raw(store, "u00000000")
    tar, offset = bytearray(store.read(raw)), _ledger_row(store, "u00000000", key)["offset"] + at
    tar[offset : offset + len(body)] = body
    store.write(raw, bytes(tar))


def _rewrite_ledger(store: Store, key: str, values: dict[str, Any]) -> None:
    table = store.read_table("ledger/u00000000.parquet")
    rows = [row | values if row["key"] == key else row for row in table.to_pylist()]
    store.write_table("ledger/u00000000.parquet", pa.Table.from_pylist(rows, schema=table.schema))


def _refused(store: Store) -> list[dict[str, Any]]:
    table = store.read_table("shards/d/refused.parquet")
    assert table.schema.equals(REFUSED_SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_the_others_are_as_without_damage(store: Store, reason: str) -> None:
    healthy = _selected()
    make(healthy)
    made = make(store)
    assert (made.num_samples, made.num_refused) == (19, 1)
    assert keys(store, "d") == [key for key in keys(healthy, "d") if key != VICTIM]
    (entry,) = _refused(store)
    assert (entry["key"], entry["reason"]) == (VICTIM, reason)
    assert entry["raw"] == _raw(store, "u00000000")
    assert entry["offset"] == _ledger_row(store, "u00000000", VICTIM)["offset"]
    files, expected = dataset_files(store), dataset_files(healthy)
    same = {name for name in expected if name.endswith(".tar") and files[name] == expected[name]}
    assert {name for name in expected if name.endswith(".tar")} - same == {entry["shard"]}
    assert any("damaged" in line for line in made.lines())


# ---------------------------------------------------------------- samples


IMAGE_AT, END = 512, len(SMALL_JPEG)


@pytest.mark.parametrize(
    ("at", "body", "reason"),
    [
        (IMAGE_AT, b"\0\0\0\0", "not_image"),
        (IMAGE_AT + END // 2, bytes(END - END // 2), "image_truncated"),
        (0, b"x", "damaged_members"),  # a header whose checksum is wrong
        (130, b"7", "damaged_members"),
        (IMAGE_AT + -(-END // 512) * 512 + 512, b"\xff\xfe", "damaged_members"),  # a caption that is no UTF-8
        (IMAGE_AT + -(-END // 512) * 512 + 3 * 512, b"[", "damaged_members"),  # what should be JSON
    ],
)
def test_overwritten_bytes_are_noticed(at: int, body: bytes, reason: str) -> None:
    store = _selected()
    _overwrite(store, VICTIM, at, body)
    _check_the_others_are_as_without_damage(store, reason)


def test_a_damaged_image_size_is_noticed_before_it_is_decoded() -> None:
    store = _selected()
    frame = SMALL_JPEG.index(b"\xff\xc0")  # start of frame: marker, length, bits, height, width
    _overwrite(store, VICTIM, IMAGE_AT + frame + 5, b"\xff\xff\xff\xff")
    _check_the_others_are_as_without_damage(store, "other_size")


def test_a_shard_that_is_made_again_after_a_repair_is_whole_and_so_is_the_index() -> None:
    store = _selected()
    raw = _raw(store, "u00000000")
    body = store.read(raw)
    _overwrite(store, VICTIM, IMAGE_AT, b"\0\0\0\0")
    make(store)
    (entry,) = _refused(store)
    store.write(raw, body)
    assert make(store).num_refused == 1  # what is committed stays
    store.remove(entry["shard"].replace(".tar", ".parquet"))
    assert make(store).num_refused == 0
    healthy = _selected()
    make(healthy)
    assert dataset_files(store) == dataset_files(healthy)


def test_a_sample_of_another_key_is_noticed() -> None:
    store = _selected()
    other = _ledger_row(store, "u00000000", key_of(3))
    mine = _ledger_row(store, "u00000000", VICTIM)
    body = store.read_range(_raw(store, "u00000000"), other["offset"], other["size"])
    assert other["size"] == mine["size"]
    _overwrite(store, VICTIM, 0, body)
    _check_the_others_are_as_without_damage(store, "other_key")


def test_a_wrong_place_in_the_ledger_is_noticed() -> None:
    store = _selected()
    _rewrite_ledger(store, VICTIM, {"size": _ledger_row(store, "u00000000", VICTIM)["size"] - 512})
    write_selection(store, "d")
    healthy = _selected()
    make(healthy)
    assert make(store).num_refused == 1
    assert [row["reason"] for row in _refused(store)] == ["damaged_members"]
    assert keys(store, "d") == [key for key in keys(healthy, "d") if key != VICTIM]


def test_a_png_with_a_flipped_byte_is_noticed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    png = cv2.imencode(".png", noise)[1].tobytes()
    flipped = png[: len(png) // 2] + bytes([png[len(png) // 2] ^ 1]) + png[len(png) // 2 + 1 :]
    samples = [Stored(key_of(number), image=png) for number in range(5)]
    samples.append(Stored(VICTIM, image=flipped))
    store = make_store([samples])
    write_selection(store, "d")
    assert make(store).num_samples == 5
    assert [(row["key"], row["reason"]) for row in _refused(store)] == [(VICTIM, "undecodable")]


def test_a_shard_of_which_nothing_is_left_is_an_empty_one() -> None:
    store = make_store([[Stored(key_of(number), image=b"no image") for number in range(3)]])
    write_selection(store, "d")
    assert make(store).num_refused == 3
    assert read_dataset(store, "d") == []


def test_without_the_check_bytes_are_copied_as_they_are() -> None:
    store = _selected()
    _overwrite(store, VICTIM, IMAGE_AT + END // 2, bytes(END - END // 2))
    spec = ShardSpec(name="d", shard_samples=7, check="none")
    assert materialise(open_rows(store, []), "d", spec, 1, in_turn).num_samples == 20
    (victim,) = [sample for sample in read_dataset(store, "d") if sample.key == VICTIM]
    assert victim.image[END // 2 :] == bytes(END - END // 2)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("size", [None, 5_000])
def test_a_raw_file_that_is_missing_or_short_stops_the_run(tmp_path: Path, local: bool, size: int | None) -> None:
    store = _selected(str(tmp_path) if local else "")
    raw = _raw(store, "u00000001")
    body = store.read(raw)
    store.remove(raw)
    if size is not None:
        store.write(raw, body[:size])
    with pytest.raises(UserError) as caught:
        make(store)
    assert raw in caught.value.message
    assert f"delete {store.path('ledger/u00000001.parquet')}" in caught.value.message
    assert "genlip ingest RECIPE" in caught.value.message
    assert not store.exists("shards/d/index.parquet")
    store.write(raw, body)
    assert make(store).num_samples == 20


def _to_parquet(store: Store, unit: str) -> None:
    """Replaces a unit's tar by the parquet file that ingestion would have written."""
    table = store.read_table(f"ledger/{unit}.parquet")
    rows = table.to_pylist()
    tar = _raw(store, unit)
    with Scratch() as scratch:
        for position, row in enumerate(rows):
            if row["status"] == "success":
                scratch.put(position, parse_sample(store.read_range(tar, row["offset"], row["size"])))
        made = scratch.write(store, unit, "parquet")
    rows = [
        row | (dict(zip(("offset", "size"), made.places[i], strict=True)) if i in made.places else {})
        for i, row in enumerate(rows)
    ]
    record = table.schema.metadata[b"genlip"].replace(tar.encode(), made.name.encode())
    schema = table.schema.with_metadata({b"genlip": record})
    store.write_table(f"ledger/{unit}.parquet", pa.Table.from_pylist(rows, schema=schema))
    store.remove(tar)


def test_raw_parquet_gives_the_same_shards_as_raw_tars() -> None:
    stores = [_selected(), _selected()]
    _to_parquet(stores[1], "u00000001")
    write_selection(stores[1], "d")
    assert _raw(stores[1], "u00000001").endswith(".parquet")
    tars = []
    for store in stores:
        make(store)
        tars.append({name: body for name, body in dataset_files(store).items() if name.endswith(".tar")})
    assert tars[0] == tars[1]


@pytest.mark.parametrize("damage", ["missing", "short", "other_rows"])
def test_a_damaged_parquet_file_stops_the_run(damage: str) -> None:
    store = _selected()
    _to_parquet(store, "u00000001")
    write_selection(store, "d")
    raw = _raw(store, "u00000001")
    body = store.read(raw)
    store.remove(raw)
    if damage == "short":
        store.write(raw, body[:2000])
    elif damage == "other_rows":
        store.write_table(raw, pq.read_table(io.BytesIO(body)).slice(0, 3))
    with pytest.raises(UserError, match="a raw file cannot be read") as caught:
        make(store)
    assert "ledger/u00000001.parquet" in caught.value.message


# ---------------------------------------------------------------- memory


def test_memory_is_bounded_by_the_window_and_not_by_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sharding.read.WINDOW_SAMPLES", 32)
    image = jpeg(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8), 95)
    units = [[Stored(key_of(i), image=image, width=128, height=96) for i in range(u, u + 200)] for u in (0, 200, 400)]
    store = make_store(units, str(tmp_path))
    write_selection(store, "d")
    make(store, "d", shard_samples=600)  # so that what is allocated once is there
    write_selection(store, "e")
    tracemalloc.start()
    try:
        make(store, "e", shard_samples=600)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    window_bytes = 32 * _ledger_row(store, "u00000000", VICTIM)["size"]
    assert (tmp_path / "shards/e/shard-000000.tar").stat().st_size > 18 * window_bytes
    assert peak < 6 * window_bytes
