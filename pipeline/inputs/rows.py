"""A unit of work, a row of it, and how a table's records become rows."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.inputs.json_objects import CARRIED
from pipeline.inputs.spec import Columns

FROM_UNIT, FROM_REASON = "_from_unit", "_from_reason"
"""Columns of a retry batch: the number of the unit that a row failed in, and why it did."""

Kind = Literal["urls", "images", "retry"]
Box = tuple[float, float, float, float]

_USABLE_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY_DIGITS = 20


@dataclass(frozen=True)
class Unit:
    """A range of rows of one file: what is committed, retried and lost as a whole."""

    number: int
    file: str
    fingerprint: str
    """Of the file, so that a plan made from another version of it is noticed."""
    first_row: int
    num_rows: int
    kind: Kind = "urls"
    """`urls`: to be downloaded; `images`: they bring their image along; `retry`: to be downloaded once more."""

    @property
    def name(self) -> str:
        return name_of(self.number)


def name_of(number: int) -> str:
    """The name of the unit of this number."""
    return f"u{number:08d}"


def number_of(unit_name: str) -> int:
    """The number in a unit's name."""
    return int(unit_name.removeprefix("u"))


@dataclass(frozen=True)
class Row:
    """One input row."""

    url: str
    """Empty where an adopted dataset does not tell it."""
    caption: str | None
    """None where the bytes are not UTF-8."""
    uid: str = ""
    """The input's own identifier, if it has one."""
    meta: dict[str, Any] = field(default_factory=dict)
    """The columns that are carried through, as strict JSON can hold them."""
    expected_sha256: str = ""
    boxes: tuple[Box, ...] = ()
    """To blur: left, top, right, bottom relative to width and height."""
    body: bytes | None = None
    """The image of an adopted dataset."""
    earlier_reason: str = ""
    """Why an adopted dataset has no image here."""
    from_reason: str = ""
    """Why a retried row failed before."""

    @property
    def key(self) -> str:
        """Stable across re-sharding and re-ordering of the input: the uid, or a hash of URL and caption.

        A uid that is no plain word is hashed, because the key becomes a file name.
        """
        if _USABLE_KEY.fullmatch(self.uid):
            return self.uid
        return hash_key((self.uid or f"{self.url}\0{self.caption}").encode("utf-8", "surrogateescape"))


def hash_key(content: bytes) -> str:
    """A key that stands for the content."""
    return hashlib.sha256(content).hexdigest()[:_KEY_DIGITS]


def rows_of(table: pa.Table, columns: Columns) -> list[Row]:
    """The rows of a table whose text is bytes."""
    return [row_of(record, columns) for record in table.to_pylist()]


def row_of(record: dict[str, Any], columns: Columns) -> Row:
    """A row of a record by column names, with text as bytes or as text. Takes the record apart.

    Raises:
        UserError: Its boxes are none.
    """
    carried = record.pop(CARRIED, None)
    if carried is not None:
        record |= json.loads(carried)
    record.pop(FROM_UNIT, None)
    from_reason = _text(record.pop(FROM_REASON, None))
    url = _text(record.pop(columns.url, None))
    caption = utf8_or_none(record.pop(columns.caption, None))
    return Row(
        url=url,
        caption=caption,
        uid=_text(record.get(columns.uid)),
        meta=_plain(record),
        expected_sha256=_text(record.get(columns.sha256)),
        boxes=_boxes(record.get(columns.boxes), url),
        from_reason=from_reason,
    )


def utf8_or_none(value: bytes | str | None) -> str | None:
    """Text as it is, null as empty text, and bytes that are not UTF-8 as None."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    try:
        return (value or b"").decode("utf-8")
    except UnicodeDecodeError:
        return None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _boxes(value: Any, url: str) -> tuple[Box, ...]:
    if isinstance(value, bytes | str):
        value = _text(value).strip() or None
    try:
        boxes = json.loads(value) if isinstance(value, str) else value or ()
        found = tuple((float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in boxes)
    except (TypeError, ValueError) as error:
        raise UserError(
            "the boxes of a row are not a list of [left, top, right, bottom]",
            where=f"ingest.source.boxes, at the row of {url}",
            why=f"its value is {str(value)[:100]}",
            next_step="repair the table, or name another column with --set ingest.source.boxes=COLUMN",
        ) from error
    return found


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """The carried columns as strict JSON; a null, or pandas' NaN for one, is left out."""
    return {
        name: _plain_value(value)
        for name, value in record.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }


def _plain_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain_value(one) for name, one in value.items()}
    is_plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)
