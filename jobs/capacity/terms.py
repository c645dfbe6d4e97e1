"""Numbers that know how they were made: a value, and the formula that a reader can check it by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Term:
    """A number with its formula; or, where an input is not known, what is missing instead."""

    value: float
    text: str
    form: Literal["number", "product", "sum"] = "number"
    missing: str = ""
    """What is not known."""
    next_step: str = ""
    """What to do about it."""

    def __mul__(self, other: Term) -> Term:
        return self._with(other, self.value * other.value, f"{self._factor} × {other._factor}", "product")

    def __truediv__(self, other: Term) -> Term:
        if not other.missing and not other.value:
            return unknown(f"a number of {other.text} to divide by")
        value = 0.0 if other.missing else self.value / other.value
        return self._with(other, value, f"{self._factor} ÷ {other._divisor}", "product")

    def __add__(self, other: Term) -> Term:
        return self._with(other, self.value + other.value, f"{self.text} + {other.text}", "sum")

    def scaled(self, factor: float) -> Term:
        """The same number in another unit; the formula stays."""
        return replace(self, value=self.value * factor)

    def _with(self, other: Term, value: float, text: str, form: Literal["product", "sum"]) -> Term:
        if self.missing or other.missing:
            return self if self.missing else other
        return Term(value, text, form)

    @property
    def _factor(self) -> str:
        return f"({self.text})" if self.form == "sum" else self.text

    @property
    def _divisor(self) -> str:
        return self.text if self.form == "number" else f"({self.text})"


def unknown(missing: str, next_step: str = "") -> Term:
    """A number that nobody has given, and what to do about it."""
    return Term(0.0, "?", missing=missing, next_step=next_step)


def count(value: float, unit: str = "") -> Term:
    """A number of things, written in full."""
    return Term(value, f"{value:,.0f} {unit}".rstrip())


def measured(value: float, unit: str) -> Term:
    """A rate or a share, to three digits."""
    return Term(value, f"{digits(value)} {unit}".rstrip())


def size(num_bytes: float) -> Term:
    return Term(num_bytes, show_bytes(num_bytes))


def share(value: float) -> Term:
    return Term(value, f"{100 * value:.3g} %")


def digits(value: float) -> str:
    """Three significant digits, without exponents."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}" if value >= 0.001 or not value else f"{value:.2e}"


def show_bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{digits(value)} {unit}"
        value /= 1000
    return f"{digits(value)} PB"


def show_count(value: float) -> str:
    return f"{value:,.0f}"


def show_hours(value: float) -> str:
    """Hours, or minutes and seconds where it is less."""
    if value >= 1:
        return f"{digits(value)} h"
    return f"{digits(60 * value)} min" if 60 * value >= 1 else f"{digits(3600 * value)} s"
