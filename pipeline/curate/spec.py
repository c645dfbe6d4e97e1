"""The recipe's `curate` section: which columns to compute, and which samples to keep."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.annotate.annotator import ANNOTATORS, Annotator, build_annotator
from pipeline.plugins import import_plugins
from pipeline.section import Section

TRAIN, HELDOUT = "train", "heldout"
DUPLICATE_KEY, DUPLICATE_IMAGE, DUPLICATE_URL = "duplicate_key", "duplicate_image", "duplicate_url"
NEAR_DUPLICATE, EVALUATION_IMAGE = "near_duplicate", "evaluation_image"
OVER_CAP, OVER_SHARE, OVER_LIMIT = "over_cap", "over_share", "over_limit"
NEAR_HELDOUT = "near_heldout"
FATES = (
    TRAIN,
    HELDOUT,
    DUPLICATE_KEY,
    EVALUATION_IMAGE,
    DUPLICATE_IMAGE,
    DUPLICATE_URL,
    NEAR_DUPLICATE,
    OVER_CAP,
    OVER_SHARE,
    OVER_LIMIT,
    NEAR_HELDOUT,
)
"""What can become of a stored sample, besides the name of the rule that leaves it out."""


class DedupSpec(Section):
    """Which samples count as the same. Asked of those that all rules keep; of equal ones the best stays."""

    exact: tuple[Literal["sha256", "url"], ...] = ("sha256",)
    """The original's bytes; the canonical URL."""
    near_bits: Annotated[int, Field(ge=0, le=12)] | None = None
    """Perceptual hashes that differ in at most so many of their 64 bits are the same picture, and so are those that a
    chain of such pairs connects; None keeps near-duplicates."""
    keep: str = "original_width * original_height"
    """SQL expression; the largest value stays, of equal ones the first of the plan."""


class DecontaminateSpec(Section):
    """Leave out what evaluation sets hold."""

    sets: dict[str, str] = {}
    """Evaluation sets by name: a store, or a folder or URL of images."""
    near_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Perceptual hashes that differ in at most so many bits are the same picture."""


class BalanceSpec(Section):
    """Cap frequent words, as MetaCLIP does: of the samples that only mention capped entries, a share is left out."""

    entries: str
    """Text file of words and phrases, one a line."""
    max_per_entry: Annotated[int, Field(ge=1)]


class MixSpec(Section):
    """As many samples of each source as the shares allow, none twice."""

    by: str
    """SQL expression that names a sample's source."""
    shares: dict[str, Annotated[float, Field(gt=0)]]
    """Share of each source, in any unit; other sources are left out."""


class SelectSpec(Section):
    """Which of the stored samples become training samples. In this order: rules, evaluation sets, duplicates, balance,
    mix, number, held-out part and what is near it (`shards.holdout`)."""

    where: dict[str, str] = {}
    """Rules, each `name: condition` in SQL over the ledger's and the annotators' columns, as in `words >= 3`,
    `lang = 'en'`, `clip_score in top 30%`. A sample's fate is the name of the first that is not true for it."""
    dedup: DedupSpec = DedupSpec()
    balance: BalanceSpec | None = None
    mix: MixSpec | None = None
    max_samples: Annotated[int, Field(ge=1)] | None = None

    @field_validator("where")
    @classmethod
    def _names_are_free(cls, where: dict[str, str]) -> dict[str, str]:
        for name in where:
            if name in FATES:
                raise ValueError(f"a rule cannot be called {name!r}: samples have that fate for another reason")
        return where


class CurateSpec(Section):
    """From the raw store to a selection."""

    plugins: tuple[str, ...] = ()
    """Modules to import first, because they register annotators."""
    annotate: tuple[dict[str, dict[str, Any] | None], ...] = ()
    """Annotators, each as `name: {parameters}`."""
    max_errors: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a unit's samples on which an annotator may fail; beyond it, the unit stays without the columns."""
    decontaminate: DecontaminateSpec = DecontaminateSpec()
    select: SelectSpec = SelectSpec()

    @field_validator("plugins")
    @classmethod
    def _plugins_import(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        import_plugins(modules)
        return modules

    @model_validator(mode="after")
    def _annotators_exist(self) -> "CurateSpec":
        owner: dict[str, str] = {}
        for entry in self.annotate:
            if len(entry) != 1:
                raise ValueError(
                    f"write one annotator per list entry, got {sorted(entry)} (known: {sorted(ANNOTATORS)})"
                )
        for one in self.build_annotators():
            for column in one.columns():
                if column in owner:
                    raise ValueError(
                        f"two annotators have the column {column!r}: {owner[column]} and {type(one).__name__}"
                    )
                owner[column] = type(one).__name__
        return self

    def build_annotators(self) -> list[Annotator]:
        """The recipe's annotators, that of the evaluation sets included."""
        import_plugins(self.plugins)  # again, because this may be another process than the one that read the recipe
        built = [build_annotator(name, values or {}) for entry in self.annotate for name, values in entry.items()]
        if self.decontaminate.sets:
            built.append(build_annotator("evaluation_overlap", self.decontaminate.model_dump()))
        return built
