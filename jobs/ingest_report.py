"""What an ingestion came to: the funnel in words, the policy report, and both as JSON beside the data."""

from dataclasses import asdict

from jobs.console import table
from pipeline.funnel import Funnel
from pipeline.outcomes import find_reason
from pipeline.store import Store

REPORT = "reports/ingest.json"


def render_funnel(funnel: Funnel) -> str:
    """The funnel as a text table; its parts add up to what was seen."""

    def share(count: int) -> str:
        return f"{count / max(funnel.seen, 1):.1%}"

    rows = [["seen", f"{funnel.seen:,}", ""], ["  success", f"{funnel.success:,}", share(funnel.success)]]
    for name, total, reasons in (
        ("rejected", funnel.num_rejected, funnel.rejected),
        ("failed", funnel.num_failed, funnel.failed),
    ):
        rows.append([f"  {name}", f"{total:,}", share(total)])
        rows += [[f"    {reason}", f"{count:,}", share(count)] for reason, count in reasons.items()]
    total = funnel.success + funnel.num_rejected + funnel.num_failed
    sums = f"{funnel.seen:,} seen = {funnel.success:,} success + {funnel.num_rejected:,} rejected"
    return f"{table(rows)}\n{sums} + {funnel.num_failed:,} failed{'' if total == funnel.seen else ' (DOES NOT ADD UP)'}"


def write_report(store: Store, funnel: Funnel) -> None:
    """Keep the funnel, with what each reason means, in the store: evidence of what was left out by which rule."""
    meanings = {reason: find_reason(reason).meaning for reason in {**funnel.rejected, **funnel.failed}}
    content = asdict(funnel) | {"meaning": meanings}
    if not store.exists(REPORT) or store.read_json(REPORT) != content:
        store.write_json(REPORT, content)
