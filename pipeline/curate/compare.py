"""Two selections of a store side by side: whose fate changed, from what to what, with examples."""

from collections import Counter
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
    places: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    num_parts = [int(read_record(store, name)["parts"]) for name in (name_a, name_b)]
    for number in range(max(num_parts)):
        parts = [
            _read_part(store, name, number) if number < count else None
            for name, count in zip((name_a, name_b), num_parts, strict=True)
        ]
        _compare_parts(parts[0], parts[1], counts, places)
    captions = _captions(store, units, places)
    changes = [
        Change(*pair, count, [(key, captions[unit, row]) for unit, row, key in places[pair]])
        for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if pair[0] != pair[1]
    ]
    return Comparison(name_a, name_b, sum(count for (a, b), count in counts.items() if a == b), changes)


def _read_part(store: Store, name: str, number: int) -> pa.Table:
    columns = ["unit", "row", "key", "fate"]
    return store.read_table(f"{FOLDER}/{name}/part-{number:06d}.parquet", columns)


def _compare_parts(
    a: pa.Table | None,
    b: pa.Table | None,
    counts: Counter[tuple[str, str]],
    places: dict[tuple[str, str], list[tuple[int, int, str]]],
) -> None:
    """Add what a part has; a part of a later selection may hold more units at its end."""
    if a is None or b is None:
        known = a if b is None else b
        assert known is not None
        joined = known.rename_columns(["unit", "row", "key", "a" if b is None else "b"])
        joined = joined.append_column("b" if b is None else "a", pa.nulls(known.num_rows, pa.string()))
    else:
        other = b.rename_columns(["unit", "row", "key_b", "b"])
        joined = a.rename_columns(["unit", "row", "key", "a"]).join(other, ["unit", "row"], join_type="full outer")
        joined = joined.set_column(2, "key", pc.coalesce(joined["key"], joined["key_b"]))
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


def _captions(
    store: Store, units: list[str], places: dict[tuple[str, str], list[tuple[int, int, str]]]
) -> dict[tuple[int, int], str]:
    captions: dict[tuple[int, int], str] = {}
    for unit in {unit for some in places.values() for unit, _, _ in some}:
        texts = read_stored(store, units[unit], ["caption"]).rows["caption"]
        captions |= {
            (unit, row): texts[row].as_py() or "" for some in places.values() for u, row, _ in some if u == unit
        }
    return captions
