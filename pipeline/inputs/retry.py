"""Failed rows of committed units, copied into a new batch of units so that they are tried again."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.each import ahead
from pipeline.errors import UserError
from pipeline.inputs.batches import BatchInfo, Plan, plan_settings, read_plan, staging_folder, write_batch
from pipeline.inputs.committed import NumberSet, committed
from pipeline.inputs.json_objects import CARRIED
from pipeline.inputs.rows import FROM_REASON, FROM_UNIT, Row, Unit
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.staging import write_units
from pipeline.inputs.tables import rechunk
from pipeline.inputs.units import read_rows
from pipeline.outcomes import FAILED, REASONS, find_reason
from pipeline.store import Store

ALL, TRANSIENT = "all", "transient"
_READ_THREADS = 8
"""They wait for the store; each has the rows of two units in memory at most."""


@dataclass(frozen=True)
class _Earlier:
    """What a retry batch holds already."""

    classes: Sequence[str]
    units: NumberSet
    """Those it took rows from. A unit that was committed later is not among them."""


def stage_retry(store: Store, spec: SourceSpec, unit_samples: int, classes: Sequence[str]) -> int:
    """Plan new units for the rows that failed in these ways, unless an earlier retry has them.

    A row that fails in a retry unit can be retried again, by another call. Rows without a URL cannot.

    Args:
        store: with the ledgers of the committed units.
        spec: the source.
        unit_samples: rows in a unit at most.
        classes: a reason (`timeout`), the first words of some (`http`, `dns`), `http_5xx`, `transient` for all that
            may end differently on another try, or `all`.

    Returns:
        The number of rows; where it is 0, nothing was written.

    Raises:
        UserError: A class stands for no failure, or the source cannot be read.
    """
    for name in classes:
        _check_class(name)
    plan = read_plan(store)
    number = len(plan.batches)
    rows = _rows_to_retry(store, spec, plan, classes)
    units = write_units(store, staging_folder(number), rechunk(rows, unit_samples))
    if len(units):
        info = BatchInfo("retry", plan_settings(spec, unit_samples), is_staged=True, classes=list(classes))
        write_batch(store, number, units, info)
    return int(sum(units.column("num_rows").to_pylist()))


def matches(reason: str, name: str) -> bool:
    """Whether a failure belongs to a class."""
    if name == ALL:
        return True
    if name == TRANSIENT:
        return not find_reason(reason).is_answer
    if re.fullmatch(r"http_[1-9]xx", name):
        return reason.startswith(name[:-2]) and reason[-2:].isdigit()
    return reason == name or reason.startswith(f"{name}_")


def _check_class(name: str) -> None:
    failures = [reason for reason, entry in REASONS.items() if entry.status == FAILED]
    is_known = name in (ALL, TRANSIENT) or any(matches(reason, name) for reason in failures)
    if is_known or re.fullmatch(r"http_([1-9]xx|\d{3})|(filter|adopted)_\w+", name):
        return
    raise UserError(
        f"no failure is called {name!r}",
        where="--retry",
        why="it is a rule's or an owner's no, which stands" if name in REASONS else "",
        next_step=f"choose from {ALL}, {TRANSIENT}, http_404, http_5xx, {', '.join(failures)}",
    )


def _rows_to_retry(store: Store, spec: SourceSpec, plan: Plan, classes: Sequence[str]) -> Iterator[pa.Table]:
    """A table per unit that has some."""
    earlier = _earlier_retries(store, plan)
    units = committed(store)

    def read(unit: Unit) -> pa.Table | None:
        wanted = _failures(store, unit, classes, earlier)
        return _table(unit, spec, wanted) if wanted else None

    tables = ahead(read, (unit for unit in plan.iter_units() if unit.number in units), _READ_THREADS)
    return (table for table in tables if table is not None)


def _earlier_retries(store: Store, plan: Plan) -> list[_Earlier]:
    found = []
    for batch in plan.batches:
        if batch.info.kind == "retry":
            parts = batch.units.column("file").unique().to_pylist()
            units = NumberSet(number for part in parts for number in _origins(store, part))
            found.append(_Earlier(batch.info.classes, units))
    return found


def _origins(store: Store, part: str) -> list[int]:
    """The units that a part's rows come from."""
    with store.reading(part) as stream:
        return list(pq.ParquetFile(stream).read(columns=[FROM_UNIT]).column(0).unique().to_pylist())


def _failures(store: Store, unit: Unit, classes: Sequence[str], earlier: Sequence[_Earlier]) -> dict[int, str]:
    """Reasons by position in the unit."""
    covered = [name for batch in earlier if unit.number in batch.units for name in batch.classes]

    def is_wanted(reason: str) -> bool:
        return any(matches(reason, name) for name in classes) and not any(matches(reason, name) for name in covered)

    with store.reading(f"ledger/{unit.name}.parquet") as stream:
        ledger = pq.ParquetFile(stream)
        labels = json.loads(ledger.schema_arrow.metadata[b"genlip"])["reasons"]
        if not any(is_wanted(label.removeprefix(f"{FAILED}:")) for label in labels if label.startswith(f"{FAILED}:")):
            return {}
        table = ledger.read(columns=["status", "error_message"])
    outcomes = zip(table.column("status").to_pylist(), table.column("error_message").to_pylist(), strict=True)
    return {
        position: reason for position, (status, reason) in enumerate(outcomes) if status == FAILED and is_wanted(reason)
    }


def _table(unit: Unit, spec: SourceSpec, wanted: dict[int, str]) -> pa.Table | None:
    rows = read_rows(unit, spec)
    kept = [(rows[position], reason) for position, reason in wanted.items() if _can_be_retried(rows[position])]
    if not kept:
        return None
    columns = spec.columns
    return pa.table(
        {
            columns.url: pa.array([row.url.encode("utf-8", "replace") for row, _ in kept], pa.binary()),
            columns.caption: pa.array([(row.caption or "").encode() for row, _ in kept], pa.binary()),
            CARRIED: pa.array([_carried(row, columns.uid) for row, _ in kept], pa.binary()),
            FROM_UNIT: pa.array([unit.number] * len(kept), pa.int64()),
            FROM_REASON: pa.array([reason for _, reason in kept], pa.string()),
        }
    )


def _can_be_retried(row: Row) -> bool:
    return bool(row.url) and row.caption is not None


def _carried(row: Row, uid_column: str) -> bytes:
    own = {uid_column: row.uid} if uid_column and row.uid else {}
    return json.dumps(row.meta | own, ensure_ascii=False).encode("utf-8", "replace")
