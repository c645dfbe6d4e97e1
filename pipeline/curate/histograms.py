"""Counts that add up over parts: of numbers in bins that no data moves, and of the most frequent strings.

Each thing is counted twice: among all stored samples, and among those that are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SHIFT = 17
"""Mantissa bits of a float32 that are dropped: six stay, so that a bin is at most 1.6 % wide, and the whole numbers up
to 128 have one each."""
_TAIL = 0.002
"""Share of the values at either end that may lie outside a drawn range."""
_LOG_RATIO, _LOG_MEDIAN = 100, 10
"""A range is drawn on a logarithmic axis where its ends differ by more than the first factor, and its upper end and the
median by more than the second."""
DRAWN_BINS = 48


@dataclass(frozen=True)
class Histogram:
    """Numbers counted in B bins, sorted; a bin's number is the upper bits of a float32."""

    bin_B: NDArray[np.int32]
    count_B2: NDArray[np.int64]
    """Of all, and of the kept."""
    num_null: tuple[int, int] = (0, 0)
    """Samples without a finite value, of all and of the kept."""

    @staticmethod
    def of(values: Any, kept_N: NDArray[np.bool_]) -> "Histogram":
        """Count N numbers, a pyarrow array or chunked array."""
        value_N = np.asarray(pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False), np.float64)
        with np.errstate(over="ignore"):
            single_N = value_N.astype(np.float32) + np.float32(0)  # turns −0 into 0
        finite_N = np.isfinite(single_N)
        missing_N = ~finite_N
        bins_N = single_N[finite_N].view(np.int32) >> _SHIFT
        return Histogram.of_bins(bins_N, kept_N[finite_N], (int(missing_N.sum()), int((missing_N & kept_N).sum())))

    @staticmethod
    def of_bins(
        bins_N: NDArray[np.int32], kept_N: NDArray[np.bool_], num_null: tuple[int, int] = (0, 0)
    ) -> "Histogram":
        """Count N values whose bins are known."""
        bin_B, place_N = np.unique(bins_N, return_inverse=True)
        every_B = np.bincount(place_N, minlength=len(bin_B))
        kept_B = np.bincount(place_N[kept_N], minlength=len(bin_B))
        return Histogram(bin_B.astype(np.int32), np.stack([every_B, kept_B], axis=1).astype(np.int64), num_null)

    def merge(self, other: "Histogram") -> "Histogram":
        bin_B, place = np.unique(np.concatenate([self.bin_B, other.bin_B]), return_inverse=True)
        count_B2 = np.zeros((len(bin_B), 2), np.int64)
        np.add.at(count_B2, place, np.concatenate([self.count_B2, other.count_B2]))
        nulls = (self.num_null[0] + other.num_null[0], self.num_null[1] + other.num_null[1])
        return Histogram(bin_B, count_B2, nulls)

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end of each bin: [B], [B]."""
        ends = [(self.bin_B.astype(np.int64) + add << _SHIFT).astype(np.int32).view(np.float32) for add in (0, 1)]
        near, far = (np.nan_to_num(end.astype(np.float64), posinf=3.4e38, neginf=-3.4e38) for end in ends)
        return np.minimum(near, far), np.maximum(near, far)

    def drawn(self, whole_numbers: bool, show: Sequence[float] = ()) -> dict[str, Any]:
        """The same counts in few bins for a chart: `scale`, `edges` [E], `all` and `kept` [E − 1], counts outside.

        Args:
            whole_numbers: whether the values are integers, so that bins end between two.
            show: values that the range includes (thresholds).
        """
        nulls = {"num_null_all": self.num_null[0], "num_null_kept": self.num_null[1]}
        if not len(self.bin_B):
            return {"scale": "linear", "edges": [], "all": [], "kept": [], "outside_all": 0, "outside_kept": 0} | nulls
        low_B, high_B = self.edges()
        if whole_numbers:  # v fills [v, v + 1); a bin of negative numbers has its upper end, not its lower one
            is_negative_B = self.bin_B < 0
            low_B = np.where(is_negative_B, np.floor(low_B) + 1, np.ceil(low_B))
            high_B = np.where(is_negative_B, np.floor(high_B) + 1, np.ceil(high_B))
        total_B = np.cumsum(self.count_B2[:, 0])
        first = int(np.searchsorted(total_B, _TAIL * total_B[-1], side="right"))
        last = int(np.searchsorted(total_B, (1 - _TAIL) * total_B[-1]))
        low = min([float(low_B[first]), *show])
        high = max([float(high_B[last]) - whole_numbers, *show])
        middle = float(low_B[int(np.searchsorted(total_B, total_B[-1] / 2))])
        is_skewed = low > 0 and high / low > _LOG_RATIO and middle < high / _LOG_MEDIAN
        scale, edge_E = _drawn_edges(low, high, whole_numbers, is_skewed)
        place_2B = np.stack([low_B, high_B], axis=1).reshape(-1)
        drawn = []
        for side in (0, 1):
            after_B = np.cumsum(self.count_B2[:, side])
            steps = np.stack([after_B - self.count_B2[:, side], after_B], axis=1).reshape(-1)
            drawn.append(np.diff(np.rint(np.interp(edge_E, place_2B, steps))).astype(int))
        sums = self.count_B2.sum(axis=0)
        return {
            "scale": scale,
            "edges": [float(f"{edge:.6g}") for edge in edge_E],
            "all": drawn[0].tolist(),
            "kept": drawn[1].tolist(),
            "outside_all": int(sums[0] - drawn[0].sum()),
            "outside_kept": int(sums[1] - drawn[1].sum()),
        } | nulls


def empty_histogram() -> Histogram:
    """Nothing counted yet."""
    return Histogram(np.zeros(0, np.int32), np.zeros((0, 2), np.int64))


def _drawn_edges(low: float, high: float, whole_numbers: bool, is_skewed: bool) -> tuple[str, NDArray[np.float64]]:
    if is_skewed:
        return "log", np.geomspace(low, high * (1 + 1e-6) + whole_numbers, DRAWN_BINS + 1)
    if whole_numbers:
        step = max(1, int(np.ceil((high + 1 - low) / DRAWN_BINS)))
        return "linear", np.arange(np.floor(low), high + 1 + step, step, dtype=np.float64)
    if high <= low:
        high = low + (abs(low) or 1) / 64
    return "linear", np.linspace(low, high, DRAWN_BINS + 1)


Pair = tuple[int, int]
"""A count among all, and among the kept."""


@dataclass(frozen=True)
class Categories:
    """All values of a string column, as long as they are few."""

    max_values: int
    counts: dict[str, Pair] | None = field(default_factory=dict)
    """None once there are more than `max_values`: then the column is no category."""

    def merge(self, other: "Categories") -> "Categories":
        if self.counts is None or other.counts is None:
            return Categories(self.max_values, None)
        counts = add_counts(self.counts, other.counts)
        return Categories(self.max_values, counts if len(counts) <= self.max_values else None)


@dataclass(frozen=True)
class TopCounts:
    """The most frequent strings, in bounded memory: what is rare in a part is forgotten there."""

    capacity: int
    counts: dict[str, Pair] = field(default_factory=dict)
    max_error: int = 0
    """A count is too low by at most this: the sum, over all trims, of the largest count that was dropped."""

    def merge(self, other: "TopCounts") -> "TopCounts":
        counts = add_counts(self.counts, other.counts)
        error = self.max_error + other.max_error
        if len(counts) <= self.capacity:
            return TopCounts(self.capacity, counts, error)
        ordered = sorted(counts.items(), key=by_count)
        return TopCounts(self.capacity, dict(ordered[: self.capacity]), error + ordered[self.capacity][1][0])

    def top(self, number: int) -> Iterator[tuple[str, Pair]]:
        yield from sorted(self.counts.items(), key=by_count)[:number]


def count_strings(values: Any, kept_N: NDArray[np.bool_]) -> dict[str, Pair]:
    """Occurrences of each string among all and among the kept; nulls are left out."""
    every, kept = (
        {entry["values"]: entry["counts"] for entry in pc.value_counts(some).to_pylist()}
        for some in (values, values.filter(pa.array(kept_N)))
    )
    return {str(value): (count, kept.get(value, 0)) for value, count in every.items() if value is not None}


def add_counts(some: dict[str, Pair], others: dict[str, Pair]) -> dict[str, Pair]:
    total = dict(some)
    for value, (every, kept) in others.items():
        had = total.get(value, (0, 0))
        total[value] = (had[0] + every, had[1] + kept)
    return total


def by_count(entry: tuple[str, Pair]) -> tuple[int, str]:
    """Sort key: most frequent first, then by name."""
    return -entry[1][0], entry[0]
