"""Rows are the same whatever the table is written in, and odd bytes do no harm."""

import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import COMPRESSIONS, rows_of, units_of, write_pairs, write_parquet

from pipeline.errors import UserError
from pipeline.inputs import json_objects, tables
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import Row, read_rows
from pipeline.store import Store

PAIRS = [
    {"url": f"http://h{n % 7}.test/{n}.jpg", "caption": caption, "licence": f"cc-{n}"}
    for n, caption in enumerate(["naïve ☃", 'she said "a, b"', "tab\tand\nnew line", "", "'single", "[{,}]"] * 20)
]
NOT_UTF8 = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xff\xfe"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
def test_every_format_and_compression_gives_the_rows_of_parquet(
    tmp_path: Path, store: Store, kind: str, compression: str
) -> None:
    wanted = rows_of(store, SourceSpec(urls=write_pairs(tmp_path / "t.parquet", PAIRS)), 7)
    spec = SourceSpec(urls=write_pairs(tmp_path / f"t.{kind}{compression}", PAIRS))
    assert rows_of(Store(str(tmp_path / "other")), spec, 7) == wanted
    assert [(row.url, row.caption, row.meta) for row in wanted] == [
        (pair["url"], pair["caption"], {"licence": pair["licence"]}) for pair in PAIRS
    ]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_blocks_of_any_size_give_the_same_rows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SourceSpec(urls=write_pairs(tmp_path / f"t.{kind}", PAIRS))
    wanted = rows_of(Store(str(tmp_path / "one")), spec)
    monkeypatch.setattr(tables, "_BLOCK_BYTES", 301)
    monkeypatch.setattr(json_objects, "_BLOCK_BYTES", 13)
    monkeypatch.setattr(json_objects, "_BLOCK_ROWS", 11)
    assert rows_of(Store(str(tmp_path / "other")), spec) == wanted


def test_a_table_without_a_telling_name_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    for number, kind in enumerate(["parquet", "json", "jsonl"]):
        path = Path(write_pairs(tmp_path / f"t.{kind}", PAIRS)).rename(tmp_path / f"table-{kind}")
        assert len(rows_of(Store(str(tmp_path / f"store-{number}")), SourceSpec(urls=str(path)))) == len(PAIRS)


def test_a_gzip_file_of_several_members_is_read_to_its_end(tmp_path: Path, store: Store) -> None:
    whole = Path(write_pairs(tmp_path / "t.jsonl", PAIRS)).read_bytes()
    compress = COMPRESSIONS[".gz"]
    (tmp_path / "t.jsonl.gz").write_bytes(compress(whole[:1000]) + compress(whole[1000:]))
    assert len(rows_of(store, SourceSpec(urls=str(tmp_path / "t.jsonl.gz")))) == len(PAIRS)


def test_a_caption_that_is_not_utf8_is_none_and_the_others_are_read(tmp_path: Path) -> None:
    captions = pa.chunked_array([NOT_UTF8, pa.array(["naïve ☃"])])
    write_parquet(tmp_path / "t.parquet", {"url": ["u", "v"], "caption": captions})
    good = "naïve ☃".encode()
    (tmp_path / "t.csv").write_bytes(b"url,caption\nu,a\xff\xfe\nv," + good + b"\n")
    (tmp_path / "t.jsonl").write_bytes(
        b'{"url": "u", "caption": "a\xff\xfe"}\n{"url": "v", "caption": "' + good + b'"}\n'
    )
    (tmp_path / "t.json").write_bytes(b'[{"url": "u", "caption": "\\ud800"}, {"url": "v", "caption": "' + good + b'"}]')
    for name in ("t.parquet", "t.csv", "t.jsonl", "t.json"):
        rows = rows_of(Store(str(tmp_path / f"store-{name}")), SourceSpec(urls=str(tmp_path / name)))
        assert [row.caption for row in rows] == [None, "naïve ☃"], name


def test_a_url_or_carried_text_that_is_not_utf8_is_replaced(tmp_path: Path, store: Store) -> None:
    columns = {"url": NOT_UTF8, "caption": ["c"], "class_name": NOT_UTF8, "tags": pa.array([["a"]])}
    (row,) = rows_of(store, SourceSpec(urls=write_parquet(tmp_path / "t.parquet", columns)))
    assert row == Row("a\ufffd\ufffd", "c", meta={"class_name": "a\ufffd\ufffd", "tags": ["a"]})


def test_null_urls_and_captions_become_empty(tmp_path: Path) -> None:
    columns = {"url": pa.array(["u", None]), "caption": pa.array([None, "c"], pa.string())}
    write_parquet(tmp_path / "t.parquet", columns)
    (tmp_path / "t.jsonl").write_text('{"url": "u"}\n{"url": null, "caption": "c"}')
    for name in ("t.parquet", "t.jsonl"):
        rows = rows_of(Store(str(tmp_path / f"store-{name}")), SourceSpec(urls=str(tmp_path / name)))
        assert [(row.url, row.caption) for row in rows] == [("u", ""), ("", "c")]


