"""Units partition the rows; new files extend the plan; what changed is refused and nothing is touched."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import rows_of, units_of, write_pairs, write_parquet

from pipeline.errors import UserError
from pipeline.inputs import survey
from pipeline.inputs.plan import extend_plan, plan_numbers
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import read_rows
from pipeline.store import Store


def _good(path: Path, num_rows: int = 3, name: str = "u") -> str:
    return write_parquet(path, {"url": [f"{name}{n}" for n in range(num_rows)], "caption": ["c"] * num_rows})


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 50)), min_size=1, max_size=3).filter(
        lambda files: any(num_rows for num_rows, _ in files)
    ),
    st.integers(1, 50),
)
def test_units_partition_the_rows_in_order(files: list[tuple[int, int]], unit_samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = []
        for number, (num_rows, row_group_size) in enumerate(files):
            urls = pa.array([f"{number}/{row}" for row in range(num_rows)], pa.string())
            columns = {"n": pa.array(range(num_rows), pa.int64()), "url": urls, "caption": urls}
            write_parquet(Path(folder) / f"{number}.parquet", columns, row_group_size)
            wanted += [(url, n) for n, url in enumerate(urls.to_pylist())]
        spec = SourceSpec(urls=f"{folder}/*.parquet")
        units = units_of(Store(f"{folder}/store"), spec, unit_samples)
        read = [read_rows(unit, spec) for unit in units]
        assert [(row.url, row.meta["n"]) for rows in read for row in rows] == wanted
        assert [len(rows) for rows in read] == [unit.num_rows for unit in units]
        assert all(1 <= unit.num_rows <= unit_samples for unit in units)
        assert [unit.number for unit in units] == list(range(len(units)))
        assert units == units_of(Store(f"{folder}/other"), spec, unit_samples)


@pytest.mark.parametrize("unit_samples", [1, 7, 1000])
def test_copied_rows_are_cut_into_full_units_in_order(tmp_path: Path, unit_samples: int) -> None:
    pairs = [{"url": f"u{n}", "caption": f"c{n}"} for n in range(300)]
    spec = SourceSpec(urls=write_pairs(tmp_path / "t.csv", pairs))
    units = units_of(Store(str(tmp_path / "store")), spec, unit_samples)
    assert [unit.num_rows for unit in units[:-1]] == [unit_samples] * (len(units) - 1)
    assert [row.url for unit in units for row in read_rows(unit, spec)] == [pair["url"] for pair in pairs]
    assert {unit.name for unit in units} == {f"u{number:08d}" for number in range(len(units))}


def test_long_row_groups_are_copied_into_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_MAX_GROUP_ROWS", 100)
    spec = SourceSpec(urls=_good(tmp_path / "t.parquet", 400))
    store = Store(str(tmp_path / "store"))
    assert units_of(store, spec, 30)[0].file == spec.urls.replace("/", "file:///", 1)
    short = Store(str(tmp_path / "short"))
    units = units_of(short, spec, 10)
    assert units[0].file == f"file://{short.path('plan/rows-00000/part-00000.parquet')}"
    assert [row.url for unit in units for row in read_rows(unit, spec)] == [f"u{n}" for n in range(400)]


def test_a_glob_takes_the_matching_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "c.csv"):
        write_parquet(tmp_path / name, {"url": [name], "caption": ["c"]})
    rows = rows_of(Store(str(tmp_path / "store")), SourceSpec(urls=f"{tmp_path}/*.parquet"))
    assert [row.url for row in rows] == ["a.parquet", "b.parquet"]


def test_a_folder_takes_the_tables_in_it_and_leaves_notes_alone(tmp_path: Path) -> None:
    for name in ("b.parquet", "sub/a.parquet", "_temporary/x.parquet", ".hidden.parquet"):
        (tmp_path / "tables" / name).parent.mkdir(parents=True, exist_ok=True)
        write_parquet(tmp_path / "tables" / name, {"url": [name], "caption": ["c"]})
    (tmp_path / "tables" / "README.md").write_text("about")
    rows = rows_of(Store(str(tmp_path / "store")), SourceSpec(urls=str(tmp_path / "tables")))
    assert [row.url for row in rows] == ["b.parquet", "sub/a.parquet"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_store_inside_the_sources_folder_is_none_of_the_source(tmp_path: Path, kind: str) -> None:
    write_pairs(tmp_path / f"t.{kind}", [{"url": "u", "caption": "c"}])
    spec = SourceSpec(urls=str(tmp_path), group_by_host=True)
    store = Store(str(tmp_path / "store"))
    for _ in range(2):
        assert [row.url for row in rows_of(store, spec)] == ["u"]
        assert plan_numbers(store, spec, 1000).num_files == 1


@pytest.mark.parametrize("kind", ["parquet", "csv.gz"])
def test_tables_and_stores_in_memory_are_read_and_written_by_their_url(tmp_path: Path, kind: str) -> None:
    pairs = [{"url": f"u{n}", "caption": "c"} for n in range(5)]
    content = Path(write_pairs(tmp_path / f"t.{kind}", pairs)).read_bytes()
    Store(f"memory://plan-{kind}").write(f"t.{kind}", content)
    spec = SourceSpec(urls=f"memory://plan-{kind}/t.{kind}", group_by_host=True)
    rows = rows_of(Store(f"memory://plan-{kind}/store"), spec, 2)
    assert sorted(row.url for row in rows) == [pair["url"] for pair in pairs]


# ---------------------------------------------------------------- again


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_new_files_are_appended_and_earlier_units_stay(tmp_path: Path, kind: str) -> None:
    store, spec = Store(str(tmp_path / "store")), SourceSpec(urls=f"{tmp_path}/*.{kind}")
    write_pairs(tmp_path / f"b.{kind}", [{"url": f"b{n}", "caption": "c"} for n in range(5)])
    first = units_of(store, spec, 2)
    before = _files(tmp_path / "store")
    assert units_of(store, spec, 2) == first
    assert _files(tmp_path / "store") == before
    write_pairs(tmp_path / f"a.{kind}", [{"url": f"a{n}", "caption": "c", "more": "m"} for n in range(3)])
    plan = extend_plan(store, spec, 2)
    units = list(plan.iter_units())
    assert units[: len(first)] == first
    assert [unit.number for unit in units] == list(range(5))
    assert [row.url for unit in units[3:] for row in read_rows(unit, spec)] == ["a0", "a1", "a2"]
    assert (plan.num_units, plan.num_rows, len(plan.batches)) == (5, 8, 2)
    assert before.items() <= _files(tmp_path / "store").items()
    assert [list(plan.iter_units(start)) for start in range(6)] == [units[start:] for start in range(6)]
    assert plan.unit(3) == units[3]


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    spec = SourceSpec(urls=write_pairs(tmp_path / "t.csv", [{"url": f"u{n}", "caption": "c"} for n in range(5)]))
    units = units_of(store, spec, 2)
    whole = _files(tmp_path / "store")
    (tmp_path / "store" / "plan" / "batch-00000.parquet").unlink()  # as after a kill just before the commit
    assert extend_plan(store, spec, 2).num_units == len(units)
    assert _files(tmp_path / "store") == whole


CHANGES = ["a caption", "a row more", "the unit size", "the columns", "a file gone"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_source_is_refused_and_the_store_is_untouched(tmp_path: Path, change: str) -> None:
    urls = _good(tmp_path / "a.parquet")
    _good(tmp_path / "b.parquet")
    spec = SourceSpec(urls=f"{tmp_path}/*.parquet")
    store = Store(str(tmp_path / "store"))
    extend_plan(store, spec, 2)
    before = _files(tmp_path / "store")
    unit_samples = 3 if change == "the unit size" else 2
    if change == "a caption":
        write_parquet(tmp_path / "a.parquet", {"url": ["u0", "u1", "u2"], "caption": ["c", "c", "d"]})
    elif change == "a row more":
        _good(tmp_path / "a.parquet", num_rows=4)
    elif change == "the columns":
        spec = SourceSpec(urls=f"{tmp_path}/*.parquet", caption="url")
    elif change == "a file gone":
        Path(urls).unlink()
    with pytest.raises(UserError, match="nothing was touched") as caught:
        extend_plan(store, spec, unit_samples)
    assert caught.value.exit_code == 2
    names = {"the unit size": "unit_samples was 2, is 3", "the columns": "columns.caption was 'caption', is 'url'"}
    assert names.get(change, "a.parquet") in caught.value.message
    assert _files(tmp_path / "store") == before


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl.gz"])
def test_the_numbers_of_a_small_source_are_exact_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    pairs = [{"url": f"https://h{n % 7}.test/{n}", "caption": "c"} for n in range(100)]
    spec = SourceSpec(urls=write_pairs(tmp_path / f"t.{kind}", pairs))
    numbers = plan_numbers(Store(str(tmp_path / "store")), spec, 30)
    assert (numbers.num_files, numbers.num_rows, numbers.num_units, numbers.distinct_hosts) == (1, 100, 4, 7)
    assert numbers.expected_bytes == 100 * 96_000
    assert (numbers.estimates, numbers.is_grouped, numbers.is_staged) == ((), False, kind != "parquet")
    assert not (tmp_path / "store").exists()


def test_the_numbers_of_a_large_source_are_near(tmp_path: Path) -> None:
    num_rows = 2_000_000
    hosts = [f"https://h{n % 5000}.test/" for n in range(num_rows)]
    urls = write_parquet(tmp_path / "t.parquet", {"url": hosts, "caption": pa.array([""] * num_rows)})
    numbers = plan_numbers(None, SourceSpec(urls=urls), 1000)
    assert (numbers.num_rows, numbers.num_units, numbers.is_grouped) == (num_rows, 2000, True)
    assert numbers.distinct_hosts == 5000
    assert numbers.estimates == ("distinct_hosts", "num_units")
    text = tmp_path / "t.csv"
    text.write_text("url,caption\n" + "\n".join(f"{host},c" for host in hosts))
    numbers = plan_numbers(None, SourceSpec(urls=str(text)), 1000)
    assert numbers.num_rows == pytest.approx(num_rows, rel=0.15)
    assert numbers.is_grouped
    assert set(numbers.estimates) == {"num_rows", "num_units", "expected_bytes", "distinct_hosts"}


def test_the_numbers_count_what_is_planned_and_what_is_new(tmp_path: Path) -> None:
    store, spec = Store(str(tmp_path / "store")), SourceSpec(urls=f"{tmp_path}/*.parquet")
    _good(tmp_path / "a.parquet", 5)
    extend_plan(store, spec, 2)
    _good(tmp_path / "b.parquet", 3)
    numbers = plan_numbers(store, spec, 2)
    assert (numbers.num_files, numbers.num_new_files, numbers.num_rows, numbers.num_units) == (2, 1, 8, 5)
    assert plan_numbers(store, spec, 2).num_units == extend_plan(store, spec, 2).num_units
