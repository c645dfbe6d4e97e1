"""The ledger of a unit: one row for each input row with its outcome, and the unit's commit record in its metadata."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.outcomes import SUCCESS, find_reason
from pipeline.store import Store

LEDGER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
        ("phash", pa.string()),
        ("hash_check", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
"""The names are img2dataset's as far as it has them; `offset` and `size` find the sample in the unit's raw file."""


@dataclass
class Outcome:
    """What became of one row: a line of the ledger."""

    key: str
    url: str
    caption: str
    status: str
    error_message: str = ""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    """Of the original bytes, as downloaded."""
    phash: str | None = None
    """Perceptual hash of the image, 16 hexadecimal digits."""
    hash_check: str | None = None
    """Against the input's expected hash: `equal`, `similar` or `different`; None where it names none."""
    offset: int | None = None
    size: int | None = None

    @property
    def label(self) -> str:
        """`success`, or `status:reason`."""
        return self.status if self.status == SUCCESS else f"{self.status}:{self.error_message}"


@dataclass(frozen=True)
class CommitRecord:
    """What a ledger says of its unit as a whole."""

    raw: str
    """The file with the kept samples, relative to the store."""
    sha256: str
    num_bytes: int
    reasons: dict[str, int]
    """Rows by `Outcome.label`."""
    replaces: dict[str, int]
    """Of a retry unit: the outcomes, by label, that its rows had in the units they come from."""


def refused(key: str, url: str, caption: str | None, reason: str) -> Outcome:
    """The outcome of a row that is not kept; the reason decides between rejected and failed."""
    return Outcome(key, url, caption or "", find_reason(reason).status, reason)


def count_labels(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Rows by label, most frequent first."""
    return dict(Counter(outcome.label for outcome in outcomes).most_common())


def commit(store: Store, unit_name: str, outcomes: Sequence[Outcome], record: CommitRecord) -> CommitRecord:
    """Write the ledger, from which alone the unit exists, unless another run of the unit has done so.

    Returns:
        The record that stands. Where it is another run's, the raw file of this one is deleted.
    """
    table = pa.Table.from_pylist([asdict(outcome) for outcome in outcomes], schema=LEDGER_SCHEMA)
    body = io.BytesIO()
    metadata = {"genlip": json.dumps(asdict(record), sort_keys=True)}
    pq.write_table(table.replace_schema_metadata(metadata), body)
    if store.create(f"ledger/{unit_name}.parquet", body.getvalue()):
        return record
    winner = read_commit(store, unit_name)
    if winner.raw != record.raw:
        store.remove(record.raw)
    return winner


def committed_units(store: Store) -> list[str]:
    """Names of the units that exist, in the order of their numbers."""
    return sorted(name.removesuffix(".parquet") for name in store.iter_files("ledger", ".parquet"))


def read_commit(store: Store, unit_name: str) -> CommitRecord:
    """The commit record of a unit."""
    with store.reading(f"ledger/{unit_name}.parquet") as stream:
        schema = pq.read_schema(stream)
    return CommitRecord(**cast(dict[str, Any], json.loads(schema.metadata[b"genlip"])))
