"""`genlip status`: a run by its folders alone, with what failed, what has died, and the command that goes on."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ingest_runs import MAX_WAIT_S, run_ingest, start_ingest, wait_for_the_end, write_recipe

from jobs.console import say
from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.demo.server import start_server
from jobs.demo.urls import write_url_table
from jobs.recipe import load_recipe
from jobs.stages import current_stage, read_stats, recorded
from jobs.status.command import show_status
from jobs.status.logs import show_log
from jobs.status.records import SILENT_AFTER_S
from pipeline.errors import EXIT_FAILED_UNITS, EXIT_PREEMPTED, UserError
from pipeline.store import Store
from tests.stores import Stored, make_store
from train.metrics import StepMetrics, log_metrics

ALL_STAGES = ["ingest", "curate", "tokenizer", "train", "eval"]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of which nothing has been run; commands run beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    path = write_recipe(Path(), Path("urls.parquet"), "store")
    monkeypatch.setattr(sys, "argv", ["genlip", "ingest", str(path)])
    return path


@pytest.fixture
def run_dir(recipe: Path) -> Path:
    return load_recipe(recipe).run_dir


@pytest.fixture
def look(recipe: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command's exit code, its JSON and its text."""

    def run() -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = show_status(recipe, as_json=True, watch=False)
        status = json.loads(capsys.readouterr().out)
        assert show_status(recipe, as_json=False, watch=False) == code
        return code, status, capsys.readouterr().out

    return run


