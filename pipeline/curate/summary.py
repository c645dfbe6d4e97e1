"""What a selection did, in numbers: one pass over its parts, added up to a file whose size no number of samples moves.

reports/curation-NAME.json      a `Summary`
"""

import json
import re
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.curate.histograms import (
    Categories,
    Histogram,
    Pair,
    TopCounts,
    by_count,
    count_strings,
    empty_histogram,
)
from pipeline.curate.rows import Part, Rows
from pipeline.curate.samples import (
    PLACE_COLUMNS,
    Sample,
    choose_samples,
    find_samples,
    merge_samples,
)
from pipeline.curate.spec import (
    DUPLICATE_IMAGE,
    DUPLICATE_KEY,
    DUPLICATE_URL,
    HELDOUT,
    NEAR_DUPLICATE,
    NEAR_HELDOUT,
    TRAIN,
)
from pipeline.each import Each
from pipeline.errors import UserError
from pipeline.store import Store

KEPT = (TRAIN, HELDOUT)
DUPLICATES = (DUPLICATE_KEY, DUPLICATE_IMAGE, DUPLICATE_URL, NEAR_DUPLICATE, NEAR_HELDOUT)
PATCH_PX = 16
SIZE_BINS_PER_OCTAVE = 4
_SIZE_BINS = 64
_MAX_CATEGORIES = 256
_NUM_DOMAINS, _DOMAINS_IN_MEMORY = 30, 4096
_MAX_PAIRS = 12
_UNIQUE = ("key", "url", "caption", "sha256", "phash", "offset", "eval_image")
"""Columns that name a sample rather than describe it."""
_CHARACTERS_PER_TOKEN = 4
_HOST = r"^[A-Za-z][A-Za-z0-9+.\-]*://(?:[^/@?#]*@)?(?P<host>[^/:?#]+)"


@dataclass(frozen=True)
class Summary:
    """A selection in numbers and examples; all of it JSON."""

    name: str
    selection: dict[str, Any]
    """The selection's commit record: spec, thresholds, counts."""
    fates: dict[str, int]
    """Stored samples by fate, most frequent first."""
    numbers: dict[str, dict[str, Any]]
    """By column: `Histogram.drawn`."""
    categories: dict[str, list[tuple[str, Pair]]]
    """By column: values with their counts among all and among the kept, most frequent first."""
    domains: list[tuple[str, Pair]]
    domains_max_error: int
    """A domain's count is too low by at most this."""
    resolution: list[tuple[int, int, int, int]]
    """Bins of original width and height (⌊4 · log₂ px⌋), counts among all and among the kept."""
    tokens: dict[str, Any]
    """`column` of the captions' tokens, or null where they are estimated; `lengths`: [tokens of image and caption,
    kept samples] in bins 1.6 % wide."""
    samples: dict[str, list[Sample]]
    """Some of each fate."""
    pairs: list[dict[str, Any]]
    """Some duplicates: `kind`, `loser`, `winner`."""

    @property
    def num_samples(self) -> int:
        return sum(self.fates.values())

    @property
    def num_kept(self) -> int:
        return sum(self.fates.get(fate, 0) for fate in KEPT)


