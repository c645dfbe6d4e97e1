"""The summary of a selection: counted right, whatever the parts, and bounded."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.curate.histograms import Categories, Histogram, TopCounts, empty_histogram
from pipeline.curate.rows import Part, Rows
from pipeline.curate.samples import MAX_SAMPLES, choose_samples, merge_samples
from pipeline.curate.summary import Partial, read_summary, summarise, summarise_part, summary_file, thresholds_by_column
from pipeline.each import in_turn
from pipeline.errors import UserError
from tests.selections import annotate_by_hand, write_selection
from tests.stores import Stored, make_store

NUM_UNITS, UNIT_SAMPLES = 6, 7
NUM = NUM_UNITS * UNIT_SAMPLES
IMAGE = b"no picture is needed"


def _fate(place: int) -> str:
    return ["train", "heldout", "short", "near_duplicate", "train"][place % 5]


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Six units; the caption of sample i has i words, and every fifth duplicates the first sample."""
    samples = [
        Stored(
            f"k{place:03d}",
            " ".join(["word"] * max(place, 1)),
            IMAGE,
            url=f"https://user@Host{place % 3}.example.org:81/{place}",
            width=16 * (place + 1),
            height=32,
        )
        for place in range(NUM)
    ]
    store = make_store([samples[start : start + UNIT_SAMPLES] for start in range(0, NUM, UNIT_SAMPLES)])
    columns = {
        "lang": pa.array(["en" if place % 3 else None for place in range(NUM)], pa.string()),
        "clip_score": pa.array([place / NUM for place in range(NUM)], pa.float32()),
        "caption_tokens": pa.array(list(range(NUM)), pa.int32()),
        "is_filename": pa.array([place == 0 for place in range(NUM)], pa.bool_()),
        "name": pa.array([f"unique {place}" for place in range(NUM)], pa.string()),
    }
    rows = annotate_by_hand(store, columns)
    details = {place: "k000" for place in range(NUM) if _fate(place) == "near_duplicate"}
    where = {"short": "words >= 3", "fits": "clip_score in top 50%"}
    fates = [_fate(place) for place in range(NUM)]
    write_selection(rows, "demo", fates, details, where, {"fits": {"clip_score": 0.5}})
    return rows


def test_everything_is_counted(rows: Rows) -> None:
    """Fates, columns, hosts and tokens against a plain count."""
    summary = summarise(rows, "demo", in_turn)
    kept = [place for place in range(NUM) if _fate(place) in ("train", "heldout")]
    assert summary.fates == dict(Counter(_fate(place) for place in range(NUM)))
    assert (summary.num_samples, summary.num_kept) == (NUM, len(kept))
    assert dict(summary.categories["lang"]) == {"en": [28, sum(place % 3 > 0 for place in kept)]}
    assert dict(summary.categories["is_filename"])["true"] == [1, 1]
    hosts = {host: pair[0] for host, pair in summary.domains}
    assert hosts == {f"host{number}.example.org": NUM // 3 for number in range(3)}
    assert summary.tokens["column"] == "caption_tokens"
    expected = Counter(place + (place + 1) * 2 for place in kept)
    assert sum(count for _, count in summary.tokens["lengths"]) == len(kept)
    exact = {tokens: count for tokens, count in expected.items() if tokens < 128}
    assert {tokens: count for tokens, count in summary.tokens["lengths"] if tokens < 128} == exact
    assert sum(every for _, _, every, _ in summary.resolution) == NUM
    words = summary.numbers["words"]
    assert words["edges"][:3] == [1, 2, 3]
    assert words["all"][0] == 2, "the first two captions have one word"
    assert read_summary(rows.store, "demo") == summary


def test_duplicates_are_shown_with_the_sample_that_stayed(rows: Rows) -> None:
    summary = summarise(rows, "demo", in_turn)
    assert summary.pairs
    for pair in summary.pairs:
        assert pair["kind"] == "near_duplicate"
        assert (pair["winner"]["key"], pair["winner"]["row"]) == ("k000", 0)
        assert pair["loser"]["detail"] == "k000"


def test_thresholds_come_from_quantiles_and_comparisons(rows: Rows) -> None:
    selection = rows.store.read_json("selection/demo/selection.json")
    selection["spec"]["where"] |= {"both": "words between 2 and 50 and 0.25 < clip_score"}
    found = thresholds_by_column(selection, ["words", "clip_score"])
    assert found["words"] == [("short", 3), ("both", 2), ("both", 50)]
    assert found["clip_score"] == [("both", 0.25), ("fits", 0.5)]
    selection["spec"]["where"] = {"large": "width * height >= 1000 and 99 < words + width"}
    assert thresholds_by_column(selection, ["words", "width", "height"]).keys() <= {"clip_score"}, "no column's own"


def test_another_selection_of_that_name_makes_the_summary_stale(rows: Rows) -> None:
    summarise(rows, "demo", in_turn)
    write_selection(rows, "other", ["train"] * NUM)
    content = json.loads(rows.store.read(summary_file("demo")))
    rows.store.write_json(summary_file("other"), content)
    assert read_summary(rows.store, "other") is None


def test_a_selection_of_other_samples_is_refused(rows: Rows) -> None:
    short = Rows(rows.store, rows.folders, rows.types)
    write_selection(rows, "cut", ["train"] * NUM)
    name = "selection/cut/part-000000.parquet"
    short.store.write_table(name, short.store.read_table(name).slice(1))
    with pytest.raises(UserError, match="genlip select"):
        summarise(short, "cut", in_turn)
    rows.store.remove(name)
    with pytest.raises(UserError, match="genlip select"):
        summarise(rows, "cut", in_turn)
    with pytest.raises(UserError, match="no selection"):
        summarise(rows, "absent", in_turn)


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, NUM_UNITS - 1)), order=st.randoms(use_true_random=False))
def test_any_split_into_parts_gives_the_same_summary(rows: Rows, cuts: set[int], order: object) -> None:
    bounds = [0, *sorted(cuts), NUM_UNITS]
    names = [f"u{number:08d}" for number in range(NUM_UNITS)]
    whole = next(iter(rows.parts()))
    table = rows.store.read_table(f"selection/demo/{whole.name}.parquet")
    parts = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = Part(500 + number, start, tuple(names[start:end]))
        of_part = table.slice(start * UNIT_SAMPLES, (end - start) * UNIT_SAMPLES)
        rows.store.write_table(f"selection/demo/{part.name}.parquet", of_part)
        parts.append(summarise_part(part, rows, "demo"))
    order.shuffle(parts)  # type: ignore[attr-defined]
    while len(parts) > 1:  # in any bracketing
        place = order.randrange(len(parts) - 1)  # type: ignore[attr-defined]
        parts[place : place + 2] = [parts[place].merge(parts[place + 1])]
    assert _plain(parts[0]) == _plain(summarise_part(whole, rows, "demo")) == _plain(Partial().merge(parts[0]))


