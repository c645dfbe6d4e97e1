"""What the plan calculates with, each number with where it is from: the store, the recipe, or `genlip bench`."""

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.capacity.record import FILE, Measured, read_bench
from jobs.capacity.terms import Term, count, digits, measured, share, size, unknown
from jobs.recipe import Recipe
from pipeline.curate.select import read_summary
from pipeline.curate.spec import TRAIN
from pipeline.errors import UserError
from pipeline.funnel import read_funnel
from pipeline.inputs.numbers import BYTES_PER_URL
from pipeline.ledger import committed_units, read_commit
from pipeline.outcomes import SUCCESS
from pipeline.store import Store
from train.samples import parse_samples

_SAMPLED_UNITS = 100
"""Whose raw files say how large a stored sample is."""


@dataclass(frozen=True)
class Inputs:
    """Numbers of a recipe at a scale; one that is not known says what to do about it."""

    recipe: Recipe
    rows: Term
    success: Term
    """Share of the rows that are stored."""
    selected: Term
    """Share of the stored samples that are trained on."""
    sample_bytes: Term
    ledger_bytes: Term
    """Of a row."""
    column_bytes: Term
    """Of a sample's annotations."""
    download_bytes: Term
    """Of a row."""
    download_s: Term
    get_s: Term
    """Of one small request to the store."""
    speeds: Mapping[str, Term]
    """Of ingest, annotate, select and shards on a core, and of train on a device."""
    train: Measured | None
    """What was measured of training, beside its speed."""
    notes: tuple[str, ...] = ()
    """Where the numbers are from, in lines."""


def parse_rows(text: str) -> int:
    """`8B`, `800M`, `60k` or `1.5e9` rows.

    Raises:
        UserError: It is none of these.
    """
    try:
        try:
            rows = int(parse_samples(text))
        except ValueError:
            rows = round(float(text))
    except (ValueError, OverflowError):
        rows = 0
    if rows < 1:
        raise UserError(
            f"--scale {text}: not a number of rows",
            next_step="write a number with k, M or B behind it, or none: 8B, 800M, 60k, 1.5e9",
        )
    return rows


def read_inputs(recipe: Recipe, scale: str) -> Inputs:
    """Gather what is known of a recipe; nothing is written.

    Raises:
        UserError: The scale is no number, or the store cannot be read.
    """
    rows = parse_rows(scale)
    bench = read_bench(recipe.run_dir)
    speeds, assumed = _Speeds(recipe, bench), recipe.capacity.assumed
    shares, notes = _shares(recipe)
    notes += speeds.notes()
    if assumed.download_bytes:
        download = size(assumed.download_bytes)
        notes.append(f"{download.text} downloaded a row: {assumed.source}")
    else:
        download = size(BYTES_PER_URL)
        notes.append(f"{download.text} downloaded a row: img2dataset's report of 18 million URLs")
    wait = (
        measured(assumed.download_s, "s")
        if assumed.download_s
        else unknown("mean time of a download", "capacity.assumed.download_s")
    )
    return Inputs(
        recipe,
        rows=count(rows, "rows"),
        **shares,
        ledger_bytes=speeds.size("ingest", "ledger_bytes_per_row"),
        column_bytes=speeds.size("annotate", "bytes_per_sample") if recipe.curate.annotate else size(0),
        download_bytes=download,
        download_s=wait,
        get_s=speeds.seconds("store", "get_ms"),
        speeds=speeds.all(),
        train=bench.get("train"),
        notes=tuple(notes),
    )


