"""A dataset's shards as the stream reads them: totals at once, the samples of a shard when they are asked for."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.shards import CAPTION_FILE, Sample, parse_sample
from pipeline.store import Store

_INDEX_COLUMNS = ["path", "num_samples", "num_bytes", "sha256"]
_MAKE_AGAIN = "restore the dataset's files, or make it again under another name: genlip curate RECIPE"


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
    paths: pa.Array
    num_samples_S: NDArray[np.int64]
    fingerprint: str
    """Of the shards' content and order: two datasets with the same one give the same stream."""
    max_shards_kept: int
    """Shards whose samples stay in memory: 0.5 MB for 10,000 samples."""
    caption: str
    """Where a sample's caption stands in a tar of others; see `pipeline.shards.parse_sample`."""

    @property
    def num_samples(self) -> int:
        return int(self.num_samples_S.sum())

    @property
    def num_shards(self) -> int:
        return len(self.num_samples_S)

    def parse(self, members: bytes) -> Sample:
        """A sample from its tar members.

        Raises:
            ShardError: They are not those of one sample.
        """
        return parse_sample(members, self.caption)

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


def index_name(dataset: str) -> str:
    """The file without which a dataset does not exist."""
    return f"shards/{dataset}/index.parquet"


def shard_file(dataset: str, number: int) -> str:
    """The index of one shard's samples; shards are numbered as they stand in the dataset's index."""
    return f"shards/{dataset}/shard-{number:06d}.parquet"


def open_dataset(store: Store, name: str, max_shards_kept: int = 1) -> Dataset:
    """A dataset by its index, of which only the totals are read.

    Raises:
        UserError: The store has no such dataset, or nothing is in it.
    """
    file = index_name(name)
    if not store.exists(file):
        raise UserError("the store has no such shards", where=store.path(file), next_step="run: genlip curate RECIPE")
    with store.reading(file) as stream:
        table = pq.read_table(stream, columns=_INDEX_COLUMNS)
    num_samples_S = table["num_samples"].to_numpy()
    if not num_samples_S.sum():
        raise UserError("the dataset is empty", where=store.path(file), next_step="run: genlip curate RECIPE")
    caption = _caption(store, name)
    digest = hashlib.sha256(caption.encode())
    for column in ("path", "num_samples", "sha256"):
        digest.update("\n".join(map(str, table[column].to_pylist())).encode())
    paths = table["path"].combine_chunks()
    return Dataset(store, name, paths, num_samples_S, digest.hexdigest()[:16], max_shards_kept, caption)


def _caption(store: Store, name: str) -> str:
    file = f"shards/{name}/dataset.json"
    return str(store.read_json(file).get("caption", CAPTION_FILE)) if store.exists(file) else CAPTION_FILE


def shard_samples(dataset: Dataset, number: int) -> Iterator[Sample]:
    """The samples of a shard, in order, one in memory at a time.

    Raises:
        ShardError: The shard is not what its index says.
    """
    shard = dataset.shard(number)
    with dataset.store.reading(shard.path) as stream:
        for offset, size in zip(shard.offset_n.tolist(), shard.size_n.tolist(), strict=True):
            stream.seek(offset)
            yield dataset.parse(stream.read(size))


def first_samples(dataset: Dataset, limit: int) -> Iterator[Sample]:
    """The first samples of a dataset, in the order of its index."""
    samples = (sample for number in range(dataset.num_shards) for sample in shard_samples(dataset, number))
    return islice(samples, limit)
