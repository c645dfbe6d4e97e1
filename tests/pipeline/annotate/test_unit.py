"""A unit's annotation: computed once, aligned with the ledger, honest about what failed."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.annotate.caption  # noqa: F401
from pipeline.annotate.annotator import Annotator, Batch, Column, annotator, build_annotator
from pipeline.annotate.columns import address, annotated_units, read_annotations, read_stored
from pipeline.annotate.unit import annotate_unit
from pipeline.curate.rows import open_rows
from pipeline.errors import UserError
from pipeline.store import Store
from tests.stores import Stored, commit_unit, make_store, noise


@annotator("test_brightness")
class Brightness(Annotator):
    """Mean of an image, and the length of its caption; raises where the caption says so."""

    offset: float = 0.0

    batch_samples: ClassVar[int] = 3

    def columns(self) -> dict[str, pa.DataType]:
        return {"brightness": pa.float32(), "caption_chars": pa.int32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        if any("raise" in caption for caption in batch.captions):
            raise RuntimeError("the caption asked for it")
        return {
            "brightness": [float(image.mean()) + self.offset for image in batch.images],
            "caption_chars": [len(caption) for caption in batch.captions],
        }


@annotator("test_broken")
class Broken(Annotator):
    """Does not keep to what it declares, in a way of choice."""

    way: str
    needs_sample: ClassVar[bool] = False

    def columns(self) -> dict[str, pa.DataType]:
        return {"number": pa.int32()}

    def annotate(self, batch: Batch) -> Mapping[str, Column]:
        ways: dict[str, Mapping[str, Column]] = {
            "length": {"number": [1] * (len(batch) + 1)},
            "type": {"number": ["one"] * len(batch)},
            "name": {"nummer": [1] * len(batch)},
        }
        return ways[self.way]


def _samples(count: int, raising: tuple[int, ...] = ()) -> list[Stored]:
    return [
        Stored(f"k{number:03d}", "please raise" if number in raising else f"caption {number}", noise(number))
        for number in range(count)
    ]


def _column(store: Store, one: Annotator, unit: str, column: str) -> list[object]:
    stored = read_stored(store, unit)
    return list(read_annotations(store, address(one), stored).columns[column].to_pylist())


@given(st.integers(0, 10), st.sets(st.integers(0, 9), max_size=3))
def test_values_stand_in_the_ledgers_order_and_only_the_bad_are_lost(count: int, raising: set[int]) -> None:
    store = make_store([_samples(count, tuple(raising))])
    one = Brightness()
    report = annotate_unit("u00000000", store, [one], max_errors=1.0).by_address[address(one)]
    bad = {number for number in raising if number < count}
    assert (report.num_samples, report.num_errors, report.committed) == (count, len(bad), True)
    found = _column(store, one, "u00000000", "caption_chars")
    assert found == [None if number in bad else len(f"caption {number}") for number in range(count)]
    errors = read_annotations(store, address(one), read_stored(store, "u00000000")).errors
    assert errors == dict.fromkeys(bad, "RuntimeError: the caption asked for it")


def test_beyond_the_budget_nothing_is_committed() -> None:
    store = make_store([_samples(10, raising=(2, 5))])
    one, other = Brightness(), build_annotator("caption_stats", {})
    reports = annotate_unit("u00000000", store, [one, other], max_errors=0.1).by_address
    assert not reports[address(one)].committed
    assert reports[address(one)].examples[0] == "k002: RuntimeError: the caption asked for it"
    assert reports[address(other)].committed
    assert list(annotated_units(store, address(one))) == []
    assert list(annotated_units(store, address(other))) == [0]


def test_an_undecodable_image_costs_its_sample() -> None:
    samples = _samples(5)
    samples[3] = Stored("k003", "cut short", noise(3)[:40])
    store = make_store([samples])
    one = Brightness()
    annotate_unit("u00000000", store, [one], max_errors=0.5)
    assert [value is None for value in _column(store, one, "u00000000", "brightness")] == [False] * 3 + [True, False]


def test_what_is_there_is_not_computed_again() -> None:
    store = make_store([_samples(4), _samples(2)])
    one, shifted = Brightness(), Brightness(offset=1.0)
    assert address(one) != address(shifted)
    first = annotate_unit("u00000000", store, [one], 0.0)
    assert set(first.by_address) == {address(one)}
    both = annotate_unit("u00000000", store, [one, shifted], 0.0)
    assert set(both.by_address) == {address(shifted)}
    assert annotate_unit("u00000000", store, [one, shifted], 0.0).by_address == {}
    shift = np.subtract(*(_column(store, each, "u00000000", "brightness") for each in (shifted, one)))
    assert np.allclose(shift, 1.0)


@pytest.mark.parametrize(
    ("way", "said"),
    [("length", "3 values for 2 samples"), ("type", "number is declared int32"), ("name", "declared ['number']")],
)
def test_an_annotator_that_does_not_keep_its_word_is_named(way: str, said: str) -> None:
    store = make_store([_samples(2)])
    with pytest.raises(UserError, match="test_broken") as caught:
        annotate_unit("u00000000", store, [Broken(way=way)], 1.0)
    assert said in str(caught.value)


def test_a_unit_made_anew_is_refused_and_a_missing_one_names_the_command() -> None:
    store = make_store([_samples(4), _samples(3)])
    one = Brightness()
    annotate_unit("u00000000", store, [one], 0.0)
    with pytest.raises(UserError, match=r"brightness.*1 of 2 units") as caught:
        open_rows(store, [one])
    assert "genlip annotate" in str(caught.value)
    annotate_unit("u00000001", store, [one], 0.0)
    rows = open_rows(store, [one])
    (part,) = rows.parts()
    assert rows.read(part, ["key", "caption_chars"]).column_names == ["unit", "row", "key", "caption_chars"]
    commit_unit(store, 0, _samples(4)[::-1])
    with pytest.raises(UserError, match="changed since it was annotated") as caught:
        rows.read(part, ["key", "caption_chars"])
    assert "genlip annotate" in str(caught.value)


def test_an_unknown_annotator_or_parameter_is_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'test_brightness'"):
        build_annotator("test_brightnes", {})
    with pytest.raises(ValueError, match=r"ofset.*parameters: offset"):
        build_annotator("test_brightness", {"ofset": 1})
