"""A unit of everything that the web does to a downloader: the ledger says of each row what happened to it."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.funnel import read_funnel
from pipeline.inputs.plan import extend_plan
from pipeline.outcomes import find_reason
from pipeline.recipe import AcceptUnitSpec, FetchSpec, IngestSpec, SourceSpec
from pipeline.store import Store
from pipeline.work import UnitReport, run_unit
from tests.pipeline.web.hostile import CASES, LIMITS, Case, start_hostile_server


def expected(case: Case) -> tuple[str, str]:
    """The server's good answers hold bytes that are no image, so that the decoder has the last word."""
    reason = case.reason or "not_image"
    return find_reason(reason).status, reason


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> tuple[UnitReport, dict[str, dict[str, Any]], Store]:
    """Report, rows of the ledger by case, and store of one unit with all cases; nobody was asked who must not be."""
    folder = tmp_path_factory.mktemp("hostile")
    with start_hostile_server(folder) as server:
        urls = [server.url(case) for case in CASES]
        pq.write_table(pa.table({"url": urls, "caption": [case.name for case in CASES]}), folder / "urls.parquet")
        spec = IngestSpec(
            source=SourceSpec(urls=str(folder / "urls.parquet")),
            fetch=FetchSpec(**LIMITS, ca_file=str(server.ca_file)),
            accept_unit_if=AcceptUnitSpec(fetched_at_least=0),
        )
        store = Store(str(folder / "store"))
        (unit,) = extend_plan(store, spec.source, spec.unit_samples).iter_units()
        report = run_unit(unit, spec, store)
        assert server.forbidden_hits == 0
    rows = store.read_table(f"ledger/{unit.name}.parquet").to_pylist()
    return report, {row["caption"]: row for row in rows}, store


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_has_its_outcome_in_the_ledger(case: Case, ledger: Any) -> None:
    _, rows, _ = ledger
    assert (rows[case.name]["status"], rows[case.name]["error_message"]) == expected(case)


def test_seen_is_the_sum_and_nothing_is_lost(ledger: Any) -> None:
    report, rows, store = ledger
    assert len(rows) == len(CASES) == report.num_rows
    funnel = read_funnel(store)
    assert funnel.seen == len(CASES) == funnel.success + funnel.num_rejected + funnel.num_failed
    counts = Counter(expected(case) for case in CASES)
    assert funnel.rejected == {reason: n for (status, reason), n in counts.items() if status == "rejected"}
    assert funnel.failed == {reason: n for (status, reason), n in counts.items() if status == "failed"}


def test_credentials_of_a_url_are_not_stored(ledger: Any) -> None:
    _, rows, _ = ledger
    assert rows["credentials"]["url"].startswith("http://credentials.localhost:")
    assert all("secret" not in str(row) for row in rows.values())
