"""The guard of the held-out images against brute force, on real pictures, and in records and words."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.curate.rows
from pipeline.curate import holdout
from pipeline.curate.explain import explain
from pipeline.curate.rows import Rows, open_rows
from pipeline.curate.select import SelectionSummary, is_current, read_summary, select
from pipeline.curate.spec import DedupSpec, SelectSpec
from pipeline.each import in_turn
from pipeline.pixels.phash import perceptual_hash
from tests.stores import Stored, jpeg, make_store

_ALL = SelectSpec(dedup=DedupSpec(exact=()))
_SHARE = 0.4
HASHES = st.lists(
    st.tuples(st.sampled_from([0, 0xFF00FF00FF00FF00, 2**64 - 1]), st.lists(st.integers(0, 63), max_size=6)),
    max_size=24,
)


def _flipped(value: int, bits: list[int]) -> int:
    for bit in bits:
        value ^= 1 << bit
    return value


def _rows(hashes: list[int], num_units: int) -> Rows:
    """Samples with these hashes, in this order whatever the number of units."""
    samples = [Stored(f"k{i:03d}", image=b"%d" % i, phash=f"{value:016x}") for i, value in enumerate(hashes)]
    size = -(-len(samples) // num_units)
    return open_rows(make_store([samples[at : at + size] for at in range(0, len(samples), size)]), [])


def _select(rows: Rows, near_bits: int | None, share: float = _SHARE) -> SelectionSummary:
    return select(rows, _ALL, share, "s", 7, in_turn, near_bits)


def _fates(rows: Rows) -> list[tuple[str, str | None]]:
    files = rows.store.names("selection/s", ".parquet")
    found = [row for file in files for row in rows.store.read_table(f"selection/s/{file}").to_pylist()]
    return [(row["fate"], row["detail"]) for row in found]


@settings(deadline=None, max_examples=40)
@given(
    HASHES, st.integers(0, 6), st.sampled_from([1, 3, 7]), st.sampled_from([1, 2, 100]), st.sampled_from([1, 3, 1000])
)
def test_fates_are_those_of_brute_force(
    flips: list[tuple[int, list[int]]], max_bits: int, num_units: int, units_per_part: int, hashes_per_set: int
) -> None:
    # Files that differ, of which both sides have some whatever the example is.
    hashes = [0, 0, 1, 1, 3, 3, *(_flipped(value, bits) for value, bits in flips)]
    rows = _rows(hashes, num_units)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.curate.rows, "UNITS_PER_PART", units_per_part)
        patch.setattr(holdout, "HASHES_PER_SET", hashes_per_set)
        _select(rows, None)
        plain = [fate for fate, _ in _fates(rows)]
        summary = _select(rows, max_bits)
        found = _fates(rows)
    heldout = [(value, f"k{i:03d}") for i, value in enumerate(hashes) if plain[i] == "heldout"]
    assert 0 < len(heldout) < len(hashes)
    for value, fate, (guarded, key) in zip(hashes, plain, found, strict=True):
        near = sorted(((value ^ held).bit_count(), held, name) for held, name in heldout)
        is_near = fate == "train" and near[0][0] <= max_bits
        assert (guarded, key) == (("near_heldout", near[0][2]) if is_near else (fate, None))
    assert sum(summary.counts.values()) == len(hashes)


def test_other_sizes_and_qualities_of_held_out_pictures_are_not_trained_on() -> None:
    rng = np.random.default_rng(3)
    samples = []
    for number in range(60):
        rgb = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
        for factor, quality in ((1.0, 92), (1.0, 40), (0.6, 80)):
            body = jpeg(cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), quality)
            stored = cv2.cvtColor(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            phash = f"{perceptual_hash(np.asarray(stored, np.uint8)):016x}"
            samples.append(Stored(f"p{number:02d}q{quality}", image=body, phash=phash))
    rows = open_rows(make_store([samples]), [])

    def on_both_sides(near_bits: int | None) -> set[str]:
        _select(rows, near_bits, 0.2)
        fates = [fate for fate, _ in _fates(rows)]
        sides = {
            side: {one.key[:3] for one, fate in zip(samples, fates, strict=True) if fate == side}
            for side in ("train", "heldout")
        }
        assert len(sides["heldout"]) > 10
        assert len(sides["train"]) > 10
        return sides["train"] & sides["heldout"]

    assert len(on_both_sides(None)) > 10
    assert not on_both_sides(4)


def test_samples_without_a_hash_are_counted_and_said() -> None:
    rows = _rows([0] * 12, 1)
    ledger = rows.store.read_table("ledger/u00000000.parquet")
    metadata = ledger.schema.metadata
    nothing = pa.nulls(ledger.num_rows, pa.string())
    table = ledger.set_column(ledger.column_names.index("phash"), "phash", nothing).replace_schema_metadata(metadata)
    rows.store.write_table("ledger/u00000000.parquet", table)
    summary = _select(rows, 4)
    assert set(summary.counts) == {"train", "heldout"}
    assert "12 have no perceptual hash" in "\n".join(summary.lines())
    assert summary == read_summary(rows.store, "s")
    assert "no perceptual hash" not in "\n".join(_select(rows, None).lines())


def test_the_funnel_and_explain_name_the_held_out_image() -> None:
    rows = _rows([0] * 12, 1)
    summary = _select(rows, 0)
    fates = _fates(rows)
    first_held = f"k{[fate for fate, _ in fates].index('heldout'):03d}"
    place = [fate for fate, _ in fates].index("near_heldout")
    assert summary.counts == {"heldout": 12 - summary.counts["near_heldout"], "near_heldout": fates.count(fates[place])}
    assert "near_heldout" in "\n".join(summary.lines())
    assert explain(rows, _ALL, "s", f"k{place:03d}")[-1] == (
        f"  near_heldout: left out: nearly the same image is held out (shards.holdout_near_bits) ({first_held})"
    )


def test_the_distance_decides_whether_a_selection_is_current() -> None:
    rows = _rows([0, 1, 2**64 - 1, 2**40 - 1], 1)
    _select(rows, 3)
    assert is_current(rows, _ALL, _SHARE, "s", 7, 3)
    assert not is_current(rows, _ALL, _SHARE, "s", 7, 2)
    assert not is_current(rows, _ALL, _SHARE, "s", 7, None)


@pytest.mark.parametrize(("share", "is_known"), [(0.0, True), (_SHARE, False)])
def test_a_selection_from_before_the_guard_stays_readable(share: float, is_known: bool) -> None:
    rows = _rows([0, 1, 2**64 - 1, 2**40 - 1], 1)
    summary = _select(rows, None, share)
    record = rows.store.read_json("selection/s/selection.json")
    del record["holdout_near_bits"], record["num_unhashed"]
    rows.store.write("selection/s/selection.json", json.dumps(record).encode())
    assert read_summary(rows.store, "s") == summary
    assert is_current(rows, _ALL, share, "s", 7, 4) == is_known
    assert is_current(rows, _ALL, share, "s", 7, None)
    assert explain(rows, _ALL, "s", "k000")
