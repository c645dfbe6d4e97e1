"""What a command leaves in RUN/stages: its record, its signs of life and its log, however it ends."""

import json
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from jobs import console, stages
from jobs.console import Progress, say
from jobs.stages import Stats, current_stage, read_stats, recorded
from pipeline.errors import EXIT_ENVIRONMENT, EXIT_FAILED_UNITS, EXIT_PREEMPTED, UserError


def count(done: int, exit_code: int = 0) -> int:
    """Stands for a verb of four units."""
    stage = current_stage()
    assert stage is not None
    stage.progress(done, 4, "units", {"genlip_ingest_rows_total": 10.0 * done})
    say(f"{done} of 4 units")
    return exit_code


def refuse(exit_code: int) -> NoReturn:
    raise UserError("it does not work", where="ingest.source", next_step="do it well", exit_code=exit_code)


def the_record(run_dir: Path, name: str = "ingest") -> Stats:
    stats = read_stats(run_dir / "stages" / name)
    assert stats is not None
    return stats


def the_log(run_dir: Path, name: str = "ingest") -> str:
    return (run_dir / "stages" / name / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("exit_code", "state"), [(0, "done"), (EXIT_FAILED_UNITS, "failed"), (EXIT_PREEMPTED, "stopped")]
)
def test_the_exit_code_says_how_it_ended(tmp_path: Path, exit_code: int, state: str) -> None:
    assert recorded(lambda: count(3, exit_code), tmp_path, "ingest") == exit_code
    stats = the_record(tmp_path)
    assert (stats.state, stats.exit_code, stats.done, stats.total) == (state, exit_code, 3, 4)
    assert stats.line == "3 of 4 units"
    assert current_stage() is None


def test_errors_are_recorded_and_logged_as_the_user_sees_them(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        recorded(lambda: refuse(EXIT_ENVIRONMENT), tmp_path, "ingest")
    stats = the_record(tmp_path)
    assert (stats.state, stats.exit_code) == ("failed", EXIT_ENVIRONMENT)
    assert stats.message.splitlines() == ["it does not work", "  where: ingest.source", "  next:  do it well"]
    assert "error: it does not work" in the_log(tmp_path)
    with pytest.raises(ZeroDivisionError):
        recorded(lambda: 1 // 0, tmp_path, "ingest")
    assert "Traceback" in the_log(tmp_path)
    assert the_record(tmp_path).exit_code == 1


def test_ctrl_c_stops_and_is_no_failure(tmp_path: Path) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(interrupt, tmp_path, "ingest")
    assert the_record(tmp_path).state == "stopped"


def test_attempts_are_counted_and_go_on_from_what_is_known(tmp_path: Path) -> None:
    recorded(lambda: count(3, EXIT_FAILED_UNITS), tmp_path, "ingest")
    with pytest.raises(UserError):
        recorded(lambda: refuse(EXIT_ENVIRONMENT), tmp_path, "ingest")
    stats = the_record(tmp_path)
    assert (stats.attempt, stats.done, stats.total) == (2, 3, 4)
    assert stats.numbers["genlip_ingest_rows_total"] == 30.0
    assert the_log(tmp_path).count("· attempt ") == 2


def test_a_refusal_touches_nothing_and_does_not_hide_what_is_done(tmp_path: Path) -> None:
    recorded(lambda: count(4), tmp_path, "ingest")
    before = the_record(tmp_path)
    with pytest.raises(UserError):
        recorded(lambda: refuse(2), tmp_path, "ingest")
    assert the_record(tmp_path) == before
    assert "error: it does not work" in the_log(tmp_path)
    with pytest.raises(UserError):
        recorded(lambda: refuse(2), tmp_path, "curate")
    assert the_record(tmp_path, "curate").state == "failed"


def test_a_command_that_says_nothing_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "HEARTBEAT_EVERY_S", 0.01)

    def keep_still() -> int:
        began = the_record(tmp_path)
        give_up_at = time.monotonic() + 60
        while the_record(tmp_path).updated_unix_s == began.updated_unix_s:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        assert the_record(tmp_path).state == "running"
        return 0

    recorded(keep_still, tmp_path, "ingest")
    ended = the_record(tmp_path)
    time.sleep(0.1)
    assert the_record(tmp_path) == ended, "it lives no longer than its command"


def test_the_log_has_lines_with_their_time_and_of_a_loop_only_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loop() -> int:
        say("begin\n  a table\n")
        progress = Progress()
        for number in range(100):
            progress.show(f"{number} of 100", number / 100)
        progress.show("100 of 100", 1.0, final=True)
        return 0

    recorded(loop, tmp_path, "ingest")
    lines = the_log(tmp_path).splitlines()
    assert [line.split("  ", 1)[1] for line in lines[1:-1]] == ["begin", "  a table", "100 of 100"]
    assert all(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") for line in lines)
    assert capsys.readouterr().out == "begin\n  a table\n\n100 of 100\n"
    assert the_record(tmp_path).share == 1.0

    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    recorded(loop, tmp_path, "curate")
    assert "  41 of 100" in the_log(tmp_path, "curate")


def test_the_command_of_a_job_is_the_one_that_submitted_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/genlip", "ingest", "a recipe.yaml"])
    recorded(lambda: count(4), tmp_path, "ingest")
    assert the_record(tmp_path).command == "genlip ingest 'a recipe.yaml'"
    assert the_record(tmp_path).cwd == str(Path.cwd())
    monkeypatch.setenv(stages.SUBMITTED_BY, "genlip submit r.yaml ingest --to ray")
    recorded(lambda: count(4), tmp_path, "ingest")
    assert the_record(tmp_path).command == "genlip submit r.yaml ingest --to ray"
    assert the_record(tmp_path).cwd == ""


def test_of_a_group_the_first_process_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert recorded(lambda: EXIT_PREEMPTED, tmp_path, "train") == EXIT_PREEMPTED
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    recorded(lambda: 0, tmp_path, "train")
    assert the_record(tmp_path, "train").state == "done"


@pytest.mark.parametrize("folder", ["a-file/run", "s3:/bucket/run"])
def test_a_run_folder_that_cannot_be_written_stops_no_command(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    assert recorded(lambda: EXIT_FAILED_UNITS, Path(folder), "ingest") == EXIT_FAILED_UNITS
    assert f"genlip status will not see this, {folder}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_failed_units_are_named_up_to_a_bound(tmp_path: Path) -> None:
    def fail() -> int:
        stage = current_stage()
        assert stage is not None
        for number in range(stages.MAX_FAILED_UNITS + 5):
            stage.unit_failed(f"u{number:08d}", "host_down")
        return EXIT_FAILED_UNITS

    recorded(fail, tmp_path, "ingest", "3/16")
    record = json.loads((tmp_path / "stages/ingest-3-16/stats.json").read_text(encoding="utf-8"))
    assert record["num_failed_units"] == stages.MAX_FAILED_UNITS + 5
    assert len(record["failed_units"]) == stages.MAX_FAILED_UNITS
    assert record["part"] == "3/16"
