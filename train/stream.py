"""The plan of a run's data: a pure function of (dataset, seed, epoch). No worker, rank or clock enters it.

A run has a fixed number of lanes: each optimiser step takes one packed row from every lane. Ranks own lanes, so any
world size that divides them trains on the same global batches.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store import Store
from train.captions import CAPTION
from train.packing import pack_lengths


@dataclass(frozen=True)
class SampleTable:
    """A dataset's index as arrays: one entry per sample, N in all."""

    store: Store
    shard_paths: list[str]
    keys: list[str]
    shard_N: NDArray[np.int32]
    offset_N: NDArray[np.int64]
    size_N: NDArray[np.int64]
    width_N: NDArray[np.int32]
    height_N: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, sample: int) -> bytes:
        """The tar members of one sample."""
        path = self.shard_paths[self.shard_N[sample]]
        return self.store.read_range(path, int(self.offset_N[sample]), int(self.size_N[sample]))

    def place(self, sample: int) -> str:
        """Where a sample is, for messages: shard and key."""
        return f"{self.shard_paths[self.shard_N[sample]]} key {self.keys[sample]}"

    def fingerprint(self) -> str:
        """Of the samples and their order: two datasets with the same one give the same stream."""
        return hashlib.sha256("".join(self.keys).encode()).hexdigest()[:16]


def index_name(dataset: str) -> str:
    """The file without which a dataset does not exist."""
    return f"shards/{dataset}/index.parquet"


def read_samples(store: Store, dataset: str) -> SampleTable:
    """Load a dataset's index.

    Raises:
        UserError: The store has no such dataset.
    """
    name = index_name(dataset)
    if not store.exists(name):
        raise UserError("the store has no such shards", where=store.path(name), next_step="run: genlip ingest RECIPE")
    columns = store.read_table(name).to_pydict()

    def joined(column: str, dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.asarray(values, dtype) for values in columns[column]])

    return SampleTable(
        store=store,
        shard_paths=columns["path"],
        keys=[key for keys in columns["keys"] for key in keys],
        shard_N=np.repeat(np.arange(len(columns["path"]), dtype=np.int32), columns["num_samples"]),
        offset_N=joined("offsets", np.int64),
        size_N=joined("sizes", np.int64),
        width_N=joined("widths", np.int32),
        height_N=joined("heights", np.int32),
    )


def lengths_name(dataset: str, tokenizer_fingerprint: str, caption: str = CAPTION) -> str:
    """The file with the lengths of one of the captions under one tokenizer."""
    suffix = "" if caption == CAPTION else f"-{caption}"
    return f"shards/{dataset}/lengths-{tokenizer_fingerprint[:16]}{suffix}.parquet"


def read_caption_lengths(
    samples: SampleTable, dataset: str, tokenizer_fingerprint: str, caption: str = CAPTION
) -> NDArray[np.int32]:
    """Tokens that each sample has for a caption, ending not included, [N]; where it lacks it, those of `caption`.

    Raises:
        UserError: The lengths were not counted with this tokenizer, or belong to other shards.
    """
    lengths = _counted(samples, lengths_name(dataset, tokenizer_fingerprint, caption))
    if caption != CAPTION:
        stand_in = read_caption_lengths(samples, dataset, tokenizer_fingerprint)
        lengths = [other if own is None else own for own, other in zip(lengths, stand_in.tolist(), strict=True)]
    return np.asarray(lengths, np.int32)


def _counted(samples: SampleTable, name: str) -> list[int | None]:
    hint = "run: genlip tokenizer RECIPE"
    if not samples.store.exists(name):
        raise UserError("captions are not counted yet", where=samples.store.path(name), next_step=hint)
    columns = samples.store.read_table(name).to_pydict()
    lengths = [length for shard in columns["num_tokens"] for length in shard]
    if columns["path"] != samples.shard_paths or len(lengths) != len(samples):
        raise UserError(
            "the caption lengths belong to other shards",
            where=samples.store.path(name),
            next_step=f"delete this file, then {hint}",
        )
    return lengths


@dataclass(frozen=True)
class Position:
    """The stream's whole state: the next step to take."""

    epoch: int = 0
    step: int = 0


class Stream:
    """Rows of samples, epoch by epoch; every epoch has every sample once, in an order of its own."""

    def __init__(
        self,
        tokens_N: NDArray[np.int32],
        row_tokens: int,
        lanes: int,
        seed: int,
        tokens_of: Callable[[int], NDArray[np.int32]] | None = None,
    ) -> None:
        """Args:
        tokens_N: Tokens of each sample in a row: image, prompt, caption and ending; at most so many with `tokens_of`.
        row_tokens: Capacity of a row.
        lanes: Rows in a global batch.
        seed: Of the order.
        tokens_of: Those of an epoch, where captions change from one to the next.
        """
        self.tokens_N = tokens_N
        self.row_tokens = row_tokens
        self.lanes = lanes
        self.seed = seed
        self._tokens_of = tokens_of
        self._rows = lru_cache(maxsize=2)(self._pack_epoch)

    def tokens_at(self, epoch: int) -> NDArray[np.int32]:
        """Tokens of each sample in an epoch, [N]."""
        return self._tokens_of(epoch) if self._tokens_of else self.tokens_N

    def num_steps(self, epoch: int) -> int:
        """Optimiser steps in an epoch. In the last one some lanes may be empty."""
        return -(-len(self._rows(epoch)) // self.lanes)

    def step_rows(self, at: Position) -> list[list[int]]:
        """The samples of each lane's row in one step."""
        rows = self._rows(at.epoch)[at.step * self.lanes : (at.step + 1) * self.lanes]
        return rows + [[] for _ in range(self.lanes - len(rows))]

    def after(self, at: Position) -> Position:
        """The position that follows."""
        if at.step + 1 < self.num_steps(at.epoch):
            return Position(at.epoch, at.step + 1)
        return Position(at.epoch + 1, 0)

    def fill(self, epoch: int) -> float:
        """Share of the epoch's row space that holds tokens."""
        return float(self.tokens_at(epoch).sum()) / (len(self._rows(epoch)) * self.row_tokens)

    def _pack_epoch(self, epoch: int) -> list[list[int]]:
        # Philox is counter-based: the order of an epoch does not depend on the epochs before it.
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.tokens_N))
        rows = pack_lengths(self.tokens_at(epoch)[order].tolist(), self.row_tokens)
        return [[int(order[position]) for position in row] for row in rows]
