"""The commit records of a dataset: a small file per shard, and the index that joins them."""

import json
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset_files import index_file, refused_file, shard_file
from pipeline.each import ahead
from pipeline.inputs.committed import NumberSet
from pipeline.shards import INDEX_SCHEMA, SHARD_SCHEMA
from pipeline.store import Store

REFUSED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("raw", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
    ]
)
"""One row per sample that is in no shard."""
_METADATA = b"genlip"
_GROUP_SHARDS = 1024
"""Shards in a row group of the index: what its writer holds in memory."""
_READ_THREADS = 16


def write_commit(store: Store, dataset: str, number: int, entry: dict[str, Any], refused: list[dict[str, Any]]) -> None:
    """Commit a shard.

    Args:
        entry: a value for each column of `SHARD_SCHEMA`.
        refused: of each sample that was left out, a value for each column of `REFUSED_SCHEMA`.
    """
    schema = SHARD_SCHEMA.with_metadata({_METADATA: json.dumps({"refused": refused})})
    store.write_table(shard_file(dataset, number), pa.Table.from_pylist([entry], schema=schema))


def committed_shards(store: Store, dataset: str) -> NumberSet:
    """The numbers of the shards that are committed."""
    stems = (name.removesuffix(".parquet") for name in store.iter_files(f"shards/{dataset}", ".parquet"))
    return NumberSet(int(stem.removeprefix("shard-")) for stem in stems if stem.startswith("shard-"))


def write_index(store: Store, dataset: str, num_shards: int) -> None:
    """Join the commits of all shards; what was left out is written first."""
    with (
        store.writing(index_file(dataset)) as index_stream,
        pq.ParquetWriter(index_stream, INDEX_SCHEMA) as index,
        store.writing(refused_file(dataset)) as refused_stream,
        pq.ParquetWriter(refused_stream, REFUSED_SCHEMA) as refused,
    ):
        for start in range(0, num_shards, _GROUP_SHARDS):
            numbers = range(start, min(start + _GROUP_SHARDS, num_shards))
            commits = list(ahead(partial(_read_commit, store, dataset), numbers, _READ_THREADS))
            index.write_table(pa.concat_tables([row for row, _ in commits]))
            refused.write_table(pa.concat_tables([left_out for _, left_out in commits]))


def _read_commit(store: Store, dataset: str, number: int) -> tuple[pa.Table, pa.Table]:
    """A shard's row of the index, and its rows of what was left out."""
    with store.reading(shard_file(dataset, number)) as stream:
        table = pq.read_table(stream, columns=INDEX_SCHEMA.names)
    refused = json.loads(table.schema.metadata[_METADATA])["refused"]
    return table.cast(INDEX_SCHEMA), pa.Table.from_pylist(refused, schema=REFUSED_SCHEMA)
