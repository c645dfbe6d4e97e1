"""What samples cost, from the index alone: tokens decide the rows, FLOPs are counted for the log.

Samples are gathered shard by shard, so a segment of them reads each shard's index once.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model import ImageProcessor, Tokenizer
from pipeline.errors import UserError
from train.data.captions import CaptionChoice, key_digests
from train.data.mixture import Places
from train.data.sources import Source
from train.network import Network


@dataclass(frozen=True)
class Costs:
    """What each of N samples costs, known before it is read."""

    tokens_N: NDArray[np.int32]
    """Tokens in a row: patches + prompt + caption + ending."""
    patches_N: NDArray[np.int32]
    labels_N: NDArray[np.int32]
    """Tokens with a loss: caption + ending."""
    flops_N: NDArray[np.int64]
    """To train on it, by the formula of the objective."""

    def take(self, chosen: Sequence[int]) -> "Costs":
        """Those at some positions, in that order."""
        return Costs(self.tokens_N[chosen], self.patches_N[chosen], self.labels_N[chosen], self.flops_N[chosen])


class CostModel:
    """`cost_model(places)`: the costs of a segment's samples."""

    def __init__(
        self,
        sources: Sequence[Source],
        captions: CaptionChoice,
        network: Network,
        processor: ImageProcessor,
        tokenizer: Tokenizer,
        max_caption_tokens: int,
        row_tokens: int,
    ) -> None:
        self._sources = sources
        self._captions = captions
        self._network = network
        self._max_caption_tokens = max_caption_tokens
        self._num_prompt_tokens, self._num_ending_tokens = len(tokenizer.prompt_ids), len(tokenizer.ending_ids)
        self._row_tokens = row_tokens
        self._num_patches = lru_cache(maxsize=1 << 16)(lambda width, height: math.prod(processor.grid(width, height)))
        self._digests = lru_cache(maxsize=max(source.dataset.max_shards_kept for source in sources))(self._read_digests)

    def __call__(self, places: Places) -> Costs:
        """Cost samples without reading them.

        Raises:
            UserError: One does not fit into a row, or the index or the captions of a shard cannot be read.
        """
        size_N = np.empty(len(places), np.int64)
        caption_tokens_N = np.empty(len(places), np.int32)
        for source in np.unique(places.source_N):
            shards = np.unique(places.shard_N[places.source_N == source]).tolist()
            self._sources[source].lengths.prepare(shards)
        for source, shard, at in _by_shard(places):
            row_n = places.row_N[at]
            found = self._sources[source].dataset.shard(shard)
            size_N[at] = (found.width_n[row_n].astype(np.int64) << 32) | found.height_n[row_n]
            lengths_Cn = self._sources[source].lengths.shard(shard)[:, row_n]
            if self._captions.is_fixed:
                caption_tokens_N[at] = lengths_Cn[0]
            else:
                name_n = self._choose(source, shard, places.pass_N[at], row_n)
                caption_tokens_N[at] = np.take_along_axis(lengths_Cn, name_n[None].astype(np.int64), axis=0)[0]
        costs = self._cost(self._patches(size_N), caption_tokens_N)
        self._check_fits(costs, places)
        return costs

    def _choose(
        self, source: int, shard: int, pass_n: NDArray[np.int64], row_n: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Which caption each sample reads, [n]."""
        digest_n = self._digests(source, shard)[row_n]
        name_n = np.empty(len(row_n), np.uint8)
        for number in np.unique(pass_n):
            at = pass_n == number
            name_n[at] = self._captions.at(int(number), digest_n[at])
        return name_n

    def _read_digests(self, source: int, shard: int) -> NDArray[np.uint64]:
        return key_digests(self._sources[source].dataset.shard(shard).keys.to_pylist())

    def _patches(self, size_N: NDArray[np.int64]) -> NDArray[np.int32]:
        """Patches of images whose width and height share a number."""
        unique, which = np.unique(size_N, return_inverse=True)
        patches = [self._num_patches(int(size) >> 32, int(size) & 0xFFFFFFFF) for size in unique]
        return np.array(patches, np.int32)[which]

    def _cost(self, patches_N: NDArray[np.int32], caption_tokens_N: NDArray[np.int32]) -> Costs:
        labels_N = (np.minimum(caption_tokens_N, self._max_caption_tokens) + self._num_ending_tokens).astype(np.int32)
        pair_N = (patches_N.astype(np.int64) << 32) | labels_N
        unique, which = np.unique(pair_N, return_inverse=True)
        pairs = ((int(pair) >> 32, int(pair) & 0xFFFFFFFF) for pair in unique)
        prompt = self._num_prompt_tokens
        flops = [self._network.flops_per_sample(patches, prompt + labels, labels) for patches, labels in pairs]
        tokens_N = (patches_N + prompt + labels_N).astype(np.int32)
        return Costs(tokens_N, patches_N, labels_N, np.array(flops, np.int64)[which])

    def _check_fits(self, costs: Costs, places: Places) -> None:
        longest = int(costs.tokens_N.argmax())
        num_tokens = int(costs.tokens_N[longest])
        if num_tokens > self._row_tokens:
            source = self._sources[places.source_N[longest]]
            raise UserError(
                f"a sample has {num_tokens} tokens, a row {self._row_tokens}",
                where=f"train.row_tokens; {source.place(int(places.shard_N[longest]), int(places.row_N[longest]))}",
                next_step=f"--set train.row_tokens={num_tokens} or more, or a lower train.max_caption_tokens",
            )


def _by_shard(places: Places) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Source, shard, and the positions of its samples, for each shard that is there."""
    order = np.lexsort((places.shard_N, places.source_N))
    source_N, shard_N = places.source_N[order], places.shard_N[order]
    begins = np.flatnonzero((np.diff(source_N) != 0) | (np.diff(shard_N) != 0)) + 1
    for at in np.split(order, begins):
        yield int(places.source_N[at[0]]), int(places.shard_N[at[0]]), at
