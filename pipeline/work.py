"""The innermost job: one unit from its rows to a committed raw file and ledger. The same in a loop, Ray or SLURM."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pipeline import img2dataset_engine
from pipeline.filters import Candidate, first_refusal
from pipeline.inputs.units import Row, Unit, read_rows
from pipeline.ledger import CommitRecord, Outcome, commit, count_labels, refused
from pipeline.outcomes import FAILED, REJECTED, SUCCESS, find_reason
from pipeline.pixels.decoder import Decoder
from pipeline.pixels.images import ImageError, StoredImage, hash_distance
from pipeline.processes import decoder_of, node_of
from pipeline.raw import Scratch
from pipeline.recipe import IngestSpec
from pipeline.shards import Sample
from pipeline.store import Store
from pipeline.web.fetcher import Fetched, NodeUnavailable, fetch_all
from pipeline.web.urls import without_credentials


@dataclass(frozen=True)
class UnitReport:
    """What a unit's run came to."""

    name: str
    committed: bool
    """False where the node was in trouble, or too few rows were answered: the unit stays pending."""
    reasons: dict[str, int]
    """Rows by `status` or `status:reason`."""
    num_bytes: int = 0
    """Of the raw file."""
    message: str = ""
    pauses: tuple[str, ...] = ()
    """Troubles of the machine that the unit waited for."""

    @property
    def num_rows(self) -> int:
        return sum(self.reasons.values())

    @property
    def num_success(self) -> int:
        return self.reasons.get(SUCCESS, 0)


def run_unit(unit: Unit, spec: IngestSpec, store: Store) -> UnitReport:
    """Download, filter and store one unit, and commit it.

    The commit is the ledger, written after the raw file, by the first of several runs of a unit (a straggler and its
    repetition, a killed driver's last task and its successor). A raw file's name carries a hash of its content, so
    that they can never mix.
    """
    rows = read_rows(unit, spec.source)
    with Scratch() as scratch:
        run = _UnitRun(unit, rows, spec, scratch)
        try:
            run.settle_before_download()
            run.settle_adopted()
            run.settle_downloads()
        except NodeUnavailable as error:
            return UnitReport(unit.name, False, {}, message=str(error))
        outcomes = run.finished()
        report = UnitReport(unit.name, True, count_labels(outcomes), pauses=run.pauses)
        refusal = _refusal(outcomes, 0.0 if unit.kind == "retry" else spec.accept_unit_if.fetched_at_least)
        if refusal:
            return replace(report, committed=False, message=refusal)
        raw = scratch.write(store, unit.name, spec.write.format)
    for position, place in raw.places.items():
        outcomes[position].offset, outcomes[position].size = place
    replaces = Counter(f"{FAILED}:{row.from_reason}" for row in rows if row.from_reason)
    record = CommitRecord(raw.name, raw.sha256, raw.num_bytes, report.reasons, dict(sorted(replaces.items())))
    stands = commit(store, unit.name, outcomes, record)
    return replace(report, reasons=stands.reasons, num_bytes=stands.num_bytes)


