"""Where annotations are kept: one file per annotator and unit, one row for each stored sample in the ledger's order.

    annotations/NAME-HASH/annotator.json        name, version, parameters, columns
    annotations/NAME-HASH/u00000012.parquet     the columns; exists when all of the unit's samples are annotated

HASH is of name, version, parameters and what they point at: another threshold of an annotator is another folder. Each
file carries the fingerprint of its unit's raw file, so that a unit that was made anew is noticed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.annotate.annotator import Annotator, name_of
from pipeline.errors import UserError
from pipeline.inputs.committed import NumberSet, committed
from pipeline.ledger import CommitRecord
from pipeline.outcomes import SUCCESS
from pipeline.store import Store

FOLDER = "annotations"
_METADATA = b"genlip"


@dataclass(frozen=True)
class StoredUnit:
    """A committed unit's stored samples, by their ledger."""

    name: str
    raw: str
    """File with the samples, relative to the store."""
    fingerprint: str
    num_rows: int
    rows: pa.Table
    """The ledger's rows of the stored samples, in order, with the columns that were asked for."""


@dataclass(frozen=True)
class Annotations:
    """What one annotator computed for one unit."""

    columns: pa.Table
    errors: dict[int, str]
    """By row: samples on which the annotator raised; their values are null."""


def read_stored(store: Store, unit_name: str, columns: Sequence[str] | None = None) -> StoredUnit:
    """The stored samples of a unit.

    Args:
        store: the store.
        unit_name: of a committed unit.
        columns: of the ledger; all by default.
    """
    wanted = None if columns is None else list({*columns, "status"})
    ledger = _read_table(store, f"ledger/{unit_name}.parquet", wanted)
    record = CommitRecord(**json.loads(ledger.schema.metadata[_METADATA]))
    is_stored = pc.equal(ledger["status"], SUCCESS)
    stored = ledger if pc.all(is_stored).as_py() else ledger.filter(is_stored)
    rows = stored.drop_columns(["status"]).replace_schema_metadata(None)
    return StoredUnit(unit_name, record.raw, record.sha256[:16], stored.num_rows, rows)


def address(annotator: Annotator) -> str:
    """The folder's name: the annotator's name and a hash of all that decides its values."""
    decides = [name_of(annotator), annotator.version, annotator.model_dump(mode="json"), annotator.state()]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return f"{name_of(annotator)}-{digest[:10]}"


def annotated_units(store: Store, folder: str) -> NumberSet:
    """Units that have the columns of an address."""
    return committed(store, f"{FOLDER}/{folder}")


def describe(store: Store, annotator: Annotator) -> None:
    """Write down what an address stands for."""
    content = {
        "name": name_of(annotator),
        "version": annotator.version,
        "parameters": annotator.model_dump(mode="json"),
        "columns": {name: str(kind) for name, kind in annotator.columns().items()},
    }
    name = f"{FOLDER}/{address(annotator)}/annotator.json"
    if not store.exists(name):
        store.write_json(name, content)


def write_annotations(store: Store, folder: str, unit: StoredUnit, found: Annotations) -> None:
    """Commit one annotator's columns for one unit."""
    record = {"fingerprint": unit.fingerprint, "errors": {str(row): text for row, text in found.errors.items()}}
    table = found.columns.replace_schema_metadata({_METADATA: json.dumps(record, sort_keys=True)})
    store.write_table(f"{FOLDER}/{folder}/{unit.name}.parquet", table)


def read_annotations(store: Store, folder: str, unit: StoredUnit, columns: Sequence[str] | None = None) -> Annotations:
    """One annotator's columns for one unit.

    Raises:
        UserError: The unit has been made anew since.
    """
    name = f"{FOLDER}/{folder}/{unit.name}.parquet"
    table = _read_table(store, name, columns)
    record: dict[str, Any] = json.loads(table.schema.metadata[_METADATA])
    if record["fingerprint"] != unit.fingerprint or table.num_rows != unit.num_rows:
        raise UserError(
            "the unit has changed since it was annotated",
            where=store.path(name),
            why=f"its raw file was {record['fingerprint']}, is {unit.fingerprint}",
            next_step="delete this file, then: genlip annotate RECIPE",
        )
    errors = {int(row): text for row, text in record["errors"].items()}
    return Annotations(table.replace_schema_metadata(None), errors)


def _read_table(store: Store, name: str, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a file; in this thread alone, for parts are what runs in parallel."""
    with store.reading(name) as stream, pq.ParquetFile(stream) as parquet:
        return parquet.read(None if columns is None else list(columns), use_threads=False)
