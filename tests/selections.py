"""Columns and selections written down by a test, as annotators and `select` leave them in a store."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.annotate.columns import Annotations, read_stored, write_annotations
from pipeline.curate.rows import LEDGER_COLUMNS, Rows
from pipeline.curate.spec import SelectSpec
from pipeline.ledger import LEDGER_SCHEMA, committed_units
from pipeline.store import Store

FOLDER = "made-0123456789"


def annotate_by_hand(
    store: Store, columns: Mapping[str, pa.Array], parameters: Mapping[str, Any] | None = None
) -> Rows:
    """A store's rows with columns that hold one value for each stored sample, in plan order."""
    start = 0
    for name in committed_units(store):
        unit = read_stored(store, name)
        table = pa.table({column: values.slice(start, unit.num_rows) for column, values in columns.items()})
        if columns:
            write_annotations(store, FOLDER, unit, Annotations(table, {}))
        start += unit.num_rows
    kinds = {column: str(values.type) for column, values in columns.items()}
    content = {"name": "made", "version": "1", "parameters": dict(parameters or {}), "columns": kinds}
    store.write_json(f"annotations/{FOLDER}/annotator.json", content)
    types = {name: str(LEDGER_SCHEMA.field(name).type) for name in LEDGER_COLUMNS} | kinds
    return Rows(store, dict.fromkeys(columns, FOLDER), types)


def write_selection(
    rows: Rows,
    name: str,
    fates: Sequence[str],
    details: Mapping[int, str] | None = None,
    where: Mapping[str, str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """A selection with these fates, one for each stored sample in plan order; `details` by place in that order."""
    start, num_parts = 0, 0
    for part in rows.parts():
        table = rows.read(part, ["key"])
        end = start + table.num_rows
        found = [(details or {}).get(place) for place in range(start, end)]
        table = table.append_column("fate", pa.array(fates[start:end], pa.string()))
        table = table.append_column("detail", pa.array(found, pa.string()))
        rows.store.write_table(f"selection/{name}/{part.name}.parquet", table)
        start, num_parts = end, num_parts + 1
    assert start == len(fates)
    record = {
        "spec": SelectSpec(where=dict(where or {})).model_dump(mode="json"),
        "holdout": 0.1,
        "seed": 7,
        "folders": rows.folders,
        "units_fingerprint": "0123456789abcdef",
        "num_samples": len(fates),
        "counts": {fate: fates.count(fate) for fate in sorted(set(fates))},
        "thresholds": {rule: dict(values) for rule, values in (thresholds or {}).items()},
        "parts": num_parts,
    }
    rows.store.write(
        f"selection/{name}/selection.json", json.dumps(record).encode()
    )  # unsorted: the order of rules counts
