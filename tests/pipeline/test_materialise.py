"""Training shards hold exactly the selected samples, held-out images stay apart, and a kill changes no byte."""

import hashlib
import io
import json
import uuid
from collections import Counter
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.ledger import LEDGER_SCHEMA, CommitRecord
from pipeline.materialise import ShardJob, begin_dataset, finish_dataset, plan_shards, select, write_shard
from pipeline.recipe import ShardSpec
from pipeline.shards import INDEX_SCHEMA, Sample, ShardWriter, iter_samples, parse_sample
from pipeline.store import Store

Pair = tuple[int, int]
"""A stored sample by the number of its key and the number of its image: equal numbers are duplicates."""

SPEC = ShardSpec(name="train", shard_samples=7, holdout=0.2)
UNITS: list[list[Pair]] = [[(20 * unit + row, 20 * unit + row) for row in range(20)] for unit in range(3)]


def _store(units: list[list[Pair]], root: str = "") -> Store:
    """A store (in memory) with these units committed, and one failed and one rejected row in each."""
    store = Store(root or f"memory://{uuid.uuid4().hex}")
    for number, pairs in enumerate(units):
        _commit(store, number, pairs)
    return store


def _key(number: int) -> str:
    return f"{number:020x}"


def _commit(store: Store, number: int, pairs: list[Pair]) -> None:
    stream = io.BytesIO()
    writer = ShardWriter(stream)
    rows: list[dict[str, Any]] = [{"key": "f" * 20, "status": "failed"}, {"key": "e" * 20, "status": "rejected"}]
    for key, image in pairs:
        body = f"image {image}".encode()
        sha256 = hashlib.sha256(body).hexdigest()
        offset, size = writer.add(Sample(_key(key), body, f"caption {key}", {"sha256": sha256}))
        row = {"key": _key(key), "status": "success", "sha256": sha256, "offset": offset, "size": size}
        rows.append(row | {"width": 10 + key, "height": 20 + key})
    _, tar_sha256 = writer.close()
    tar = f"raw/u{number:08d}-{tar_sha256[:8]}.tar"
    store.write(tar, stream.getvalue())
    ledger = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA).replace_schema_metadata(
        {"genlip": json.dumps(asdict(CommitRecord(tar, tar_sha256, 0, {}, {})))}
    )
    store.write_table(f"ledger/u{number:08d}.parquet", ledger)


def _make(store: Store, spec: ShardSpec = SPEC, seed: int = 1) -> list[ShardJob]:
    selection = select(store, spec)
    jobs = plan_shards(selection, spec, seed)
    for job in begin_dataset(store, jobs, spec, seed):
        write_shard(job, store)
    finish_dataset(store, jobs, selection)
    return jobs


def _read(store: Store, dataset: str) -> list[Sample]:
    """All samples of a dataset through its index, checked against the index on the way."""
    if not store.exists(f"shards/{dataset}/index.parquet"):
        return []
    index = store.read_table(f"shards/{dataset}/index.parquet")
    assert index.schema.equals(INDEX_SCHEMA)
    samples: list[Sample] = []
    for row in index.to_pylist():
        tar = store.read(row["path"])
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (row["num_bytes"], row["sha256"])
        inside = list(iter_samples(io.BytesIO(tar)))
        assert [sample.key for sample in inside] == row["keys"]
        assert row["num_samples"] == len(inside) >= 1
        for sample, offset, size in zip(inside, row["offsets"], row["sizes"], strict=True):
            assert parse_sample(store.read_range(row["path"], offset, size)) == sample
        assert row["widths"] == [10 + int(key, 16) for key in row["keys"]]
        assert row["heights"] == [20 + int(key, 16) for key in row["keys"]]
        samples += inside
    return samples


def _shard_files(store: Store, dataset: str) -> dict[str, bytes]:
    names = store.names(f"shards/{dataset}", "")
    return {name: store.read(f"shards/{dataset}/{name}") for name in names}


def _keys(store: Store, dataset: str) -> list[str]:
    return [sample.key for sample in _read(store, dataset)]


# ---------------------------------------------------------------- which samples


UNITS_WITH_REPEATS = st.lists(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8), min_size=1, max_size=4
)


