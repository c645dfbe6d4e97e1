"""The reasons of a sample's fate: the same verdict as the selection's, with the sample's own values."""

import random

import pyarrow as pa
import pytest

from pipeline.curate.explain import explain
from pipeline.curate.rows import Rows
from pipeline.curate.select import select
from pipeline.curate.spec import DedupSpec, SelectSpec
from pipeline.each import in_turn
from pipeline.errors import UserError
from tests.selections import annotate_by_hand
from tests.stores import Stored, commit_unit, make_store, noise

_SPEC = SelectSpec(
    where={"long": "words >= 3 or words is null", "good": "score in top 60%"},
    dedup=DedupSpec(keep="score", near_bits=0),
)


def _make() -> Rows:
    draw = random.Random(3)
    images = [noise(seed) for seed in range(60)]
    units = [[Stored(f"key{unit}{i:02d}", image=draw.choice(images)) for i in range(40)] for unit in range(3)]
    units[2][0] = Stored("key000")
    scores = [draw.choice([None, 1.0, 2.0, 3.0]) for _ in range(120)]
    words = [draw.choice([None, 1, 3, 9]) for _ in range(120)]
    rows = annotate_by_hand(make_store(units), {"score": pa.array(scores), "words": pa.array(words, pa.int32())})
    select(rows, _SPEC, 0.2, "s", 7, in_turn)
    return rows


def test_the_verdict_is_the_fate_and_the_rules_are_evaluated_anew() -> None:
    rows = _make()
    (part,) = rows.parts()
    samples = rows.read(part, ["key", "score", "words"]).to_pylist()
    fates = rows.store.read_table("selection/s/part-000000.parquet").to_pylist()
    scores = sorted((s["score"] for s in samples if s["score"] is not None), reverse=True)
    threshold = scores[-(-len(scores) * 60 // 100) - 1]
    for place in random.Random(4).sample(range(1, 80), 30):
        sample, fate = samples[place], fates[place]
        lines = explain(rows, _SPEC, "s", sample["key"])
        long_enough = sample["words"] is None or sample["words"] >= 3
        good = None if sample["score"] is None else sample["score"] >= threshold
        says = {True: "yes", False: "no", None: "no value"}
        words = "null" if sample["words"] is None else sample["words"]
        score = "null" if sample["score"] is None else sample["score"]
        assert f"  long: words >= 3 or words is null: {says[long_enough]} (words = {words})" in lines
        text = f"  good: score in top 60%: {says[good]} (score = {score}; the threshold of score is {threshold})"
        assert text in lines
        assert lines[-1].startswith(f"  {fate['fate']}: ")
        if fate["fate"] in ("train", "heldout"):
            assert long_enough
            assert good
        if fate["detail"] not in (None, "null"):
            assert f"({fate['detail']})" in lines[-1]
        assert "raw/u0000000" in lines[0]


def test_each_place_of_a_repeated_key_is_explained() -> None:
    lines = "\n".join(explain(_make(), _SPEC, "s", "key000"))
    assert "unit u00000000" in lines
    assert "unit u00000002" in lines
    assert "duplicate_key: left out: the same key is stored before (key000)" in lines


def test_what_ingestion_refused_is_found_in_the_ledgers() -> None:
    (line,) = explain(_make(), _SPEC, "s", "e" * 20)
    assert line.endswith("is not stored: rejected at ingestion in unit u00000000: caption_empty")


def test_an_unknown_key_is_an_error_with_a_next_step() -> None:
    with pytest.raises(UserError, match="genlip inspect"):
        explain(_make(), _SPEC, "s", "nobody")


def test_another_spec_or_another_store_is_refused() -> None:
    rows = _make()
    with pytest.raises(UserError, match="another recipe"):
        explain(rows, SelectSpec(), "s", "key001")
    with pytest.raises(UserError, match="no selection 't'"):
        explain(rows, _SPEC, "t", "key001")
    commit_unit(rows.store, 9, [Stored("new")])
    with pytest.raises(UserError, match="changed since"):
        explain(rows, _SPEC, "s", "key001")


def test_two_quantiles_of_one_expression_are_told_apart() -> None:
    rows = _make()
    spec = SelectSpec(where={"ends": "score in top 1% or score in bottom 1%"}, dedup=DedupSpec(exact=()))
    select(rows, spec, 0.0, "s", 7, in_turn)
    lines = "\n".join(explain(rows, spec, "s", "key001"))
    assert "the threshold of score in top 1% is 3.0" in lines
    assert "the threshold of score in bottom 1% is 1.0" in lines
