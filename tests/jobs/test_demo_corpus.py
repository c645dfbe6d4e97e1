"""The demo's corpus: the fixtures that ship, building, the captions of each source, reading a user's folder."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.demo.corpus import (
    FIXTURES,
    MANIFEST,
    METADATA,
    CorpusError,
    Tier,
    build_corpus,
    image_path,
    read_corpus,
    write_corpus,
)
from jobs.demo.sources import fluent, ifct, landscapes, openclipart, tuxpaint
from jobs.demo.sources.record import CLASSES, Record

# ---------------------------------------------------------------- fixtures that ship


def test_fixtures_are_a_valid_corpus_of_pictures_with_distinct_captions() -> None:
    table = read_corpus(FIXTURES)
    assert len(set(table["caption"].to_pylist())) == table.num_rows
    num_by_class = Counter(table["class_name"].to_pylist())
    assert 8 <= len(num_by_class) <= 10
    assert min(num_by_class.values()) >= 20
    for row in table.to_pylist():
        with Image.open(FIXTURES / row["file"]) as image:
            assert image.format == "WEBP"
            assert image.size == (row["width"], row["height"])
            assert max(image.size) == 72
            image.load()


def test_fixtures_hold_only_mit_sources_and_name_both() -> None:
    table = read_corpus(FIXTURES)
    assert {licence.split()[0] for licence in table["licence"].to_pylist()} == {"MIT"}
    assert set(table["source"].to_pylist()) == {"fluent"}
    text = (FIXTURES / "LICENSE-fluent-emoji.txt").read_text()
    assert all(name in text for name in ("Microsoft", "emojibase", "MIT License"))


def test_fixtures_are_small_and_hold_no_file_without_a_row() -> None:
    files = [path for path in FIXTURES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    listed = {FIXTURES / file for file in read_corpus(FIXTURES)["file"].to_pylist()}
    assert {path.name for path in set(files) - listed} == {METADATA, MANIFEST, "LICENSE-fluent-emoji.txt"}


# ---------------------------------------------------------------- building


def test_build_copies_the_fixtures_and_reuses_a_finished_folder(tmp_path: Path) -> None:
    first = build_corpus("fixtures", tmp_path / "out", tmp_path / "cache")
    marker = (tmp_path / "out" / MANIFEST).stat().st_mtime_ns
    again = build_corpus("fixtures", tmp_path / "out", tmp_path / "cache")
    assert (first.is_reused, again.is_reused) == (False, True)
    assert (first.num_images, first.num_captions) == (again.num_images, again.num_captions)
    assert first.num_images == read_corpus(tmp_path / "out").num_rows
    assert first.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out" / "images").iterdir())
    assert (tmp_path / "out" / MANIFEST).stat().st_mtime_ns == marker
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # nothing temporary is left


def test_build_refuses_a_folder_with_other_files_and_another_tier(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CorpusError, match="not empty"):
        build_corpus("fixtures", tmp_path / "mine", tmp_path / "cache")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    build_corpus("fixtures", tmp_path / "out", tmp_path / "cache")
    with pytest.raises(CorpusError, match="tier 'fixtures'"):
        build_corpus("small", tmp_path / "out", tmp_path / "cache")
    with pytest.raises(CorpusError, match="no tier 'huge': choose one of small, full, fixtures"):
        build_corpus(cast(Tier, "huge"), tmp_path / "new", tmp_path / "cache")


def _record(path: Path, caption: str = "A thing.") -> Record:
    return Record(path, caption, "tool", "test", "MIT", f"test:{path.name}", "thing")


def _noise(width_px: int, height_px: int, seed: int = 0, bands: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, bands), dtype=np.uint8))


def test_written_corpus_keeps_good_bytes_and_counts_what_it_drops(tmp_path: Path) -> None:
    images = {
        "a.png": _noise(40, 30, bands=4),
        "b.jpg": _noise(40, 30, seed=1),
        "c.bmp": _noise(40, 30, seed=2),
        "narrow.png": _noise(240, 29),
        "tiny.png": _noise(20, 20),
        "white.png": Image.new("RGB", (40, 40), "white"),
        "clear.png": Image.new("RGBA", (40, 40), (0, 0, 0, 0)),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    shutil.copy(tmp_path / "a.png", tmp_path / "z.png")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:200])
    names = [*images, "z.png", "broken.jpg"]
    write_corpus([_record(tmp_path / name) for name in names], [], "test", tmp_path / "out")
    table = read_corpus(tmp_path / "out")
    assert table["file"].to_pylist() == ["images/00000.png", "images/00001.jpg", "images/00002.webp"]
    assert (tmp_path / "out/images/00000.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert (tmp_path / "out/images/00001.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert table["width"].to_pylist() == [40, 40, 40]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["num_dropped"] == {
        "test: blank": 2,
        "test: same bytes as another image": 1,
        "test: too narrow": 1,
        "test: too small": 1,
        "test: unreadable": 1,
    }


def test_svg_drawings_are_cropped_to_their_ink_and_keep_alpha(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    page = '<svg xmlns="http://www.w3.org/2000/svg" width="210mm" height="297mm" viewBox="0 0 210 297">{}</svg>'
    (tmp_path / "corner.svg").write_text(page.format('<circle cx="30" cy="30" r="20" fill="red"/>'))
    (tmp_path / "empty.svg").write_text(page.format(""))
    (tmp_path / "strip.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9000" height="10"/>')
    (tmp_path / "broken.svg").write_text("<svg")
    names = ["corner.svg", "empty.svg", "strip.svg", "broken.svg"]
    write_corpus([_record(tmp_path / name) for name in names], [], "test", tmp_path / "out")
    with Image.open(tmp_path / "out/images/00000.webp") as image:
        assert image.mode == "RGBA"
        assert min(image.size) > 300  # though the circle covers only a fifth of the page's width
        pixels = np.asarray(image)
    assert pixels[len(pixels) // 2, len(pixels) // 2, 0] > 240
    assert pixels[2, 2, 3] == 0
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["num_dropped"] == {
        "test: blank": 1,
        "test: too narrow": 1,
        "test: unreadable": 1,
    }


# ---------------------------------------------------------------- captions of the sources


def _touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_ifct_captions_join_name_alias_scientific_name_and_group(tmp_path: Path) -> None:
    rows = ["B010,'Green gram, dal',Phaseolus aureus", "D030,Brinjal-21,Solanum melongena", "K001,Toddy,"]
    _touch(tmp_path / "comp/index.csv", "\n".join(["code,name,scie", *rows]).replace("'", '"'))
    described = ['B010,x,y,"B. Moog; E. Mung bean, Maash; H. Moong"', 'D030,x,y,"E. Eggplant; H. Baingan"']
    _touch(tmp_path / "desc/index.csv", "\n".join(["code,name,scie,desc", *described]))
    for code in ("B010", "D030", "K001", "O001", "O002"):
        _touch(tmp_path / f"pics/assets/{code}.jpeg")
    records = list(ifct.SOURCE.records([tmp_path / "pics", tmp_path / "desc", tmp_path / "comp"]))
    assert [(record.caption, record.class_name) for record in records] == [
        ("A photo of green gram dal, also called mung bean, Phaseolus aureus, a pulse.", "legume"),
        ("A photo of brinjal, also called eggplant, Solanum melongena, a vegetable.", "vegetable"),
        ("A photo of toddy, a drink.", "drink"),
        ("A photo of a white goat on a rope.", "mammal"),  # and O002, another cut of the goat, is left out
    ]


def test_fluent_captions_take_label_and_keywords_and_leave_out_skin_tones(tmp_path: Path) -> None:
    emoji = [
        {"hexcode": "1F40B", "label": "whale", "tags": ["animal", "sea"], "subgroup": 1},
        {"hexcode": "1F1F9-1F1E9", "label": "flag: Chad", "tags": ["TD"], "subgroup": 2},
        {"hexcode": "27A1", "label": "right arrow", "tags": ["east"], "subgroup": 3},
    ]
    _touch(tmp_path / "base/en/data.json", json.dumps(emoji))
    groups = {"subgroups": {"1": "animal-marine", "2": "country-flag", "3": "arrow"}}
    _touch(tmp_path / "base/meta/groups.json", json.dumps(groups))
    for name in ("1f40b", "1f1f9-1f1e9", "27a1-fe0f", "1f44d-1f3fb"):
        _touch(tmp_path / f"pics/assets/{name}.webp")
    flag, whale = fluent.SOURCE.records([tmp_path / "pics", tmp_path / "base"])
    assert (flag.caption, flag.class_name) == ("A 3D emoji of the flag of Chad.", "flag")
    assert whale.class_name == "mammal"
    assert "whale" in whale.caption.lower()


def test_tuxpaint_takes_the_english_line_and_the_longest_folder(tmp_path: Path) -> None:
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    for name, text in (("town/roadsigns/stop", "A stop sign."), ("town/cartoon/mine", "A  mine.\nfr.utf8=Une mine.")):
        _touch(stamps / f"{name}.txt", text)
        _touch(stamps / f"{name}.png")
    _touch(stamps / "town/without-text.png")
    records = list(tuxpaint.SOURCE.records([tmp_path]))
    assert [(record.caption, record.class_name) for record in records] == [
        ("A mine.", "building"),
        ("A stop sign.", "sign"),
    ]


def test_landscapes_take_scene_and_licence_of_each_file(tmp_path: Path) -> None:
    land = tmp_path / "usr/share/games/endless-sky/images/land"
    for name in ("canyon1.jpg", "canyon2-sfiera.jpg", "mfield3.jpg"):
        _touch(land / name)
    paragraphs = [
        "Files: *\nCopyright: A\nLicense: GPL-3+",
        "Files:\n images/land/c*\n images/land/d*\nCopyright: B\nLicense: public-domain\n Given away.",
        "Files: images/land/*-sfiera*\nCopyright: C\nLicense: CC-BY-SA-4.0",
        "License: GPL-3+\n The text.",
    ]
    _touch(tmp_path / "usr/share/doc/endless-sky-data/copyright", "\n\n".join(paragraphs))
    records = list(landscapes.SOURCE.records([tmp_path]))
    assert [(record.subject, record.licence) for record in records] == [
        ("canyon", "public-domain"),
        ("canyon", "CC-BY-SA-4.0"),
    ]


def _clip_art(title: str, description: str, creator: str, *keywords: str) -> str:
    items = "".join(f"<rdf:li>{keyword}</rdf:li>" for keyword in keywords)
    return (
        f"<svg><metadata><dc:title>{title}</dc:title><dc:description>{description}</dc:description>"
        f"<dc:creator><dc:title>{creator}</dc:title></dc:creator>{items}</metadata></svg>"
    )


def test_openclipart_captions_are_english_and_name_the_drawing_not_its_series(tmp_path: Path) -> None:
    svg = tmp_path / "usr/share/openclipart/svg"
    _touch(
        svg / "animals/cat_ann_01.svg", _clip_art("Sleepy_cat 2", "A grey cat asleep on a chair.", "Ann", "cat", "pet")
    )
    _touch(svg / "animals/birds/gufo.svg", _clip_art("Gufo", "", "Architetto Francesco Rollandin", "bird"))
    _touch(svg / "transportation/roadsigns/steep_hill.svg", _clip_art("SVG Road Signs", "", "John Cliff", "0x8a"))
    _touch(svg / "shapes/star.svg", _clip_art("Star", "", "Ann", "star"))
    records = list(openclipart.SOURCE.records([tmp_path]))
    assert [(record.caption, record.class_name) for record in records] == [
        ("Clip art of Sleepy cat. A grey cat asleep on a chair. Keywords: pet.", "mammal"),
        ("A sign for steep hill.", "sign"),
    ]


def test_every_class_that_a_rule_names_is_in_the_vocabulary() -> None:
    named = {
        class_name for class_name, _ in [*ifct.GROUPS.values(), *ifct.ANIMALS.values(), *landscapes.SCENES.values()]
    }
    named |= {*fluent.CLASS_OF_SUBGROUP.values(), *fluent.CLASS_OF_LABEL.values(), *tuxpaint.CLASS_OF_FOLDER.values()}
    named |= {name for name in openclipart.CLASS_OF_FOLDER.values() if name} | {*openclipart.CLASS_OF_WORD.values()}
    assert named <= CLASSES
    with pytest.raises(ValueError, match="not in CLASSES"):
        Record(Path("x"), "x", "no such class", "x", "x", "x", "x")


# ---------------------------------------------------------------- reading any folder


def _write_metadata(folder: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), folder / METADATA)


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    (tmp_path / "user/images/sub").mkdir(parents=True)
    _noise(30, 30).save(tmp_path / "user/images/sub/a b.png")
    (tmp_path / "user/secret.png").write_bytes(b"secret")
    return tmp_path / "user"


def test_read_accepts_a_users_folder_and_adds_a_null_class(user_folder: Path) -> None:
    captions = pa.array(["a cat"], pa.large_string())
    _write_metadata(user_folder, file=["images/sub/a b.png"], caption=captions, rating=[3])
    table = read_corpus(user_folder)
    assert table.to_pylist() == [{"file": "images/sub/a b.png", "caption": "a cat", "rating": 3, "class_name": None}]
    assert table.schema.field("class_name").type == pa.string()


GOOD_FILE = ["images/sub/a b.png"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": GOOD_FILE}, r"lacks \['caption'\]"),
        ({"image": GOOD_FILE, "text": ["x"]}, r"lacks \['file', 'caption'\]"),
        ({"file": pa.array([], pa.string()), "caption": pa.array([], pa.string())}, "no rows"),
        ({"file": GOOD_FILE, "caption": [3]}, "type int64, not string"),
        ({"file": GOOD_FILE, "caption": pa.array([None], pa.string())}, "1 nulls in 'caption'"),
        ({"file": ["images/gone.png"], "caption": ["x"]}, r"1 of 1 files are missing .*\['images/gone\.png'\]"),
        ({"file": ["secret.png"], "caption": ["x"]}, "not inside"),
        ({"file": ["images/../secret.png"], "caption": ["x"]}, "not inside"),
        ({"file": ["/etc/hostname"], "caption": ["x"]}, "not inside"),
        ({"file": ["images/sub"], "caption": ["x"]}, "not inside"),
    ],
)
def test_read_says_what_is_wrong(user_folder: Path, columns: dict[str, object], message: str) -> None:
    _write_metadata(user_folder, **columns)
    with pytest.raises(CorpusError, match=message):
        read_corpus(user_folder)


def test_read_says_that_the_metadata_is_missing_or_no_parquet(user_folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"metadata\.parquet is missing"):
        read_corpus(user_folder)
    (user_folder / METADATA).write_text("file,caption\n")
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        read_corpus(user_folder)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "images", "a", "/", "\0", "b" * 300, "00000.webp", "~", ""]), max_size=6))
def test_no_name_leads_out_of_the_images(parts: list[str]) -> None:
    path = image_path(FIXTURES, "/".join(parts))
    assert path is None or (path.is_file() and path.is_relative_to((FIXTURES / "images").resolve()))


def test_images_may_stand_in_front_of_a_name_or_not() -> None:
    assert image_path(FIXTURES, "00000.webp") == image_path(FIXTURES, "images/00000.webp") is not None


def test_a_link_that_leads_out_of_the_images_is_no_image(user_folder: Path) -> None:
    (user_folder / "images/link.png").symlink_to(user_folder / "secret.png")
    assert image_path(user_folder, "images/link.png") is None
