"""The benchmarks' arithmetic: which way a ratio points, medians of alternating runs, and a peer that is absent."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.harness import Metric, Peer, Result, find_peer, report, rounds

SPEED = Metric("speed", "images/s", "higher")
COST = Metric("cost", "ms", "lower")
VALUES = st.floats(min_value=1e-6, max_value=1e6)


def _one_round(metric: Metric, value: float, peer_value: float) -> Result:
    (result,) = rounds("b", [metric], lambda: {metric.name: value}, Peer("p 1", lambda: {metric.name: peer_value}), 1)
    return result


@given(value=VALUES, peer_value=VALUES)
def test_a_ratio_above_one_means_that_ours_is_better(value: float, peer_value: float) -> None:
    faster, dearer = _one_round(SPEED, value, peer_value), _one_round(COST, value, peer_value)
    assert faster.ratio == value / peer_value
    assert dearer.ratio == peer_value / value


def test_runs_alternate_and_their_medians_are_reported() -> None:
    order: list[str] = []

    def side(name: str, values: Iterator[float]) -> dict[str, float]:
        order.append(name)
        return {"cost": next(values)}

    ours, peers = iter([1.0, 100.0, 2.0]), iter([8.0, 6.0, 0.0])
    (result,) = rounds("b", [COST], lambda: side("ours", ours), Peer("p 1", lambda: side("peer", peers)))
    assert order == ["ours", "peer"] * 3
    assert (result.value, result.peer_value, result.ratio) == (2.0, 6.0, 3.0)


def test_a_peer_that_is_not_installed_is_named_and_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    def never() -> dict[str, float]:
        raise AssertionError("a missing peer was run")

    results = rounds("b", [SPEED], lambda: {"speed": 5.0}, find_peer("no-such-distribution", never), 1)
    capsys.readouterr()
    report(results, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "bench": "b",
        "metric": "speed",
        "value": 5.0,
        "unit": "images/s",
        "peer": "no-such-distribution not installed",
        "peer_value": None,
        "ratio": None,
    }


def test_an_installed_peer_carries_its_version() -> None:
    name, version = find_peer("pytest", dict).name.split(" ")
    assert name == "pytest"
    assert version == pytest.__version__


def test_a_ratio_by_zero_is_absent() -> None:
    assert _one_round(COST, 0.0, 1.0).ratio is None
    assert _one_round(COST, 1.0, 0.0).ratio == 0.0


def test_the_table_shows_the_numbers_of_the_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report([_one_round(SPEED, 30.0, 20.0)], as_json=False)
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["bench", "metric", "value", "unit", "peer", "peer_value", "ratio"]
    assert line.split() == ["b", "speed", "30", "images/s", "p", "1", "20", "1.5"]


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_the_command_lists_the_benchmarks() -> None:
    done = _command()
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["curate", "driver_scale", "ingest", "model", "stream", "trainer"]


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    done = _command("nosuch")
    assert done.returncode == 2
    assert "nosuch" in done.stderr
    assert "ingest" in done.stderr