def row_of(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {row["name"]: row for row in status["stages"]}[name]
    return found


def states_of(status: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["state"] for row in status["stages"]}


def units(done: int, total: int, exit_code: int = 0, **failed: str) -> int:
    """Stands for a verb that counts."""
    stage = current_stage()
    assert stage is not None
    stage.progress(done, total, "units", {})
    for name, why in failed.items():
        stage.unit_failed(name, why)
    return exit_code


def rewrite(run_dir: Path, name: str, **changes: Any) -> None:
    """Make a record look as if it came from elsewhere."""
    path = run_dir / "stages" / name / "stats.json"
    stats = read_stats(path.parent)
    assert stats is not None
    path.write_text(json.dumps(asdict(replace(stats, **changes))), encoding="utf-8")


def train_line(step: int, samples: int) -> StepMetrics:
    shares = {"data": 0.031, "forward": 0.5, "backward": 0.469}
    rates = {"samples_per_s": 34.5, "tokens_per_s": 900.0, "flops_per_s": 1e12, "mfu": None}
    read: dict[str, Any] = {"time_shares": shares, "checkpoint_stall_s": 0.0, "num_bad_samples": 0, "read": {}}
    clock = {"memory_gib": 1.0, "uptime_s": 9.0, "unix_s": time.time(), "eta_s": 125.0}
    return StepMetrics(step, samples, {}, 2.5, {}, 1.0, 1e-3, **rates, **read, **clock)  # type: ignore[arg-type]


# ---------------------------------------------------------------- from records


def test_before_anything_has_been_run_it_says_what_to_run(look: Any, recipe: Path, run_dir: Path) -> None:
    code, status, text = look()
    assert code == 0
    assert states_of(status) == dict.fromkeys(ALL_STAGES, "not begun")
    assert status["next"] == f"genlip ingest {recipe}"
    assert text.endswith(f"\nnext: genlip ingest {recipe}\n")
    assert not run_dir.exists(), "looking leaves no trace"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder nor a recipe") as refusal:
        show_status(tmp_path, as_json=False, watch=False)
    assert refusal.value.exit_code == 2


def test_failed_units_are_listed_with_the_command_that_retries_them(look: Any, recipe: Path, run_dir: Path) -> None:
    failed = {f"u{number:08d}": "12 of 100 rows answered, 50% wanted; most often host_down" for number in range(7)}
    recorded(lambda: units(15, 22, EXIT_FAILED_UNITS, **failed), run_dir, "ingest", recipe=load_recipe(recipe))
    code, status, text = look()
    assert code == 1
    assert not status["is_well"]
    assert row_of(status, "ingest")["failed_units"] == failed
    assert "ingest     failed     [#############.......]  68%  15 of 22 units · 0 s ago" in text
    assert "    exit code 1 after 0 s\n    7 units stay pending:\n      u00000000  12 of 100 rows answered" in text
    assert f"      and 2 more\n      retry: genlip ingest {recipe}\n" in text
    assert status["next"] == f"genlip ingest {recipe}"
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_command_stopped_on_request_is_no_failure(look: Any, run_dir: Path) -> None:
    recorded(lambda: EXIT_PREEMPTED, run_dir, "train")
    code, status, _ = look()
    assert code == 0
    assert states_of(status)["train"] == "stopped"


def test_commands_are_repeated_where_they_were_run(
    look: Any, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "else where").mkdir()
    run_dir = run_dir.resolve()
    monkeypatch.chdir(tmp_path / "else where")
    recorded(lambda: units(1, 2, EXIT_FAILED_UNITS), run_dir, "ingest")
    monkeypatch.chdir(tmp_path)
    assert look()[1]["next"] == f"cd '{tmp_path}/else where' && genlip ingest store.yaml"


def test_a_job_array_is_one_line_that_names_the_parts_to_look_at(
    look: Any, recipe: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_part(part: str, done: int, exit_code: int, **failed: str) -> None:
        monkeypatch.setattr(sys, "argv", ["genlip", "ingest", str(recipe), "--part", part])
        recorded(lambda: units(done, 10, exit_code, **failed), run_dir, "ingest", part, load_recipe(recipe))

    recorded(lambda: 0, run_dir, "ingest", "plan", load_recipe(recipe))
    run_part("0/4", 10, 0)
    run_part("1/4", 6, EXIT_FAILED_UNITS, u00000001="host_down")
    run_part("3/4", 4, 0)
    rewrite(run_dir, "ingest-3-4", state="running", host="node7", updated_unix_s=time.time() - SILENT_AFTER_S - 1)
    code, status, text = look()
    assert code == 1
    assert list(states_of(status)) == ["ingest plan", "ingest parts", *ALL_STAGES[1:]]
    parts = row_of(status, "ingest parts")
    assert (parts["state"], parts["done"], parts["total"], parts["num_parts"]) == ("silent", 20, 40, 4)
    assert parts["parts"] == {"silent": 1, "failed": 1, "not begun": 1, "done": 1}
    assert parts["failed_units"] == {"u00000001": "host_down"}
    assert [trouble["command"] for trouble in parts["troubles"]] == [
        f"genlip ingest {recipe} --part {part}" for part in ("1/4", "3/4")
    ]
    assert "    4 parts: 1 done, 1 not begun, 1 failed, 1 silent\n    not begun: 2/4\n" in text
    assert "    part 3/4: no sign of life since" in text
    assert f"      retry: genlip ingest {recipe} --part 3/4\n" in text
    assert "on node7\n" in text, "whether a process of another machine is gone is not known"
    assert status["next"] == f"genlip ingest {recipe}", "which does what is left of all parts"

    monkeypatch.setattr(sys, "argv", ["genlip", "ingest", str(recipe)])
    recorded(lambda: units(40, 40), run_dir, "ingest", "", load_recipe(recipe))
    code, status, text = look()
    assert code == 0
    assert row_of(status, "ingest parts")["covered_by"] == "ingest"
    assert "host_down" not in text


def test_a_failed_curation_is_forgiven_once_a_later_ingestion_has_curated(look: Any, run_dir: Path) -> None:
    recorded(lambda: EXIT_FAILED_UNITS, run_dir, "curate")
    assert look()[0] == 1
    recorded(lambda: units(4, 4), run_dir, "ingest")
    code, status, _ = look()
    assert code == 0
    assert row_of(status, "curate")["covered_by"] == "ingest"
    recorded(lambda: EXIT_FAILED_UNITS, run_dir, "curate")
    assert look()[0] == 1, "what fails afterwards is a failure"


def test_signs_of_life_from_another_machine_tell_running_from_silent(look: Any, run_dir: Path) -> None:
    recorded(lambda: units(3, 4), run_dir, "ingest")
    began = time.time() - 300
    rewrite(run_dir, "ingest", state="running", host="node7", started_unix_s=began, rate_per_s=0.5)
    code, status, text = look()
    assert (code, states_of(status)["ingest"], status["next"]) == (0, "running", "")
    assert row_of(status, "ingest")["eta_s"] == pytest.approx(2.0)
    assert "3 of 4 units · eta 2 s, 0.5/s" in text
    assert text.endswith("--follow\n")
    rewrite(run_dir, "ingest", state="running", host="node7", updated_unix_s=time.time() - SILENT_AFTER_S - 1)
    code, status, text = look()
    assert (code, states_of(status)["ingest"]) == (1, "silent")
    assert "no sign of life since" in text


def test_training_shows_its_latest_line(look: Any, recipe: Path, run_dir: Path) -> None:
    recorded(lambda: 0, run_dir, "train", recipe=load_recipe(recipe))
    rewrite(run_dir, "train", state="running", host="node7")
    for step in range(1, 4):
        log_metrics(run_dir, train_line(step, 100 * step))
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "sam')
    (run_dir / "refused-steps.jsonl").write_text('{"step": 2}\n')
    (run_dir / "checkpoints/step-00000002").mkdir(parents=True)
    code, status, text = look()
    assert "checkpoint none yet" in text
    (run_dir / "checkpoints/step-00000002/COMMITTED").touch()
    code, status, text = look()
    assert code == 0
    row, training = row_of(status, "train"), status["training"]
    assert (row["done"], row["total"], row["share"], row["eta_s"]) == (300, 1000, 0.3, 125.0)
    assert (training["step"], training["loss"], training["num_refused_steps"]) == (3, 2.5, 1)
    assert "train      running    [######..............]  30%  300 of 1,000 samples · eta 2 min 05 s, 34.5/s" in text
    assert "    step 3 · loss 2.5000 · 34.5 samples/s · data-wait 3.1% · checkpoint 0 s ago · 1 steps refused" in text


def test_a_run_without_records_is_told_by_its_results(look: Any, recipe: Path, run_dir: Path, tmp_path: Path) -> None:
    store = make_store([[Stored("a"), Stored("b")], [Stored("c")]], str(tmp_path / "store"))
    code, status, _ = look()
    assert states_of(status)["ingest"] == "not begun", "there is no plan"
    store.write("shards/demo/index.parquet", b"")
    (run_dir / "tokenizer").mkdir(parents=True)
    log_metrics(run_dir, train_line(3, 1000))
    code, status, _ = look()
    assert code == 0
    assert [(row["state"], row["source"]) for row in status["stages"][1:4]] == [("done", "files")] * 3
    assert status["next"] == f"genlip eval {run_dir}", "shards may come from elsewhere than an ingestion"
    recorded(lambda: EXIT_PREEMPTED, run_dir, "train")
    assert look()[1]["next"] == "genlip ingest store.yaml", "which stands for the command line in these tests"
    recorded(lambda: 0, run_dir, "eval")
    recorded(lambda: 0, run_dir, "train")
    assert look()[1]["next"] == f"genlip eval {run_dir}", "of what has been trained since"
    recorded(lambda: 0, run_dir, "eval")
    assert look()[2].endswith("\nnothing is left to do\n")


def test_a_store_that_cannot_be_read_hides_no_records(look: Any, recipe: Path, run_dir: Path) -> None:
    recorded(lambda: units(4, 4), run_dir, "ingest")
    recipe.write_text(recipe.read_text().replace("store: store", "store: nonsense://store"), encoding="utf-8")
    code, status, text = look()
    assert code == 0
    assert states_of(status) == {"ingest": "done"}
    assert "no file system for this URL" in text


# ---------------------------------------------------------------- the commands


def genlip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=MAX_WAIT_S, check=False)


def kill_in_the_middle(recipe: Path) -> None:
    """SIGKILL an ingestion that has committed a unit."""
    store = Store(load_recipe(recipe).store)
    process = start_ingest(recipe)
    give_up_at = time.monotonic() + MAX_WAIT_S
    while not store.names("ledger", ".parquet"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    helpers = psutil.Process(process.pid).children(recursive=True)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.communicate()
    wait_for_the_end(helpers)


@pytest.mark.ray
@pytest.mark.slow
def test_an_ingestion_that_fails_then_dies_then_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status_of(run: Path) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = show_status(run, as_json=True, watch=False)
        return code, json.loads(capsys.readouterr().out)

    urls = tmp_path / "urls.parquet"
    with start_server(FIXTURES) as base_url:
        write_url_table(read_corpus(FIXTURES), base_url, urls, seed=1)
    recipe = write_recipe(tmp_path, urls, "store", unit_samples=24, per_host_rate=60)
    store, command = Store(load_recipe(recipe).store), f"genlip ingest {recipe}"

    assert run_ingest(recipe)[0] == 1
    code, status = status_of(recipe)
    ingest = row_of(status, "ingest")
    assert (code, ingest["state"], ingest["done"], status["next"]) == (1, "failed", 0, command)
    assert ingest["num_failed_units"] == len(ingest["failed_units"]) == ingest["total"] == 11
    assert "rows answered, 50% wanted" in ingest["failed_units"]["u00000000"]

    with start_server(FIXTURES, int(base_url.rsplit(":", 1)[1])):
        kill_in_the_middle(recipe)
        code, status = status_of(recipe)
        ingest = row_of(status, "ingest")
        assert (code, ingest["state"], status["next"]) == (1, "silent", command)
        assert "is gone" in ingest["troubles"][0]["why"]
        assert (ingest["done"], ingest["total"]) == (len(store.names("ledger", ".parquet")), 11)
        again = genlip(*shlex.split(status["next"])[1:])
    assert again.returncode == 0, again.stdout + again.stderr
    code, status = status_of(recipe)
    ingest = row_of(status, "ingest")
    assert (code, ingest["state"], ingest["done"], ingest["attempt"]) == (0, "done", 11, 3)
    assert ingest["failed_units"] == {}
    assert row_of(status, "curate")["state"] == "done"
    assert status["next"] == f"genlip tokenizer {recipe}"
    by_folder = genlip("status", str(load_recipe(recipe).run_dir), "--json")
    assert (by_folder.returncode, json.loads(by_folder.stdout)["stages"]) == (0, status["stages"])

    log = genlip("logs", str(recipe), "--lines", "1000").stdout
    assert log.count(f"=== {command} · attempt ") == 3
    for line in [line for line in again.stdout.splitlines() if line.startswith("shards/demo:")]:
        assert line in log

    shutil.rmtree(load_recipe(recipe).run_dir)  # as of a store that an older version has made
    ingest = row_of(status_of(recipe)[1], "ingest")
    assert (ingest["state"], ingest["source"], ingest["done"], ingest["total"]) == ("done", "files", 11, 11)


@contextmanager
def watching(*arguments: str) -> Iterator[Callable[[str], None]]:
    """A command that goes on until Ctrl-C; gives a function that waits for a text in what it prints."""
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        yield lambda text: next(iter(line for line in process.stdout if text in line), None) or pytest.fail(text)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert "Traceback" not in output
        assert "Aborted" not in output
    finally:
        process.kill()


def test_watching_shows_what_changes(recipe: Path, run_dir: Path) -> None:
    with watching("status", str(recipe), "--watch") as wait_for:
        wait_for("ingest     not begun")
        recorded(lambda: units(3, 4), run_dir, "ingest")
        wait_for("3 of 4 units")
        recorded(lambda: units(4, 4), run_dir, "ingest")
        wait_for("4 of 4 units")


def test_logs_are_followed(recipe: Path, run_dir: Path) -> None:
    def talk() -> int:
        say("a first word")
        return 0

    recorded(talk, run_dir, "ingest")
    with watching("logs", str(recipe), "ingest", "--follow", "--lines", "2") as wait_for:
        wait_for("a first word")
        wait_for("=== done, exit code 0")
        recorded(talk, run_dir, "ingest")
        wait_for("attempt 2")
        wait_for("a first word")


def test_logs_of_the_newest_stage_and_of_one_by_name(
    recipe: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="nothing has been run yet"):
        show_log(recipe, "", follow=False, num_lines=0)
    for part in ("0/2", "1/2"):
        recorded(lambda: units(1, 1), run_dir, "ingest", part)
    recorded(lambda: 0, run_dir, "tokenizer", recipe=load_recipe(recipe))
    capsys.readouterr()
    show_log(recipe, "", follow=False, num_lines=1)
    newest = capsys.readouterr().out
    assert newest.count("\n") == 1
    show_log(run_dir, "tokenizer", follow=False, num_lines=0)
    assert capsys.readouterr().out.endswith(newest)
    show_log(recipe, "ingest-1/2", follow=False, num_lines=0)
    assert "=== genlip ingest" in capsys.readouterr().out
    with pytest.raises(UserError, match="there are: ingest-0-2, ingest-1-2, tokenizer"):
        show_log(recipe, "train", follow=False, num_lines=0)
    with pytest.raises(UserError, match="there are: ingest-0-2, ingest-1-2, tokenizer"):
        show_log(recipe, "ingest", follow=False, num_lines=0)


def test_questions_leave_no_record(recipe: Path, run_dir: Path) -> None:
    make_store([[Stored("a"), Stored("b")]], "store")
    assert genlip("select", str(recipe), "--explain", "a").returncode in (0, 2)
    assert not run_dir.exists()
