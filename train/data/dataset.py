"""A dataset's shards as the stream reads them: totals at once, the samples of a shard when they are asked for."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset_files import dataset_file, index_file, shard_file
from pipeline.errors import UserError
from pipeline.row_groups import TableColumns, read_row_group, split_group_path
from pipeline.shards import CAPTION_FILE, INDEX_SCHEMA, Sample, ShardError, parse_sample
from pipeline.store import Store
from train.data.reading import ShardReader
from train.data.row_groups import RowGroupCache, fetch_row_group, refuse_changed

_MAKE_AGAIN = "restore the dataset's files, or make it again under another name: genlip curate RECIPE, or genlip index"


@dataclass(frozen=True)
class Shard:
    """What the index knows of one shard's samples. n samples."""

    path: str
    sha256: str
    keys: pa.Array
    offset_n: NDArray[np.int64]
    size_n: NDArray[np.int64]
    width_n: NDArray[np.int32]
    height_n: NDArray[np.int32]


@dataclass(frozen=True)
class Dataset:
    """The shards of one dataset. S shards."""

    store: Store
    name: str
    paths: pa.ChunkedArray
    num_samples_S: NDArray[np.int64]
    fingerprint: str
    """Of the shards' content and order: two datasets with the same one give the same stream."""
    max_shards_kept: int
    """Shards whose samples stay in memory: where they are (0.5 MB for 10,000) and, of tables, what they are."""
    max_shard_bytes: int
    """Of the largest one."""
    caption: str
    """Where a sample's caption stands in a tar of others; see `pipeline.shards.parse_sample`."""
    columns: TableColumns | None
    """Of a dataset of tables: those that are read."""

    @property
    def num_samples(self) -> int:
        return int(self.num_samples_S.sum())

    @property
    def num_shards(self) -> int:
        return len(self.num_samples_S)

    def read_sample(self, reader: ShardReader, shard: Shard, row: int) -> Sample:
        """One sample. May be called by many threads at once.

        Args:
            reader: Reads the range of the tar or, where it is not in memory, the row group of the table.
            shard: Of `shard`.
            row: In the shard.

        Raises:
            ShardError: The shard is not what its index says.
            OSError: It cannot be read.
        """
        offset, size, key = int(shard.offset_n[row]), int(shard.size_n[row]), shard.keys[row].as_py()
        if self.columns is None:
            store, name = self.store.locate(shard.path)
            sample = parse_sample(reader.read(store, name, offset, size, shard.sha256), self.caption)
            if sample.key != key:
                raise ShardError(f"the tar has key {sample.key} here")
            return sample
        fetch = partial(fetch_row_group, reader, shard.path, self.columns, shard.sha256)
        return self._row_groups.get(shard.path, fetch).sample(offset, key, size)

    @cached_property
    def _row_groups(self) -> RowGroupCache:
        return RowGroupCache(self.max_shards_kept * self.max_shard_bytes)

    @cached_property
    def shard(self) -> Any:
        """`shard(number)`: the samples of a shard, the latest ones kept."""
        return lru_cache(maxsize=self.max_shards_kept)(self._read_shard)

    def _read_shard(self, number: int) -> Shard:
        name = shard_file(self.name, number)
        if not self.store.exists(name):
            raise UserError("a shard's index is missing", where=self.store.path(name), next_step=_MAKE_AGAIN)
        table = pq.read_table(io.BytesIO(self.store.read(name)))
        path, num_samples = self.paths[number].as_py(), int(self.num_samples_S[number])
        found = (table["path"][0].as_py(), table["num_samples"][0].as_py())
        if found != (path, num_samples):
            raise UserError(
                f"a shard's index is of {found[0]} with {found[1]:,} samples, the dataset's of {path} with"
                f" {num_samples:,}",
                where=self.store.path(name),
                next_step=_MAKE_AGAIN,
            )
        offset_n, size_n, width_n, height_n = (
            table[column][0].values.to_numpy() for column in ("offsets", "sizes", "widths", "heights")
        )
        return Shard(path, table["sha256"][0].as_py(), table["keys"][0].values, offset_n, size_n, width_n, height_n)


def open_dataset(store: Store, name: str, max_shards_kept: int = 1) -> Dataset:
    """A dataset by its index.

    Raises:
        UserError: The store has no such dataset, or nothing is in it.
    """
    file = index_file(name)
    if not store.exists(file):
        raise UserError("the store has no such shards", where=store.path(file), next_step="run: genlip curate RECIPE")
    with store.reading(file) as stream:
        table = pq.read_table(stream, columns=INDEX_SCHEMA.names)
    num_samples_S = table["num_samples"].to_numpy()
    if not num_samples_S.sum():
        raise UserError("the dataset is empty", where=store.path(file), next_step="run: genlip curate RECIPE")
    made_of = store.read_json(dataset_file(name)) if store.exists(dataset_file(name)) else {}
    caption, image = str(made_of.get("caption", CAPTION_FILE)), made_of.get("image")
    return Dataset(
        store,
        name,
        paths=table["path"],
        num_samples_S=num_samples_S,
        fingerprint=_fingerprint(table, caption + (image or "")),
        max_shards_kept=max_shards_kept,
        max_shard_bytes=int(table["num_bytes"].to_numpy().max()),
        caption=caption,
        columns=TableColumns(image, caption) if image else None,
    )


def _fingerprint(index: pa.Table, read_as: str) -> str:
    digest = hashlib.sha256(read_as.encode())
    for column in ("path", "num_samples", "sha256"):
        for chunk in index[column].cast(pa.string()).chunks:
            lines = pc.binary_join_element_wise(chunk, "", "\n")
            digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "")[0].as_buffer())
    return digest.hexdigest()[:16]


def read_samples(dataset: Dataset, number: int) -> Iterator[Sample | None]:
    """The samples of a shard, in order; None for one whose bytes are damaged. The shard is read once, front to back.

    Raises:
        UserError: The shard cannot be read.
    """
    shard = dataset.shard(number)
    try:
        yield from _tar_samples(dataset, shard) if dataset.columns is None else _table_samples(dataset.columns, shard)
    except (OSError, ShardError) as error:
        where = dataset.store.path(shard.path)
        raise UserError("a shard cannot be read", where=where, why=str(error), next_step=_MAKE_AGAIN) from error


def _tar_samples(dataset: Dataset, shard: Shard) -> Iterator[Sample | None]:
    with dataset.store.reading(shard.path) as stream:
        for offset, size in zip(shard.offset_n.tolist(), shard.size_n.tolist(), strict=True):
            stream.seek(offset)
            try:
                yield parse_sample(stream.read(size), dataset.caption)
            except ShardError:
                yield None


def _table_samples(columns: TableColumns, shard: Shard) -> Iterator[Sample]:
    path, number = split_group_path(shard.path)
    refuse_changed(path, shard.sha256)
    with Store("/").reading(path) as stream:
        group = read_row_group(stream, number, columns)
    for row, key, size in zip(shard.offset_n.tolist(), shard.keys.to_pylist(), shard.size_n.tolist(), strict=True):
        yield group.sample(row, key, size)


def first_samples(dataset: Dataset, limit: int | None = None) -> Iterator[Sample]:
    """The first samples of a dataset, or all, in the order of its index, without those whose bytes are damaged."""
    samples = (sample for number in range(dataset.num_shards) for sample in read_samples(dataset, number))
    return islice(filter(None, samples), limit)
