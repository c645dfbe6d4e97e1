"""What is sent arrives once, at its part, in order, and a killed writer leaves nothing."""

import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exchange import Exchange
from pipeline.store import Store

SENT = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), max_size=20), min_size=1, max_size=4)


def _exchange() -> Exchange:
    return Exchange(Store(f"memory://{uuid.uuid4().hex}"), "scratch/rows", 5)


def _send(exchange: Exchange, writer: str, rows: list[tuple[int, int]]) -> None:
    table = pa.table({"x": pa.array([value for _, value in rows], pa.int64())})
    exchange.send(writer, table, np.array([part for part, _ in rows], np.int64))


@given(SENT)
def test_each_part_gets_its_rows_in_order(sent: list[list[tuple[int, int]]]) -> None:
    exchange = _exchange()
    for number, rows in enumerate(sent):
        _send(exchange, f"w{number}", rows)
    for part in range(5):
        expected = [value for rows in sent for at, value in rows if at == part]
        assert exchange.receive(part)["x"].to_pylist() == expected


def test_sending_again_replaces_and_named_writers_are_read_alone() -> None:
    exchange = _exchange()
    _send(exchange, "a", [(1, 10)])
    _send(exchange, "b", [(1, 20)])
    _send(exchange, "a", [(1, 11)])
    assert exchange.has("a")
    assert not exchange.has("c")
    assert exchange.receive(1)["x"].to_pylist() == [11, 20]
    assert exchange.receive(1, ["b"])["x"].to_pylist() == [20]
    exchange.remove()
    assert not exchange.has("a")


@pytest.mark.parametrize("parts", [[0, 7], [0], [-1, 0]])
def test_a_wrong_part_is_refused_and_leaves_nothing(parts: list[int]) -> None:
    exchange = _exchange()
    with pytest.raises(ValueError, match=r"2 rows need as many parts, each in \[0, 5\)"):
        exchange.send("a", pa.table({"x": [1, 2]}), np.array(parts))
    assert not exchange.has("a")
