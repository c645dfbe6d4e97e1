"""The exact k-th value over all parts, against sorting."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curate.quantiles import float_keys, float_of_key, kth_smallest, rank_of
from pipeline.curate.rows import Part
from pipeline.each import in_turn

_NUMBERS = st.one_of(
    st.floats(), st.none(), st.sampled_from([-0.0, 0.0, 1.0, -1.0, math.inf, -math.inf, 5e-324, 2.0**63])
)
_PARTS = st.lists(st.lists(_NUMBERS, max_size=12), min_size=1, max_size=4)


def _thresholds(parts: Sequence[Sequence[float | None]], wanted: Sequence[tuple[Fraction, bool]]) -> list[float | None]:
    def keys_of(part: Part) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [float_keys(pa.array(parts[part.number], pa.float64()))] * len(wanted)

    def ranks(totals: Sequence[int]) -> list[int]:
        return [rank_of(share, is_top, total) for (share, is_top), total in zip(wanted, totals, strict=True)]

    numbers = [Part(number, number, ()) for number in range(len(parts))]
    found = kth_smallest(keys_of, ranks, lambda: numbers, in_turn)
    return [None if key is None else float_of_key(key) for key in found]


def _by_sorting(values: Sequence[float], share: Fraction, is_top: bool) -> float | None:
    k = math.ceil(share * len(values))
    return sorted(values, reverse=is_top)[k - 1] if values else None


@settings(max_examples=150, deadline=None)
@given(_PARTS, st.lists(st.tuples(st.fractions(Fraction(1, 1000), 1), st.booleans()), min_size=1, max_size=3))
def test_thresholds_are_those_of_sorting(parts: list[list[float | None]], wanted: list[tuple[Fraction, bool]]) -> None:
    values = [value for part in parts for value in part if value is not None and not math.isnan(value)]
    assert _thresholds(parts, wanted) == [_by_sorting(values, *one) for one in wanted]


@given(st.lists(st.floats(allow_nan=False)))
def test_keys_have_the_order_of_the_numbers_and_give_them_back(values: list[float]) -> None:
    keys = float_keys(pa.array(values, pa.float64())).tolist()
    assert [float_of_key(key) for key in keys] == values
    assert [values[i] for i in np.argsort(np.array(keys, np.uint64), kind="stable")] == sorted(values)


def test_ties_at_the_threshold_are_all_in() -> None:
    values = [1.0, 2.0, 2.0, 2.0, 3.0]
    (threshold,) = _thresholds([values], [(Fraction(2, 5), True)])
    assert threshold == 2.0
    assert sum(value >= 2.0 for value in values) == 4


def test_integers_that_a_float_holds_are_exact() -> None:
    assert _thresholds([[2.0**53, 2.0**53 - 1]], [(Fraction(1, 2), False)]) == [2.0**53 - 1]


def test_no_values_have_no_threshold() -> None:
    assert _thresholds([[None, math.nan], []], [(Fraction(1, 2), True)]) == [None]
