"""What the files of a table come to before their rows are read: schema, rows, and whether they must be copied."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from pipeline.each import ahead
from pipeline.inputs.files import READ_THREADS, InputFile
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.tables import conform, inspect_table, read_blocks, unify_schemas

GROUP_FROM_ROWS = 1_000_000
"""Below so many rows too few share a host for grouping to be worth a copy of the table."""

_MAX_GROUP_ROWS = 100_000
_MAX_GROUP_UNITS = 16
_REPORT_ROWS = 1_000_000


@dataclass(frozen=True)
class Survey:
    """Of files that are planned together."""

    files: Sequence[InputFile]
    schema: pa.Schema
    """To which the rows of all files can be cast."""
    rows_by_file: Sequence[int] | None
    """None where only reading the files tells."""
    is_grouped: bool | None
    """Whether units are grouped by host; None where the number of rows decides and is not known."""
    is_staged: bool
    """Whether the rows are copied into the store; else units point at the source's own files."""

    @property
    def num_rows(self) -> int | None:
        return None if self.rows_by_file is None else sum(self.rows_by_file)


def survey(files: Sequence[InputFile], spec: SourceSpec, unit_samples: int) -> Survey:
    """Look at the files without reading their rows.

    Raises:
        UserError: One cannot be read, lacks columns, or has others than the first.
    """
    schemas: dict[pa.Schema, pa.Schema] = {}
    infos = [
        replace(info, schema=schemas.setdefault(info.schema, info.schema))  # one object for all files that have it
        for info in ahead(partial(inspect_table, columns=spec.columns), files, READ_THREADS)
    ]
    filled = [(info.schema, file) for info, file in zip(infos, files, strict=True) if info.schema.names]
    schema = unify_schemas([one for one, _ in filled], [file for _, file in filled]) if filled else pa.schema([])
    counts = [info.num_rows for info in infos if info.num_rows is not None]
    rows_by_file = counts if len(counts) == len(files) else None
    is_grouped = spec.group_by_host
    if is_grouped is None and rows_by_file is not None:
        is_grouped = sum(rows_by_file) >= GROUP_FROM_ROWS
    # A unit reads the whole row groups that hold it, so long ones are copied into shorter ones.
    longest = max(info.longest_group for info in infos)
    is_long = longest > max(_MAX_GROUP_ROWS, _MAX_GROUP_UNITS * unit_samples)
    is_staged = rows_by_file is None or bool(is_grouped) or is_long
    return Survey(files, schema, rows_by_file, is_grouped, is_staged)


def read_all(surveyed: Survey, spec: SourceSpec, report: Callable[[str], None]) -> Iterator[pa.Table]:
    """The rows of all files in blocks of one schema; reports every million."""
    num_rows, next_report = 0, _REPORT_ROWS
    for file in surveyed.files:
        for block in read_blocks(file, spec.columns):
            yield conform(block, surveyed.schema, file)
            num_rows += len(block)
            if num_rows >= next_report:
                report(f"planning: {num_rows:,} rows read")
                next_report = num_rows + _REPORT_ROWS
