"""The recipe's data sections: what to read, how to fetch it, what to keep, how to shard it."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipeline.filters import FILTERS, Filter, build_filter
from pipeline.inputs.spec import SourceSpec
from pipeline.pixels.spec import ImageSpec
from pipeline.plugins import import_plugins
from pipeline.section import Section
from pipeline.web.spec import FetchSpec

__all__ = [
    "AcceptUnitSpec",
    "FetchSpec",
    "HashCheckSpec",
    "ImageSpec",
    "IngestSpec",
    "Section",
    "ShardSpec",
    "SourceSpec",
    "WriteSpec",
]

_CONTENT_OF_FETCH = ("engine", "max_bytes", "max_redirects", "robots", "obey", "tdm", "allow_addresses")
"""The rules of a fetch section. The rest is courtesy, patience and where the network is."""

Share = Annotated[float, Field(ge=0, le=1)]


class AcceptUnitSpec(Section):
    """When a unit counts as done."""

    fetched_at_least: Share = 0.5
    """Share of the rows asked for that must get an answer (a 404 is one, a time-out is not); below it, the unit stays
    pending for the next run. Retry units are always accepted."""


class HashCheckSpec(Section):
    """What to do with the input's expected hashes (`source.sha256` names their column)."""

    phash: str = ""
    """Column with the expected perceptual hash, 16 hexadecimal digits of the kind that the ledger holds."""
    similar_bits: Annotated[int, Field(ge=0, le=64)] = 6
    """Perceptual hashes that differ in at most so many bits count as `similar`."""
    different: Literal["keep", "rejected"] = "keep"
    """Whether an image that is neither equal nor similar is kept; the ledger says `different` either way."""


class WriteSpec(Section):
    """How a unit's samples are stored."""

    format: Literal["webdataset", "parquet"] = "webdataset"


class IngestSpec(Section):
    """From a URL table to the raw store."""

    source: SourceSpec
    unit_samples: Annotated[int, Field(ge=1)] = 1_000
    """Rows in one work unit: what is committed, retried and lost at most by a kill."""
    fetch: FetchSpec = FetchSpec()
    image: ImageSpec = ImageSpec()
    hash_check: HashCheckSpec = HashCheckSpec()
    plugins: tuple[str, ...] = ()
    """Modules to import first, because they register filters; looked for in the working directory too."""
    filters: tuple[dict[str, dict[str, Any] | None], ...] = ()
    """Filters in order, each as `name: {parameters}`. Those that need no image are asked before the download; the
    first that says no gives the reason."""
    write: WriteSpec = WriteSpec()
    accept_unit_if: AcceptUnitSpec = AcceptUnitSpec()
    healthy_success: tuple[Share, Share] = (0.5, 1.0)
    """Share of successes among the latest rows outside which the run warns."""

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
        """The part that decides what the raw store holds: a store keeps it, and refuses another.

        Not the input's files, to which more may be added: the plan looks after them.
        """
        everything = self.model_dump(mode="json")
        del everything["accept_unit_if"], everything["healthy_success"], everything["source"]["urls"]
        everything["fetch"] = {name: everything["fetch"][name] for name in _CONTENT_OF_FETCH}
        for limit in ("decode_memory_mb", "decode_timeout_s"):
            del everything["image"][limit]
        return everything


class ShardSpec(Section):
    """From the raw store to shuffled training shards."""

    name: str = "train"
    """The training shards go to shards/NAME, the held-out ones to shards/NAME-heldout."""
    shard_samples: Annotated[int, Field(ge=1)] = 10_000
    """Samples in a shard; the last shards are evened out."""
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the distinct images kept for evaluation, chosen by the image's content."""
    holdout_near_bits: Annotated[int, Field(ge=0, le=12)] | None = 4
    """Samples whose perceptual hash differs in at most so many of 64 bits from that of a held-out image are not trained
    on; None does not look."""
    check: Literal["decode", "none"] = "decode"
    """`decode` looks at every image once more on its way into a shard; those that fail are left out and listed."""
    captions: tuple[str, ...] = ()
    """Annotation columns with further captions, such as `recaption`; they go into each sample's JSON, and
    `train.captions` chooses among them."""
