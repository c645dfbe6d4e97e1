"""Small files in the layouts in which the known datasets are published."""

from pathlib import Path

import pytest
from source_files import rows_of, write_parquet

from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import Row
from pipeline.store import Store

SHA = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def _row(store: Store, path: Path, preset: str, **columns: object) -> Row:
    urls = write_parquet(path / "t.parquet", {name: [value] for name, value in columns.items()})
    (row,) = rows_of(store, SourceSpec.model_validate({"urls": urls, "preset": preset}))
    return row


def test_laion(tmp_path: Path, store: Store) -> None:
    row = _row(
        store, tmp_path, "laion",
        SAMPLE_ID=2.1e12, URL="http://a.test/1.jpg", TEXT="a cat", HEIGHT=480, WIDTH=640, LICENSE="?", NSFW="UNLIKELY",
        similarity=0.31,
    )  # fmt: skip
    assert (row.url, row.caption, row.uid) == ("http://a.test/1.jpg", "a cat", "")
    assert row.meta["similarity"] == 0.31


def test_datacomp(tmp_path: Path, store: Store) -> None:
    uid = "c5d8f5ee3c9b0d4e2a4f5d7c1d3e5f70"
    row = _row(
        store, tmp_path, "datacomp",
        uid=uid, url="http://a.test/1.jpg", text="a cat", original_width=640, original_height=480,
        clip_b32_similarity_score=0.25, clip_l14_similarity_score=0.3, face_bboxes=[[0.5, 0.0, 1.0, 0.25]], sha256=SHA,
    )  # fmt: skip
    assert (row.url, row.caption, row.key, row.expected_sha256) == ("http://a.test/1.jpg", "a cat", uid, SHA)
    assert row.boxes == ((0.5, 0.0, 1.0, 0.25),)
    assert row.meta["clip_l14_similarity_score"] == 0.3


def test_coyo(tmp_path: Path, store: Store) -> None:
    row = _row(
        store, tmp_path, "coyo",
        id=841814333321, url="http://a.test/1.jpg", text="a cat", width=640, height=480, image_phash="c9b6a7d8469c1959",
        num_faces=0, watermark_score=0.1,
    )  # fmt: skip
    assert (row.url, row.caption, row.key) == ("http://a.test/1.jpg", "a cat", "841814333321")
    assert row.meta["image_phash"] == "c9b6a7d8469c1959"


def test_recap_datacomp(tmp_path: Path, store: Store) -> None:
    row = _row(
        store, tmp_path, "recap_datacomp",
        url="http://a.test/1.jpg", re_caption="A cat sits.", org_caption="cat pic", sha256=SHA, key="000000012",
        re_clip_score=0.3,
    )  # fmt: skip
    assert (row.url, row.caption, row.uid, row.expected_sha256) == ("http://a.test/1.jpg", "A cat sits.", "", SHA)
    assert row.meta["org_caption"] == "cat pic"


@pytest.mark.parametrize(("preset", "is_url_first"), [("cc3m", False), ("cc12m", True)])
def test_conceptual_captions_have_no_header_and_no_quoting(
    tmp_path: Path, store: Store, preset: str, is_url_first: bool
) -> None:
    pairs = [
        ("http://a.test/1.jpg", '"half of a quote'),
        ("http://a.test/2.jpg", 'a 5" disk'),
        ("http://a.test/3", "c"),
    ]
    lines = ("\t".join(pair if is_url_first else reversed(pair)) for pair in pairs)
    (tmp_path / "t.tsv").write_text("".join(f"{line}\n" for line in lines))
    rows = rows_of(store, SourceSpec.model_validate({"urls": str(tmp_path / "t.tsv"), "preset": preset}))
    assert [(row.url, row.caption) for row in rows] == pairs


def test_a_field_wins_over_the_preset(tmp_path: Path, store: Store) -> None:
    urls = write_parquet(
        tmp_path / "t.parquet", {"url": ["u"], "re_caption": ["new"], "org_caption": ["old"], "id": ["x"]}
    )
    spec = SourceSpec(urls=urls, preset="recap_datacomp", caption="org_caption", uid="id", sha256="re_caption")
    (row,) = rows_of(store, spec)
    assert (row.caption, row.key, row.expected_sha256) == ("old", "x", "new")
