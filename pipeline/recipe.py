"""The recipe's data sections: what to read, how to fetch it, what to keep, how to shard it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.filters import FILTERS, Filter, build_filter, import_plugins


class Section(BaseModel):
    """A strict, immutable part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSpec(Section):
    """Where the URL table is."""

    urls: str
    """Parquet file or glob, at any fsspec URL."""
    url: str = "url"
    """Name of the column with the image's URL."""
    caption: str = "caption"
    """Name of the column with the caption. Every other column travels into the sample's JSON."""

    @model_validator(mode="after")
    def _two_columns(self) -> "SourceSpec":
        if self.url == self.caption:
            raise ValueError(f"url and caption are the same column {self.url!r}")
        return self


class FetchSpec(Section):
    """How a URL is downloaded."""

    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """Total time for one attempt, from the connection to the last byte."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a refused connection, 429 or 5xx. A time-out is not tried again."""
    in_flight: Annotated[int, Field(ge=1)] = 64
    """Downloads at the same time in one unit."""
    max_bytes: Annotated[int, Field(ge=1)] = 20_000_000
    """A longer body is a failure."""
    user_agent: str = "genlip"
    """Sent with each request; name a page that says who you are and how to opt out."""
    obey: tuple[str, ...] = ("noai", "noimageai")
    """Directives of the X-Robots-Tag header that reject an image."""


class ImageSpec(Section):
    """What an image is stored as."""

    longest_side_px: Annotated[int, Field(ge=8)] = 384
    """Larger images are scaled down to this, keeping their aspect ratio; smaller ones are left alone."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    max_pixels: Annotated[int, Field(ge=1)] = 100_000_000
    """Larger images are failures, decided from the header before anything is decoded."""


class AcceptUnitSpec(Section):
    """When a unit counts as done."""

    fetched_at_least: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the rows asked for that must get an answer (a 404 is one, a time-out is not); below it, the unit stays
    pending for the next run."""


class IngestSpec(Section):
    """From a URL table to the raw store."""

    source: SourceSpec
    unit_samples: Annotated[int, Field(ge=1)] = 1_000
    """Rows in one work unit: what is committed, retried and lost at most by a kill."""
    fetch: FetchSpec = FetchSpec()
    image: ImageSpec = ImageSpec()
    plugins: tuple[str, ...] = ()
    """Modules to import first, because they register filters; looked for in the working directory too."""
    filters: tuple[dict[str, dict[str, Any] | None], ...] = ()
    """Filters in order, each as `name: {parameters}`. The first that says no gives the reason."""
    accept_unit_if: AcceptUnitSpec = AcceptUnitSpec()

    @field_validator("plugins")
    @classmethod
    def _plugins_import(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        import_plugins(modules)
        return modules

    @field_validator("filters")
    @classmethod
    def _filters_exist(
        cls, entries: tuple[dict[str, dict[str, Any] | None], ...]
    ) -> tuple[dict[str, dict[str, Any] | None], ...]:
        for entry in entries:
            if len(entry) != 1:
                raise ValueError(f"write one filter per list entry, got {sorted(entry)} (known: {sorted(FILTERS)})")
            ((name, parameters),) = entry.items()
            build_filter(name, parameters or {})
        return entries

    def build_filters(self) -> list[Filter]:
        """The recipe's filters, ready to be asked."""
        import_plugins(self.plugins)  # again, because this may be another process than the one that read the recipe
        return [build_filter(name, parameters or {}) for entry in self.filters for name, parameters in entry.items()]

    def content(self) -> dict[str, Any]:
        """The part that decides what the raw store holds: a store keeps it, and refuses another."""
        everything = self.model_dump(mode="json")
        del everything["accept_unit_if"]
        for courtesy in ("in_flight", "retries", "timeout_s", "user_agent"):
            del everything["fetch"][courtesy]
        return everything


class ShardSpec(Section):
    """From the raw store to shuffled training shards."""

    name: str = "train"
    """The training shards go to shards/NAME, the held-out ones to shards/NAME-heldout."""
    shard_samples: Annotated[int, Field(ge=1)] = 10_000
    """Samples in a shard; the last shards are evened out."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the distinct images kept for evaluation, chosen by the image's content."""
