"""The funnel: how many rows came in, what became of each, and why. Read from the ledgers alone."""

from collections import Counter
from dataclasses import dataclass

from pipeline.each import Each, in_turn
from pipeline.ledger_sums import read_sums
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


def read_funnel(store: Store, each: Each = in_turn, keep: bool = False) -> Funnel:
    """Add up the commit records of a store. A row that a retry unit asked for again counts with its last outcome.

    Args:
        store: with the ledgers.
        each: reads those that are not in the sums kept before.
        keep: whether to keep the sums for the next time.
    """
    labels: Counter[str] = Counter()
    for block in read_sums(store, each, keep):
        labels.update(block.labels)
    return funnel_of(labels)


def funnel_of(labels: Counter[str]) -> Funnel:
    """A funnel from counts by `status` or `status:reason`."""

    def by_reason(status: str) -> dict[str, int]:
        prefix = f"{status}:"
        found = Counter({name.removeprefix(prefix): n for name, n in labels.items() if name.startswith(prefix) and n})
        return dict(found.most_common())

    return Funnel(sum(labels.values()), labels.get(SUCCESS, 0), by_reason(REJECTED), by_reason(FAILED))
