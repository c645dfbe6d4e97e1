"""URL tables: the deterministic plan of work units, and the rows of one unit."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.recipe import SourceSpec
from pipeline.store import Store, open_fs

PLAN = "plan/units.parquet"


@dataclass(frozen=True)
class Unit:
    """A range of rows of one file: what is committed, retried and lost as a whole."""

    number: int
    file: str
    fingerprint: str
    """Of the file, so that a plan made from another version of it is noticed."""
    first_row: int
    num_rows: int

    @property
    def name(self) -> str:
        return f"u{self.number:08d}"


@dataclass(frozen=True)
class Row:
    """One input row. `caption` is None where the bytes are not UTF-8."""

    url: str
    caption: str | None
    meta: dict[str, Any]

    @property
    def key(self) -> str:
        """Stable across re-sharding and re-ordering of the input: a hash of URL and caption."""
        return hashlib.sha256(f"{self.url}\0{self.caption}".encode("utf-8", "surrogateescape")).hexdigest()[:20]


def plan_units(spec: SourceSpec, unit_samples: int) -> list[Unit]:
    """Cut the URL tables into units of `unit_samples` rows. Same files, same plan.

    Reads the files' footers only.

    Raises:
        UserError: No file, an unreadable one, a missing column, or no rows at all.
    """
    units: list[Unit] = []
    for file in _files(spec):
        num_rows = _checked_num_rows(file, spec)
        fingerprint = _fingerprint(file)
        for first_row in range(0, num_rows, unit_samples):
            units.append(Unit(len(units), file, fingerprint, first_row, min(unit_samples, num_rows - first_row)))
    if not units:
        raise UserError(
            "the URL table has no rows", where=spec.urls, next_step="point ingest.source.urls at a table with rows"
        )
    return units


def read_rows(unit: Unit, spec: SourceSpec) -> list[Row]:
    """The unit's rows, reading only the row groups that hold them."""
    fs, path = open_fs(unit.file)
    with fs.open(path, "rb") as stream:
        table = _slice(pq.ParquetFile(stream), unit)
    # Binary, because a text column may hold bytes that are not UTF-8 and pyarrow would refuse the whole column.
    for index, column in enumerate(table.schema):
        if _is_text(column.type):
            table = table.set_column(index, column.name, table.column(index).cast(pa.binary()))
    return [_row(record, spec) for record in table.to_pylist()]


def record_plan(store: Store, units: list[Unit]) -> None:
    """Keep the plan in the store, or check that it is the one the store was begun with.

    Raises:
        UserError: The URL tables have changed since.
    """
    table = pa.Table.from_pylist([asdict(unit) for unit in units])
    if not store.exists(PLAN):
        store.write_table(PLAN, table)
    elif not store.read_table(PLAN).equals(table):
        raise UserError(
            "the URL table, or the size of its units, has changed since the store was begun; nothing was touched",
            where=store.path(PLAN),
            next_step="restore the table, or begin another store with --set store=PATH",
        )


def _files(spec: SourceSpec) -> list[str]:
    fs, path = open_fs(spec.urls)
    found = sorted(fs.glob(path)) if any(mark in path for mark in "*?[") else [path] if fs.exists(path) else []
    if not found:
        raise UserError(
            "no URL table here",
            where=f"ingest.source.urls = {spec.urls}",
            next_step="check the path, or set it with --set ingest.source.urls=PATH",
        )
    return [str(fs.unstrip_protocol(file)) for file in found]


def _checked_num_rows(file: str, spec: SourceSpec) -> int:
    fs, path = open_fs(file)
    try:
        with fs.open(path, "rb") as stream:
            parquet = pq.ParquetFile(stream)
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            "the URL table cannot be read as parquet",
            where=file,
            why=str(error),
            next_step="write it as parquet, or set another with --set ingest.source.urls=PATH",
        ) from error
    for key, column in (("url", spec.url), ("caption", spec.caption)):
        found = schema.names.count(column)
        if found != 1 or not _is_text(schema.field(column).type):
            problem = "no column" if not found else "several columns" if found > 1 else "no text in its column"
            raise UserError(
                f"the URL table has {problem} {column!r}",
                where=file,
                why=f"its columns are {', '.join(f'{field.name} ({field.type})' for field in schema)}",
                next_step=f"name the right one with --set ingest.source.{key}=COLUMN",
            )
    return int(num_rows)


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column casts to bytes that may be text; a column of nulls does."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*text, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null))


def _fingerprint(file: str) -> str:
    """Of the size and the last 64 KiB, which hold a parquet file's footer with the place of every column chunk."""
    fs, path = open_fs(file)
    size = fs.size(path)
    tail = fs.cat_file(path, start=max(0, size - (64 << 10)), end=size)
    return hashlib.sha256(f"{size} ".encode() + tail).hexdigest()[:16]


def _slice(parquet: pq.ParquetFile, unit: Unit) -> pa.Table:
    parts, start, end = [], 0, unit.first_row + unit.num_rows
    skipped = 0
    for group in range(parquet.metadata.num_row_groups):
        group_end = start + parquet.metadata.row_group(group).num_rows
        if group_end > unit.first_row and start < end:
            parts.append(parquet.read_row_group(group))
        elif group_end <= unit.first_row:
            skipped = group_end
        start = group_end
    return pa.concat_tables(parts).slice(unit.first_row - skipped, unit.num_rows)


def _row(record: dict[str, Any], spec: SourceSpec) -> Row:
    url = (record.pop(spec.url) or b"").decode("utf-8", "replace")
    caption_bytes = record.pop(spec.caption) or b""
    meta = dict(_plain(record))
    try:
        return Row(url, caption_bytes.decode("utf-8"), meta)
    except UnicodeDecodeError:
        return Row(url, None, meta)


def _plain(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The carried columns, as JSON can hold them; a null, or pandas' NaN for one, is left out."""
    for name, value in record.items():
        if isinstance(value, bytes):
            yield name, value.decode("utf-8", "replace")
        elif value is not None and value == value:
            is_json = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            yield name, value if is_json else str(value)
