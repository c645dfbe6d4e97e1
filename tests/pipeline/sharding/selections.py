"""Selections written down by hand, and what a dataset made of one holds."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import pyarrow as pa

from pipeline.curate.rows import open_rows
from pipeline.curate.select import units_fingerprint
from pipeline.dataset_files import index_file
from pipeline.each import in_turn
from pipeline.recipe import ShardSpec
from pipeline.sharding.dataset import DatasetSummary, materialise
from pipeline.shards import INDEX_SCHEMA, Sample, iter_samples, parse_sample
from pipeline.store import Store
from tests.stores import Stored, make_store, noise, shard_rows

SMALL_JPEG = noise(0)


def key_of(number: int) -> str:
    return f"{number:020x}"


def numbered_store(units: Iterable[Iterable[int]], root: str = "") -> Store:
    """Samples by their number; they share one image, which is decoded all the same."""
    return make_store([[Stored(key_of(number), image=SMALL_JPEG) for number in unit] for unit in units], root)


def write_selection(store: Store, name: str, fate_of: Callable[[str], str] = lambda key: "train") -> dict[str, str]:
    """Writes selection/NAME as `select` does. Returns the fates by key."""
    rows = open_rows(store, [])
    fates: dict[str, str] = {}
    num_parts = 0
    for part in rows.parts():
        table = rows.read(part, ["key"])
        found = [fate_of(key) for key in table["key"].to_pylist()]
        fates |= dict(zip(table["key"].to_pylist(), found, strict=True))
        details = pa.nulls(len(found), pa.string())
        table = table.append_column("fate", pa.array(found, pa.string())).append_column("detail", details)
        store.write_table(f"selection/{name}/{part.name}.parquet", table)
        num_parts += 1
    record = {"spec": {}, "holdout": 0.0, "seed": 0, "folders": {}, "units_fingerprint": units_fingerprint(store)}
    counts = dict(Counter(fates.values()))
    record |= {"num_samples": len(fates), "counts": counts, "thresholds": {}, "parts": num_parts}
    store.write_json(f"selection/{name}/selection.json", record)
    return fates


def make(store: Store, name: str = "d", shard_samples: int = 7, seed: int = 1) -> DatasetSummary:
    """Materialises in this process."""
    return materialise(open_rows(store, []), name, ShardSpec(name=name, shard_samples=shard_samples), seed, in_turn)


def read_dataset(store: Store, dataset: str) -> list[Sample]:
    """All samples of a dataset through its index, checked against the index on the way."""
    if not store.exists(index_file(dataset)):
        return []
    assert store.read_table(index_file(dataset)).schema.equals(INDEX_SCHEMA)
    samples: list[Sample] = []
    for row in shard_rows(store, dataset):
        tar = store.read(row["path"])
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (row["num_bytes"], row["sha256"])
        inside = list(iter_samples(io.BytesIO(tar)))
        assert [sample.key for sample in inside] == row["keys"]
        assert row["num_samples"] == len(inside)
        for sample, offset, size in zip(inside, row["offsets"], row["sizes"], strict=True):
            assert parse_sample(store.read_range(row["path"], offset, size)) == sample
        assert len(row["widths"]) == len(row["heights"]) == len(inside)
        samples += inside
    return samples


def keys(store: Store, dataset: str) -> list[str]:
    return [sample.key for sample in read_dataset(store, dataset)]


def shard_sizes(store: Store, dataset: str) -> list[int]:
    sizes: list[int] = store.read_table(index_file(dataset))["num_samples"].to_pylist()
    return sizes


def dataset_files(store: Store, datasets: Sequence[str] = ("d", "d-heldout")) -> Mapping[str, bytes]:
    """All visible files of these datasets."""
    folders = [f"shards/{dataset}" for dataset in datasets]
    return {f"{at}/{name}": store.read(f"{at}/{name}") for at in folders for name in store.names(at, "")}