@settings(max_examples=25)
@given(UNITS_WITH_REPEATS, st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.6]), st.integers(0, 3))
def test_shards_partition_the_selection(units: list[list[Pair]], shard_samples: int, holdout: float, seed: int) -> None:
    store = _store(units)
    spec = ShardSpec(name="d", shard_samples=shard_samples, holdout=holdout)
    fates = select(store, spec).table.to_pylist()
    if not any(row["fate"] == "train" for row in fates):
        with pytest.raises(UserError, match="no sample is left to train on"):
            _make(store, spec, seed)
        return
    _make(store, spec, seed)
    for dataset, fate in (("d", "train"), ("d-heldout", "heldout")):
        chosen = [row["key"] for row in fates if row["fate"] == fate]
        assert sorted(_keys(store, dataset)) == sorted(chosen)
        names = store.names(f"shards/{dataset}", ".tar")
        sizes = [store.read_table(f"shards/{dataset}/{name[:-4]}.parquet")["num_samples"][0].as_py() for name in names]
        assert sum(sizes) == len(chosen)
        assert len(names) == -(-len(chosen) // shard_samples)
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert {s.image for s in _read(store, "d")}.isdisjoint(s.image for s in _read(store, "d-heldout"))


@settings(max_examples=60)
@given(UNITS_WITH_REPEATS, st.sampled_from([0.0, 0.5]))
def test_fates(units: list[list[Pair]], holdout: float) -> None:
    selection = select(_store(units), ShardSpec(holdout=holdout))
    fates = selection.table["fate"].to_pylist()
    pairs = list(chain.from_iterable(units))
    assert selection.table["key"].to_pylist() == [_key(key) for key, _ in pairs]
    assert selection.counts() == Counter(fates)
    first_keys: set[int] = set()
    kept_images: set[int] = set()
    for (key, image), fate in zip(pairs, fates, strict=True):
        if key in first_keys:
            assert fate == "duplicate_key"
        elif image in kept_images:
            assert fate == "duplicate_image"
        else:
            assert fate in ("train", "heldout")
            kept_images.add(image)
        first_keys.add(key)


def test_the_record_of_fates_names_every_stored_sample_and_its_raw_file() -> None:
    store = _store([[(0, 0), (1, 1)], [(0, 5), (2, 1), (3, 3)]])
    _make(store, ShardSpec(name="d"))
    record = store.read_table("selection/d.parquet").to_pylist()
    fates = ["train", "train", "duplicate_key", "duplicate_image", "train"]
    assert [row["fate"] for row in record] == fates
    assert [row["raw"][:14] for row in record] == ["raw/u00000000-"] * 2 + ["raw/u00000001-"] * 3


# ---------------------------------------------------------------- held out


def _heldout(store: Store, spec: ShardSpec, seed: int = 1) -> set[str]:
    jobs = plan_shards(select(store, spec), spec, seed)
    return {key for job in jobs if job.dataset.endswith("-heldout") for key in job.samples["key"].to_pylist()}


def test_the_holdouts_share_is_near_the_wanted_one_and_no_seed_moves_it() -> None:
    store = _store([[(n, n) for n in range(1000)]])
    spec = ShardSpec(holdout=0.1)
    chosen = _heldout(store, spec)
    assert 0.07 <= len(chosen) / 1000 <= 0.13
    assert _heldout(store, spec, seed=2) == chosen
    assert _heldout(store, ShardSpec(name="other", shard_samples=3, holdout=0.1)) == chosen
    assert _heldout(store, ShardSpec(holdout=0.2)) > chosen
    assert _heldout(store, ShardSpec(holdout=0.0)) == set()


def test_more_data_moves_no_image_to_the_other_side() -> None:
    store = _store(UNITS)
    before = _heldout(store, SPEC)
    _commit(store, 3, [(1000 + n, 1000 + n) for n in range(50)])
    known = {_key(key) for key, _ in chain.from_iterable(UNITS)}
    assert _heldout(store, SPEC) & known == before != set()


# ---------------------------------------------------------------- the order


def test_the_same_seed_gives_the_same_bytes_whatever_order_shards_are_written_in() -> None:
    stores = [_store(UNITS), _store(UNITS)]
    _make(stores[0])
    jobs = plan_shards(select(stores[1], SPEC), SPEC, 1)
    for job in reversed(jobs):
        write_shard(job, stores[1])
    _make(stores[1])
    for dataset in ("train", "train-heldout"):
        files = _shard_files(stores[0], dataset)
        assert len(files) >= 3
        assert files == _shard_files(stores[1], dataset)


def test_another_seed_gives_another_order_of_the_same_samples() -> None:
    orders = []
    for seed in (1, 2):
        store = _store(UNITS)
        _make(store, seed=seed)
        orders.append(_keys(store, "train"))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_the_shuffle_is_global() -> None:
    store = _store(UNITS)
    spec = ShardSpec(name="d", shard_samples=20)
    _make(store, spec)
    for row in store.read_table("shards/d/index.parquet").to_pylist():
        units = Counter(int(key, 16) // 20 for key in row["keys"])
        assert len(units) == 3
        assert max(units.values()) < 15


# ---------------------------------------------------------------- again, and after a kill


def test_a_finished_dataset_has_nothing_to_do() -> None:
    store = _store(UNITS)
    jobs = _make(store)
    assert begin_dataset(store, jobs, SPEC, 1) == []


@pytest.mark.parametrize("lost", ["shards/train/shard-000002.parquet", "shards/train-heldout/shard-000000.parquet"])
@pytest.mark.parametrize("tar_too", [False, True])
def test_an_interrupted_dataset_is_completed_to_the_same_bytes(tmp_path: Path, lost: str, tar_too: bool) -> None:
    store = _store(UNITS, str(tmp_path))
    jobs = _make(store)
    before = {dataset: _shard_files(store, dataset) for dataset in ("train", "train-heldout")}
    stem = lost.removesuffix(".parquet")
    for name in [lost, f"{stem}.tar"] if tar_too else [lost]:
        (tmp_path / name).unlink()
    assert [job.stem for job in begin_dataset(store, jobs, SPEC, 1)] == [stem]
    _make(store)
    assert {dataset: _shard_files(store, dataset) for dataset in before} == before


@pytest.mark.parametrize(
    ("spec", "seed", "named"),
    [
        (ShardSpec(name="train", shard_samples=8, holdout=0.2), 1, "shard_samples was 7, is 8"),
        (ShardSpec(name="train", shard_samples=7, holdout=0.9), 1, "holdout was 0.2, is 0.9"),
        (SPEC, 2, "seed was 1, is 2"),
    ],
)
def test_changed_values_are_refused_and_nothing_is_touched(spec: ShardSpec, seed: int, named: str) -> None:
    store = _store(UNITS)
    _make(store)
    before = _shard_files(store, "train")
    with pytest.raises(UserError) as caught:
        begin_dataset(store, plan_shards(select(store, spec), spec, seed), spec, seed)
    assert named in caught.value.message
    assert "--set shards.name=NAME" in caught.value.message
    assert _shard_files(store, "train") == before


def test_other_samples_are_refused_and_another_name_is_not() -> None:
    store = _store(UNITS)
    _make(store)
    before = _shard_files(store, "train")
    _commit(store, 3, [(900, 900)])
    with pytest.raises(UserError, match="samples was"):
        _make(store)
    _make(store, ShardSpec(name="more", holdout=0.0))
    assert len(_keys(store, "more")) == 61
    assert _shard_files(store, "train") == before


# ---------------------------------------------------------------- what is wrong


def test_a_store_without_a_unit_says_what_to_run() -> None:
    with pytest.raises(UserError, match="no committed unit") as caught:
        select(_store([]), SPEC)
    assert "genlip ingest" in caught.value.message


def test_a_store_that_kept_nothing_says_so() -> None:
    store = _store([[], []])
    assert select(store, SPEC).counts() == {}
    with pytest.raises(UserError, match="no sample is left to train on"):
        _make(store)


def test_a_raw_tar_that_is_cut_short_is_named_and_no_shard_is_written() -> None:
    store = _store([[(n, n) for n in range(10)]])
    (tar,) = store.names("raw", ".tar")
    store.write(f"raw/{tar}", store.read(f"raw/{tar}")[:5000])
    with pytest.raises(UserError, match="shorter than its ledger says") as caught:
        _make(store, ShardSpec(name="d"))
    assert tar in caught.value.message
    assert store.names("shards/d", ".tar") == []