def _shares(recipe: Recipe) -> tuple[dict[str, Term], list[str]]:
    """The shares and the size of a sample: as the store has them, else as the recipe assumes."""
    store, assumed = Store(recipe.store), recipe.capacity.assumed
    found: dict[str, Term] = {}
    notes: list[str] = []
    units = committed_units(store)
    if units:
        funnel = read_funnel(store)
        if funnel.success:
            found["success"] = share(funnel.success / funnel.seen)
            notes.append(f"{found['success'].text} of the rows are stored: {funnel.success:,} of {funnel.seen:,} here")
        records = [read_commit(store, name) for name in units[:: max(1, len(units) // _SAMPLED_UNITS)]]
        num_samples = sum(record.reasons.get(SUCCESS, 0) for record in records)
        if num_samples:
            found["sample_bytes"] = size(sum(record.num_bytes for record in records) / num_samples)
            notes.append(f"{found['sample_bytes'].text} a sample: {len(records):,} raw files of the store")
    if store.exists(f"selection/{recipe.shards.name}/selection.json"):
        summary = read_summary(store, recipe.shards.name)
        if summary.counts.get(TRAIN):
            found["selected"] = share(summary.counts[TRAIN] / summary.num_samples)
            notes.append(f"{found['selected'].text} of the samples are trained on: selection/{summary.name}")
    for name, given, make, what in (
        ("success", assumed.success_share, share, "share of the rows that are stored"),
        ("selected", assumed.selected_share, share, "share of the samples that are trained on"),
        ("sample_bytes", assumed.sample_bytes, size, "size of a stored sample"),
    ):
        if name in found:
            continue
        key = "sample_bytes" if name == "sample_bytes" else f"{name}_share"
        verb = "curate" if name == "selected" else "ingest"
        found[name] = unknown(what, f"genlip {verb} RECIPE on a part of the rows, or capacity.assumed.{key}")
        if given:
            found[name] = make(given)
            notes.append(f"{found[name].text}, {what}: {assumed.source}")
    return found, notes


class _Speeds:
    """Of `genlip bench`, or as the recipe says instead."""

    _UNITS = {
        "ingest": "rows_per_s_core",
        "annotate": "samples_per_s_core",
        "select": "samples_per_s_core",
        "shards": "samples_per_s_core",
        "train": "samples_per_s_device",
    }

    def __init__(self, recipe: Recipe, bench: Mapping[str, Measured]) -> None:
        self._recipe, self._bench = recipe, bench

    def all(self) -> dict[str, Term]:
        return {stage: self._speed(stage, key) for stage, key in self._UNITS.items()}

    def size(self, stage: str, key: str) -> Term:
        """Bytes that were measured with a stage."""
        number = self._number(stage, key)
        return number if isinstance(number, Term) else size(number)

    def seconds(self, stage: str, key: str) -> Term:
        """A time that was measured in milliseconds."""
        number = self._number(stage, key)
        return number if isinstance(number, Term) else Term(number / 1000, f"{digits(number)} ms")

    def notes(self) -> list[str]:
        """Where and when, by machine; what the recipe says instead."""
        lines = []
        given = self._recipe.capacity.throughput
        names = [name for name, value in given if name != "source" and value is not None]
        if names:
            lines.append(f"{', '.join(names)}: {given.source}")
        stages = [name for name in self._UNITS if name in self._bench]
        if stages and len({self._bench[name].machine for name in stages}) == 1:
            latest = max((self._bench[name] for name in stages), key=lambda one: one.measured_utc)
            lines.append(f"speeds of {', '.join(stages)}: genlip bench, {latest.describe()}, {FILE}")
        else:
            lines += [f"speed of {name}: genlip bench, {self._bench[name].describe()}, {FILE}" for name in stages]
        if "ingest" in self._bench:
            lines.append(f"ingest was measured with {self._bench['ingest'].about}, without TLS")
        return lines

    def _speed(self, stage: str, key: str) -> Term:
        given: float | None = getattr(self._recipe.capacity.throughput, f"{stage}_{key}")
        number = given or self._number(stage, key)
        if isinstance(number, Term):
            return number
        things, _, place = key.partition("_per_s_")
        return measured(number, f"{things}/s per {place}")

    def _number(self, stage: str, key: str) -> float | Term:
        found = self._bench.get(stage)
        again = f"genlip bench RECIPE --only {stage}"
        if not found or key not in found.numbers:
            given = f", or capacity.throughput.{stage}_{key}" if self._UNITS.get(stage) == key else ""
            return unknown(f"measurement of {stage}", again + given)
        if changed := found.outdated(self._recipe, stage):
            return unknown(f"measurement of {stage} with these settings: {'; '.join(changed)}", again)
        return found.numbers[key]
