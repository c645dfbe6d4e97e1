"""The line of a running ingestion counts right, and it warns when the share of successes leaves its healthy range."""

from dataclasses import replace

import pytest

from jobs.live import Live
from pipeline.work import UnitReport


def report(number: int, success: int, committed: bool = True, **failed: int) -> UnitReport:
    reasons = {"success": success} | {f"failed:{reason}": count for reason, count in failed.items()}
    return UnitReport(f"u{number:08d}", committed, reasons, num_bytes=1000)


@pytest.fixture
def live() -> Live:
    return Live("run", num_units=40, num_done=2, healthy_success=(0.5, 0.9))


def test_the_line_counts_units_rows_and_troubles(live: Live) -> None:
    live.add(report(0, 60, timeout=30, http_404=10))
    live.add(report(1, 90, http_404=10))
    live.add(report(2, 0, committed=False, timeout=100))
    line = live.line()
    assert "units 4/40 · in 200 · kept 150 (75.0%)" in line
    assert "failed units 1" in line
    assert line.endswith("timeout 15.0% · http_404 10.0%")


def test_it_warns_once_when_it_ails_and_says_once_when_it_is_well_again(
    live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(10):
        live.add(report(number, 700, timeout=300))
    assert "WARNING" not in capsys.readouterr().out
    for number in range(10):
        live.add(report(number, 100, dns_fail=800, http_404=100))
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1
    assert "healthy is 50% to 90% (ingest.healthy_success); most often failed:dns_fail" in said
    for number in range(10):
        live.add(report(number, 700, timeout=300))
    said = capsys.readouterr().out
    assert said.count("healthy again") == 1
    assert "WARNING" not in said


def test_too_much_success_is_no_health_either(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    live.add(report(0, 1000))
    assert "WARNING: 100.0% of the latest 1,000 rows succeed" in capsys.readouterr().out


def test_what_a_machine_waited_for_is_said(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    live.add(replace(report(0, 60, timeout=40), pauses=("no DNS resolver answers, for 12.0 s",)))
    assert "u00000000 paused: no DNS resolver answers, for 12.0 s" in capsys.readouterr().out


def test_a_few_rows_say_nothing(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    live.add(report(0, 0, timeout=50))
    assert "WARNING" not in capsys.readouterr().out
