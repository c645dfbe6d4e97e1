"""Caption statistics in several scripts, against counts made one by one."""

import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotate.annotator import Batch, Column, build_annotator
from pipeline.annotate.caption import split_words


def stats(captions: list[str]) -> dict[str, Column]:
    batch = Batch(pa.table({"caption": pa.array(captions, pa.string())}))
    return dict(build_annotator("caption_stats", {}).annotate(batch))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("", 0),
        ("… — !", 0),
        ("a dog's ball, 2 well-known dogs", 6),
        ("Ein großer Hund läuft", 4),
        ("赤い車 2台", 5),
        ("हिन्दी में लिखा", 3),
        ("한국어 문장 하나", 3),
        ("สุนัขบนชายหาด", 4),
        ("cafe\u0301 noir", 2),
        ("كَلْب على الشاطئ", 3),
        ("snake_case_name", 3),
    ],
)
def test_words_are_counted_in_any_script(caption: str, words: int) -> None:
    assert stats([caption])["words"] == [words]


def test_shares_and_repetition() -> None:
    found = stats(["AB cd 12", "", "a big dog a big dog", "a dog and a cat", "🐕🐕"])
    assert list(found["characters"]) == [8, 0, 19, 15, 2]
    assert list(found["letters_share"][:2]) == pytest.approx([4 / 6, 0])
    assert list(found["digits_share"][:2]) == pytest.approx([2 / 6, 0])
    assert list(found["uppercase_share"]) == pytest.approx([2 / 4, 0, 0, 0, 0])
    assert found["repetition"] == pytest.approx([0, 0, 2 / 5, 0, 0])
    assert found["char_entropy"][4] == 0


@given(st.lists(st.text(max_size=40), max_size=8))
def test_entropy_and_shares_agree_with_counting(captions: list[str]) -> None:
    found = stats(captions)
    for i, caption in enumerate(captions):
        total = len(caption)
        expected = -sum(n / total * math.log2(n / total) for n in Counter(caption).values())
        assert found["char_entropy"][i] == pytest.approx(expected, abs=1e-9)
        assert found["characters"][i] == total
        visible = max(sum(not character.isspace() for character in caption), 1)
        assert found["digits_share"][i] == pytest.approx(sum(c.isdecimal() for c in caption) / visible)
        assert 0 <= found["repetition"][i] < 1


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=6), max_size=10))
def test_ascii_words_are_what_spaces_separate(words: list[str]) -> None:
    assert split_words(" ".join(words)) == words
    assert split_words(" ".join([*words, "é"])) == [*words, "é"]
