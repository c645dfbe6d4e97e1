"""Columns that came with the input, as annotations of stored samples."""

import pytest

import pipeline.annotate.meta  # noqa: F401
from pipeline.annotate.annotator import build_annotator
from pipeline.annotate.columns import address, read_annotations, read_stored
from pipeline.annotate.unit import annotate_unit
from tests.stores import Stored, make_store

FIELDS = {"score": "float", "exif.iso": "int", "title": "string", "safe": "bool", "a.b": "string"}
METAS = [
    {"score": 0.25, "exif": {"iso": 100}, "title": "one", "safe": True, "a.b": "x"},
    {"score": 1, "exif": {"iso": True}, "title": 3, "safe": 0, "a": {"b": "y"}},
    {"score": "0.25", "exif": "none", "title": None, "safe": "yes", "a": {"b": 1}},
    {"score": True, "exif": {"iso": 2**70}, "title": "", "safe": False, "a": ["b"]},
    {"exif": {"iso": 1.5}},
]


def test_values_of_stored_samples() -> None:
    store = make_store([[Stored(f"k{i}", meta=meta) for i, meta in enumerate(METAS)]])
    meta = build_annotator("meta", {"fields": FIELDS})
    annotate_unit("u00000000", store, [meta], 0.0)
    found = read_annotations(store, address(meta), read_stored(store, "u00000000"))
    assert found.errors == {}
    assert found.columns.to_pydict() == {
        "score": [0.25, 1.0, None, None, None],
        "exif_iso": [100, None, None, None, None],
        "title": ["one", None, None, "", None],
        "safe": [True, None, None, False, None],
        "a_b": ["x", "y", None, None, None],
    }


def test_large_integers_are_rounded_to_a_float_and_too_large_ones_are_null() -> None:
    meta = build_annotator("meta", {"fields": {"score": "float"}})
    store = make_store([[Stored("k", meta={"score": 2**53 + 1}), Stored("l", meta={"score": 10**400})]])
    annotate_unit("u00000000", store, [meta], 0.0)
    found = read_annotations(store, address(meta), read_stored(store, "u00000000"))
    assert found.columns.to_pydict() == {"score": [2.0**53, None]}


@pytest.mark.parametrize("fields", [{}, {"a.b": "int", "a_b": "int"}, {"a": "integer"}])
def test_wrong_fields_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="annotator 'meta': fields"):
        build_annotator("meta", {"fields": fields})
