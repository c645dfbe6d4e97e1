"""The exporter's numbers are those of the folders, alerts fire when they should, the dashboard shows what there is."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobs.cluster.exporter import METRICS, export
from jobs.cluster.run_numbers import IngestCounts
from jobs.recipe import Recipe, check_recipe
from jobs.runs import open_run
from pipeline.store import Store
from tests.jobs.ray_head import free_ports
from tests.s3_server import serve_s3
from tests.stores import Stored, commit_unit, make_store
from train.jsonl import append_line
from train.metrics import REFUSED_STEPS, StepMetrics, log_metrics

CLUSTER = Path(__file__).parents[2] / "jobs" / "cluster"
LINE = StepMetrics(
    step=10,
    samples=230,
    passes={"train": 0.1},
    loss=3.5,
    source_losses={},
    grad_norm=1.25,
    lr=1e-3,
    samples_per_s=20.0,
    tokens_per_s=900.0,
    flops_per_s=1e9,
    mfu=0.4,
    time_shares={"data": 0.07},
    checkpoint_stall_s=0.5,
    num_bad_samples=2,
    read={},
    memory_gib=2.0,
    uptime_s=60.0,
    unix_s=1_000.0,
    eta_s=30.0,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    content: dict[str, Any] = {"name": "small", "store": str(tmp_path / "store"), "runs": str(tmp_path / "runs")}
    return check_recipe(content | {"ingest": {"source": {"urls": "x.parquet"}}, "train": {"length": 1000}}, "recipe")


def _store(recipe: Recipe) -> Store:
    return make_store([[Stored(f"k{i}") for i in range(3)]], recipe.store)


def _numbers(folder: Path, run: Path) -> Counter[str]:
    """Sums over all labels."""
    assert export(run, 0, folder / "genlip.prom") == 0
    numbers: Counter[str] = Counter()
    for family in text_string_to_metric_families((folder / "genlip.prom").read_text()):
        for one in family.samples:
            assert one.labels["run"] == "small"
            numbers[one.name] += one.value
    return numbers


def test_every_number_is_that_of_the_folders(tmp_path: Path, recipe: Recipe) -> None:
    _store(recipe)
    run_dir = open_run(recipe)
    log_metrics(run_dir, LINE)
    log_metrics(run_dir, replace(LINE, step=20, samples=460, loss=3.25, unix_s=1_060.0))
    append_line(run_dir / REFUSED_STEPS, {"step": 11})
    numbers = _numbers(tmp_path, run_dir)
    assert set(numbers) == set(METRICS)
    assert numbers["genlip_ingest_rows_total"] == 5  # three stored, one failed, one rejected
    assert numbers["genlip_ingest_units_total"] == 1
    assert numbers["genlip_train_samples_total"] == 460
    assert numbers["genlip_train_samples_planned"] == 1000
    assert numbers["genlip_train_loss_nats"] == 3.25
    assert numbers["genlip_train_data_wait_ratio"] == 0.07
    assert numbers["genlip_train_memory_bytes"] == 2 * 2**30
    assert numbers["genlip_train_refused_steps_total"] == 1
    assert numbers["genlip_train_log_timestamp_seconds"] == 1_060
    assert numbers["genlip_train_checkpoint_timestamp_seconds"] == 1_000  # none yet: since when it could be one
    committed = run_dir / "checkpoints" / "step-00000020" / "COMMITTED"
    committed.parent.mkdir(parents=True)
    committed.touch()
    os.utime(committed, (1_050, 1_050))
    assert _numbers(tmp_path, run_dir)["genlip_train_checkpoint_timestamp_seconds"] == 1_050


def test_what_is_not_there_yet_has_no_number(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    numbers = _numbers(tmp_path, path)
    assert numbers["genlip_ingest_units_total"] == 0
    assert not [name for name in numbers if name.startswith("genlip_train")]
    assert not recipe.run_dir.exists()


def test_ledgers_are_read_once_and_at_most_once_a_minute(recipe: Recipe) -> None:
    store, now_s = _store(recipe), [0.0]
    counts = IngestCounts(store, lambda: now_s[0])
    assert counts.read().rows["success"] == 3
    commit_unit(store, 1, [Stored("new")])
    now_s[0] = 59
    assert counts.read().rows["success"] == 3
    now_s[0] = 60
    store.remove("ledger/u00000000.parquet")  # as good as unreadable: it is not asked for again
    assert counts.read().rows == {"success": 4, "failed:http_404": 2, "rejected:caption_empty": 2}
    assert counts.read().units_committed == 2


def test_it_is_served_over_http(tmp_path: Path, recipe: Recipe) -> None:
    run_dir = open_run(recipe)
    log_metrics(run_dir, replace(LINE, loss=math.nan))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jobs.cli", "exporter", str(run_dir), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        body = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        log_metrics(run_dir, replace(LINE, step=30, samples=690))
        later = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert 'genlip_train_samples_total{run="small"} 230.0' in body
    assert 'genlip_train_loss_nats{run="small"} NaN' in body
    assert 'genlip_train_samples_total{run="small"} 690.0' in later


def test_object_stores_tell_when_a_file_was_written() -> None:
    with serve_s3() as (_, root):
        store = Store(root)
        store.write("checkpoints/COMMITTED", b"x")
        assert store.modified_unix_s("checkpoints/COMMITTED") > 0


# ---------------------------------------------------------------- rules and dashboard


def _expressions() -> list[str]:
    rules = yaml.safe_load((CLUSTER / "prometheus_rules.yaml").read_text())
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]] + queries


def test_rules_and_panels_use_metrics_that_are_exported() -> None:
    used = {name for text in _expressions() for name in re.findall(r"\bgenlip_\w+", text)}
    assert used <= set(METRICS)
    assert set(METRICS) - used == set()  # and what is exported is shown


def test_the_dashboard_has_what_grafana_asks_of_one() -> None:
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    panels = dashboard["panels"]
    assert {"title", "uid", "schemaVersion", "templating", "time"} <= dashboard.keys()
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & places, panel["title"]
        places |= cells
        if panel["type"] != "row":
            assert panel["targets"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


ALERTS = """
rule_files: [RULES]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'genlip_ingest_rows_total{run="r", status="success"}', values: '0+100x120 12000+40x60'}
      - series: 'genlip_ingest_rows_total{run="r", status="failed", reason="dns_timeout"}'
        values: '0+1x120 120+60x60'
      - {series: 'genlip_ingest_units_total{run="r"}', values: '0+1x120 120+0x60'}
      - {series: 'genlip_ingest_units_planned{run="r"}', values: '1000x180'}
    alert_rule_test:
      - {eval_time: 110m, alertname: GenlipSuccessRateFalling, exp_alerts: []}
      - {eval_time: 110m, alertname: GenlipResolverFailing, exp_alerts: []}
      - {eval_time: 110m, alertname: GenlipIngestStopped, exp_alerts: []}
    promql_expr_test:
      - expr: count(ALERTS{alertstate="firing", run="r"})
        eval_time: 175m
        exp_samples: [{labels: '{}', value: 3}]
  - interval: 1m
    input_series:
      - {series: 'genlip_train_data_wait_ratio{run="r"}', values: '0.01x60 0.2x60'}
      - {series: 'genlip_train_loss_nats{run="r"}', values: '3x120'}
      - {series: 'genlip_train_refused_steps_total{run="r"}', values: '0x110 2x60'}
      - {series: 'genlip_train_checkpoint_timestamp_seconds{run="r"}', values: '0+60x50 3000x70'}
      - {series: 'genlip_train_log_timestamp_seconds{run="r"}', values: '0+60x120 7200x60'}
      - {series: 'genlip_train_samples_total{run="r"}', values: '0+1x120 120x60'}
      - {series: 'genlip_train_samples_planned{run="r"}', values: '1000x180'}
    promql_expr_test:
      - {expr: 'count(ALERTS{alertstate="firing"})', eval_time: 59m, exp_samples: []}
      - expr: count by (alertname) (ALERTS{alertstate="firing"})
        eval_time: 119m
        exp_samples:
          - {labels: '{alertname="GenlipDataWait"}', value: 1}
          - {labels: '{alertname="GenlipLossNotFinite"}', value: 1}
          - {labels: '{alertname="GenlipNoCheckpoint"}', value: 1}
      - expr: count(ALERTS{alertname="GenlipTrainingSilent", alertstate="firing"})
        eval_time: 140m
        exp_samples: [{labels: '{}', value: 1}]
"""


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here (Debian: prometheus)")
def test_the_alerts_fire_when_they_should_and_not_before(tmp_path: Path) -> None:
    rules = CLUSTER / "prometheus_rules.yaml"
    (tmp_path / "alerts.yaml").write_text(ALERTS.replace("RULES", str(rules)))
    for command in (["check", "rules", str(rules)], ["test", "rules", str(tmp_path / "alerts.yaml")]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
