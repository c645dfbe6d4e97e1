"""Tables of pairs, read block by block: parquet, CSV, TSV and JSON, with text as bytes that may not be UTF-8."""

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.inputs.files import READ_ERRORS, InputFile, open_plain, unreadable
from pipeline.inputs.json_objects import CARRIED, read_objects
from pipeline.inputs.spec import PRESETS, Columns
from pipeline.store import open_fs

BLOCK_ROWS = 1 << 16
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class TableInfo:
    """What is known of a file before its rows are read."""

    schema: pa.Schema
    """With text as bytes."""
    num_rows: int | None
    """None where only reading the file tells."""
    longest_group: int
    """Rows in the longest row group of a parquet file, else 0."""


def inspect_table(file: InputFile, columns: Columns) -> TableInfo:
    """Look at a file without reading its rows.

    Raises:
        UserError: It cannot be read, or lacks the columns.
    """
    try:
        if file.format == "parquet":
            info = inspect_parquet(file)
        else:
            first, _ = next(_text_blocks(file, columns), (None, 0))
            info = TableInfo(first.schema if first is not None else pa.schema([]), None, 0)
    except READ_ERRORS as error:
        raise unreadable(file, error) from error
    if info.schema.names or info.num_rows:
        check_columns(info.schema, file.url, columns)
    return info


def inspect_parquet(file: InputFile) -> TableInfo:
    """The same, of a parquet file with any columns."""
    with ExitStack() as stack:
        parquet = _open_parquet(file, stack)
        metadata = parquet.metadata
        groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        return TableInfo(_as_bytes_schema(parquet.schema_arrow), metadata.num_rows, max(groups, default=0))


def read_schema(file: InputFile) -> pa.Schema:
    """A parquet file's own schema."""
    with ExitStack() as stack:
        return _open_parquet(file, stack).schema_arrow


def read_blocks(file: InputFile, columns: Columns) -> Iterator[pa.Table]:
    """The rows in blocks of some ten thousand, never the whole file.

    Raises:
        UserError: The file cannot be read to its end.
    """
    try:
        if file.format == "parquet":
            with ExitStack() as stack:
                for batch in _open_parquet(file, stack).iter_batches(BLOCK_ROWS):
                    yield as_bytes(pa.Table.from_batches([batch]))
        else:
            yield from (block for block, _ in _text_blocks(file, columns))
    except READ_ERRORS as error:
        raise unreadable(file, error) from error


def read_head(file: InputFile, columns: Columns, num_rows: int) -> tuple[pa.ChunkedArray, float]:
    """About the first `num_rows` URLs, and about the share of the file that they take; 1 where they are all.

    Raises:
        UserError: The file cannot be read so far.
    """
    urls: list[pa.Array] = []
    try:
        for block, share in _url_blocks(file, columns):
            urls += as_bytes(block.select([columns.url])).column(0).cast(pa.binary()).chunks
            if sum(map(len, urls)) >= num_rows:
                return pa.chunked_array(urls, pa.binary()), share
    except READ_ERRORS as error:
        raise unreadable(file, error) from error
    return pa.chunked_array(urls, pa.binary()), 1.0


def _url_blocks(file: InputFile, columns: Columns) -> Iterator[tuple[pa.Table, float]]:
    """Blocks with the URLs, and the share of the file read so far."""
    if file.format != "parquet":
        yield from ((block, min(0.999, num_read / file.num_bytes)) for block, num_read in _text_blocks(file, columns))
        return
    with ExitStack() as stack:
        parquet = _open_parquet(file, stack)
        num_read = 0
        for batch in parquet.iter_batches(BLOCK_ROWS, columns=[columns.url]):
            num_read += len(batch)
            yield pa.Table.from_batches([batch]), num_read / parquet.metadata.num_rows


def read_slice(url: str, first_row: int, num_rows: int) -> pa.Table:
    """Rows of a parquet file, from the row groups that hold them; text as bytes."""
    with ExitStack() as stack:
        parquet = _open_parquet(InputFile(url, "parquet", "", 0), stack)
        parts, start, end = [], 0, first_row + num_rows
        skipped = 0
        for group in range(parquet.metadata.num_row_groups):
            group_end = start + parquet.metadata.row_group(group).num_rows
            if group_end > first_row and start < end:
                parts.append(parquet.read_row_group(group))
            elif group_end <= first_row:
                skipped = group_end
            start = group_end
    return as_bytes(pa.concat_tables(parts).slice(first_row - skipped, num_rows))


def unify_schemas(schemas: Sequence[pa.Schema], files: Sequence[InputFile]) -> pa.Schema:
    """The schema to which the rows of all files can be cast.

    Raises:
        UserError: The files have different columns.
    """
    first = set(schemas[0].names)
    for schema, file in zip(schemas, files, strict=True):
        if set(schema.names) != first:
            odd = ", ".join(sorted(first ^ set(schema.names)))
            raise _mixed(files[0].url, file.url, f"the columns {odd} are in one of them only")
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _mixed(files[0].url, files[-1].url, str(error)) from error


def conform(table: pa.Table, schema: pa.Schema, file: InputFile) -> pa.Table:
    """A file's rows in the schema of all files.

    Raises:
        UserError: A value does not fit.
    """
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowInvalid as error:
        raise unreadable(file, error) from error