@pytest.mark.parametrize("is_staged", [False, True])
@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_kind_of_text_column_is_read(tmp_path: Path, store: Store, kind: pa.DataType, is_staged: bool) -> None:
    captions = pa.array(["ä", "b"])
    captions = captions.dictionary_encode() if pa.types.is_dictionary(kind) else captions.cast(kind)
    urls = write_parquet(tmp_path / "t.parquet", {"url": ["u", "v"], "caption": captions})
    rows = rows_of(store, SourceSpec(urls=urls, group_by_host=is_staged))
    assert sorted(row.caption or "" for row in rows) == ["b", "ä"]


@pytest.mark.parametrize("is_staged", [False, True])
def test_carried_columns_are_strict_json_and_nulls_are_left_out(tmp_path: Path, store: Store, is_staged: bool) -> None:
    columns = {
        "url": ["u"],
        "caption": ["c"],
        "n": [7],
        "x": [0.5],
        "yes": [True],
        "tags": [["a", "b"]],
        "size": [{"w": 3, "why": "z"}],
        "blob": [b"\xffz"],
        "inf": [float("inf")],
        "nan": [float("nan")],
        "null": pa.array([None], pa.string()),
    }
    urls = write_parquet(tmp_path / "t.parquet", columns)
    (row,) = rows_of(store, SourceSpec(urls=urls, group_by_host=is_staged))
    json.dumps(row.meta, allow_nan=False)
    plain = {"n": 7, "x": 0.5, "yes": True, "tags": ["a", "b"], "size": {"w": 3, "why": "z"}}
    assert row.meta == plain | {"blob": "\ufffdz", "inf": "inf"}


def test_the_carried_values_of_json_keep_their_types(tmp_path: Path, store: Store) -> None:
    (tmp_path / "t.json").write_text('[{"url": "u", "caption": "c", "n": 1}, {"url": "v", "caption": 5, "n": [0.5]}]')
    rows = rows_of(store, SourceSpec(urls=str(tmp_path / "t.json")))
    assert [(row.caption, row.meta) for row in rows] == [("c", {"n": 1}), ("5", {"n": [0.5]})]


def test_boxes_are_read_from_lists_and_from_text(tmp_path: Path) -> None:
    boxes = [[[0.0, 0.25, 0.5, 1.0]], [], None]
    columns = {"url": ["u", "v", "w"], "caption": ["c"] * 3, "faces": boxes}
    write_parquet(tmp_path / "t.parquet", columns)
    (tmp_path / "t.tsv").write_text("url\tcaption\tfaces\nu\tc\t[[0, 0.25, 0.5, 1]]\nv\tc\t[]\nw\tc\t\n")
    for name in ("t.parquet", "t.tsv"):
        spec = SourceSpec(urls=str(tmp_path / name), boxes="faces")
        rows = rows_of(Store(str(tmp_path / f"store-{name}")), spec)
        assert [row.boxes for row in rows] == [((0.0, 0.25, 0.5, 1.0),), (), ()]


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_the_key_tells_rows_apart_and_ignores_the_carried_columns(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (Row(*one).key == Row(*other, meta={"n": 1}).key) == (one == other)


def test_the_key_of_url_and_caption_is_what_it_always_was() -> None:
    assert Row("http://a.test/1.jpg", "a cat").key == "92adce07091be026be39"


@given(st.text(max_size=80))
def test_a_key_is_a_plain_word_whatever_the_uid(uid: str) -> None:
    key = Row("u", "c", uid=uid).key
    assert key.replace("-", "").replace("_", "").isalnum() or set(key) <= set("-_")
    assert key.isascii()
    assert len(key) <= 64
    assert (key == uid) or len(key) == 20


@pytest.mark.parametrize("uids", [["a1", "a2"], [17, 18]])
def test_the_inputs_own_identifiers_become_keys(tmp_path: Path, store: Store, uids: list[object]) -> None:
    urls = write_parquet(tmp_path / "t.parquet", {"url": ["u", "u"], "caption": ["c", "c"], "id": uids})
    assert [row.key for row in rows_of(store, SourceSpec(urls=urls, uid="id"))] == [str(uid) for uid in uids]


def test_a_unit_reads_the_row_groups_that_hold_it_and_no_others(tmp_path: Path, store: Store) -> None:
    columns = {"url": [str(n) for n in range(50)], "caption": ["c"] * 50}
    spec = SourceSpec(urls=write_parquet(tmp_path / "t.parquet", columns, row_group_size=5))
    *broken, last = units_of(store, spec, 10)
    footer = pq.ParquetFile(spec.urls).metadata
    with open(spec.urls, "r+b") as stream:
        stream.write(b"\xff" * footer.row_group(7).column(0).data_page_offset)
    assert [row.url for row in read_rows(last, spec)] == [str(n) for n in range(40, 50)]
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_rows(broken[0], spec)


def test_a_caption_in_xz_that_ends_early_is_no_shorter_table(tmp_path: Path, store: Store) -> None:
    content = lzma.compress(b"url,caption\n" + b"u,c\n" * 1000)
    (tmp_path / "t.csv.xz").write_bytes(content[:-20])
    with pytest.raises(UserError, match="cannot be read as csv"):
        rows_of(store, SourceSpec(urls=str(tmp_path / "t.csv.xz")))
    assert store.names("plan", ".parquet") == []
