"""JSON tables: an array of objects, or objects one after the other, parsed as they come."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.inputs.spec import Columns

CARRIED = "_json"
"""Column with everything of a row but URL and caption as one JSON object, because the rows of JSON differ in it."""

_BLOCK_ROWS = 1 << 14
_BLOCK_BYTES = 4 << 20
_MAX_OBJECT_CHARS = 64 << 20
_BETWEEN = " \t\r\n,[]"


def read_objects(stream: BinaryIO, columns: Columns) -> Iterator[pa.Table]:
    """Tables with the columns URL, caption (as bytes) and `CARRIED`.

    The first table lacks the column of URL or caption where none of its rows has it.

    Raises:
        pa.ArrowInvalid: The stream holds something else than objects.
    """
    rows: list[dict[str, Any]] = []
    is_first = True
    for row in _objects(stream):
        rows.append(row)
        if len(rows) == _BLOCK_ROWS:
            yield _table(rows, columns, is_first)
            rows, is_first = [], False
    if rows:
        yield _table(rows, columns, is_first)


def to_bytes(value: Any) -> bytes | None:
    """A JSON value as the bytes that stood in the file, which may not be UTF-8."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, written as \ud83d: no UTF-8 either
        return text.encode("utf-8", "surrogatepass")


def _table(rows: list[dict[str, Any]], columns: Columns, is_first: bool) -> pa.Table:
    known = [name for name in (columns.url, columns.caption) if not is_first or any(name in row for row in rows)]
    seen = [] if len(known) == 2 else sorted({name for row in rows for name in row} - set(known))
    content = {name: pa.array([to_bytes(row.pop(name, None)) for row in rows], pa.binary()) for name in known}
    # Names for the message that names what is missing.
    content |= {name: pa.nulls(len(rows)) for name in seen}
    carried = (json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") for row in rows)
    return pa.table(content | {CARRIED: pa.array(carried, pa.binary())})


def _objects(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    scan = json.JSONDecoder().raw_decode
    text, at, num_read = "", 0, 0
    while True:
        block = stream.read(_BLOCK_BYTES)
        text, at = text[at:] + decode(block, final=not block), 0
        while True:
            while at < len(text) and text[at] in _BETWEEN:
                at += 1
            if at == len(text):
                break
            try:
                value, end = scan(text, at)
            except json.JSONDecodeError as error:
                if not block or len(text) - at > _MAX_OBJECT_CHARS:
                    raise pa.ArrowInvalid(f"no JSON after object {num_read}: {error.msg}") from error
                break  # the object goes on in the next block
            if not isinstance(value, dict):
                raise pa.ArrowInvalid(f"after object {num_read} comes no object, but {str(value)[:50]!r}")
            yield value
            num_read, at = num_read + 1, end
        if not block:
            return
