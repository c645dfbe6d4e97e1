"""What a measurement found: numbers with their chance level, the same per image, and what was skipped.

Shape legend: I images that are measured.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Metric:
    """One number."""

    value: float
    chance: float | None = None
    """What a model that knows nothing would get; None where that means nothing."""
    low: float | None = None
    high: float | None = None
    """Bounds of the 95 % bootstrap interval over images."""
    better: Better = "higher"
    """Empty: neither."""
    unit: str = "share"
    """share, nats, bits, points, tokens, ..."""


@dataclass(frozen=True)
class Part:
    """What one task found, by the names of its metrics: TASK/METRIC."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    per_image: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """[I], whose mean over the images is the metric of that name; NaN where an image was not measured."""
    details: dict[str, Any] = field(default_factory=dict)
    """Tables, samples, counts: ready for JSON, by TASK/NAME."""
    notes: list[str] = field(default_factory=list)
    """Sentences for people: what it cost, what was skipped and why."""


def merge(parts: Iterable[Part]) -> Part:
    """All of them as one."""
    whole = Part()
    for part in parts:
        whole.metrics.update(part.metrics)
        whole.per_image.update(part.per_image)
        whole.details.update(part.details)
        whole.notes.extend(part.notes)
    return whole


def to_json(part: Part) -> dict[str, Any]:
    """Without what is per image, which `eval_images.parquet` holds."""
    metrics = {name: asdict(metric) for name, metric in part.metrics.items()}
    return {"metrics": metrics, "details": part.details, "notes": part.notes}
