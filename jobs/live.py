"""What a running ingestion shows: one line of counts, its most frequent troubles, and a warning when it ails."""

from collections import Counter, deque
from dataclasses import dataclass, field

from jobs.cluster.run_numbers import key_of, rows_by_outcome
from jobs.console import Progress, duration
from jobs.meter import Meter
from pipeline.outcomes import SUCCESS
from pipeline.work import UnitReport

HEALTH_ROWS = 5_000
"""The warning looks at the units that hold the latest so many rows."""
MIN_HEALTH_ROWS = 100
NUM_TROUBLES = 3


@dataclass
class Live:
    """Running totals of one ingestion; they go to the screen and to the run's `Meter`."""

    run: str
    """Its name."""
    num_units: int
    num_done: int
    """Units committed, before this run too."""
    healthy_success: tuple[float, float]
    num_failed: int = 0
    num_bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    """Rows by `Outcome.label`."""
    pauses: Counter[str] = field(default_factory=Counter)
    """By what was the matter."""
    _latest: deque[UnitReport] = field(default_factory=deque)
    _progress: Progress = field(default_factory=Progress)
    _is_healthy: bool = True

    def __post_init__(self) -> None:
        self._meter = Meter(self.run)
        self._num_done_before = self.num_done

    def add(self, report: UnitReport) -> None:
        """Count a unit that ended, say what its machine had to wait for, and show the line."""
        for pause in report.pauses:
            self._progress.note(f"{report.name} paused: {pause}")
            self.pauses[pause.rpartition(", for ")[0]] += 1
        if report.committed:
            self.num_done += 1
            self.num_bytes += report.num_bytes
            self.labels.update(report.reasons)
        else:
            self.num_failed += 1
            self._meter.unit_failed(report.name, report.message)
        self._meter.tell(self.num_done, self.num_units, "units", self.numbers())
        self._watch_health(report)
        self._progress.show(self.line(), self._share_done)

    def note(self, line: str) -> None:
        """Say something beside the counts."""
        self._progress.note(line)

    def end(self) -> None:
        self._progress.show(self.line(), self._share_done, final=True)

    @property
    def _share_done(self) -> float:
        return self.num_done / max(self.num_units, 1)

    @property
    def _rows_per_s(self) -> float:
        return self.labels.total() / max(self._progress.elapsed_s, 1e-9)

    @property
    def _eta_s(self) -> float | None:
        num_done_here = self.num_done - self._num_done_before
        return self._progress.elapsed_s * (self.num_units - self.num_done) / num_done_here if num_done_here else None

    def numbers(self) -> dict[str, float]:
        """What the screen shows, under the names that Prometheus sees."""
        counts = rows_by_outcome(self.labels) | {"genlip_ingest_stored_bytes_total": float(self.num_bytes)}
        counts |= {key_of("genlip_ingest_pauses_total", reason=why): float(count) for why, count in self.pauses.items()}
        levels: dict[str, float | None] = {
            "genlip_ingest_units_committed": self.num_done,
            "genlip_ingest_units_planned": self.num_units,
            "genlip_ingest_units_failed": self.num_failed,
            "genlip_ingest_rows_per_second": self._rows_per_s,
            "genlip_ingest_eta_seconds": self._eta_s,
        }
        summed = {key: count + self._meter.earlier.get(key, 0.0) for key, count in counts.items()}
        return summed | {name: value for name, value in levels.items() if value is not None}

    def line(self) -> str:
        elapsed_s = max(self._progress.elapsed_s, 1e-9)
        seen, kept = self.labels.total(), self.labels[SUCCESS]
        eta_s = self._eta_s
        parts = [
            f"units {self.num_done:,}/{self.num_units:,}",
            f"in {seen:,}",
            f"kept {kept:,} ({kept / max(seen, 1):.1%})",
            f"{self._rows_per_s:,.0f} rows/s",
            f"{self.num_bytes / elapsed_s / 1e6:.1f} MB/s",
            f"failed units {self.num_failed}",
            f"eta {'?' if eta_s is None else duration(eta_s)}",
        ]
        troubles = [(label, count) for label, count in self.labels.most_common() if label != SUCCESS][:NUM_TROUBLES]
        parts += [f"{label.partition(':')[2]} {count / seen:.1%}" for label, count in troubles]
        return " · ".join(parts)

    def _watch_health(self, report: UnitReport) -> None:
        """Say it once when the share of successes among the latest rows leaves its range, and when it is back."""
        if not report.num_rows:
            return  # a unit that could not be run at all; kept, such units would add up
        self._latest.append(report)
        while sum(one.num_rows for one in self._latest) - self._latest[0].num_rows >= HEALTH_ROWS:
            self._latest.popleft()
        num_rows = sum(one.num_rows for one in self._latest)
        if num_rows < MIN_HEALTH_ROWS:
            return
        share = sum(one.num_success for one in self._latest) / num_rows
        low, high = self.healthy_success
        if self._is_healthy == (low <= share <= high):
            return
        self._is_healthy = not self._is_healthy
        if self._is_healthy:
            self._progress.note(f"healthy again: {share:.1%} of the latest {num_rows:,} rows succeed")
            return
        labels: Counter[str] = Counter()
        for one in self._latest:
            labels.update({label: count for label, count in one.reasons.items() if label != SUCCESS})
        often = ", ".join(f"{label} {count / num_rows:.0%}" for label, count in labels.most_common(NUM_TROUBLES))
        self._progress.note(
            f"WARNING: {share:.1%} of the latest {num_rows:,} rows succeed, healthy is {low:.0%} to {high:.0%}"
            f" (ingest.healthy_success); most often {often}"
        )
