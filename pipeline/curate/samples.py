"""Which samples a report shows: a few of each fate, chosen by a hash of their place, hence always the same."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.curate.rows import Part, Rows
from pipeline.each import Each

MAX_SAMPLES = 12
"""Of each fate."""
_MAX_CHARACTERS = 400
PLACE_COLUMNS = ["key", "url", "caption", "raw", "offset", "size", "phash"]

Sample = dict[str, Any]
"""JSON: unit, row, key, url, caption, raw, offset, size, phash, detail, order, and `values` of the other columns."""


def choose_samples(table: pa.Table, fates: pa.ChunkedArray, details: pa.ChunkedArray) -> dict[str, list[Sample]]:
    """Up to MAX_SAMPLES of each fate.

    Args:
        table: N rows with `unit`, `row`, PLACE_COLUMNS and further columns.
        fates: [N] strings.
        details: [N] strings or null.
    """
    order_N = _scramble(table["unit"].to_numpy(), table["row"].to_numpy())
    codes = pc.dictionary_encode(fates.combine_chunks())
    code_N = codes.indices.to_numpy()
    chosen = {}
    for code, fate in enumerate(codes.dictionary.to_pylist()):
        place = np.flatnonzero(code_N == code)
        place = place[np.argsort(order_N[place], kind="stable")[:MAX_SAMPLES]]
        wanted = pa.array(place)
        rows = table.take(wanted).to_pylist()
        samples = zip(rows, details.take(wanted).to_pylist(), order_N[place].tolist(), strict=True)
        chosen[fate] = [_sample(row, detail, order) for row, detail, order in samples]
    return chosen


def merge_samples(some: Mapping[str, list[Sample]], others: Mapping[str, list[Sample]]) -> dict[str, list[Sample]]:
    """The first of both by their order."""
    return {
        fate: sorted([*some.get(fate, []), *others.get(fate, [])], key=lambda sample: sample["order"])[:MAX_SAMPLES]
        for fate in [*some, *(fate for fate in others if fate not in some)]
    }


def find_samples(rows: Rows, keys: Iterable[str], each: Each) -> dict[str, Sample]:
    """The first stored sample of each key, in plan order: one more pass over the keys."""
    wanted = sorted(set(keys))
    found: dict[str, Sample] = {}
    if wanted:
        for _, some in each(partial(_find, rows=rows, keys=wanted), rows.parts()):
            for sample in some:
                known = found.get(sample["key"])
                if known is None or (sample["unit"], sample["row"]) < (known["unit"], known["row"]):
                    found[sample["key"]] = sample
    return found


def _find(part: Part, rows: Rows, keys: list[str]) -> list[Sample]:
    table = rows.read(part, ["key"])
    if not pc.any(pc.is_in(table["key"], pa.array(keys, pa.string()))).as_py():
        return []
    table = rows.read(part, PLACE_COLUMNS)
    hits = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))
    return [_sample(row, None, 0) for row in hits.to_pylist()]


def _sample(row: dict[str, Any], detail: str | None, order: int) -> Sample:
    values = {name: _short(value) for name, value in row.items() if name not in ("unit", "row", *PLACE_COLUMNS)}
    place = {name: row[name] for name in ("unit", "row", "key", "raw", "offset", "size", "phash")}
    texts = {name: _short(row[name]) for name in ("url", "caption")}
    return place | texts | {"detail": detail, "order": order, "values": values}


def _short(value: Any) -> Any:
    """As JSON can hold it, and not longer than a page wants."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)[:_MAX_CHARACTERS]


def _scramble(unit_N: NDArray[np.int32], row_N: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A well-mixed number for each place; the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    mixed = (unit_N.astype(np.uint64) << np.uint64(32)) + row_N.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
