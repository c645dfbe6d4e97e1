"""URL tables: units partition the rows, odd bytes do no harm, and what is wrong is named."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.recipe import SourceSpec
from pipeline.sources import Row, plan_units, read_rows, record_plan
from pipeline.store import Store

NOT_UTF8 = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe"))


def _write(path: Path, columns: dict[str, object], row_group_size: int | None = None) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def _good(path: Path, num_rows: int = 3) -> str:
    return _write(path, {"url": [f"u{n}" for n in range(num_rows)], "caption": ["c"] * num_rows})


def _rows(urls: str, unit_samples: int = 1000) -> list[Row]:
    spec = SourceSpec(urls=urls)
    return [row for unit in plan_units(spec, unit_samples) for row in read_rows(unit, spec)]


# ---------------------------------------------------------------- the plan


@settings(max_examples=60)
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
            _write(Path(folder) / f"{number}.parquet", columns, row_group_size)
            wanted += [(url, n) for n, url in enumerate(urls.to_pylist())]
        spec = SourceSpec(urls=f"{folder}/*.parquet")
        units = plan_units(spec, unit_samples)
        read = [read_rows(unit, spec) for unit in units]
        assert [(row.url, row.meta["n"]) for rows in read for row in rows] == wanted
        assert [len(rows) for rows in read] == [unit.num_rows for unit in units]
        assert all(1 <= unit.num_rows <= unit_samples for unit in units)
        assert [unit.number for unit in units] == list(range(len(units)))
        assert units == plan_units(spec, unit_samples)


def test_a_glob_takes_the_matching_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", "c.csv"):
        _write(tmp_path / name, {"url": [name], "caption": ["c"]})
    assert [row.url for row in _rows(f"{tmp_path}/*.parquet")] == ["a.parquet", "b.parquet"]


def test_a_table_in_memory_is_read_by_its_url(tmp_path: Path) -> None:
    _good(tmp_path / "urls.parquet")
    Store("memory://tables").write("urls.parquet", (tmp_path / "urls.parquet").read_bytes())
    assert [row.url for row in _rows("memory://tables/urls.parquet", unit_samples=2)] == ["u0", "u1", "u2"]


# ---------------------------------------------------------------- the rows


def test_a_caption_that_is_not_utf8_is_none_and_the_others_are_read(tmp_path: Path) -> None:
    captions = pa.chunked_array([NOT_UTF8, pa.array(["naïve ☃"])])
    rows = _rows(_write(tmp_path / "u.parquet", {"url": ["u", "v"], "caption": captions}))
    assert [row.caption for row in rows] == [None, "naïve ☃"]


def test_a_url_or_carried_text_that_is_not_utf8_is_replaced(tmp_path: Path) -> None:
    (row,) = _rows(_write(tmp_path / "u.parquet", {"url": NOT_UTF8, "caption": ["c"], "class_name": NOT_UTF8}))
    assert row == Row("a\ufffd\ufffd", "c", {"class_name": "a\ufffd\ufffd"})


def test_null_urls_and_captions_become_empty(tmp_path: Path) -> None:
    columns = {"url": pa.array(["u", None]), "caption": pa.array([None, "c"], pa.string())}
    assert [(row.url, row.caption) for row in _rows(_write(tmp_path / "u.parquet", columns))] == [("u", ""), ("", "c")]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    captions = pa.array(["ä", "b"])
    captions = captions.dictionary_encode() if pa.types.is_dictionary(kind) else captions.cast(kind)
    rows = _rows(_write(tmp_path / "u.parquet", {"url": ["u", "v"], "caption": captions}))
    assert [row.caption for row in rows] == ["ä", "b"]


def test_carried_columns_are_strict_json_and_nulls_are_left_out(tmp_path: Path) -> None:
    columns = {
        "url": ["u"],
        "caption": ["c"],
        "n": [7],
        "x": [0.5],
        "yes": [True],
        "tags": [["a", "b"]],
        "blob": [b"\xffz"],
        "inf": [float("inf")],
        "nan": [float("nan")],
        "null": pa.array([None], pa.string()),
    }
    (row,) = _rows(_write(tmp_path / "u.parquet", columns))
    json.dumps(row.meta, allow_nan=False)
    assert row.meta == {"n": 7, "x": 0.5, "yes": True, "tags": "['a', 'b']", "blob": "\ufffdz", "inf": "inf"}


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_the_key_tells_rows_apart_and_ignores_the_carried_columns(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (Row(*one, {}).key == Row(*other, {"n": 1}).key) == (one == other)


# ---------------------------------------------------------------- what is wrong


def _refusal(spec: SourceSpec) -> str:
    with pytest.raises(UserError) as caught:
        plan_units(spec, 10)
    assert caught.value.exit_code == 2
    return caught.value.message


@pytest.mark.parametrize("name", ["absent.parquet", "absent-*.parquet", "no/folder/urls.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    message = _refusal(SourceSpec(urls=f"{tmp_path}/{name}"))
    assert "no URL table here" in message
    assert name in message
    assert "--set ingest.source.urls=" in message


def test_an_unknown_protocol_is_named() -> None:
    assert "nosuch" in _refusal(SourceSpec(urls="nosuch://bucket/urls.parquet"))


@pytest.mark.parametrize("body", [b"", b"url,caption\nu,c\n", b"PAR1 but no more PAR1"])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "urls.csv"
    path.write_bytes(body)
    message = _refusal(SourceSpec(urls=str(path)))
    assert "cannot be read as parquet" in message
    assert "urls.csv" in message


def test_a_folder_is_not_a_table(tmp_path: Path) -> None:
    assert "cannot be read as parquet" in _refusal(SourceSpec(urls=str(tmp_path)))


@pytest.mark.parametrize("key", ["url", "caption"])
def test_a_missing_column_is_named_with_the_columns_there_and_the_option(tmp_path: Path, key: str) -> None:
    urls = _good(tmp_path / "urls.parquet")
    message = _refusal(SourceSpec.model_validate({"urls": urls, key: "TEXT"}))
    assert "no column 'TEXT'" in message
    assert "url (string), caption (string)" in message
    assert f"--set ingest.source.{key}=COLUMN" in message


@pytest.mark.parametrize("column", [[1], [["a", "b"]], [True]], ids=["int", "list", "bool"])
def test_a_column_that_holds_no_text_is_named(tmp_path: Path, column: list[object]) -> None:
    urls = _write(tmp_path / "urls.parquet", {"url": ["u"], "caption": column})
    assert "no text in its column 'caption'" in _refusal(SourceSpec(urls=urls))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["u"])] * 3, names=["url", "caption", "caption"])
    pq.write_table(table, tmp_path / "urls.parquet")
    assert "several columns 'caption'" in _refusal(SourceSpec(urls=str(tmp_path / "urls.parquet")))


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    columns = {"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())}
    message = _refusal(SourceSpec(urls=_write(tmp_path / "urls.parquet", columns)))
    assert "no rows" in message
    assert "urls.parquet" in message


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("change", ["a caption", "a row more", "the unit size"])
def test_a_changed_table_is_refused_and_the_store_is_untouched(tmp_path: Path, change: str) -> None:
    spec = SourceSpec(urls=_good(tmp_path / "urls.parquet"))
    store = Store(str(tmp_path / "store"))
    record_plan(store, plan_units(spec, 2))
    record_plan(store, plan_units(spec, 2))
    before = _files(tmp_path / "store")
    if change == "a caption":
        _write(tmp_path / "urls.parquet", {"url": ["u0", "u1", "u2"], "caption": ["c", "c", "d"]})
    elif change == "a row more":
        _good(tmp_path / "urls.parquet", num_rows=4)
    with pytest.raises(UserError, match="has changed since the store was begun; nothing was touched"):
        record_plan(store, plan_units(spec, 3 if change == "the unit size" else 2))
    assert _files(tmp_path / "store") == before
