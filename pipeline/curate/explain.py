"""Why one sample is in a selection, or is not: each rule with the sample's own values, from the selection's files."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.curate.rows import Part, Rows
from pipeline.curate.select import is_current, read_record
from pipeline.curate.spec import (
    DUPLICATE_IMAGE,
    DUPLICATE_KEY,
    DUPLICATE_URL,
    EVALUATION_IMAGE,
    HELDOUT,
    NEAR_DUPLICATE,
    NEAR_HELDOUT,
    OVER_CAP,
    OVER_LIMIT,
    OVER_SHARE,
    TRAIN,
    SelectSpec,
)
from pipeline.curate.sql import evaluate, parse_expression
from pipeline.errors import UserError
from pipeline.ledger import committed_units
from pipeline.store import Store

_WORDS = {
    TRAIN: "it is selected for training",
    HELDOUT: "it is selected, and held out from training by a hash of its image",
    DUPLICATE_KEY: "left out: the same key is stored before",
    DUPLICATE_IMAGE: "left out: the same image, byte for byte, stays with another sample",
    DUPLICATE_URL: "left out: the same URL stays with another sample",
    NEAR_DUPLICATE: "left out: nearly the same image stays with another sample",
    EVALUATION_IMAGE: "left out: an evaluation set holds this image",
    OVER_CAP: "left out by curate.select.balance: its words are frequent, or none is an entry",
    OVER_SHARE: "left out by curate.select.mix: its source has its share without it",
    OVER_LIMIT: "left out by curate.select.max_samples: enough are selected without it",
    NEAR_HELDOUT: "left out: nearly the same image is held out (shards.holdout_near_bits)",
}


def explain(rows: Rows, spec: SelectSpec, name: str, key: str) -> list[str]:
    """What became of a sample, and why, in lines for the terminal; one paragraph for each place where it is stored.

    Args:
        rows: the store's samples and columns.
        spec: of the selection.
        name: of the selection.
        key: of the sample.

    Raises:
        UserError: The selection is not of this recipe and store, or the key is unknown.
    """
    record = read_record(rows.store, name)
    near_bits = record.get("holdout_near_bits")
    if not is_current(rows, spec, record["holdout"], name, record["seed"], near_bits):
        raise UserError(
            f"the selection {name!r} was made by another recipe, or the store has changed since",
            where=rows.store.path(f"selection/{name}"),
            next_step="run: genlip select RECIPE",
        )
    lines = [
        line
        for part, fate in _find(rows, name, key)
        for line in _explain_row(rows, spec, record["thresholds"], part, fate)
    ]
    return lines or _not_stored(rows.store, key)


def _find(rows: Rows, name: str, key: str) -> Iterator[tuple[Part, dict[str, Any]]]:
    """The rows of a selection with this key, each with its unit as a part of its own."""
    for part in rows.parts():
        table = rows.store.read_table(f"selection/{name}/{part.name}.parquet")
        for row in table.filter(pc.equal(table["key"], key)).to_pylist():
            unit = part.units[row["unit"] - part.first_unit]
            yield Part(part.number, row["unit"], (unit,)), row


def _explain_row(
    rows: Rows, spec: SelectSpec, thresholds: dict[str, dict[str, float | None]], part: Part, fate: dict[str, Any]
) -> list[str]:
    rules = {rule: parse_expression(text, rows, f"curate.select.where.{rule}") for rule, text in spec.where.items()}
    columns = sorted({"caption", "raw"} | {column for rule in rules.values() for column in rule.columns})
    sample = rows.read(part, columns).slice(fate["row"], 1)
    lines = [
        f"{fate['key']} is stored in unit {part.units[0]}, file {sample['raw'][0]}",
        f"  caption: {sample['caption'][0]}",
    ]
    for rule, expression in rules.items():
        known = thresholds.get(rule, {})
        values = [known[text] for text in expression.threshold_names]
        verdict = {True: "yes", False: "no", None: "no value"}[evaluate(sample, [expression], [values])[0][0].as_py()]
        shown = [f"{column} = {_shown(sample[column])}" for column in expression.columns]
        shown += [f"the threshold of {text} is {value}" for text, value in known.items()]
        lines.append(f"  {rule}: {expression.text}: {verdict} ({'; '.join(shown)})")
    words = _WORDS.get(fate["fate"], f"left out by the rule {fate['fate']}")
    detail = "" if fate["detail"] in (None, "null") else f" ({fate['detail']})"
    return [*lines, f"  {fate['fate']}: {words}{detail}"]


def _shown(column: pa.ChunkedArray) -> str:
    value = column[0].as_py()
    return "null" if value is None else repr(value)


def _not_stored(store: Store, key: str) -> list[str]:
    """What the ledgers say of a key that no selection has.

    Raises:
        UserError: Nothing.
    """
    for unit in committed_units(store):
        with store.reading(f"ledger/{unit}.parquet") as stream:
            table = pq.read_table(stream, columns=["key", "status", "error_message"])
        for row in table.filter(pc.equal(table["key"], key)).to_pylist():
            return [f"{key} is not stored: {row['status']} at ingestion in unit {unit}: {row['error_message']}"]
    raise UserError(
        f"no sample has the key {key!r}",
        where=store.path("ledger"),
        why="it is in none of the ledgers of the committed units",
        next_step="copy a key from a ledger or from the report; see: genlip inspect STORE",
    )
