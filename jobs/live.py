"""What a running ingestion shows: one line of counts, its most frequent troubles, and a warning when it ails."""

from collections import Counter, deque
from dataclasses import dataclass, field

from jobs.console import Progress, duration
from pipeline.outcomes import SUCCESS
from pipeline.work import UnitReport

HEALTH_ROWS = 5_000
"""The warning looks at the units that hold the latest so many rows."""
MIN_HEALTH_ROWS = 100
NUM_TROUBLES = 3


@dataclass
class Live:
    """Running totals of one ingestion."""

    num_units: int
    num_done: int
    """Units committed, before this run too."""
    healthy_success: tuple[float, float]
    num_failed: int = 0
    num_bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    _latest: deque[UnitReport] = field(default_factory=deque)
    _progress: Progress = field(default_factory=Progress)
    _is_healthy: bool = True

    def add(self, report: UnitReport) -> None:
        """Count a unit that ended, say what its machine had to wait for, and show the line."""
        for pause in report.pauses:
            self._progress.note(f"{report.name} paused: {pause}")
        if report.committed:
            self.num_done += 1
            self.num_bytes += report.num_bytes
            self.labels.update(report.reasons)
        else:
            self.num_failed += 1
        self._watch_health(report)
        self._progress.show(self.line(), self._share_done)

    def end(self) -> None:
        self._progress.show(self.line(), self._share_done, final=True)

    @property
    def _share_done(self) -> float:
        return self.num_done / max(self.num_units, 1)

    def line(self) -> str:
        elapsed_s = max(self._progress.elapsed_s, 1e-9)
        seen, kept = self.labels.total(), self.labels[SUCCESS]
        rate = seen / elapsed_s
        rows_left = (self.num_units - self.num_done) * seen / max(self.num_done, 1)
        parts = [
            f"units {self.num_done:,}/{self.num_units:,}",
            f"in {seen:,}",
            f"kept {kept:,} ({kept / max(seen, 1):.1%})",
            f"{rate:,.0f} rows/s",
            f"{self.num_bytes / elapsed_s / 1e6:.1f} MB/s",
            f"failed units {self.num_failed}",
            f"eta {duration(rows_left / rate) if rate else '?'}",
        ]
        troubles = [(label, count) for label, count in self.labels.most_common() if label != SUCCESS][:NUM_TROUBLES]
        parts += [f"{label.partition(':')[2]} {count / seen:.1%}" for label, count in troubles]
        return " · ".join(parts)

    def _watch_health(self, report: UnitReport) -> None:
        """Say it once when the share of successes among the latest rows leaves its range, and when it is back."""
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
