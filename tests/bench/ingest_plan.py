"""Cuts a URL table into units: `python -m tests.bench.ingest_plan ours|img2dataset TABLES FOLDER`."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq

from tests.bench.ingest_settings import SHARD_SAMPLES

FILE_ROWS = 1_000_000
ROW_GROUP_ROWS = 100_000
NUM_HOSTS = 1_000_000
NUM_CAPTIONS = 10_000
ZIPF_EXPONENT = 1.3
WORDS = ("a", "photo", "of", "the", "old", "red", "bridge", "over", "river", "with", "two", "small", "boats", "behind")


def write_tables(folder: Path, num_rows: int) -> Path:
    """Writes parquet files of a million rows each, with as many hosts and with heavy ones, as a crawl has them."""
    folder.mkdir(parents=True)
    rng = np.random.Generator(np.random.Philox(key=3))
    captions = pa.array([" ".join(rng.choice(WORDS, rng.integers(4, 16))) for _ in range(NUM_CAPTIONS)])
    hosts = pa.array([f"https://img.shop-{number}.example/" for number in range(NUM_HOSTS)])
    for first in range(0, num_rows, FILE_ROWS):
        numbers = pa.array(np.arange(first, min(first + FILE_ROWS, num_rows))).cast(pa.string())
        host = hosts.take(pa.array((rng.zipf(ZIPF_EXPONENT, len(numbers)) - 1) % NUM_HOSTS))
        url = pc.binary_join_element_wise(host, numbers, "-product.jpg", "")
        caption = captions.take(pa.array(rng.integers(NUM_CAPTIONS, size=len(numbers))))
        table = pa.table({"url": url, "caption": caption})
        pq.write_table(table, folder / f"part-{first // FILE_ROWS:05d}.parquet", row_group_size=ROW_GROUP_ROWS)
    return folder


def plan_ours(tables: str, folder: str) -> int:
    """Groups by host, as it does from a million rows on, and writes the grouped rows."""
    from pipeline.inputs.plan import extend_plan
    from pipeline.recipe import IngestSpec, SourceSpec
    from pipeline.store import open_store

    spec = IngestSpec(source=SourceSpec(urls=tables), unit_samples=SHARD_SAMPLES)
    return extend_plan(open_store(folder, spec.content()), spec.source, spec.unit_samples).num_rows


def plan_img2dataset(tables: str, folder: str) -> int:
    """Its reader, which keeps the order of the table and writes a feather file for each shard."""
    from img2dataset.reader import Reader

    reader = Reader(tables, "parquet", "url", "caption", None, None, None, SHARD_SAMPLES, set(), folder)
    return sum(feather.read_table(path, memory_map=True).num_rows for _, path in reader)


if __name__ == "__main__":
    print({"ours": plan_ours, "img2dataset": plan_img2dataset}[sys.argv[1]](*sys.argv[2:]))
