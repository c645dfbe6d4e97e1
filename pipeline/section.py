"""The base of every recipe section: strict, immutable, finite."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a recipe; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def lay_over(base: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `content` laid over it, section by section; a list replaces a list."""
    merged = dict(base)
    for key, value in content.items():
        below = merged.get(key)
        merged[key] = lay_over(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