class _UnitRun:
    """The rows of a unit on their way to an outcome each."""

    def __init__(self, unit: Unit, rows: Sequence[Row], spec: IngestSpec, scratch: Scratch) -> None:
        self._rows = rows
        self._spec = spec
        # Nothing is given up a second time.
        self._fetch = spec.fetch.model_copy(update={"spill": 0.0}) if unit.kind == "retry" else spec.fetch
        self._scratch = scratch
        filters = spec.build_filters()
        self._caption_filters = [one for one in filters if not one.needs_image]
        self._image_filters = [one for one in filters if one.needs_image]
        self._outcomes: dict[int, Outcome] = {}
        self.pauses: tuple[str, ...] = ()

    def finished(self) -> list[Outcome]:
        """The outcomes in the order of the rows."""
        return [self._outcomes[position] for position in range(len(self._rows))]

    def settle_before_download(self) -> None:
        """Rows that need no network: their caption says no, they are repeated, or they failed where they come from."""
        seen: set[str] = set()
        for position, row in enumerate(self._rows):
            reason = row.earlier_reason or _caption_reason(row)
            if not reason and row.key in seen:
                reason = "duplicate_row"
            reason = reason or first_refusal(self._caption_filters, _candidate(row))
            if reason:
                self._refuse(position, reason)
            else:
                seen.add(row.key)

    def settle_adopted(self) -> None:
        """Rows that bring their image along."""
        decoder = decoder_of(self._spec.image)
        for position in self._open():
            body = self._rows[position].body
            if body is not None:
                self._take(position, body, "", decoder)

    def settle_downloads(self) -> None:
        """All others, by the engine of the recipe."""
        positions = self._open()
        if not positions:
            return
        if self._spec.fetch.engine == "img2dataset":
            rows = [self._rows[position] for position in positions]
            results = img2dataset_engine.download(rows, self._spec.fetch, self._spec.image)
            for position, result in zip(positions, results, strict=True):
                self._settle(position, result, "")
        else:
            asyncio.run(self._download(positions))

    async def _download(self, positions: Sequence[int]) -> None:
        """Downloads overlap; one thread waits for the decoder process while they do."""
        decoder = decoder_of(self._spec.image)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1) as thread:

            async def deliver(index: int, fetched: Fetched) -> None:
                position = positions[index]
                if fetched.reason:
                    self._refuse(position, fetched.reason)
                else:
                    given = without_credentials(self._rows[position].url)
                    final_url = fetched.final_url if fetched.final_url != given else ""
                    await loop.run_in_executor(thread, self._take, position, fetched.body, final_url, decoder)

            urls = [self._rows[position].url for position in positions]
            node = node_of(self._spec.fetch)
            await fetch_all(urls, self._fetch, node, deliver)
            self.pauses = tuple(node.pauses)
            node.pauses.clear()

    def _take(self, position: int, body: bytes, final_url: str, decoder: Decoder) -> None:
        try:
            result: StoredImage | ImageError = decoder.transcode(body, self._rows[position].boxes)
        except ImageError as error:
            result = error
        self._settle(position, result, final_url)

    def _settle(self, position: int, result: StoredImage | ImageError, final_url: str) -> None:
        """A row whose bytes have been looked at."""
        row = self._rows[position]
        if isinstance(result, ImageError):
            self._refuse(position, str(result))
            self._outcomes[position].original_width = result.original_width
            self._outcomes[position].original_height = result.original_height
            return
        outcome = _outcome(row, result)
        outcome.hash_check = self._hash_check(row, result)
        self._outcomes[position] = outcome
        reason = "hash_mismatch" if self._is_refused_for(outcome.hash_check) else ""
        reason = reason or first_refusal(self._image_filters, _candidate(row, result))
        if reason:
            outcome.status, outcome.error_message = find_reason(reason).status, reason
            outcome.width = outcome.height = None
            return
        meta = row.meta | _image_meta(row, result) | ({"final_url": final_url} if final_url else {})
        self._scratch.put(position, Sample(row.key, result.body, outcome.caption, meta, result.extension))

    def _refuse(self, position: int, reason: str) -> None:
        row = self._rows[position]
        self._outcomes[position] = refused(row.key, without_credentials(row.url), row.caption, reason)

    def _open(self) -> list[int]:
        return [position for position in range(len(self._rows)) if position not in self._outcomes]

    def _hash_check(self, row: Row, image: StoredImage) -> str | None:
        check = self._spec.hash_check
        expected_phash = str(row.meta.get(check.phash, "")) if check.phash else ""
        if not row.expected_sha256 and not expected_phash:
            return None
        if row.expected_sha256 and row.expected_sha256.lower() == image.sha256:
            return "equal"
        is_similar = expected_phash and hash_distance(expected_phash, image.phash) <= check.similar_bits
        return "similar" if is_similar else "different"

    def _is_refused_for(self, hash_check: str | None) -> bool:
        return hash_check == "different" and self._spec.hash_check.different == REJECTED


def _caption_reason(row: Row) -> str:
    if row.caption is None:
        return "caption_not_utf8"
    return "" if row.caption.strip() else "caption_empty"


def _one_line(caption: str | None) -> str:
    return " ".join((caption or "").split())


def _candidate(row: Row, image: StoredImage | None = None) -> Candidate:
    known = Candidate(row.url, _one_line(row.caption), row.meta)
    if image is None:
        return known
    return replace(
        known,
        original_width=image.original_width,
        original_height=image.original_height,
        original_format=image.original_format,
        num_frames=image.num_frames,
    )


def _outcome(row: Row, image: StoredImage) -> Outcome:
    return Outcome(
        key=row.key,
        url=without_credentials(row.url),
        caption=_one_line(row.caption),
        status=SUCCESS,
        width=image.width,
        height=image.height,
        original_width=image.original_width,
        original_height=image.original_height,
        sha256=image.sha256,
        phash=image.phash,
    )


def _image_meta(row: Row, image: StoredImage) -> dict[str, Any]:
    """What a sample's JSON says beside the input's own columns."""
    return {
        "key": row.key,
        "url": without_credentials(row.url),
        "sha256": image.sha256,
        "phash": image.phash,
        "width": image.width,
        "height": image.height,
        "original_width": image.original_width,
        "original_height": image.original_height,
        "original_format": image.original_format,
        "num_frames": image.num_frames,
    }


def _refusal(outcomes: Sequence[Outcome], wanted: float) -> str:
    """Why the unit must stay pending, or the empty string: too many of the rows that were asked for got no answer."""
    before = ("caption_empty", "caption_not_utf8", "duplicate_row")
    asked = [outcome for outcome in outcomes if outcome.error_message not in before]
    lost = [one for one in asked if one.status == FAILED and not find_reason(one.error_message).is_answer]
    if len(asked) - len(lost) >= wanted * len(asked):
        return ""
    most_often = Counter(outcome.error_message for outcome in lost).most_common(1)[0][0]
    return f"{len(asked) - len(lost)} of {len(asked)} rows answered, {wanted:.0%} wanted; most often {most_often}"
