"""Inline filters: cheap, certain rules asked while a unit is ingested. The plug-in point is `register`.

A filter returns the reason for which it says no, or None. Saying no is `rejected`; an exception is `failed`.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


@dataclass(frozen=True)
class Candidate:
    """What a filter sees of a sample: the image's original size and the caption."""

    url: str
    caption: str
    original_width: int
    original_height: int


class Filter(BaseModel):
    """Base of all filters; the fields are the recipe's parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def reject(self, candidate: Candidate) -> str | None:
        """Why this sample must not be kept, as a snake_case reason, or None."""
        raise NotImplementedError


FILTERS: dict[str, type[Filter]] = {}


def register(name: str) -> Callable[[type[Filter]], type[Filter]]:
    """Make a filter available to recipes under `name`."""

    def add(filter_class: type[Filter]) -> type[Filter]:
        if FILTERS.get(name, filter_class).__qualname__ != filter_class.__qualname__:
            raise ValueError(f"the filter name {name!r} is taken by {FILTERS[name].__qualname__}")
        FILTERS[name] = filter_class
        return filter_class

    return add


def import_plugins(modules: Iterable[str]) -> None:
    """Import modules that register filters; a module that cannot be imported is a ValueError."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` has it, the installed command has not
    for module in modules:
        try:
            importlib.import_module(module)
        except (ImportError, SyntaxError) as error:
            raise ValueError(f"the plug-in {module!r} cannot be imported: {error}") from error


def build_filter(name: str, parameters: dict[str, Any]) -> Filter:
    """The filter called `name`; a wrong name or parameter is a ValueError with a suggestion."""
    if name not in FILTERS:
        close = difflib.get_close_matches(name, FILTERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known filters: {', '.join(sorted(FILTERS))}"
        raise ValueError(f"unknown filter {name!r}; {hint}")
    try:
        return FILTERS[name](**parameters)
    except ValidationError as error:
        fields = ", ".join(FILTERS[name].model_fields)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"filter {name!r}: {where}: {first['msg']} (parameters: {fields})") from None


@register("caption_words")
class CaptionWords(Filter):
    """Keep captions with at least `min` and at most `max` words."""

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
