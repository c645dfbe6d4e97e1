"""The recipe's compare section: which objectives, how often, and what differs between them."""

from typing import Annotated, Any, get_args

from pydantic import Field, field_validator

from pipeline.section import Section
from train.recipe import Objective

Seeds = Annotated[tuple[int, ...], Field(min_length=1)]
Objectives = Annotated[tuple[Objective, ...], Field(min_length=1)]


class CompareSpec(Section):
    """A run for each objective and seed: the recipe's own otherwise, so that data, backbone and samples are matched."""

    objectives: Objectives = get_args(Objective)
    """The first one is the one that the others are compared with."""
    seeds: Seeds = (1, 2, 3)
    """Of weights and data order; two objectives with the same seed read the same samples in the same order."""
    parallel: Annotated[int, Field(ge=0)] = 0
    """Runs at a time, each in one process; 0 takes one for each CPU core, or 1 on a GPU."""
    overrides: dict[Objective, dict[str, Any]] = {}
    """What differs for an objective, in the sections `train` and `objective`, such as `clip: {train: {optim: {lr:
    5.0e-4}}}`. What makes the runs comparable cannot: length, captions, sources, and whatever is in other sections."""

    @field_validator("objectives", "seeds")
    @classmethod
    def _stand_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each stands once")
        return values

    @field_validator("overrides")
    @classmethod
    def _leave_the_runs_comparable(cls, overrides: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for objective, content in overrides.items():
            for section, values in content.items():
                if section not in ("train", "objective"):
                    raise ValueError(f"{objective}.{section} must be the same for all; train and objective may differ")
                if not isinstance(values, dict):
                    raise ValueError(f"{objective}.{section} must be a mapping of the keys that differ")
            matched = {"train": ("length", "captions", "sources", "schedule"), "objective": ("kind",)}
            for section, keys in matched.items():
                if taken := [key for key in keys if key in content.get(section, {})]:
                    raise ValueError(f"{objective}.{section}.{taken[0]} must be the same for all")
        return overrides
