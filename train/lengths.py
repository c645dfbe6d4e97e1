"""How many tokens each caption has: a column beside the shards, one small file per shard, tokenizer and caption."""

import json
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store import Store
from train.captions import CAPTION
from train.dataset import Dataset

_METADATA = b"genlip"
_SCHEMA = pa.schema([("num_tokens", pa.int32())])


def lengths_folder(dataset: str, tokenizer_fingerprint: str, caption: str = CAPTION) -> str:
    """Where the lengths of one of the captions under one tokenizer are."""
    suffix = "" if caption == CAPTION else f"-{caption}"
    return f"shards/{dataset}/lengths-{tokenizer_fingerprint[:16]}{suffix}"


def lengths_file(folder: str, number: int) -> str:
    """The file of one shard."""
    return f"{folder}/shard-{number:06d}.parquet"


def write_lengths(store: Store, name: str, lengths: Sequence[int | None], shard_sha256: str) -> None:
    """Commit the lengths of a shard: tokens of each sample's caption, None for a sample that lacks it."""
    metadata = {_METADATA: json.dumps({"shard_sha256": shard_sha256})}
    store.write_table(name, pa.table({"num_tokens": lengths}, schema=_SCHEMA.with_metadata(metadata)))


def read_lengths(store: Store, name: str, shard_sha256: str) -> pa.Array:
    """The lengths of a shard, null for samples that lack the caption, [n].

    Raises:
        UserError: They were not counted with this tokenizer, or belong to another shard.
    """
    next_step = "run: genlip tokenizer RECIPE"
    if not store.exists(name):
        raise UserError("captions are not counted yet", where=store.path(name), next_step=next_step)
    with store.reading(name) as stream:
        table = pq.read_table(stream)
    if json.loads(table.schema.metadata[_METADATA])["shard_sha256"] != shard_sha256:
        raise UserError(
            "the caption lengths belong to another shard",
            where=store.path(name),
            next_step=f"delete its folder, then {next_step}",
        )
    return table["num_tokens"].combine_chunks()


class CaptionLengths:
    """The lengths of some captions of a dataset, shard by shard. C captions, n samples of a shard."""

    def __init__(self, dataset: Dataset, tokenizer_fingerprint: str, captions: Sequence[str]) -> None:
        self._dataset = dataset
        self._folders = [lengths_folder(dataset.name, tokenizer_fingerprint, caption) for caption in captions]
        self._stand_in = lengths_folder(dataset.name, tokenizer_fingerprint)
        self.shard = lru_cache(maxsize=dataset.max_shards_kept)(self._read_shard)

    def _read_shard(self, number: int) -> NDArray[np.int32]:
        """Tokens without prompt and ending, [C, n]; those of `caption` where a sample lacks another."""
        columns = []
        for folder in self._folders:
            lengths = self._read(folder, number)
            if lengths.null_count:
                lengths = pc.coalesce(lengths, self._read(self._stand_in, number))
            columns.append(lengths.to_numpy())
        return np.stack(columns)

    def _read(self, folder: str, number: int) -> pa.Array:
        return read_lengths(self._dataset.store, lengths_file(folder, number), self._dataset.shard(number).sha256)
