"""The plan on disk: batches of units, each a parquet file that is written last and never changed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.inputs.files import InputFile
from pipeline.inputs.rows import Kind, Unit
from pipeline.inputs.spec import SourceSpec
from pipeline.store import Store, open_fs

_FOLDER = "plan"
_SLICE_UNITS = 4096


@dataclass(frozen=True)
class BatchInfo:
    """What a batch says of itself as a whole."""

    kind: Kind
    settings: dict[str, Any]
    """What decided how its rows were cut; later batches keep to it."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the source's files by their URL."""
    is_staged: bool = False
    """Whether the units' files are copies in the store; their names are relative to it then."""
    is_grouped: bool = False
    classes: Sequence[str] = ()
    """Of a retry batch: which failures it holds."""


@dataclass(frozen=True)
class Batch:
    """Units planned together."""

    number: int
    first_unit: int
    units: pa.Table
    """Columns file, fingerprint, first_row, num_rows."""
    info: BatchInfo


@dataclass(frozen=True)
class Plan:
    """All units of a store, as tables; a `Unit` is made when it is asked for."""

    root: str
    """The store, as fsspec takes it."""
    batches: tuple[Batch, ...] = ()

    @property
    def num_units(self) -> int:
        return sum(len(batch.units) for batch in self.batches)

    @property
    def num_rows(self) -> int:
        """Rows of the source; those that are tried again count once."""
        first_tries = (batch.units.column("num_rows") for batch in self.batches if batch.info.kind != "retry")
        return sum(int(column.to_numpy().sum()) for column in first_tries)

    def iter_units(self, start: int = 0) -> Iterator[Unit]:
        """The units in the order of their numbers, beginning with the number `start`."""
        for batch in self.batches:
            for first in range(max(0, start - batch.first_unit), len(batch.units), _SLICE_UNITS):
                yield from self._make(batch, first, _SLICE_UNITS)

    def unit(self, number: int) -> Unit:
        """The unit of this number."""
        return next(self.iter_units(number))

    def _make(self, batch: Batch, first: int, num_units: int) -> Iterator[Unit]:
        records = batch.units.slice(first, num_units).to_pylist()
        for number, record in enumerate(records, batch.first_unit + first):
            if batch.info.is_staged:
                record["file"] = f"{self.root}/{record['file']}"
            yield Unit(number, **record, kind=batch.info.kind)


def read_plan(store: Store) -> Plan:
    """The store's plan; without batches where nothing is planned yet."""
    batches: list[Batch] = []
    num_units = 0
    for name in store.names(_FOLDER, ".parquet"):
        units = store.read_table(f"{_FOLDER}/{name}")
        info = BatchInfo(**json.loads(units.schema.metadata[b"genlip"]))
        batches.append(Batch(len(batches), num_units, units, info))
        num_units += len(units)
    fs, path = open_fs(store.root)
    return Plan(str(fs.unstrip_protocol(path.rstrip("/"))), tuple(batches))


def write_batch(store: Store, number: int, units: pa.Table, info: BatchInfo) -> None:
    """Commit a batch. From here on its units exist."""
    metadata = {"genlip": json.dumps(asdict(info), sort_keys=True)}
    store.write_table(f"{_FOLDER}/batch-{number:05d}.parquet", units.replace_schema_metadata(metadata))


def staging_folder(number: int) -> str:
    """Where a batch keeps its copies of rows, relative to the store."""
    return f"{_FOLDER}/rows-{number:05d}"


def units_table(
    files: Sequence[str],
    fingerprints: Sequence[str],
    file_U: NDArray[np.int32],
    first_U: NDArray[np.int64],
    num_rows_U: NDArray[np.int64],
) -> pa.Table:
    """The table of a batch: one row for each of U units.

    Args:
        files: that have units.
        fingerprints: of the files.
        file_U: place of each unit's file in `files`.
        first_U: first row of each unit in its file.
        num_rows_U: rows of each unit.
    """
    place_U = pa.array(file_U)
    return pa.table(
        {
            "file": pa.array(files, pa.string()).dictionary_encode().take(place_U),
            "fingerprint": pa.array(fingerprints, pa.string()).dictionary_encode().take(place_U),
            "first_row": pa.array(first_U),
            "num_rows": pa.array(num_rows_U),
        }
    )


def plan_settings(spec: SourceSpec, unit_samples: int) -> dict[str, Any]:
    """What decides how rows are cut into units and read."""
    return {
        "unit_samples": unit_samples,
        "format": spec.format,
        "columns": asdict(spec.columns) | {"header": list(spec.columns.header)},
        "group_by_host": spec.group_by_host,
    }


def refuse_changed_inputs(plan: Plan, found: dict[str, str], urls: str) -> None:
    """Check that every file of the plan is there and as it was.

    Args:
        plan: the store's plan.
        found: fingerprints of the source's present files by URL.
        urls: the source, for the message.

    Raises:
        UserError: One is not.
    """
    for batch in plan.batches:
        for url, fingerprint in batch.info.inputs.items():
            if found.get(url) != fingerprint:
                state = "has changed" if url in found else "is no longer there"
                raise UserError(
                    f"a file of the source {state} since the store was begun; nothing was touched",
                    where=url,
                    why=f"units of {plan.root} are made of its rows; ingest.source.urls = {urls}",
                    next_step="restore the file (new ones may be added), or begin another store with --set store=PATH",
                )


def new_files(plan: Plan, files: Sequence[InputFile]) -> list[InputFile]:
    """The files that no batch of the plan has."""
    planned = {url for batch in plan.batches for url in batch.info.inputs}
    return [file for file in files if file.url not in planned]
