"""The exporter's numbers are those of the folders, alerts fire when they should, the dashboard shows what there is."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client.parser import text_string_to_metric_families

from jobs.cluster.exporter import export
from jobs.cluster.run_numbers import INGEST, METRICS, ROWS, key_of, split_key
from jobs.live import Live
from jobs.meter import TrainingMeter
from jobs.recipe import Recipe, check_recipe
from jobs.runs import open_run
from jobs.stages import Stage, stage
from pipeline.errors import UserError
from pipeline.store import Store
from pipeline.work import UnitReport
from tests.jobs.log_line import LINE
from tests.jobs.ray_head import free_ports
from tests.s3_server import serve_s3
from train.jsonl import append_line
from train.metrics import REFUSED_STEPS, forget_after, log_metrics

CLUSTER = Path(__file__).parents[2] / "jobs" / "cluster"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    content: dict[str, Any] = {"name": "small", "store": str(tmp_path / "store"), "runs": str(tmp_path / "runs")}
    return check_recipe(content | {"ingest": {"source": {"urls": "x.parquet"}}, "train": {"length": 1000}}, "recipe")


@contextmanager
def _working(recipe: Recipe, verb: str, part: str = "") -> Iterator[Stage]:
    """As the command does it."""
    with stage(recipe.run_dir, verb, part) as one:
        yield one
        one.end("done", 0)


def _report(number: int, committed: bool = True, pauses: tuple[str, ...] = (), **rows: int) -> UnitReport:
    reasons = {reason if reason == "success" else f"failed:{reason}": count for reason, count in rows.items()}
    return UnitReport(f"u{number:08d}", committed, reasons, num_bytes=1000, message="no space left", pauses=pauses)


def _ingest(recipe: Recipe, *reports: UnitReport, num_done: int = 0, num_units: int = 4, part: str = "") -> None:
    with _working(recipe, "ingest", part):
        live = Live(recipe.name, num_units, num_done, (0.0, 1.0))
        for report in reports:
            live.add(report)


def _numbers(folder: Path, run: Path) -> dict[str, float]:
    """What the exporter says, by `name`, `name reason` or `name status:reason`."""
    assert export(run, 0, folder / "genlip.prom") == 0
    numbers = {}
    for family in text_string_to_metric_families((folder / "genlip.prom").read_text()):
        for one in family.samples:
            assert one.labels.pop("run") == "small"
            labels = [one.labels[label] for label in ("status", "reason") if one.labels.get(label)]
            numbers[f"{one.name} {':'.join(labels)}".strip()] = one.value
    return numbers


def test_an_ingestion_counts_its_rows_and_goes_on_counting_when_it_is_started_again(
    tmp_path: Path, recipe: Recipe
) -> None:
    _ingest(recipe, _report(0, success=3, http_404=1), _report(1, committed=False, pauses=("no route, for 12.0 s",)))
    numbers = _numbers(tmp_path, recipe.run_dir)
    assert {name.split()[0] for name in numbers} == set(INGEST)
    assert numbers["genlip_ingest_rows_total success"] == 3
    assert numbers["genlip_ingest_rows_total failed:http_404"] == 1
    assert numbers["genlip_ingest_stored_bytes_total"] == 1000
    assert numbers["genlip_ingest_units_committed"] == 1
    assert numbers["genlip_ingest_units_planned"] == 4
    assert numbers["genlip_ingest_units_failed"] == 1
    assert numbers["genlip_ingest_pauses_total no route"] == 1
    _ingest(recipe, _report(1, success=4), num_done=1)
    numbers = _numbers(tmp_path, recipe.run_dir)
    assert numbers["genlip_ingest_rows_total success"] == 7
    assert numbers["genlip_ingest_rows_total failed:http_404"] == 1
    assert numbers["genlip_ingest_units_committed"] == 2
    assert numbers["genlip_ingest_units_failed"] == 0


def test_the_parts_of_an_array_add_up_and_a_later_command_for_the_whole_says_the_levels(
    tmp_path: Path, recipe: Recipe
) -> None:
    for part in range(2):
        _ingest(recipe, _report(part, success=3), num_units=2, part=f"{part}/2")
    numbers = _numbers(tmp_path, recipe.run_dir)
    assert numbers["genlip_ingest_rows_total success"] == 6
    assert numbers["genlip_ingest_units_committed"] == 2
    assert numbers["genlip_ingest_units_planned"] == 4
    _ingest(recipe, _report(2, success=5), num_done=2)
    numbers = _numbers(tmp_path, recipe.run_dir)
    assert numbers["genlip_ingest_rows_total success"] == 11
    assert numbers["genlip_ingest_units_committed"] == 3
    assert numbers["genlip_ingest_units_planned"] == 4


def test_what_is_kept_of_an_ingestion_does_not_grow_with_its_units(recipe: Recipe) -> None:
    with _working(recipe, "ingest") as one:
        live = Live(recipe.name, 4000, 0, (0.0, 1.0))
        sizes = []
        for number in range(4000):
            live.add(_report(number, committed=False) if number % 2 else _report(number, success=5000))
            if number % 1000 == 999:
                sizes.append(len(pickle.dumps((live.labels, live.pauses, live._latest, one.stats))))
    assert max(sizes) - min(sizes) < 500


def test_a_training_tells_what_its_folder_tells(tmp_path: Path, recipe: Recipe) -> None:
    run_dir = open_run(recipe)
    log_metrics(run_dir, LINE)
    with _working(recipe, "train"):
        TrainingMeter(recipe, run_dir).tell()
    numbers = _numbers(tmp_path, run_dir)
    assert set(numbers) == set(METRICS) - set(INGEST)
    assert numbers["genlip_train_samples_seen"] == 230
    assert numbers["genlip_train_samples_planned"] == 1000
    assert numbers["genlip_train_loss_nats"] == 3.5
    assert numbers["genlip_train_data_wait_ratio"] == 0.07
    assert numbers["genlip_train_memory_bytes"] == 2 * 2**30
    assert numbers["genlip_train_refused_steps_total"] == 0
    assert numbers["genlip_train_log_timestamp_seconds"] == 1_000
    assert numbers["genlip_train_checkpoint_timestamp_seconds"] == 940  # none yet: the run began a minute before


def test_a_training_tells_what_is_new(recipe: Recipe) -> None:
    run_dir, now_s = open_run(recipe), [0.0]
    log_metrics(run_dir, LINE)
    with _working(recipe, "train") as one:
        meter = TrainingMeter(recipe, run_dir, lambda: now_s[0])
        meter.tell()
        committed = run_dir / "checkpoints" / "step-00000020" / "COMMITTED"
        committed.parent.mkdir(parents=True)
        committed.touch()
        os.utime(committed, (1_050, 1_050))
        for step, checkpoint_unix_s in ((20, 940), (30, 1_050)):  # the folder is listed once a minute
            log_metrics(
                run_dir, replace(LINE, step=step, samples=23 * step, unix_s=1_000.0 + step, uptime_s=60.0 + step)
            )
            now_s[0] += 30
            meter.tell()
            assert one.stats.numbers["genlip_train_checkpoint_timestamp_seconds"] == checkpoint_unix_s
            assert one.stats.done == one.stats.numbers["genlip_train_samples_seen"] == 23 * step
        forget_after(run_dir, 20)  # as a worker does that resumes from a checkpoint, and takes steps again
        meter.tell()
        assert one.stats.done == 460
        append_line(run_dir / REFUSED_STEPS, {"step": 31})
        meter.tell()  # nothing was logged, yet this is news
        assert one.stats.numbers["genlip_train_refused_steps_total"] == 1


def test_what_is_not_there_yet_has_no_number(tmp_path: Path, recipe: Recipe) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert _numbers(tmp_path, path) == {}
    assert not recipe.run_dir.exists()
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path, 0, None)


def test_it_is_served_over_http(recipe: Recipe) -> None:
    _ingest(recipe, _report(0, success=3))
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jobs.cli", "exporter", str(recipe.run_dir), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert str(port) in process.stdout.readline()
        body = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        _ingest(recipe, _report(1, success=4), num_done=1)
        later = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert 'genlip_ingest_rows_total{reason="",run="small",status="success"} 3.0' in body
    assert 'genlip_ingest_rows_total{reason="",run="small",status="success"} 7.0' in later


@pytest.mark.parametrize("reason", ["http_404", 'a "quoted" word', "back\\slash", "ünïcode", ""])
def test_a_label_survives_its_key(reason: str) -> None:
    assert split_key(key_of(ROWS, status="failed", reason=reason)) == (ROWS, {"status": "failed", "reason": reason})


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


def test_grafana_s_own_model_of_a_dashboard_knows_all_of_it() -> None:
    """It drops keys that Grafana does not know: at the top, in panels, in their options."""
    plugins.register_default_plugins()
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    understood = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(dashboard)))
    assert _lost(dashboard, understood) == []


def _lost(given: Any, understood: Any, at: str = "") -> list[str]:
    """Where something is missing or different."""
    if isinstance(given, dict) and isinstance(understood, dict):
        return [one for key in given for one in _lost(given[key], understood.get(key), f"{at}.{key}")]
    if isinstance(given, list) and isinstance(understood, list) and len(given) == len(understood):
        pairs = zip(given, understood, strict=True)
        return [one for index, pair in enumerate(pairs) for one in _lost(*pair, f"{at}[{index}]")]
    return [] if given == understood else [at]


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    panels = dashboard["panels"]
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


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here (Debian: prometheus)")
@pytest.mark.parametrize(
    "command",
    [
        ["check", "config", str(CLUSTER / "prometheus.yaml")],
        ["check", "rules", str(CLUSTER / "prometheus_rules.yaml")],
        ["test", "rules", str(Path(__file__).parent / "prometheus_rules_test.yaml")],
    ],
    ids=" ".join,
)
def test_prometheus_takes_the_files_and_the_alerts_fire_when_they_should(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_life_that_fires_it() -> None:
    rules = yaml.safe_load((CLUSTER / "prometheus_rules.yaml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    lives = (Path(__file__).parent / "prometheus_rules_test.yaml").read_text()
    assert set(re.findall(r'alertname="(\w+)"', lives)) == alerts
