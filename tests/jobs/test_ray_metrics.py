"""Through Ray's metrics agent, in stats.json and from the exporter a run's numbers are the same, and the ledgers'."""

import json
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobs.cluster.exporter import export
from jobs.cluster.run_numbers import INGEST, METRICS, ROWS, is_counter, split_key
from pipeline.ledger import committed_units, read_commit
from pipeline.store import Store
from tests.jobs.ingest_runs import write_recipe
from tests.jobs.ray_head import Head, free_ports, ray_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CLUSTER = Path(__file__).parents[2] / "jobs" / "cluster"
MAX_WAIT_S = 120
MAX_REPORT_S = 60

TRAINING = """
import sys
import time
from dataclasses import replace
from pathlib import Path

import ray

from jobs.meter import TrainingMeter
from jobs.recipe import load_recipe
from jobs.stages import stage
from tests.jobs.log_line import LINE
from train.jsonl import append_line
from train.metrics import REFUSED_STEPS, log_metrics

address, recipe_path, runs, stop = sys.argv[1:]
recipe = load_recipe(Path(recipe_path), [runs])
ray.init(address=address, log_to_driver=False)
with stage(recipe.run_dir, "train") as one:
    meter = TrainingMeter(recipe, recipe.run_dir)
    for step, num_bad in ((10, 3), (20, 5), (30, 1)):  # it began anew before the last line
        log_metrics(recipe.run_dir, replace(LINE, step=step, samples=10 * step, num_bad_samples=num_bad))
        meter.tell()
    append_line(recipe.run_dir / REFUSED_STEPS, {"step": 31})
    meter.tell()
    one.end("done", 0)
while not Path(stop).exists():  # Ray forgets the levels of a process that is gone
    time.sleep(0.1)
"""
"""What the driver of a training does beside waiting for it."""

Samples = dict[tuple[str, str, str], float]
"""By name, status and reason."""


@dataclass(frozen=True)
class Watched:
    """A cluster on which an ingestion has ended, and the driver of a training is still there."""

    head: Head
    store: Store
    run_dir: Path
    after_ingest: Samples
    """What Ray's metrics agent said then."""


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, server_url: str, url_table: Callable[[str, Path], Path]
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    recipe = write_recipe(folder, url_table(server_url, folder), "store", unit_samples=50)
    runs, stop = f"runs={folder / 'runs'}", folder / "stop"
    with ray_head() as head:
        options = ("--set", runs, "--set", f"run.ray_address={head.gcs}")
        done = head.run(folder, "jobs.cli", "ingest", str(recipe), *options)
        assert done.returncode == 0, done.stdout + done.stderr
        run_dir = folder / "runs" / "run"
        recorded = _recorded(run_dir, "ingest")
        after_ingest = _scrape(head.metrics_url, lambda samples: samples == recorded)
        words = [sys.executable, "-c", TRAINING, head.gcs, str(recipe), runs, str(stop)]
        with subprocess.Popen(words, env=head.env, cwd=folder) as training:
            yield Watched(head, Store(str(folder / "store")), run_dir, after_ingest)
            stop.touch()
        assert training.returncode == 0


def _samples(text: str, prefix: str = "") -> Samples:
    """The metrics of the run in a scrape."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            key = (one.name.removeprefix(prefix), one.labels.get("status", ""), one.labels.get("reason", ""))
            if key[0] in METRICS:
                assert one.name == prefix + key[0]
                assert one.labels["run"] == "run"
                assert key not in samples
                samples[key] = one.value
    return samples


def _scrape(url: str, is_complete: Callable[[Samples], bool]) -> Samples:
    """What Ray's agent tells once it has heard all, or in the end: processes report to it every few seconds."""
    end = time.monotonic() + MAX_REPORT_S
    while True:
        samples = _samples(urllib.request.urlopen(url, timeout=10).read().decode(), "ray_")
        if is_complete(samples) or time.monotonic() > end:
            return samples
        time.sleep(0.5)


def _recorded(run_dir: Path, verb: str) -> Samples:
    """The numbers of a stats.json."""
    samples: Samples = {}
    for key, value in json.loads((run_dir / "stages" / verb / "stats.json").read_text())["numbers"].items():
        name, labels = split_key(key)
        samples[name, labels.get("status", ""), labels.get("reason", "")] = value
    return samples


