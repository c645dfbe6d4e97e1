"""Threads that work ahead give the results of a loop, and hold no more than they may."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.each import ahead


@given(st.lists(st.integers(), max_size=40), st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(items: list[int], num_threads: int) -> None:
    assert list(ahead(lambda item: 2 * item, items, num_threads)) == [2 * item for item in items]


def test_items_are_taken_as_results_are() -> None:
    taken: list[int] = []
    items = (taken.append(number) or number for number in range(1000))
    results = ahead(str, items, 3)
    for number in range(100):
        assert next(results) == str(number)
        assert len(taken) <= number + 6
    assert len(list(results)) == 900


def test_the_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)
    assert len(list(ahead(lambda _: both.wait(), range(2), 2))) == 2


def test_an_error_is_raised_in_its_place() -> None:
    results = ahead(lambda item: 1 // item, [1, 1, 0, 1], 2)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
