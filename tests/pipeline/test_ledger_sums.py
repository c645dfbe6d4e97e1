"""Kept sums are those of the ledgers, whatever was committed, made anew, deleted or interrupted since."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ledger_sums
from pipeline.curate.select import units_fingerprint
from pipeline.funnel import funnel_of, read_funnel
from pipeline.inputs.rows import name_of
from pipeline.ledger import CommitRecord, committed_units, read_commit
from pipeline.ledger_sums import SUMS_FILE, read_sums
from pipeline.store import Store

COUNTS = st.dictionaries(st.sampled_from(["success", "failed:timeout", "rejected:blurry"]), st.integers(1, 9))
UNITS = st.integers(0, 11)
STEPS = st.one_of(
    st.tuples(st.just("commit"), UNITS, COUNTS, COUNTS),
    st.tuples(st.just("delete"), UNITS),
    st.tuples(st.just("interrupt"), st.integers(0, 4)),
    st.tuples(st.sampled_from(["read", "forget"])),
)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_sums, "BLOCK_UNITS", 3)
        patch.setattr(ledger_sums, "_KEEP_EVERY", 1)
        yield


@pytest.fixture
def store() -> Store:
    return _new_store()


def _new_store() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}")


def _commit(store: Store, number: int, reasons: dict[str, int], replaces: dict[str, int]) -> None:
    record = json.dumps(asdict(CommitRecord(uuid.uuid4().hex, "", 0, reasons, replaces)))
    ledger = pa.table({"key": ["k"]}).replace_schema_metadata({"genlip": record})
    store.write_table(f"ledger/{name_of(number)}.parquet", ledger)


def _labels(store: Store) -> Counter[str]:
    """From scratch."""
    labels: Counter[str] = Counter()
    for name in committed_units(store):
        record = read_commit(store, name)
        labels.update(record.reasons)
        labels.subtract(record.replaces)
    return labels


class _Reader:
    """An `Each` that notes the units it reads, and is killed before it comes to the block after the first so many."""

    def __init__(self, num_blocks: float = float("inf")) -> None:
        self._num_blocks = num_blocks
        self.read: list[int] = []

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for count, item in enumerate(items):
            if count >= self._num_blocks:
                raise InterruptedError
            self.read += item
            yield item, function(item)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=25))
def test_a_funnel_from_kept_sums_is_that_of_the_ledgers(steps: list[tuple[Any, ...]]) -> None:
    store = _new_store()
    for name, *arguments in [*steps, ("read",)]:
        if name == "commit":
            _commit(store, *arguments)
        elif name == "delete":
            store.remove(f"ledger/{name_of(arguments[0])}.parquet")
        elif name == "forget":
            store.remove(SUMS_FILE)
        elif name == "interrupt":
            with suppress(InterruptedError):
                read_funnel(store, _Reader(arguments[0]), keep=True)
        else:
            fresh = Store(store.root)
            assert read_funnel(fresh, keep=True) == funnel_of(_labels(store))
            again = _Reader()
            fingerprint = units_fingerprint(fresh, again)
            assert again.read == []
            store.remove(SUMS_FILE)
            assert units_fingerprint(store) == fingerprint


def test_only_blocks_with_new_ledgers_are_read_again(store: Store) -> None:
    for number in (0, 1, 4, 7):
        _commit(store, number, {"success": 2}, {})
    first, second, third = _Reader(), _Reader(), _Reader()
    read_sums(store, first, keep=True)
    assert first.read == [0, 1, 4, 7]
    _commit(store, 5, {"success": 1}, {})
    _commit(store, 0, {"success": 1}, {})
    read_sums(store, second, keep=True)
    assert second.read == [0, 1, 4, 5]
    read_sums(store, third)
    assert third.read == []


def test_what_an_interrupted_reading_read_is_kept(store: Store) -> None:
    for number in range(9):
        _commit(store, number, {"success": 1}, {})
    with pytest.raises(InterruptedError):
        read_sums(store, _Reader(2), keep=True)
    rest = _Reader()
    read_sums(store, rest)
    assert rest.read == [6, 7, 8]


def test_nothing_is_written_unless_asked_for(store: Store) -> None:
    _commit(store, 0, {"success": 1}, {})
    read_funnel(store)
    assert store.names("", "") == ["ledger"]


def test_a_unit_made_anew_changes_the_fingerprint(store: Store) -> None:
    for number in range(7):
        _commit(store, number, {"success": 1}, {})
    before = units_fingerprint(store)
    _commit(store, 4, {"success": 1}, {})
    assert units_fingerprint(store) != before
