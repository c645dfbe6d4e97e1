"""The funnel: how many rows came in, what became of each, and why. Read from the ledgers alone."""

from collections import Counter
from dataclasses import dataclass

from pipeline.ledger import committed_units, read_commit
from pipeline.outcomes import FAILED, REJECTED, SUCCESS
from pipeline.store import Store


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
    """Add up the commit records of a store. A row that a retry unit asked for again counts with its last outcome."""
    labels: Counter[str] = Counter()
    for name in committed_units(store):
        record = read_commit(store, name)
        labels.update(record.reasons)
        labels.subtract(record.replaces)
    return funnel_of(labels)


def funnel_of(labels: Counter[str]) -> Funnel:
    """A funnel from counts by `status` or `status:reason`."""

    def by_reason(status: str) -> dict[str, int]:
        prefix = f"{status}:"
        found = Counter({name.removeprefix(prefix): n for name, n in labels.items() if name.startswith(prefix) and n})
        return dict(found.most_common())

    return Funnel(sum(labels.values()), labels.get(SUCCESS, 0), by_reason(REJECTED), by_reason(FAILED))
