"""How many tokens each caption has: a column beside the shards, one small file per shard, tokenizer and caption.

`genlip tokenizer` counts all shards on Ray. What is not counted when a run comes to it is counted then and kept, so
that the plan of the rows, and with it the order of a run, never depends on who counted.
"""

import json
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model import Tokenizer
from pipeline.errors import UserError
from pipeline.shards import Sample
from pipeline.store import Store
from train.data.captions import CAPTION, caption_of, num_tokens
from train.data.dataset import Dataset, read_samples

_METADATA = b"genlip"
_SCHEMA = pa.schema([("num_tokens", pa.int32())])
_RUN_FOLDER = "lengths"
_NUM_THREADS = 4
"""Shards that a process counts at a time: they wait for their store most of the time."""


def lengths_folder(dataset: str, tokenizer_fingerprint: str, caption: str = CAPTION) -> str:
    """Where the lengths of one of the captions under one tokenizer are."""
    suffix = "" if caption == CAPTION else f"-{caption}"
    return f"shards/{dataset}/lengths-{tokenizer_fingerprint[:16]}{suffix}"


def lengths_file(folder: str, number: int) -> str:
    """The file of one shard."""
    return f"{folder}/shard-{number:06d}.parquet"


def count_tokens(
    samples: Iterable[Sample | None], tokenizer: Tokenizer, captions: Iterable[str]
) -> dict[str, pa.Array]:
    """Tokens of some captions of each sample, without prompt and ending.

    Args:
        samples: None for one that cannot be read.
        tokenizer: Counts.
        captions: By name.

    Returns:
        By caption the tokens of all samples; null for those that lack it, 0 for one that cannot be read: its place in
        a row will be empty.
    """
    lengths: dict[str, list[int | None]] = {caption: [] for caption in captions}
    for sample in samples:
        for caption, found in lengths.items():
            text = caption_of(sample, caption) if sample else ""
            found.append(None if text is None else num_tokens(tokenizer, text))
    return {caption: pa.array(found, pa.int32()) for caption, found in lengths.items()}


def write_lengths(store: Store, name: str, lengths: pa.Array, shard_sha256: str) -> None:
    """Commit the lengths of a shard: tokens of each sample's caption, null for a sample that lacks it."""
    metadata = {_METADATA: json.dumps({"shard_sha256": shard_sha256})}
    store.write_table(name, pa.table({"num_tokens": lengths}, schema=_SCHEMA.with_metadata(metadata)))


def _read_lengths(store: Store, name: str, shard_sha256: str) -> pa.Array:
    with store.reading(name) as stream:
        table = pq.read_table(stream)
    if json.loads(table.schema.metadata[_METADATA])["shard_sha256"] != shard_sha256:
        raise UserError(
            "the caption lengths belong to another shard",
            where=store.path(name),
            next_step="delete its folder, then run: genlip tokenizer RECIPE",
        )
    return table["num_tokens"].combine_chunks()


class LengthsFiles:
    """The lengths of a dataset's captions under one tokenizer: in its store or, where that is read-only, in a run."""

    def __init__(self, dataset: Dataset, tokenizer_fingerprint: str, run_dir: Path) -> None:
        self._dataset, self._tokenizer_fingerprint = dataset, tokenizer_fingerprint
        of_run = Store(str(run_dir.resolve() / _RUN_FOLDER / dataset.fingerprint))
        self._stores = [of_run, dataset.store]
        # fsspec writes over HTTP by posting to the server, which nobody has asked for.
        self._is_read_only = dataset.store.root.startswith(("http://", "https://"))

    def find(self, caption: str, number: int) -> pa.Array | None:
        """The lengths of a shard, null for samples that lack the caption, [n]; None where they are not counted.

        Raises:
            UserError: They belong to another shard.
        """
        name = self._name(caption, number)
        for store in self._stores:
            if store.exists(name):
                return _read_lengths(store, name, self._dataset.shard(number).sha256)
        return None

    def keep(self, caption: str, number: int, lengths: pa.Array) -> None:
        """Commit the lengths of a shard. Processes that do so at the same time write the same."""
        name, sha256 = self._name(caption, number), self._dataset.shard(number).sha256
        of_run, store = self._stores
        if not self._is_read_only:
            try:
                return write_lengths(store, name, lengths, sha256)
            except Exception:  # noqa: BLE001 - every file system has its own way to say that it is read-only
                self._is_read_only = True
        return write_lengths(of_run, name, lengths, sha256)

    def num_shards(self, caption: str) -> int:
        """Shards whose lengths are there."""
        return len({name for store in self._stores for name in store.names(self._folder(caption), ".parquet")})

    def forget(self, caption: str) -> None:
        """Delete what was counted of a caption."""
        for store in self._stores:
            store.remove(self._folder(caption))

    def _folder(self, caption: str) -> str:
        return lengths_folder(self._dataset.name, self._tokenizer_fingerprint, caption)

    def _name(self, caption: str, number: int) -> str:
        return lengths_file(self._folder(caption), number)


class CaptionLengths:
    """The lengths of some captions of a dataset, shard by shard. C captions, n samples of a shard."""

    def __init__(self, dataset: Dataset, tokenizer: Tokenizer, captions: Sequence[str], run_dir: Path) -> None:
        """Args:
        dataset: Which.
        tokenizer: Counts what is not counted yet.
        captions: By name.
        run_dir: Where to keep what cannot be kept in the dataset's store.
        """
        self.num_counted = 0
        """Shards that this process has counted, as their lengths were not there."""
        self.shard = lru_cache(maxsize=dataset.max_shards_kept)(self._read_shard)
        self._dataset, self._tokenizer, self._captions = dataset, tokenizer, captions
        self._files = LengthsFiles(dataset, tokenizer.fingerprint, run_dir)

    def prepare(self, numbers: Sequence[int]) -> None:
        """Read or count the lengths of some shards at the same time.

        Each process takes them in an order of its own, so that the ranks of a job, which need the same shards at the
        same time, count different ones and find the others counted.
        """
        shuffled = random.SystemRandom().sample(numbers, len(numbers))
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="lengths") as threads:
            for _ in threads.map(self.shard, shuffled):
                pass

    def _read_shard(self, number: int) -> NDArray[np.int32]:
        """Tokens without prompt and ending, [C, n]; those of `caption` where a sample lacks another."""
        found = {caption: self._files.find(caption, number) for caption in {CAPTION, *self._captions}}
        missing = [caption for caption, lengths in found.items() if lengths is None]
        if missing:
            found |= self._count(number, missing)
        return np.stack([pc.coalesce(found[caption], found[CAPTION]).to_numpy() for caption in self._captions])

    def _count(self, number: int, captions: Sequence[str]) -> dict[str, pa.Array]:
        """Count the captions of a shard, and keep the lengths."""
        counted = count_tokens(read_samples(self._dataset, number), self._tokenizer, captions)
        for caption, lengths in counted.items():
            if lengths.null_count == len(lengths) > 0:
                raise UserError(
                    f"no sample of a shard has a caption called {caption!r}",
                    where=f"train.captions; {self._dataset.store.path(self._dataset.shard(number).path)}",
                    next_step="correct the name; or, where others have it, run: genlip tokenizer RECIPE",
                )
        for caption, lengths in counted.items():
            self._files.keep(caption, number, lengths)
        self.num_counted += 1
        return counted
