"""The funnel: how many rows came in, what became of each, and why. Read from the ledgers alone."""

from collections import Counter
from dataclasses import dataclass

from pipeline.store import Store
from pipeline.work import FAILED, REJECTED, SUCCESS, commit_record


@dataclass(frozen=True)
class Funnel:
    """Counts of input rows. `seen` is always `success + rejected + failed`."""

    seen: int
    success: int
    rejected: dict[str, int]
    """Count by reason, most frequent first."""
    failed: dict[str, int]

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def num_failed(self) -> int:
        return sum(self.failed.values())


def read_funnel(store: Store) -> Funnel:
    """Add up the commit records of a store."""
    reasons: Counter[str] = Counter()
    for name in store.names("ledger", ".parquet"):
        reasons.update(commit_record(store, name)["reasons"])
    return funnel_of(reasons)


def funnel_of(reasons: Counter[str]) -> Funnel:
    """A funnel from counts by `status` or `status:reason`."""

    def by_reason(status: str) -> dict[str, int]:
        prefix = f"{status}:"
        found = Counter({name.removeprefix(prefix): n for name, n in reasons.items() if name.startswith(prefix)})
        return dict(found.most_common())

    return Funnel(sum(reasons.values()), reasons.get(SUCCESS, 0), by_reason(REJECTED), by_reason(FAILED))
