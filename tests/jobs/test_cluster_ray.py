"""`genlip submit --to ray` against a real `ray start --head`: the work is done there, once, and can be watched."""

import json
import shlex
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from jobs.stages import read_stats
from jobs.status.command import show_status
from pipeline.store import Store
from tests.jobs.ingest_runs import ingest_in_a_loop, visible_files, write_recipe
from tests.jobs.ray_head import Head, ray_head
from train.audit import audit_run

MAX_JOB_S = 300


def _end_of_the_job(head: Head, folder: Path, submission_id: str) -> tuple[str, str]:
    """How it ended, and what it said."""
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    question = urllib.request.Request(f"{head.address}/api/jobs/{submission_id}")
    question.add_header("Authorization", f"Bearer {token}")
    end = time.monotonic() + MAX_JOB_S
    while time.monotonic() < end:
        with urllib.request.urlopen(question, timeout=30) as answer:
            status = json.load(answer)["status"]
        if status in ("SUCCEEDED", "FAILED", "STOPPED"):
            logs = head.run(folder, "ray.scripts.scripts", "job", "logs", "--address", head.address, submission_id)
            return status, logs.stdout
        time.sleep(0.5)
    raise AssertionError("the job does not end")


@pytest.mark.ray
@pytest.mark.slow
def test_ingestion_and_training_are_submitted_once_and_watched(
    tmp_path: Path, server_url: str, url_table: Callable[[str, Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    urls = url_table(server_url, tmp_path)
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    recipe = _write_trained_recipe(there, urls)
    with ray_head() as head:
        cluster = ("--to", "ray", "--address", head.address)
        submit = ("jobs.cli", "submit", str(recipe), "ingest", *cluster)
        first = head.run(here, *submit)
        assert "submitted as run-ingest-1" in first.stdout, first.stderr
        second = head.run(here, *submit)
        assert second.returncode == 2
        assert "running already, as run-ingest-1" in second.stderr
        status, logs = _end_of_the_job(head, here, "run-ingest-1")
        assert status == "SUCCEEDED", logs
        *_, last, end = head.run(here, "jobs.cli", "logs", str(recipe), "ingest").stdout.splitlines()
        assert end.endswith("=== done, exit code 0")
        assert last.partition("  ")[2] in logs  # behind its time
        ingested = visible_files(Store(str(there / "store")))
        for verb in ("tokenizer", "train"):
            done = head.run(here, "jobs.cli", "submit", str(recipe), verb, *cluster)
            assert f"submitted as run-{verb}-1" in done.stdout, done.stderr
            status, logs = _end_of_the_job(head, here, f"run-{verb}-1")
            assert status == "SUCCEEDED", logs
    run_dir = there / "runs" / "run"
    _check_status(run_dir, submit, capsys)
    assert audit_run(run_dir).problems == []
    loop = write_recipe(tmp_path, urls, "loop", unit_samples=50)
    assert ingested == visible_files(ingest_in_a_loop(loop))


def _write_trained_recipe(folder: Path, urls: Path) -> Path:
    path = write_recipe(folder, urls, "store", unit_samples=50)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content |= {"tokenizer": {"vocab_size": 400}, "model": {"preset": "nano8", "image_px": 32}}
    content["train"] = {"length": 40, "lanes": 2, "row_tokens": 128, "threads": 1, "log_every": 1, "precision": "fp32"}
    content["run"] = {"workers": 2}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _check_status(run_dir: Path, submit: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run whose cluster is gone."""
    capsys.readouterr()
    assert show_status(run_dir, as_json=True, watch=False) == 0
    rows = {row["verb"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    assert {verb: rows[verb]["state"] for verb in ("ingest", "train")} == {"ingest": "done", "train": "done"}
    assert rows["train"]["done"] >= 40
    record = read_stats(run_dir / "stages" / "ingest")
    assert record is not None
    assert record.command == shlex.join(["genlip", *submit[1:]])
