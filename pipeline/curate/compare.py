"""Two selections of a store side by side: whose fate changed, from what to what, with examples."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.annotate.columns import read_stored
from pipeline.curate.fates import FOLDER
from pipeline.curate.select import read_record
from pipeline.ledger import committed_units
from pipeline.store import Store

MAX_EXAMPLES = 5
ABSENT = "not stored then"
"""In place of a fate where one of the selections was made before the sample's unit."""
_MAX_CAPTION_CHARS = 80
Places = dict[tuple[str, str], list[tuple[int, int, str]]]
"""Unit, row and key of some samples of each change."""


@dataclass(frozen=True)
class Change:
    """Samples with one fate in the first selection and another in the second."""

    before: str
    after: str
    num_samples: int
    examples: list[tuple[str, str]]
    """Key and caption of some."""


@dataclass
class Comparison:
    """What differs between two selections."""

    name_a: str
    name_b: str
    num_same: int = 0
    """Samples whose fate is the same."""
    changes: list[Change] = field(default_factory=list)
    """Most frequent first."""

    def lines(self) -> list[str]:
        """For the terminal."""
        num_changed = sum(change.num_samples for change in self.changes)
        lines = [f"{self.name_a} → {self.name_b}: {self.num_same:,} samples as before, {num_changed:,} not"]
        for change in self.changes:
            lines.append(f"  {change.before} → {change.after}: {change.num_samples:,}")
            lines += [
                f"    {key}  {' '.join(caption.split())[:_MAX_CAPTION_CHARS]}" for key, caption in change.examples
            ]
        return lines


def compare(store: Store, name_a: str, name_b: str) -> Comparison:
    """Compare two selections part by part; samples are told by their place, unit and row.

    Raises:
        UserError: One of them does not exist.
    """
    units = committed_units(store)
    counts: Counter[tuple[str, str]] = Counter()
    places: Places = {}
    sides = [_parts(store, name, int(read_record(store, name)["parts"])) for name in (name_a, name_b)]
    for a, b in _aligned(sides[0], sides[1]):
        _compare_parts(a, b, counts, places)
    captions = _captions(store, units, places)
    changes = [
        Change(*pair, count, [(key, captions[unit, row]) for unit, row, key in places[pair]])
        for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if pair[0] != pair[1]
    ]
    return Comparison(name_a, name_b, sum(count for (a, b), count in counts.items() if a == b), changes)


def _parts(store: Store, name: str, num_parts: int) -> Iterator[pa.Table]:
    for number in range(num_parts):
        columns = ["unit", "row", "key", "fate"]
        part = store.read_table(f"{FOLDER}/{name}/part-{number:06d}.parquet", columns)
        if part.num_rows:
            yield part


def _aligned(side_a: Iterator[pa.Table], side_b: Iterator[pa.Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Rows of both of the same units, with what only one has; two selections may cut the store differently."""
    empty = pa.schema([("unit", pa.int32()), ("row", pa.int32()), ("key", pa.string()), ("fate", pa.string())])
    held = [empty.empty_table(), empty.empty_table()]
    while True:
        held = [rest if rest.num_rows else next(side, rest) for rest, side in zip(held, (side_a, side_b), strict=True)]
        present = [rest for rest in held if rest.num_rows]
        if not present:
            return
        last = min(rest["unit"][-1].as_py() for rest in present)
        ready = [pc.less_equal(rest["unit"], last) for rest in held]
        yield held[0].filter(ready[0]), held[1].filter(ready[1])
        held = [rest.filter(pc.invert(chosen)) for rest, chosen in zip(held, ready, strict=True)]


def _compare_parts(
    a: pa.Table,
    b: pa.Table,
    counts: Counter[tuple[str, str]],
    places: Places,
) -> None:
    """Add what some units have."""
    other = b.rename_columns(["unit", "row", "key_b", "b"])
    joined = a.rename_columns(["unit", "row", "key", "a"]).join(other, ["unit", "row"], join_type="full outer")
    joined = joined.set_column(joined.column_names.index("key"), "key", pc.coalesce(joined["key"], joined["key_b"]))
    joined = joined.sort_by([("unit", "ascending"), ("row", "ascending")])
    before, after = (pc.fill_null(joined[side], ABSENT) for side in ("a", "b"))
    pairs = pa.table({"before": before, "after": after})
    for found in pairs.group_by(["before", "after"]).aggregate([([], "count_all")]).to_pylist():
        pair = (found["before"], found["after"])
        counts[pair] += found["count_all"]
        examples = places.setdefault(pair, [])
        if pair[0] != pair[1] and len(examples) < MAX_EXAMPLES:
            chosen = joined.filter(pc.and_(pc.equal(before, pair[0]), pc.equal(after, pair[1])))
            for row in chosen.slice(0, MAX_EXAMPLES - len(examples)).to_pylist():
                examples.append((row["unit"], row["row"], row["key"]))


def _captions(store: Store, units: list[str], places: Places) -> dict[tuple[int, int], str]:
    captions: dict[tuple[int, int], str] = {}
    for unit in {unit for some in places.values() for unit, _, _ in some}:
        texts = read_stored(store, units[unit], ["caption"]).rows["caption"]
        captions |= {
            (unit, row): texts[row].as_py() or "" for some in places.values() for u, row, _ in some if u == unit
        }
    return captions