def test_an_ingestion_has_the_numbers_of_its_ledgers_wherever_they_are_read(watched: Watched, tmp_path: Path) -> None:
    records = [read_commit(watched.store, name) for name in committed_units(watched.store)]
    rows = sum((Counter(record.reasons) for record in records), Counter[str]())
    ledgers = {(ROWS, *label.partition(":")[::2]): float(count) for label, count in rows.items()}
    ledgers["genlip_ingest_stored_bytes_total", "", ""] = sum(record.num_bytes for record in records)
    ledgers["genlip_ingest_units_committed", "", ""] = len(records)
    ledgers["genlip_ingest_units_planned", "", ""] = len(records)
    assert len(records) > 3
    assert len(rows) > 5
    recorded = _recorded(watched.run_dir, "ingest")
    assert recorded.items() >= ledgers.items()
    assert watched.after_ingest == recorded
    export(watched.run_dir, 0, tmp_path / "genlip.prom")
    exported = _samples((tmp_path / "genlip.prom").read_text())
    assert {key: value for key, value in exported.items() if key[0] in INGEST} == recorded


def test_a_training_has_the_same_numbers_through_ray(watched: Watched) -> None:
    bad, refused = ("genlip_train_bad_samples_total", "", ""), ("genlip_train_refused_steps_total", "", "")
    samples = _scrape(watched.head.metrics_url, lambda samples: refused in samples)
    recorded = _recorded(watched.run_dir, "train")
    assert samples[refused] == recorded[refused] == 1
    assert samples[bad] == 6  # five, and one since it began anew
    assert recorded[bad] == 1
    assert {name for name, _, _ in recorded} == set(METRICS) - set(INGEST)
    levels = {key: value for key, value in recorded.items() if not is_counter(key[0])}
    assert {key: value for key, value in samples.items() if key in levels} == levels
    assert levels["genlip_train_samples_seen", "", ""] == 300


# ---------------------------------------------------------------- a real Prometheus


@contextmanager
def _prometheus(folder: Path, service_discovery: Path, exporter_port: int) -> Iterator[str]:
    """It reads the shipped configuration, with the places of this test and less patience."""
    config: dict[str, Any] = yaml.safe_load((CLUSTER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CLUSTER / "prometheus_rules.yaml")]
    ray, genlip = config["scrape_configs"]
    ray["file_sd_configs"][0] |= {"files": [str(service_discovery)], "refresh_interval": "1s"}
    genlip["static_configs"][0]["targets"] = [f"127.0.0.1:{exporter_port}"]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "log").open("wb") as log:
        options = [f"--web.listen-address=127.0.0.1:{port}"]
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/api/v1/query?"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _exporter(run_dir: Path) -> Iterator[int]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "jobs.cli", "exporter", str(run_dir), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def _query(api: str, expression: str) -> list[dict[str, Any]]:
    url = api + urllib.parse.urlencode({"query": expression})
    answer: dict[str, Any] = json.load(urllib.request.urlopen(url, timeout=10))
    assert answer["status"] == "success"
    return list(answer["data"]["result"])


def _wait_for(api: str, expression: str, num_series: int) -> list[dict[str, Any]]:
    end = time.monotonic() + MAX_WAIT_S
    while time.monotonic() < end:
        try:
            if len(found := _query(api, expression)) == num_series:
                return found
        except OSError:
            pass  # it is not there yet
        time.sleep(0.5)
    raise AssertionError(expression)


@pytest.mark.skipif(not shutil.which("prometheus"), reason="no Prometheus here (Debian: prometheus)")
def test_prometheus_reads_both_ways_alike_and_every_panel_shows_something(watched: Watched, tmp_path: Path) -> None:
    panels = json.loads((CLUSTER / "grafana.json").read_text())["panels"]
    with _exporter(watched.run_dir) as port, _prometheus(tmp_path, watched.head.service_discovery, port) as api:
        both = _wait_for(api, 'rate(genlip_ingest_rows_total{status="success"}[1m])', 2)
        _wait_for(api, "deriv(genlip_train_step[1m])", 2)
        assert {series["metric"]["job"] for series in both} == {"ray", "genlip"}
        assert len({series["value"][1] for series in _query(api, 'genlip_ingest_rows_total{reason="http_404"}')}) == 1
        assert _query(api, '{__name__=~"ray_genlip_.+"}') == []
        for panel in panels:
            for target in panel.get("targets", []):
                is_empty = not _query(api, target["expr"].replace("$run", ".*"))
                assert is_empty == (panel["title"] == "Units that waited"), panel["title"]  # none had to
        _wait_for(api, 'ALERTS{alertname="GenlipDataWait", alertstate="pending"}', 2)  # data-wait is 7 %
