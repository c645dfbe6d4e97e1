"""What is wrong with a source is named, with the next thing to type."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from source_files import rows_of, write_pairs, write_parquet

from pipeline.errors import UserError
from pipeline.inputs.plan import extend_plan
from pipeline.inputs.spec import SourceSpec
from pipeline.store import Store


def _refusal(spec: SourceSpec) -> str:
    store = Store("memory://refusals")
    with pytest.raises(UserError) as caught:
        extend_plan(store, spec, 10)
    assert caught.value.exit_code == 2
    assert store.names("plan", "") == []
    return caught.value.message


@pytest.mark.parametrize("name", ["absent.parquet", "absent-*.parquet", "no/folder/urls.parquet", ""])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    message = _refusal(SourceSpec(urls=f"{tmp_path}/{name}"))
    assert "no table of URLs here" in message
    assert f"{tmp_path}/{name}" in message
    assert "--set ingest.source.urls=" in message


def test_an_unknown_protocol_and_an_unknown_preset_are_named() -> None:
    assert "nosuch" in _refusal(SourceSpec(urls="nosuch://bucket/urls.parquet"))
    with pytest.raises(ValidationError, match="recap_datacomp"):
        SourceSpec.model_validate({"urls": "x", "preset": "lion"})


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("t.parquet", b""),
        ("t.parquet", b"url,caption\nu,c\n"),
        ("t.parquet", b"PAR1 but no more PAR1"),
        ("t.csv", b""),
        ("t.csv", b"url,caption\nu,c\nu,c,d\n"),
        ("t.csv.gz", b"url,caption\nu,c\n"),
        ("t.json", b'[{"url": "u", "caption": "c"}, 5]'),
        ("t.json", b'[{"url": "u", "caption": "c"'),
        ("t.jsonl", b'{"url": "u", "caption": "c"}\nurl: v\n'),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    message = _refusal(SourceSpec(urls=f"{tmp_path}/{name}"))
    assert f"cannot be read as {name.split('.')[1].removesuffix('l')}" in message
    assert name in message


def test_a_file_of_no_known_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.dat").write_bytes(b"url;caption\n")
    assert "the format of the file is unknown" in _refusal(SourceSpec(urls=f"{tmp_path}/t.dat"))


def test_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.parquet"):
        write_pairs(tmp_path / name, [{"url": "u", "caption": "c"}])
    message = _refusal(SourceSpec(urls=str(tmp_path)))
    assert "several formats" in message
    assert "a.csv" in message
    assert "b.parquet" in message


@pytest.mark.parametrize("key", ["url", "caption", "uid", "sha256", "boxes"])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_missing_column_is_named_with_the_columns_there_and_the_option(tmp_path: Path, key: str, kind: str) -> None:
    urls = write_pairs(tmp_path / f"t.{kind}", [{"url": "u", "caption": "c"}])
    message = _refusal(SourceSpec.model_validate({"urls": urls, key: "TEXT"}))
    assert "no column 'TEXT'" in message
    assert "url (text), caption (text)" in message
    assert f"--set ingest.source.{key}=COLUMN" in message


def test_a_close_name_and_a_fitting_preset_are_suggested(tmp_path: Path) -> None:
    laion = write_pairs(tmp_path / "laion.parquet", [{"URL": "u", "TEXT": "c"}])
    assert "--set ingest.source.preset=laion" in _refusal(SourceSpec(urls=laion))
    close = write_pairs(tmp_path / "close.jsonl", [{"url": "u", "Captions": "c"}])
    message = _refusal(SourceSpec(urls=close))
    assert "did you mean 'Captions'?" in message
    assert "its columns are url (text), Captions" in message


@pytest.mark.parametrize("column", [[1], [["a", "b"]], [True]], ids=["int", "list", "bool"])
def test_a_column_that_holds_no_text_is_named(tmp_path: Path, column: list[object]) -> None:
    urls = write_parquet(tmp_path / "t.parquet", {"url": ["u"], "caption": column})
    assert "no text in its column 'caption'" in _refusal(SourceSpec(urls=urls))


@pytest.mark.parametrize(
    ("key", "words"), [("uid", "no text or integers"), ("sha256", "no text"), ("boxes", "no boxes")]
)
def test_a_column_of_another_kind_is_named(tmp_path: Path, key: str, words: str) -> None:
    urls = write_parquet(tmp_path / "t.parquet", {"url": ["u"], "caption": ["c"], "x": [0.5]})
    assert f"{words} in its column 'x'" in _refusal(SourceSpec.model_validate({"urls": urls, key: "x"}))


@pytest.mark.parametrize("name", ["caption", "other"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    table = pa.Table.from_arrays([pa.array(["u"])] * 4, names=["url", "caption", name, "other"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert f"several columns {name!r}" in _refusal(SourceSpec(urls=str(tmp_path / "t.parquet")))


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.json"])
def test_an_empty_table_is_refused(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / "t.parquet", {"url": pa.array([], pa.string()), "caption": pa.array([], pa.string())})
    (tmp_path / "t.csv").write_text("url,caption\n")
    (tmp_path / "t.jsonl").write_text("")
    (tmp_path / "t.json").write_text("[]")
    message = _refusal(SourceSpec(urls=str(tmp_path / name)))
    assert "no rows" in message
    assert name in message


def test_files_with_other_columns_are_refused_and_other_numbers_are_not(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", {"url": ["u"], "caption": ["c"], "width": [640]})
    write_parquet(tmp_path / "b.parquet", {"caption": ["c"], "url": ["v"], "width": [0.5]})
    spec = SourceSpec(urls=f"{tmp_path}/*.parquet", group_by_host=True)
    assert extend_plan(Store("memory://mixed"), spec, 10).num_rows == 2
    write_parquet(tmp_path / "c.parquet", {"url": ["u"], "caption": ["c"], "height": [640]})
    message = _refusal(spec)
    assert "different columns" in message
    assert "height, width" in message
    write_parquet(tmp_path / "c.parquet", {"url": ["u"], "caption": ["c"], "width": ["wide"]})
    assert "different columns" in _refusal(spec)


@pytest.mark.parametrize("boxes", ["[1, 2, 3, 4]", "[[1, 2, 3]]", "left"])
def test_boxes_that_are_none_are_refused_because_a_face_would_show(tmp_path: Path, boxes: str) -> None:
    urls = write_pairs(tmp_path / "t.tsv", [{"url": "http://a.test/1", "caption": "c", "faces": boxes}])
    with pytest.raises(UserError, match=r"(?s)not a list of \[left, top.*http://a.test/1"):
        rows_of(Store(str(tmp_path / "store")), SourceSpec(urls=urls, boxes="faces"))
