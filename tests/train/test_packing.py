"""Packing: every sample once, no row too full, order kept within the look-ahead."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.packing import LOOK_AHEAD, pack_lengths

ROW = 128
lengths_lists = st.lists(st.integers(1, ROW), max_size=400)


@given(lengths_lists)
def test_every_sample_is_placed_once_and_no_row_overflows(lengths: list[int]) -> None:
    rows = pack_lengths(lengths, ROW)
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[position] for position in row) <= ROW for row in rows)


@given(lengths_lists)
def test_no_sample_overtakes_by_more_than_the_look_ahead(lengths: list[int]) -> None:
    waiting = set(range(len(lengths)))
    for position in (position for row in pack_lengths(lengths, ROW) for position in row):
        assert sum(earlier < position for earlier in waiting) < LOOK_AHEAD
        waiting.remove(position)


@given(lengths_lists.filter(bool))
def test_neighbouring_rows_could_not_have_been_one(lengths: list[int]) -> None:
    rows = pack_lengths(lengths, ROW)
    for row, following in itertools.pairwise(rows):
        assert sum(lengths[position] for position in row) + lengths[following[0]] > ROW


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="129 tokens does not fit into a row of 128"):
        pack_lengths([3, 129], ROW)
