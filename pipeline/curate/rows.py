"""The stored samples as a table of columns, part by part: what rules, quantiles and duplicates are computed from.

A part is a run of units, some hundred thousand rows: what one task reads, and all that is in memory at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotate.annotator import Annotator
from pipeline.annotate.columns import address, annotated_units, read_annotations, read_stored
from pipeline.errors import UserError
from pipeline.inputs.committed import committed
from pipeline.inputs.rows import name_of
from pipeline.ledger import LEDGER_SCHEMA
from pipeline.store import Store

UNITS_PER_PART = 32
MAX_PARTS = 1_024
"""Parts exchange rows with each other, so their number is bounded: from 32,768 units on, they grow instead."""
ROW_COLUMNS = pa.schema([("unit", pa.int32()), ("row", pa.int32())])
"""Where a stored sample is: number of its unit in `Rows.units`, and of its row among the unit's stored samples."""
LEDGER_COLUMNS = [name for name in LEDGER_SCHEMA.names if name not in ("status", "error_message")]
"""The columns that every store has; `raw` (the file) and `error_message` are no part of expressions."""


@dataclass(frozen=True)
class Part:
    """A run of units."""

    number: int
    first_unit: int
    units: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}"


@dataclass(frozen=True)
class Rows:
    """A store's samples with the columns that an expression may name."""

    store: Store
    folders: dict[str, str]
    """Folder under annotations/ by column."""
    types: dict[str, str]
    """Type of each column, the ledger's included, as pyarrow spells it."""

    def parts(self) -> Iterator[Part]:
        """All committed units, in order."""
        units = committed(self.store)
        size = max(UNITS_PER_PART, -(-len(units) // MAX_PARTS))
        names = map(name_of, units)
        for number, start in enumerate(range(0, len(units), size)):
            yield Part(number, start, tuple(islice(names, size)))

    def read(self, part: Part, columns: Sequence[str]) -> pa.Table:
        """A part's samples in plan order: `unit, row`, then the named columns.

        Args:
            part: which units.
            columns: names of `types`, or `raw` for the file that holds the sample.
        """
        return pa.concat_tables(
            [self._read_unit(part.first_unit + i, name, columns) for i, name in enumerate(part.units)]
        )

    def _read_unit(self, number: int, name: str, columns: Sequence[str]) -> pa.Table:
        ledger = [column for column in columns if column in LEDGER_COLUMNS]
        unit = read_stored(self.store, name, ledger)
        num_rows = unit.num_rows
        found: dict[str, Any] = {
            "unit": pa.array(np.full(num_rows, number, np.int32)),
            "row": pa.array(np.arange(num_rows, dtype=np.int32)),
        }
        for column in ledger:
            found[column] = unit.rows[column]
        if "raw" in columns:
            found["raw"] = pa.array([unit.raw] * num_rows, pa.string())
        by_folder: dict[str, list[str]] = {}
        for column in columns:
            if column in self.folders:
                by_folder.setdefault(self.folders[column], []).append(column)
        for folder, names in by_folder.items():
            table = read_annotations(self.store, folder, unit, names).columns
            found |= {column: table[column] for column in names}
        return pa.table({column: found[column] for column in ["unit", "row", *columns]})


def open_rows(store: Store, annotators: Sequence[Annotator]) -> Rows:
    """The samples of all committed units with the columns of these annotators.

    Raises:
        UserError: Nothing is committed, or some units lack some of the columns.
    """
    units = committed(store)
    if not units:
        raise UserError("the store has no committed unit", where=store.root, next_step="run: genlip ingest RECIPE")
    folders: dict[str, str] = {}
    types = {name: str(LEDGER_SCHEMA.field(name).type) for name in LEDGER_COLUMNS}
    missing = []
    for one in annotators:
        folder = address(one)
        annotated = annotated_units(store, folder)
        num_missing = sum(number not in annotated for number in units)
        if num_missing:
            missing.append(f"{', '.join(one.columns())} ({folder}): {num_missing:,} of {len(units):,} units")
        folders |= dict.fromkeys(one.columns(), folder)
        types |= {column: str(kind) for column, kind in one.columns().items()}
    if missing:
        raise UserError(
            "columns are not computed for all units",
            where=store.path("annotations"),
            why="; ".join(missing),
            next_step="run: genlip annotate RECIPE",
        )
    return Rows(store, folders, types)