@dataclass(frozen=True)
class Partial:
    """The summary of some parts; `merge` is associative."""

    fates: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, Histogram] = field(default_factory=dict)
    categories: dict[str, Categories] = field(default_factory=dict)
    domains: TopCounts = field(default_factory=lambda: TopCounts(_DOMAINS_IN_MEMORY))
    resolution: Histogram = field(default_factory=empty_histogram)
    lengths: Histogram = field(default_factory=empty_histogram)
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def merge(self, other: "Partial") -> "Partial":
        def joined(some: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
            both = {name: one.merge(others[name]) for name, one in some.items() if name in others}
            return some | others | both

        fates = dict(self.fates)
        for fate, count in other.fates.items():
            fates[fate] = fates.get(fate, 0) + count
        return Partial(
            fates,
            joined(self.numbers, other.numbers),
            joined(self.categories, other.categories),
            self.domains.merge(other.domains),
            self.resolution.merge(other.resolution),
            self.lengths.merge(other.lengths),
            merge_samples(self.samples, other.samples),
        )


def summary_file(name: str) -> str:
    """Where a selection's summary is, relative to the store."""
    return f"reports/curation-{name}.json"


def read_selection(store: Store, name: str) -> dict[str, Any]:
    """The commit record of a selection.

    Raises:
        UserError: There is no such selection.
    """
    path = f"selection/{name}/selection.json"
    if not store.exists(path):
        raise UserError(
            f"there is no selection {name!r}", where=store.path(path), next_step="run: genlip select RECIPE"
        )
    return cast(dict[str, Any], store.read_json(path))


def read_summary(store: Store, name: str) -> Summary | None:
    """The summary of a selection as it is now; None where there is none, or only one of an earlier selection
    or in an earlier form."""
    path = summary_file(name)
    if not store.exists(path):
        return None
    content = store.read_json(path)
    if content.keys() != Summary.__dataclass_fields__.keys() or content["selection"] != read_selection(store, name):
        return None
    return Summary(**content)


def summarise(rows: Rows, name: str, each: Each) -> Summary:
    """Add up a selection's parts and write the summary.

    Args:
        rows: the store's samples with their columns.
        name: of the selection.
        each: runs the parts.
    """
    selection = read_selection(rows.store, name)
    total = Partial()
    for _, done in each(partial(summarise_part, rows=rows, name=name), rows.parts()):
        total = total.merge(done)
    losers = [(kind, sample) for kind in DUPLICATES for sample in total.samples.get(kind, []) if sample["detail"]]
    losers = _spread(losers)
    winners = find_samples(rows, (sample["detail"] for _, sample in losers), each)
    pairs = [
        {"kind": kind, "loser": sample, "winner": winners[sample["detail"]]}
        for kind, sample in losers
        if sample["detail"] in winners
    ]
    summary = _finish(total, rows, name, selection, pairs)
    content = json.dumps(asdict(summary), indent=1)  # unsorted: the order of rules counts
    rows.store.write(summary_file(name), content.encode())
    return Summary(**json.loads(content))


def summarise_part(part: Part, rows: Rows, name: str) -> Partial:
    """The summary of one part.

    Raises:
        UserError: The selection was made from other samples.
    """
    numeric, strings, token_column = column_kinds(rows)
    wanted = dict.fromkeys(
        [*PLACE_COLUMNS, *numeric, *strings, *(["eval_image"] if "eval_image" in rows.types else [])]
    )
    wanted |= dict.fromkeys(["original_width", "original_height", "width", "height"])
    table = rows.read(part, list(wanted))
    path = f"selection/{name}/{part.name}.parquet"
    if rows.store.exists(path):
        chosen = rows.store.read_table(path, ["unit", "row", "fate", "detail"])
    else:
        chosen = table.select(["unit", "row"]).slice(0, 0)
    if not (chosen["unit"].equals(table["unit"]) and chosen["row"].equals(table["row"])):
        raise UserError(
            "the store has changed since the selection was made",
            where=rows.store.path(path),
            next_step="run: genlip select RECIPE",
        )
    fates = chosen["fate"]
    kept_N = pc.is_in(fates, pa.array(KEPT)).to_numpy()
    tokens_N = _caption_tokens(table, token_column)
    numbers = {column: Histogram.of(table[column], kept_N) for column in numeric}
    if "words" not in rows.types:
        numbers["words"] = Histogram.of(_words(table["caption"]), kept_N)
    if token_column is None:
        numbers["tokens"] = Histogram.of(pa.array(tokens_N), kept_N)
    patches_N = np.maximum(1, _filled(table["width"]) // PATCH_PX * (_filled(table["height"]) // PATCH_PX))
    return Partial(
        {entry["values"]: entry["counts"] for entry in pc.value_counts(fates).to_pylist()},
        numbers,
        {column: _categories(table[column], kept_N) for column in strings},
        _domains(table["url"], kept_N),
        Histogram.of_bins(_size_bins(table), kept_N),
        Histogram.of(pa.array(tokens_N + patches_N), kept_N),
        choose_samples(table, fates, chosen["detail"]),
    )


def column_kinds(rows: Rows) -> tuple[list[str], list[str], str | None]:
    """The columns that are numbers, those that may be categories, and that of the captions' tokens if there is one."""
    numeric = [name for name, kind in rows.types.items() if re.match(r"u?int|float|double|halffloat", kind)]
    strings = [name for name, kind in rows.types.items() if kind in ("string", "large_string", "bool")]
    whole = [name for name in numeric if "int" in rows.types[name]]
    tokens = next((name for name in whole if name == "tokens" or name.endswith("_tokens")), None)
    return [n for n in numeric if n not in _UNIQUE], [n for n in strings if n not in _UNIQUE], tokens


def _finish(total: Partial, rows: Rows, name: str, selection: dict[str, Any], pairs: list[dict[str, Any]]) -> Summary:
    _, _, token_column = column_kinds(rows)
    show = thresholds_by_column(selection, list(total.numbers))
    numbers = {
        column: histogram.drawn("int" in rows.types.get(column, "int32"), [value for _, value in show.get(column, [])])
        for column, histogram in total.numbers.items()
    }
    lengths = [
        [round(float(low)), int(count)]
        for low, (_, count) in zip(total.lengths.edges()[0], total.lengths.count_B2, strict=True)
        if count
    ]
    size_bins = zip(total.resolution.bin_B.tolist(), total.resolution.count_B2.tolist(), strict=True)
    return Summary(
        name,
        selection,
        dict(sorted(total.fates.items(), key=lambda entry: (-entry[1], entry[0]))),
        numbers,
        {
            column: sorted(found.counts.items(), key=by_count)
            for column, found in total.categories.items()
            if found.counts
        },
        list(total.domains.top(_NUM_DOMAINS)),
        total.domains.max_error,
        [(place // _SIZE_BINS, place % _SIZE_BINS, every, kept) for place, (every, kept) in size_bins],
        {"column": token_column, "lengths": lengths},
        dict(sorted(total.samples.items())),
        pairs,
    )


def thresholds_by_column(selection: dict[str, Any], columns: list[str]) -> dict[str, list[tuple[str, float]]]:
    """(rule, value) by column: quantiles as they were computed, and plain comparisons with a number."""
    found: dict[str, list[tuple[str, float]]] = {}
    known = "|".join(sorted(map(re.escape, columns), key=len, reverse=True)) or "$^"
    number = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
    column_first = re.compile(
        rf"(?<![-+*/.])(?<![-+*/] )\b({known})\s*(?:>=|<=|=|<|>|between)\s*{number}(?:\s+and\s+{number})?", re.I
    )
    number_first = re.compile(rf"{number}\s*(?:>=|<=|<|>)\s*({known})\b(?!\s*[-+*/])", re.I)
    for rule, condition in selection["spec"]["where"].items():
        for column, *values in column_first.findall(condition):
            found.setdefault(column, []).extend((rule, float(value)) for value in values if value)
        for value, column in number_first.findall(condition):
            found.setdefault(column, []).append((rule, float(value)))
    for rule, values in selection["thresholds"].items():
        for expression, value in values.items():
            named = re.match(rf"\s*({known})\b(?!\s*[-+*/(])", expression)
            if named and value is not None:
                found.setdefault(named[1], []).append((rule, float(value)))
    return {column: list(dict.fromkeys(values)) for column, values in found.items()}


def _spread(losers: list[tuple[str, Sample]]) -> list[tuple[str, Sample]]:
    """At most _MAX_PAIRS, of each kind as many."""
    kinds = [[entry for entry in losers if entry[0] == kind] for kind in DUPLICATES]
    in_turn = [kind[place] for place in range(_MAX_PAIRS) for kind in kinds if place < len(kind)]
    return sorted(in_turn[:_MAX_PAIRS], key=lambda entry: DUPLICATES.index(entry[0]))


def _categories(values: Any, kept_N: NDArray[np.bool_]) -> Categories:
    if pc.count_distinct(values).as_py() > _MAX_CATEGORIES:
        return Categories(_MAX_CATEGORIES, None)
    return Categories(_MAX_CATEGORIES, count_strings(pc.cast(values, pa.string()), kept_N))


def _domains(urls: Any, kept_N: NDArray[np.bool_]) -> TopCounts:
    hosts = pc.utf8_lower(pc.struct_field(pc.extract_regex(urls, _HOST), "host"))
    return TopCounts(_DOMAINS_IN_MEMORY).merge(TopCounts(_DOMAINS_IN_MEMORY, count_strings(hosts, kept_N)))


def _size_bins(table: pa.Table) -> NDArray[np.int32]:
    """Number of the bin of the original width and height; where they are unknown, those of the stored image."""
    bins = []
    for side in ("width", "height"):
        side_N = _filled(pc.coalesce(table[f"original_{side}"], table[side]))
        octaves_N = np.log2(np.maximum(side_N, 1)) * SIZE_BINS_PER_OCTAVE
        bins.append(np.minimum(np.floor(octaves_N + 1e-9), _SIZE_BINS - 1).astype(np.int32))
    return cast(NDArray[np.int32], bins[0] * _SIZE_BINS + bins[1])


def _caption_tokens(table: pa.Table, column: str | None) -> NDArray[np.int64]:
    """Tokens of each caption; without a column, a quarter of its characters."""
    if column is not None:
        return _filled(table[column])
    return -(-_filled(pc.utf8_length(table["caption"])) // _CHARACTERS_PER_TOKEN)


def _words(captions: Any) -> Any:
    trimmed = pc.utf8_trim_whitespace(captions)
    pieces = pc.list_value_length(pc.utf8_split_whitespace(trimmed))
    return pc.if_else(pc.equal(trimmed, ""), 0, pieces)  # nothing, split, is one empty piece


def _filled(values: Any) -> NDArray[np.int64]:
    return cast(NDArray[np.int64], pc.fill_null(pc.cast(values, pa.int64()), 0).to_numpy())
