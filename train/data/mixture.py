"""Which source and which sample stands at each position of a run: weights, schedule and passes as a pure function.

The run's positions are counted in samples and fall into segments. A segment takes from each source the share that its
weight earns up to the segment's end, rounded down, less what was taken before; the heaviest source makes up for the
rounding. So no other source is ever off by a whole sample, and the heaviest by no more than there are others. The
sources' turns inside a segment are shuffled. Each source goes through its own passes, each in an order of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.data.order import ShardOrder, derive_key, permute

SEGMENT_SAMPLES = 65_536
_UNIT = 2**32
"""Weights are whole numbers of this unit, so that shares are exact at any position."""


@dataclass(frozen=True)
class Phase:
    """From a position of the run on, or the next segment's beginning: the weight of each source."""

    from_samples: int
    weights: tuple[float, ...]


class Place(NamedTuple):
    """One sample."""

    source: int
    number: int
    """Of the pass."""
    shard: int
    row: int
    """Within the shard."""


@dataclass(frozen=True)
class Places:
    """The samples of one segment, in order. N samples."""

    source_N: NDArray[np.int32]
    pass_N: NDArray[np.int64]
    shard_N: NDArray[np.int64]
    row_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source_N)

    def __iter__(self) -> Iterator[Place]:
        columns = (self.source_N, self.pass_N, self.shard_N, self.row_N)
        return map(Place._make, zip(*(column.tolist() for column in columns), strict=True))

    def take(self, chosen: Sequence[int]) -> "Places":
        """Those at some positions, in that order."""
        return Places(self.source_N[chosen], self.pass_N[chosen], self.shard_N[chosen], self.row_N[chosen])


class Mixture:
    """One or more sources as one endless sequence."""

    def __init__(
        self,
        num_samples_by_source: Sequence[NDArray[np.int64]],
        phases: Sequence[Phase],
        seed: int,
        block_shards: int,
        segment_samples: int = SEGMENT_SAMPLES,
    ) -> None:
        """Args:
        num_samples_by_source: Samples of each shard, [S], for each source.
        phases: Weights in force from a position on; the first from 0.
        seed: Of all orders.
        block_shards: Shards whose samples are shuffled together.
        segment_samples: Positions in a segment; at least the square of the number of sources.
        """
        self.num_samples_by_source = list(num_samples_by_source)
        self.segment_samples = segment_samples
        self._seed = seed
        self._block_shards = block_shards
        self._starts, self._weights, self._taken = _boundaries(phases, segment_samples)
        self.order = lru_cache(maxsize=2 * len(self.num_samples_by_source) + 2)(self._make_order)

    def taken(self, num_samples: int) -> list[int]:
        """Samples that each source has given when the run has taken so many; exact at the segments' ends."""
        phase = int(np.searchsorted(self._starts, num_samples, "right")) - 1
        shares = _shares(self._weights[phase], num_samples - self._starts[phase])
        return [one + share for one, share in zip(self._taken[phase], shares, strict=True)]

    def places(self, segment: int) -> Places:
        """The samples of a segment."""
        starts, ends = (self.taken(number * self.segment_samples) for number in (segment, segment + 1))
        turns = np.repeat(np.arange(len(starts), dtype=np.int32), np.subtract(ends, starts))
        if len(starts) > 1:
            key = derive_key(self._seed, 2, segment)
            turns = turns[permute(np.arange(len(turns), dtype=np.int64), len(turns), key)]
        pass_N, shard_N, row_N = (np.empty(len(turns), np.int64) for _ in range(3))
        for source, (start, end) in enumerate(zip(starts, ends, strict=True)):
            at = np.flatnonzero(turns == source)
            pass_N[at], shard_N[at], row_N[at] = self._source_places(source, start, end)
        return Places(turns, pass_N, shard_N, row_N)

    def _source_places(self, source: int, start: int, end: int) -> tuple[NDArray[np.int64], ...]:
        """Pass, shard and row of a source's samples from its start-th to before its end-th."""
        num_samples = int(self.num_samples_by_source[source].sum())
        parts = []
        while start < end:
            number, position = divmod(start, num_samples)
            count = min(end - start, num_samples - position)
            shard_n, row_n = self.order(source, number).samples(position, position + count)
            parts.append((np.full(count, number, np.int64), shard_n, row_n))
            start += count
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True)) or (np.empty(0, np.int64),) * 3

    def _make_order(self, source: int, number: int) -> ShardOrder:
        """The order of one pass over a source."""
        key = derive_key(self._seed, 1, source, number)
        return ShardOrder(self.num_samples_by_source[source], self._block_shards, key)


def _boundaries(
    phases: Sequence[Phase], segment_samples: int
) -> tuple[list[int], list[tuple[int, ...]], list[list[int]]]:
    """First position, whole-number weights, and what each source has given before, of each phase."""
    starts = [-(-phase.from_samples // segment_samples) * segment_samples for phase in phases]
    weights = [_whole_weights(phase.weights) for phase in phases]
    taken = [[0] * len(phases[0].weights)]
    for number in range(1, len(phases)):
        shares = _shares(weights[number - 1], starts[number] - starts[number - 1])
        taken.append([one + share for one, share in zip(taken[-1], shares, strict=True)])
    return starts, weights, taken


def _whole_weights(weights: Sequence[float]) -> tuple[int, ...]:
    total = sum(weights)
    return tuple(round(weight / total * _UNIT) for weight in weights)


def _shares(weights: Sequence[int], num_samples: int) -> list[int]:
    """What each source gives of so many samples: its weight's share rounded down, the rest from the heaviest."""
    shares = [weight * num_samples // _UNIT for weight in weights]
    heaviest = max(range(len(weights)), key=weights.__getitem__)
    shares[heaviest] += num_samples - sum(shares)
    return shares
