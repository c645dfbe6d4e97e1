"""Block lists: whole words in any writing; and the rules for captions that describe nothing."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.annotate.blocklist
import pipeline.annotate.boilerplate  # noqa: F401
from pipeline.annotate.annotator import Batch, Column, build_annotator
from pipeline.annotate.columns import address
from pipeline.errors import UserError


def batch(captions: list[str]) -> Batch:
    return Batch(pa.table({"caption": pa.array(captions, pa.string())}))


def blocked(words: list[str], captions: list[str]) -> Column:
    return build_annotator("blocklist", {"words": words}).annotate(batch(captions))["blocked_word"]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a ZORK in the grass", "zork"),
        ("zorks are many", None),
        ("the (zork)!", "zork"),
        ("a ｚｏｒｋ", "zork"),
        ("in der STRASSE liegt", "Straße"),
        ("so Big, bad – wolf it was", "big bad wolf"),
        ("a big bad", None),
        ("a big bad bear", None),
        ("一匹の狼犬です", "狼犬"),
        ("狼と犬", None),
        ("", None),
    ],
)
def test_whole_words_and_phrases(caption: str, found: str | None) -> None:
    assert blocked(["zork", "Straße", "big bad wolf", "狼犬", "…"], [caption]) == [found]


WORDS = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=6)


@given(st.lists(WORDS, min_size=1, max_size=5), WORDS)
def test_found_exactly_when_a_phrase_is_a_run_of_the_words(phrases: list[list[str]], words: list[str]) -> None:
    entries = [" ".join(phrase) for phrase in phrases]
    expected = any(f" {entry} " in f" {' '.join(words)} " for entry in entries)
    (found,) = blocked(entries, [" ".join(words)])
    assert (found is not None) == expected
    assert found is None or found in entries


def test_a_file_names_its_content(tmp_path: Path) -> None:
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path, line in zip(paths, ["zork", "grue"], strict=True):
        path.write_text(f"\ufeff{line}\r\n\r\ntwo words\r\n", encoding="utf-8")
    one, two = (build_annotator("blocklist", {"file": str(path), "column": "w"}) for path in paths)
    assert one.annotate(batch(["the zork", "a grue", "Two words"])) == {"w": ["zork", None, "two words"]}
    assert two.annotate(batch(["the zork", "a grue", "Two words"])) == {"w": [None, "grue", "two words"]}
    assert one.state() != two.state()
    assert address(one) != address(two)


def test_without_entries_or_with_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`words` or a `file`"):
        build_annotator("blocklist", {})
    with pytest.raises(UserError, match="block list cannot be read"):
        build_annotator("blocklist", {"file": str(tmp_path / "none.txt")}).state()


def rules(captions: list[str]) -> dict[str, Column]:
    return dict(build_annotator("boilerplate", {}).annotate(batch(captions)))


FILE_NAMES = """IMG_1234.JPG|DSC0001|DSC_0042.NEF.jpg|P1010042|PXL_20210304_101112|IMG-20190203-WA0001
screenshot 2020-01-01 at 10.20.30|Bildschirmfoto 2021-03-04 um 10|3f2504e0-4f89-11d3-9a0c-0305e82c3301
d41d8cd98f00b204e9800998ecf8427e|banner-top.png|/images/2019/03/a photo.jpg|my dog (1).jpeg|product-800x600
20190203_112233|photo_2020_02_01|Untitled-1|s-l1600.jpg|100_0234|GOPR0123"""
BOILERPLATE = """Click to enlarge|Image not available|Stock photo|Logo|thumbnail|Alt text|loading…|Photo by John Doe
Getty Images|Lazy load placeholder|We use cookies to improve this site|Add to cart|$19.99|800 x 600|12.03.2019
March 4, 2020|image|Bild nicht verfügbar|Cliquez pour agrandir|Imagen no disponible|нет фото|暂无图片|画像|품절
In den Warenkorb|10 cm|42|2019年3月4日|€ 5,00|ADD TO CART!"""
DESCRIPTIONS = """A dog on the beach|the logo of a football club on a wall|Loading hay onto a truck|Photo of my cat
two cookies on a plate|a shopping cart full of fruit|Boeing 747|Highway 66 in 1950|a house for $5|photographers
Click beetle on a leaf|a cafe in Rome|facade|deadbeef stew|Image of Mary in a church|Apollo 11|iPhone 12
A 3D emoji of wing.|赤い車の写真|un chien sur la plage|No smoking sign|Close friends|Placeholders for a wedding table
stock car racing|house 2019"""


def cases(table: str) -> list[str]:
    return [one for line in table.splitlines() for one in line.split("|")]


def test_file_names_are_found() -> None:
    captions = cases(FILE_NAMES)
    found = rules(captions)["is_filename"]
    assert [one for one, flag in zip(captions, found, strict=True) if not flag] == []


def test_boilerplate_is_found() -> None:
    captions = cases(BOILERPLATE)
    found = rules(captions)["is_boilerplate"]
    assert [one for one, flag in zip(captions, found, strict=True) if not flag] == []


def test_descriptions_are_neither() -> None:
    captions = cases(DESCRIPTIONS)
    found = rules(captions)
    for column in ("is_filename", "is_boilerplate", "url_in_caption"):
        assert [one for one, flag in zip(captions, found[column], strict=True) if flag] == []


def test_addresses() -> None:
    captions = [
        "see https://example.org/a",
        "WWW.EXAMPLE.COM",
        "photo from example.co.uk",
        "End. Commas, etc.",
        "e.g. a",
    ]
    assert rules(captions)["url_in_caption"] == [True, True, True, False, False]