def rechunk(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `num_rows` rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    num_waiting = 0
    for table in tables:
        waiting.append(table)
        num_waiting += len(table)
        if num_waiting >= num_rows:
            joined = pa.concat_tables(waiting)
            num_whole = num_waiting - num_waiting % num_rows
            yield from (joined.slice(first, num_rows) for first in range(0, num_whole, num_rows))
            waiting, num_waiting = [joined.slice(num_whole)], num_waiting - num_whole
    if num_waiting:
        yield pa.concat_tables(waiting)


def as_bytes(table: pa.Table) -> pa.Table:
    """The table with text as bytes, because pyarrow refuses a whole column for one value that is not UTF-8."""
    return table.cast(_as_bytes_schema(table.schema))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column, with text as bytes, may hold text; a column of nulls may."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind))


def _open_parquet(file: InputFile, stack: ExitStack) -> pq.ParquetFile:
    fs, path = open_fs(file.url)
    # With pre_buffer, what was read of all earlier row groups would stay in memory.
    return pq.ParquetFile(stack.enter_context(fs.open(path, "rb")), pre_buffer=False)


def _text_blocks(file: InputFile, columns: Columns) -> Iterator[tuple[pa.Table, int]]:
    """Blocks, and about how many bytes of the file they are."""
    if file.format == "json":
        with open_plain(file) as (stream, stored):
            yield from ((table, stored.tell()) for table in read_objects(stream, columns))
        return
    dialect = _csv_dialect(file, columns)
    names, stored_share = _csv_head(file, columns, dialect.delimiter)
    # Cells are carried as text: a later block may not fit types that are guessed from the first.
    types = {name: pa.binary() for name in names}
    with (
        open_plain(file) as (stream, _),
        pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=columns.header or None),
            parse_options=dialect,
            convert_options=pa_csv.ConvertOptions(check_utf8=False, column_types=types),
        ) as reader,
    ):
        for number, batch in enumerate(reader, 1):
            # The reader is far ahead of its blocks, so that the stream's position says nothing.
            yield pa.Table.from_batches([batch]), round(number * _BLOCK_BYTES * stored_share)


def _csv_dialect(file: InputFile, columns: Columns) -> pa_csv.ParseOptions:
    """Tables with a preset's header hold quotation marks as they are; all others quote."""
    is_quoted = not columns.header
    return pa_csv.ParseOptions(
        delimiter="\t" if file.format == "tsv" else ",",
        quote_char='"' if is_quoted else False,
        newlines_in_values=is_quoted,
    )


def _csv_head(file: InputFile, columns: Columns, delimiter: str) -> tuple[Sequence[str], float]:
    """The names of the columns, and the bytes in the file for a byte of text."""
    with open_plain(file) as (stream, stored):
        head = stream.read(_BLOCK_BYTES)
        stored_share = stored.tell() / max(1, len(head))
    lines = io.StringIO(head.decode("utf-8-sig", "replace"))
    return columns.header or next(csv.reader(lines, delimiter=delimiter), []), stored_share


def check_columns(schema: pa.Schema, where: str, columns: Columns) -> None:
    """Refuse a table, with text as bytes, that lacks a column or has another type in it."""
    wanted = {
        key: getattr(columns, key) for key in ("url", "caption", "uid", "sha256", "boxes") if getattr(columns, key)
    }
    for key, column in wanted.items():
        # Rows of JSON differ, so that only URL and caption are sure to be seen in the first ones.
        if schema.names.count(column) == 1 or (CARRIED in schema.names and key not in ("url", "caption")):
            continue
        problem = "several columns" if column in schema.names else "no column"
        raise _bad_column(schema, where, key, column, problem)
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise _bad_column(schema, where, "urls", name, "several columns")
    for key, column in wanted.items():
        if column in schema.names and not _fits(key, schema.field(column).type):
            raise _bad_column(schema, where, key, column, f"no {_CONTENT[key]} in its column")


_CONTENT = {"url": "text", "caption": "text", "uid": "text or integers", "sha256": "text", "boxes": "boxes"}


def _fits(key: str, kind: pa.DataType) -> bool:
    if is_text(kind):
        return True
    if key == "uid":
        return bool(pa.types.is_integer(kind))
    return key == "boxes" and bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _bad_column(schema: pa.Schema, where: str, key: str, column: str, problem: str) -> UserError:
    names = [name for name in schema.names if name != CARRIED]
    folded = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(column.casefold(), folded, n=1)
    presets = [
        name
        for name, preset in PRESETS.items()
        if not preset.header and {preset.url, preset.caption} <= set(names) and key in ("url", "caption")
    ]
    next_step = "write the table with other names" if key == "urls" else f"--set ingest.source.{key}=COLUMN"
    if presets:
        next_step = f"--set ingest.source.preset={presets[0]}, or {next_step}"
    elif close:
        next_step = f"did you mean {folded[close[0]]!r}? {next_step}"
    return UserError(
        f"the table has {problem} {column!r}",
        where=where,
        why=f"its columns are {', '.join(_in_words(schema.field(index)) for index in range(len(names)))}",
        next_step=next_step,
    )


def _in_words(field: pa.Field) -> str:
    return f"{field.name} (text)" if pa.types.is_binary(field.type) else f"{field.name} ({field.type})"


def _mixed(one: str, other: str, why: str) -> UserError:
    return UserError(
        "the files have different columns",
        where=f"{one} and {other}",
        why=why,
        next_step="choose files of one kind with a glob, or ingest them one kind after the other",
    )


def _as_bytes_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_as_bytes_type(field.type)).remove_metadata() for field in schema])


def _as_bytes_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _as_bytes_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_bytes_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes_type(field.type)) for field in kind])
    return kind
