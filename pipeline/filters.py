"""Inline filters: cheap, certain rules asked while a unit is ingested. The plug-in point is `register`.

A filter returns the reason for which it says no, or None. Saying no is `rejected`; an exception is `failed`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline.plugins import build_from, register_in


@dataclass(frozen=True)
class Candidate:
    """What a filter sees of a sample. What concerns the image is known after the download only."""

    url: str
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)
    """The input's other columns."""
    original_width: int = 0
    original_height: int = 0
    original_format: str = ""
    """By content: `jpeg`, `png`, `webp` …"""
    num_frames: int = 0


class Filter(BaseModel):
    """Base of all filters; the fields are the recipe's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs_image: ClassVar[bool] = True
    """False where URL, caption and meta decide: such a filter is asked before anything is downloaded."""

    def reject(self, candidate: Candidate) -> str | None:
        """Why this sample must not be kept, as a snake_case reason, or None."""
        raise NotImplementedError


FILTERS: dict[str, type[Filter]] = {}


def register(name: str) -> Callable[[type[Filter]], type[Filter]]:
    """Make a filter available to recipes under `name`."""
    return register_in(FILTERS, "filter", name)


def build_filter(name: str, parameters: dict[str, Any]) -> Filter:
    """The filter called `name`; a wrong name or parameter is a ValueError with a suggestion."""
    return build_from(FILTERS, "filter", name, parameters)


def first_refusal(filters: Iterable[Filter], candidate: Candidate) -> str:
    """The reason of the first filter that says no, `filter_ERROR` where one raises, or the empty string.

    A filter is a plug-in: its bug costs the row, not the unit.
    """
    for one in filters:
        try:
            reason = one.reject(candidate)
        except Exception as error:  # noqa: BLE001 see above
            return f"filter_{type(error).__name__}"
        if reason:
            return reason
    return ""


@register("caption_words")
class CaptionWords(Filter):
    """Keep captions with at least `min` and at most `max` words."""

    needs_image: ClassVar[bool] = False
    min: int = 1
    max: int = 1_000

    def reject(self, candidate: Candidate) -> str | None:
        num_words = len(candidate.caption.split())
        if num_words < self.min:
            return "caption_too_short"
        return "caption_too_long" if num_words > self.max else None


@register("image_size")
class ImageSize(Filter):
    """Keep images whose shorter side has at least `min_side_px` and whose aspect ratio is at most `max_aspect`."""

    min_side_px: int = 1
    max_aspect: float = 1_000.0

    def reject(self, candidate: Candidate) -> str | None:
        short, long = sorted((candidate.original_width, candidate.original_height))
        if short < self.min_side_px:
            return "image_too_small"
        return "image_too_narrow" if long / short > self.max_aspect else None
