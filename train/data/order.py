"""In which order a pass reads a store: a pure function of (shards, seed, pass), in two levels.

The shards are permuted, and cut into blocks of some shards each; the samples of a block are permuted. Both permutations
are keyed Feistel networks: any position is found by computing, without a list of samples. Reads stay inside a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 4


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread the bits of each value over all 64 (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key of several numbers."""
    key = 0
    for part in parts:
        key = int(mix(np.array([(key + part + 0x9E3779B97F4A7C15) % 2**64], np.uint64))[0])
    return key


def permute(position_N: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Where each position in [0, size) goes under the permutation of a key.

    A Feistel network on the smallest power of two that holds `size`; what falls outside walks on until it is inside.
    """
    bits = max(1, int(size - 1).bit_length())
    low_bits = bits // 2
    halves = (np.uint64(low_bits), np.uint64(2**low_bits - 1), np.uint64(2 ** (bits - low_bits) - 1))
    keys = mix(np.array([(key + number) % 2**64 for number in range(1, _ROUNDS + 1)], np.uint64))
    values = _feistel(position_N.astype(np.uint64), halves, keys)
    while (outside := np.flatnonzero(values >= size)).size:
        values[outside] = _feistel(values[outside], halves, keys)
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], halves: tuple[np.uint64, np.uint64, np.uint64], keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Each round changes one half by a hash of the other, in turn: a bijection whatever the hash is."""
    low_bits, low_mask, high_mask = halves
    low, high = values & low_mask, values >> low_bits
    for key in keys:
        high = high ^ (mix(low + key) & high_mask)
        low = low ^ (mix(high ^ key) & low_mask)
    return (high << low_bits) | low


@dataclass(frozen=True)
class ShardOrder:
    """The order of one pass over S shards."""

    num_samples_S: NDArray[np.int64]
    block_shards: int
    key: int

    @property
    def num_samples(self) -> int:
        return int(self._ends_S[-1])

    @cached_property
    def _shards_S(self) -> NDArray[np.int64]:
        """The shards in the order of the pass."""
        num_shards = len(self.num_samples_S)
        return permute(np.arange(num_shards, dtype=np.int64), num_shards, derive_key(self.key, 0))

    @cached_property
    def _ends_S(self) -> NDArray[np.int64]:
        """Position behind each shard, if blocks were not shuffled, in the order of the pass."""
        return np.cumsum(self.num_samples_S[self._shards_S])

    @cached_property
    def _block_ends_B(self) -> NDArray[np.int64]:
        ends = self._ends_S[self.block_shards - 1 :: self.block_shards]
        return ends if len(ends) and ends[-1] == self._ends_S[-1] else np.append(ends, self._ends_S[-1])

    def samples(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples at positions start … stop − 1 of the pass.

        Returns:
            Shard and row within the shard of each, [stop − start].
        """
        position_N = np.arange(start, stop, dtype=np.int64)
        block_N = np.searchsorted(self._block_ends_B, position_N, "right")
        place_N = np.empty_like(position_N)
        for block in np.unique(block_N):
            begin = int(self._block_ends_B[block - 1]) if block else 0
            size = int(self._block_ends_B[block]) - begin
            inside = block_N == block
            place_N[inside] = begin + permute(position_N[inside] - begin, size, derive_key(self.key, 1, int(block)))
        at_N = np.searchsorted(self._ends_S, place_N, "right")
        shard_N = self._shards_S[at_N]
        return shard_N, place_N - (self._ends_S[at_N] - self.num_samples_S[shard_N])


def shuffle_quality(order: ShardOrder, start: int, batch: int = 64, num_batches: int = 64) -> tuple[float, float]:
    """Of consecutive samples from a position on: distinct shards in a batch, and how often neighbours share a shard."""
    stop = min(start + batch * num_batches, order.num_samples)
    shard_N, _ = order.samples(start, stop)
    whole: Sequence[NDArray[np.int64]] = [shard_N[i : i + batch] for i in range(0, len(shard_N) - batch + 1, batch)]
    distinct = float(np.mean([len(np.unique(one)) for one in whole])) if whole else float(len(np.unique(shard_N)))
    same = float(np.mean(shard_N[1:] == shard_N[:-1])) if len(shard_N) > 1 else 1.0
    return distinct, same
