"""What changed between two selections."""

from collections import Counter

import pytest

import pipeline.curate.rows
from pipeline.curate.compare import ABSENT, MAX_EXAMPLES, compare
from pipeline.curate.rows import open_rows
from pipeline.errors import UserError
from pipeline.store import Store
from tests.selections import write_selection
from tests.stores import Stored, commit_unit, make_store

_A = ["train", "train", "long", "heldout"] * 8
_B = ["train", "long", "long", "train"] * 8


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(pipeline.curate.rows, "UNITS_PER_PART", 2)
    made = make_store([[Stored(f"k{unit}{i}") for i in range(8)] for unit in range(4)])
    write_selection(open_rows(made, []), "a", _A)
    write_selection(open_rows(made, []), "b", _B)
    return made


def test_changes_are_counted_with_examples(store: Store) -> None:
    found = compare(store, "a", "b")
    assert found.num_same == 16
    assert [(c.before, c.after, c.num_samples) for c in found.changes] == [
        ("heldout", "train", 8),
        ("train", "long", 8),
    ]
    assert found.changes[1].examples[:3] == [(key, f"the picture {key}") for key in ("k01", "k05", "k11")]
    assert all(len(change.examples) == MAX_EXAMPLES for change in found.changes)
    assert "  train → long: 8" in found.lines()


def test_nothing_changed(store: Store) -> None:
    assert compare(store, "a", "a").lines() == ["a → a: 32 samples as before, 0 not"]


def test_units_that_came_later_are_new(store: Store) -> None:
    for number in (4, 5, 6):
        commit_unit(store, number, [Stored(f"new{number}{i}") for i in range(3)])
    write_selection(open_rows(store, []), "c", [*_A, *["train"] * 9])
    assert [(c.before, c.after, c.num_samples) for c in compare(store, "a", "c").changes] == [(ABSENT, "train", 9)]
    (change,) = compare(store, "c", "a").changes
    assert (change.before, change.after, change.num_samples) == ("train", ABSENT, 9)
    assert change.examples[0] == ("new40", "the picture new40")


def test_selections_that_cut_the_store_differently(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.curate.rows, "UNITS_PER_PART", 3)
    commit_unit(store, 4, [Stored("late0"), Stored("late1")])
    write_selection(open_rows(store, []), "d", [*_B, "train", "long"])
    counts = Counter({(c.before, c.after): c.num_samples for c in compare(store, "a", "d").changes})
    assert counts == {("heldout", "train"): 8, ("train", "long"): 8, (ABSENT, "train"): 1, (ABSENT, "long"): 1}


def test_an_absent_selection_is_named(store: Store) -> None:
    with pytest.raises(UserError, match="no selection 'x'"):
        compare(store, "a", "x")
