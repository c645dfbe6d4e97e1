"""A set of numbers in bits is a set, and what is listed page by page is all that is there."""

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs.committed import NumberSet, committed
from pipeline.store import Store
from tests.s3_server import s3_root

NUMBERS = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 100_000)))


@given(NUMBERS, NUMBERS)
def test_it_is_the_set_of_its_numbers(numbers: list[int], others: list[int]) -> None:
    found, wanted = NumberSet(numbers), set(numbers)
    assert list(found) == sorted(wanted)
    assert len(found) == len(wanted)
    assert [number in found for number in others] == [number in wanted for number in others]
    assert (found == NumberSet(others)) == (wanted == set(others))
    assert all(number not in found for number in (-1, -8, 100_001, 10**12))


@pytest.mark.parametrize("kind", ["folder", "memory", "s3"])
def test_committed_units_are_those_with_a_ledger(kind: str, tmp_path: Path) -> None:
    numbers = [0, 3, 5, 6, 7, 1023, 1024, 12345678]
    with s3_root() as bucket:
        store = Store({"folder": str(tmp_path), "memory": f"memory://{uuid.uuid4().hex}", "s3": bucket}[kind])
        assert len(committed(store)) == 0
        for number in numbers:
            store.write(f"ledger/u{number:08d}.parquet", b"x")
        for other in ("ledger/u00000002.txt", "ledger/.u00000004.parquet.tmp", "ledgers/u00000008.parquet"):
            store.write(other, b"x")
        store.write("ledger/inside/u00000009.parquet", b"x")
        assert list(committed(store)) == numbers
        states = dict(store.iter_states("ledger", ".parquet"))
        assert sorted(states) == [f"u{number:08d}.parquet" for number in numbers]
        store.write("ledger/u00000003.parquet", b"another")
        changed = dict(store.iter_states("ledger", ".parquet"))
        assert {name for name in states if states[name] != changed[name]} == {"u00000003.parquet"}
