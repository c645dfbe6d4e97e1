"""The rows of a run: a pure function of (datasets, weights, seed, position). No worker, rank or clock enters it.

A run has a fixed number of lanes: each optimiser step takes one packed row from every lane. Ranks own lanes, so any
world size that divides them trains on the same global batches. Rows are packed inside segments of the mixture, each by
itself, so a position is a segment and a row in it, whatever came before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from train.costs import Costs
from train.mixture import Mixture, Places
from train.packing import pack_lengths

_SEGMENTS_KEPT = 6
"""Those that the steps under way lie in, and the next."""


@dataclass(frozen=True)
class Position:
    """The stream's whole state: the next row to take."""

    segment: int = 0
    row: int = 0


@dataclass(frozen=True)
class Row:
    """A packed row: its samples and what they cost."""

    places: Places
    costs: Costs


@dataclass(frozen=True)
class Step:
    """The row of each lane in one step, and the position of the next."""

    at: Position
    rows: list[Row]
    after: Position

    @property
    def num_samples(self) -> int:
        return sum(len(row.places) for row in self.rows)


@dataclass(frozen=True)
class Segment:
    """Some samples and the rows they are packed into."""

    places: Places
    costs: Costs
    rows: list[list[int]]
    """Positions in `places`."""


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
        while len(rows) < self.lanes:
            segment = self.segment(number)
            chosen = segment.rows[row : row + self.lanes - len(rows)]
            rows += [Row(segment.places.take(one), segment.costs.take(one)) for one in chosen]
            row += len(chosen)
            if row >= len(segment.rows):
                number, row = number + 1, 0
        return Step(at, rows, Position(number, row))

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
