"""The built-in filters at their borders, and the plug-in point."""

import pytest

from pipeline import Candidate, Filter, register
from pipeline.filters import build_filter
from pipeline.recipe import IngestSpec


def _candidate(caption: str = "a cat", width: int = 64, height: int = 64) -> Candidate:
    return Candidate("http://host/a.jpg", caption, original_width=width, original_height=height)


@pytest.mark.parametrize(
    ("num_words", "reason"), [(1, "caption_too_short"), (2, None), (4, None), (5, "caption_too_long")]
)
def test_caption_words_borders(num_words: int, reason: str | None) -> None:
    words = build_filter("caption_words", {"min": 2, "max": 4})
    assert words.reject(_candidate("  word\n" * num_words)) == reason


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (32, 32, None),
        (31, 32, "image_too_small"),
        (500, 31, "image_too_small"),
        (96, 32, None),
        (32, 96, None),
        (97, 32, "image_too_narrow"),
        (32, 97, "image_too_narrow"),
    ],
)
def test_image_size_borders(width: int, height: int, reason: str | None) -> None:
    size = build_filter("image_size", {"min_side_px": 32, "max_aspect": 3.0})
    assert size.reject(_candidate(width=width, height=height)) == reason


@register("test_no_word")
class NoWord(Filter):
    word: str

    def reject(self, candidate: Candidate) -> str | None:
        return "has_word" if self.word in candidate.caption.split() else None


def test_a_plug_in_is_used_by_a_recipe_in_the_recipes_order() -> None:
    entries = [{"test_no_word": {"word": "dog"}}, {"caption_words": None}]
    spec = IngestSpec.model_validate({"source": {"urls": "u.parquet"}, "filters": entries})
    first, second = spec.build_filters()
    assert isinstance(first, NoWord)
    assert [first.reject(_candidate(caption)) for caption in ("a dog", "a cat")] == ["has_word", None]
    assert second.reject(_candidate("")) == "caption_too_short"


def test_a_taken_name_is_refused_and_keeps_its_filter() -> None:
    class Other(Filter):
        pass

    with pytest.raises(ValueError, match="'test_no_word' is taken by NoWord"):
        register("test_no_word")(Other)
    assert isinstance(build_filter("test_no_word", {"word": "x"}), NoWord)


def test_an_unknown_name_is_suggested_or_the_known_ones_are_listed() -> None:
    with pytest.raises(ValueError, match="unknown filter 'caption_word'; did you mean 'caption_words'"):
        build_filter("caption_word", {})
    with pytest.raises(ValueError, match="known filters: caption_words, image_size"):
        build_filter("zzz", {})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mim": 2}, r"filter 'caption_words': mim: .*\(parameters: min, max\)"),
        ({"min": "many"}, "filter 'caption_words': min: .*integer"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_filter("caption_words", parameters)