def _plain(total: Partial) -> object:
    arrays = {name: asdict(histogram) for name, histogram in total.numbers.items()}
    arrays |= {"resolution": asdict(total.resolution), "lengths": asdict(total.lengths)}
    listed = {
        name: {field: np.asarray(values).tolist() for field, values in of_one.items()}
        for name, of_one in arrays.items()
    }
    return listed, total.fates, total.categories, total.domains, total.samples


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.floats(width=32), st.integers(-300, 300)), min_size=1))
def test_drawn_histograms_lose_nothing(values: list[float | None]) -> None:
    kept_N = np.arange(len(values)) % 2 == 0
    drawn = Histogram.of(pa.array(values, pa.float64()), kept_N).drawn(False)
    finite = [value is not None and np.isfinite(value) for value in values]
    assert sum(drawn["all"]) + drawn["outside_all"] == sum(finite)
    assert sum(drawn["kept"]) + drawn["outside_kept"] == sum(np.array(finite) & kept_N)
    assert drawn["num_null_all"] == len(values) - sum(finite)
    assert all(0 <= kept <= every + 1 for kept, every in zip(drawn["kept"], drawn["all"], strict=True))
    assert drawn["edges"] == sorted(drawn["edges"])


def test_small_whole_numbers_have_bars_of_their_own() -> None:
    drawn = Histogram.of(pa.array([-2, 0, 0, 5, 5, 5]), np.ones(6, bool)).drawn(True)
    counts = dict(zip(drawn["edges"], drawn["all"], strict=False))
    assert {edge: count for edge, count in counts.items() if count} == {-2: 1, 0: 2, 5: 3}


def test_an_empty_histogram_can_be_drawn() -> None:
    assert empty_histogram().drawn(False)["edges"] == []


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.dictionaries(st.sampled_from("abcdefghij"), st.integers(1, 50)), min_size=1))
def test_bounded_counts_keep_their_stated_error(parts: list[dict[str, int]]) -> None:
    total, true = TopCounts(4), Counter[str]()
    for part in parts:
        total = total.merge(TopCounts(4).merge(TopCounts(4, {name: (count, 0) for name, count in part.items()})))
        true.update(part)
    assert len(total.counts) <= 4
    for name, count in true.items():
        assert count - total.max_error <= total.counts.get(name, (0, 0))[0] <= count


def test_too_many_values_are_no_category() -> None:
    few = Categories(3, {"a": (1, 1), "b": (1, 0)})
    assert few.merge(Categories(3, {"a": (2, 0), "c": (1, 0)})).counts == {"a": (3, 1), "b": (1, 0), "c": (1, 0)}
    assert few.merge(Categories(3, {"c": (1, 0), "d": (1, 0)})).counts is None
    assert Categories(3, None).merge(few).counts is None


def test_examples_are_few_and_always_the_same(rows: Rows) -> None:
    table = rows.read(next(iter(rows.parts())), ["key", "url", "caption", "raw", "offset", "size", "phash"])
    fates = pa.chunked_array([["train"] * table.num_rows])
    details = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    chosen = choose_samples(table, fates, details)
    assert len({sample["key"] for sample in chosen["train"]}) == MAX_SAMPLES < NUM
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(NUM)))
    assert choose_samples(shuffled, fates, details) == chosen == merge_samples(chosen, {})


def test_parts_may_finish_in_any_order(rows: Rows) -> None:
    def backwards(function: object, items: Iterable[Part]) -> Iterator[tuple[Part, object]]:
        return iter([(item, function(item)) for item in reversed(list(items))])  # type: ignore[operator]

    assert summarise(rows, "demo", backwards) == summarise(rows, "demo", in_turn)  # type: ignore[arg-type]
