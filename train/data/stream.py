"""The rows of a run: a pure function of (datasets, weights, seed, position). No worker, rank or clock enters it.

A run has a fixed number of lanes: each optimiser step takes one packed row from every lane. Ranks own lanes, so any
world size that divides them trains on the same global batches. Rows are packed inside segments of the mixture, each by
itself, so a position is a segment and a row in it, whatever came before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.data.costs import Costs
from train.data.mixture import Mixture, Places
from train.data.packing import pack_lengths

_SEGMENTS_KEPT = 6
"""Those that the steps under way lie in, and the next."""


@dataclass(frozen=True)
class Position:
    """The stream's whole state: the next row to take."""

    segment: int = 0
    row: int = 0


class Totals(NamedTuple):
    """What some rows come to, as planned."""

    num_samples: int
    num_tokens: int
    num_labels: int
    """Tokens with a loss."""
    flops: int
    """To train on them."""


@dataclass(frozen=True)
class Segment:
    """Some samples and the R rows they are packed into."""

    places: Places
    costs: Costs
    rows: list[list[int]]
    """Positions in `places`."""

    @cached_property
    def totals_R4(self) -> NDArray[np.int64]:
        """The `Totals` of each row."""
        flat = np.fromiter(_flat(self.rows), np.int64)
        begins = np.cumsum([0, *(len(row) for row in self.rows[:-1])])
        costs = (np.ones(len(flat)), self.costs.tokens_N[flat], self.costs.labels_N[flat], self.costs.flops_N[flat])
        return np.stack([np.add.reduceat(one.astype(np.int64), begins) for one in costs], axis=1)


@dataclass(frozen=True)
class Row:
    """A packed row: which samples, and what they cost."""

    segment: Segment
    number: int
    """In the segment."""

    @property
    def places(self) -> Places:
        return self.segment.places.take(self.segment.rows[self.number])

    @property
    def costs(self) -> Costs:
        return self.segment.costs.take(self.segment.rows[self.number])


@dataclass(frozen=True)
class Step:
    """The row of each lane in one step, what they come to, and the position of the next."""

    at: Position
    rows: list[Row]
    totals: Totals
    after: Position


class Stream:
    """Packed rows, step by step, without end."""

    def __init__(self, mixture: Mixture, cost: Callable[[Places], Costs], row_tokens: int, lanes: int) -> None:
        """Args:
        mixture: Which samples, in which order.
        cost: What they cost.
        row_tokens: Capacity of a row.
        lanes: Rows in a global batch.
        """
        self.mixture = mixture
        self.row_tokens = row_tokens
        self.lanes = lanes
        self._cost = cost
        self.segment = lru_cache(maxsize=_SEGMENTS_KEPT)(self._plan)

    def step(self, at: Position) -> Step:
        """The step at a position."""
        number, row = at.segment, at.row
        rows: list[Row] = []
        totals_4 = np.zeros(4, np.int64)
        while len(rows) < self.lanes:
            segment = self.segment(number)
            end = min(row + self.lanes - len(rows), len(segment.rows))
            rows += [Row(segment, one) for one in range(row, end)]
            totals_4 += segment.totals_R4[row:end].sum(axis=0)
            row = end
            if row == len(segment.rows):
                number, row = number + 1, 0
        return Step(at, rows, Totals(*totals_4.tolist()), Position(number, row))

    def samples_before(self, at: Position) -> list[int]:
        """Samples that each source has given in the rows before a position."""
        segment = self.segment(at.segment)
        taken = np.array(self.mixture.taken(at.segment * self.mixture.segment_samples))
        before = np.fromiter(_flat(segment.rows[: at.row]), np.int64)
        taken += np.bincount(segment.places.source_N[before], minlength=len(taken))
        return [int(number) for number in taken]

    def passes(self, at: Position) -> list[float]:
        """How often each source has been read in the rows before a position."""
        totals = [num_samples_S.sum() for num_samples_S in self.mixture.num_samples_by_source]
        return [before / int(total) for before, total in zip(self.samples_before(at), totals, strict=True)]

    def _plan(self, number: int) -> Segment:
        """Which samples share a row in a segment."""
        places = self.mixture.places(number)
        costs = self._cost(places)
        return Segment(places, costs, pack_lengths(costs.tokens_N.tolist(), self.row_tokens))


def _flat(rows: list[list[int]]) -> Iterable[int]:
    return (position for row in rows for position in row)
