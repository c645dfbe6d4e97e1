"""Comparisons made up by a seed: what five objectives, three seeds and some dozens of images might give."""

from typing import Any

import numpy as np

from jobs.compare.aggregate import Measured, make_rows
from jobs.compare.results import Comparison, Curve, Missing, System

OBJECTIVES = ("genlip", "clip", "siglip", "mae", "cappa")
SEEDS = (1, 2, 3)
NUM_IMAGES = 64
TOP1 = {
    "zero_shot/names_top1": {"genlip": 0.40, "clip": 0.42, "siglip": 0.20, "cappa": 0.38},
    "zero_shot/captions_top1": {"genlip": 0.55, "clip": 0.40, "siglip": 0.30, "cappa": 0.50},
    "retrieval/image_to_text_r1": {"genlip": 0.30, "clip": 0.10, "siglip": 0.08, "cappa": 0.25},
    "retrieval/text_to_image_r1": {"genlip": 0.25, "clip": 0.08, "siglip": 0.09, "cappa": 0.24},
    "knn/top1": {"genlip": 0.6, "clip": 0.62, "siglip": 0.5, "mae": 0.4, "cappa": 0.61},
    "probe/attentive_top1": {"genlip": 0.6, "clip": 0.9, "siglip": 0.5, "mae": 0.4, "cappa": 0.61},
}
"""Share of images that are right."""


def measured(objective: str, seed: int, shares: dict[str, float], num_images: int = NUM_IMAGES) -> Measured:
    """An evaluation in which each image is right with these probabilities."""
    rng = np.random.default_rng([OBJECTIVES.index(objective), seed])
    per_image = {name: (rng.random(num_images) < share).astype(float) for name, share in shares.items()}
    metrics: dict[str, dict[str, Any]] = {
        name: {"value": float(values.mean()), "chance": 0.1, "better": "higher", "unit": "share"}
        for name, values in per_image.items()
    }
    if objective in ("genlip", "cappa"):
        metrics["captioning/bleu_4"] = {"value": 0.1 + 0.01 * seed, "chance": 0.02, "better": "higher", "unit": "share"}
        metrics["language/loss"] = {"value": 3 + 0.1 * seed, "chance": 7.6, "better": "lower", "unit": "nats"}
    result = {"metrics": metrics, "details": {}, "notes": [f"language: made up for {objective}"]}
    return Measured(seed, result, [f"k{number}" for number in range(num_images)], per_image)


def all_measured() -> dict[str, list[Measured]]:
    """Of all objectives and seeds."""
    return {
        name: [measured(name, seed, {key: of[name] for key, of in TOP1.items() if name in of}) for seed in SEEDS]
        for name in OBJECTIVES
    }


def comparison(found: dict[str, list[Measured]] | None = None, missing: tuple[Missing, ...] = ()) -> Comparison:
    """What these evaluations come to."""
    found = all_measured() if found is None else found
    keys = next(iter(found.values()))[0].keys if found else []
    system = System(3_700_000, 2_900_000, 1.6e9, dict.fromkeys(SEEDS, 6_012), dict.fromkeys(SEEDS, 100.0), {1: 60.0})
    return Comparison(
        name="made-up",
        objectives=OBJECTIVES,
        seeds=SEEDS,
        samples=6_000,
        num_images=len(keys),
        systems=dict.fromkeys(found, system),
        rows=make_rows(OBJECTIVES, found, keys),
        curves={name: [_curve(name, seed) for seed in SEEDS] for name in found},
        missing=list(missing),
        notes={name: ones[0].result["notes"] for name, ones in found.items()},
        details={"genlip": _details("genlip"), "clip": _details("clip")} if found else {},
        recipe={"name": "made-up"},
        environment={"python": "3.11"},
    )


def _curve(objective: str, seed: int) -> Curve:
    samples = [1000.0 * number + seed for number in range(1, 7)]
    flops = [1.6e9 * (1 + OBJECTIVES.index(objective)) * count for count in samples]
    top1 = [0.1 + 0.08 * number + 0.01 * seed for number in range(6)]
    return Curve(seed, samples, flops, {"language/loss": [5 - value for value in top1], "knn/top1": top1})


def _details(objective: str) -> dict[str, Any]:
    details: dict[str, Any] = {
        "zero_shot/captions_examples": [
            {"key": f"k{number}", "class": "red car", "answers": [{"class": answer, "score": 1.0}]}
            for number, answer in enumerate(("red car", "biryani"))
        ]
    }
    if objective == "genlip":
        details["captioning/samples"] = [
            {"key": f"k{number}", "true": ["A <b>red</b> car."], "generated": "A 3D emoji of a car."}
            for number in range(3)
        ]
    return details
