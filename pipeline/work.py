"""The innermost job: one unit from its rows to a committed tar and ledger. Runs the same in a loop, Ray or SLURM."""

import asyncio
import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.fetch import fetch, is_answer, open_session
from pipeline.filters import Candidate, Filter
from pipeline.images import ImageError, transcode
from pipeline.recipe import IngestSpec
from pipeline.shards import Sample, ShardWriter
from pipeline.sources import Row, Unit, read_rows
from pipeline.store import Store

SUCCESS, REJECTED, FAILED = "success", "rejected", "failed"
_SPOOL_BYTES = 256 << 20
REFUSED_BEFORE_DOWNLOAD = ("caption_not_utf8", "caption_empty", "duplicate_row")

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
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)
"""One row per input row. The names are img2dataset's; `offset` and `size` find the sample in the unit's tar."""


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
    offset: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class UnitReport:
    """What a unit's run came to; `committed` is False where too few rows were answered."""

    name: str
    committed: bool
    reasons: dict[str, int]
    """Count by `status` or `status:reason`."""
    num_bytes: int = 0
    message: str = ""

    @property
    def num_rows(self) -> int:
        return sum(self.reasons.values())

    @property
    def num_success(self) -> int:
        return self.reasons.get(SUCCESS, 0)


@dataclass
class _Results:
    """Finished rows that wait for the rows before them, so that the tar is in the input's order."""

    writer: ShardWriter
    outcomes: list[Outcome] = field(default_factory=list)
    _waiting: dict[int, tuple[Outcome, Sample | None]] = field(default_factory=dict)

    def put(self, position: int, outcome: Outcome, sample: Sample | None) -> None:
        self._waiting[position] = (outcome, sample)
        while len(self.outcomes) in self._waiting:
            outcome, sample = self._waiting.pop(len(self.outcomes))
            if sample is not None:
                outcome.offset, outcome.size = self.writer.add(sample)
            self.outcomes.append(outcome)


def run_unit(unit: Unit, spec: IngestSpec, store: Store) -> UnitReport:
    """Download, filter and store one unit, and commit it.

    The commit is the ledger, written after the tar. The tar's name carries a hash of its content, so that two runs
    of one unit (a killed driver's last task and its successor) can never mix: a ledger names the tar it belongs to.

    Returns:
        The report; not committed where fewer rows were answered than the recipe accepts.
    """
    rows = read_rows(unit, spec.source)
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        results = _Results(ShardWriter(cast(BinaryIO, spool)))
        asyncio.run(_run_rows(rows, spec, results))
        num_bytes, sha256 = results.writer.close()
        report = UnitReport(unit.name, True, _count(results.outcomes), num_bytes)
        refusal = _refusal(results.outcomes, spec)
        if refusal:
            return replace(report, committed=False, message=refusal)
        tar_name = f"raw/{unit.name}-{sha256[:8]}.tar"
        spool.seek(0)
        with store.writing(tar_name) as stream:
            shutil.copyfileobj(spool, stream, 1 << 20)
    ledger = pa.Table.from_pylist([asdict(outcome) for outcome in results.outcomes], schema=LEDGER_SCHEMA)
    commit = {"tar": tar_name, "sha256": sha256, "num_bytes": num_bytes, "reasons": report.reasons}
    store.write_table(f"ledger/{unit.name}.parquet", ledger.replace_schema_metadata({"genlip": json.dumps(commit)}))
    return report


def commit_record(store: Store, ledger_name: str) -> dict[str, Any]:
    """What a unit's ledger says of the unit as a whole: its `tar`, `sha256`, `num_bytes` and counted `reasons`."""
    schema = pq.read_schema(io.BytesIO(store.read(f"ledger/{ledger_name}")))
    return cast(dict[str, Any], json.loads(schema.metadata[b"genlip"]))


async def _run_rows(rows: list[Row], spec: IngestSpec, results: _Results) -> None:
    """All rows of a unit: downloads overlap, one thread decodes while they do."""
    filters = spec.build_filters()
    seen: set[str] = set()
    slots = asyncio.Semaphore(spec.fetch.in_flight)
    with ThreadPoolExecutor(max_workers=1) as decoder:
        async with open_session(spec.fetch) as session:

            async def run_row(position: int, row: Row) -> None:
                async with slots:
                    fetched = await fetch(session, row.url, spec.fetch)
                if fetched.error:
                    status = REJECTED if fetched.opted_out else FAILED
                    results.put(position, _refused(row, status, fetched.error), None)
                    return
                loop = asyncio.get_running_loop()
                outcome, sample = await loop.run_in_executor(decoder, _process, row, fetched.body, spec, filters)
                results.put(position, outcome, sample)

            async with asyncio.TaskGroup() as group:
                for position, row in enumerate(rows):
                    reason = _reason_before_download(row, seen)
                    if reason:
                        results.put(position, _refused(row, REJECTED, reason), None)
                    else:
                        seen.add(row.key)
                        group.create_task(run_row(position, row))


def _reason_before_download(row: Row, seen: set[str]) -> str:
    not_utf8, empty, duplicate = REFUSED_BEFORE_DOWNLOAD
    if row.caption is None:
        return not_utf8
    if not row.caption.strip():
        return empty
    return duplicate if row.key in seen else ""


def _process(row: Row, body: bytes, spec: IngestSpec, filters: list[Filter]) -> tuple[Outcome, Sample | None]:
    """A downloaded row's outcome, with the sample where it is kept."""
    try:
        image = transcode(body, spec.image)
    except ImageError as error:
        return _refused(row, FAILED, str(error)), None
    caption = " ".join((row.caption or "").split())
    outcome = Outcome(
        row.key, row.url, caption, SUCCESS, "", image.width, image.height, image.original_width, image.original_height
    )
    outcome.sha256 = hashlib.sha256(body).hexdigest()
    candidate = Candidate(row.url, caption, image.original_width, image.original_height)
    for one in filters:
        try:
            reason = one.reject(candidate)
        except Exception as error:  # noqa: BLE001 a filter is a plug-in: its bug costs the row, not the unit
            return replace(outcome, status=FAILED, error_message=f"filter_{type(error).__name__}"), None
        if reason:
            return replace(outcome, status=REJECTED, error_message=reason), None
    size = {"width": image.width, "height": image.height}
    original = {"original_width": image.original_width, "original_height": image.original_height}
    meta = row.meta | {"key": row.key, "url": row.url, "sha256": outcome.sha256} | size | original
    return outcome, Sample(row.key, image.jpeg, caption, meta)


def _refused(row: Row, status: str, reason: str) -> Outcome:
    return Outcome(row.key, row.url, row.caption or "", status, reason)


def _count(outcomes: list[Outcome]) -> dict[str, int]:
    return dict(Counter(o.status if o.status == SUCCESS else f"{o.status}:{o.error_message}" for o in outcomes))


def _refusal(outcomes: list[Outcome], spec: IngestSpec) -> str:
    """Why the unit must stay pending, or the empty string: too many of the rows that were asked for got no answer."""
    asked = [outcome for outcome in outcomes if outcome.error_message not in REFUSED_BEFORE_DOWNLOAD]
    lost = [outcome for outcome in asked if outcome.status == FAILED and not is_answer(outcome.error_message)]
    wanted = spec.accept_unit_if.fetched_at_least
    if len(asked) - len(lost) >= wanted * len(asked):
        return ""
    most_often = Counter(outcome.error_message for outcome in lost).most_common(1)[0][0]
    return f"{len(asked) - len(lost)} of {len(asked)} rows answered, {wanted:.0%} wanted; most often {most_often}"
