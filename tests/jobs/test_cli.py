"""The command line: it starts fast, its verbs and options are frozen here, and errors are messages with exit codes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer.main
import yaml

from jobs.cli import app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "pyarrow", "transformers", "cv2", "deepspeed")

OPTIONS_OF = {
    "plan": ["RECIPE", "--scale", "--set"],
    "bench": ["RECIPE", "--only", "--corpus", "--set"],
    "ingest": ["RECIPE", "--retry", "--part", "--set"],
    "annotate": ["RECIPE", "--set"],
    "select": ["RECIPE", "--explain", "--compare", "--set"],
    "curate": ["RECIPE", "--set"],
    "inspect": ["STORE"],
    "index": ["FILES", "--store", "--name", "--caption", "--image"],
    "audit": ["RUN"],
    "verify-resume": ["RUN", "--steps"],
    "tokenizer": ["RECIPE", "--set"],
    "train": ["RECIPE", "--dry-run", "--allow", "--set"],
    "overfit": ["RECIPE", "--steps", "--set"],
    "eval": ["RUN", "--data", "--tokenizer", "--set"],
    "compare": ["RECIPE", "--set"],
    "caption": ["RUN", "[IMAGE]...", "--heldout", "--sheet"],
    "report": ["RUN"],
    "submit": ["RECIPE", "VERB", "--to", "--address", "--render", "--set"],
    "status": ["RUN", "--json", "--watch"],
    "logs": ["RUN", "VERB", "--follow", "--lines"],
    "exporter": ["RUN", "--port", "--textfile"],
    "demo": ["--out", "--corpus", "--tier", "--set"],
}

# Runs the command in this process's place, then says on stderr which heavy packages it loaded.
WATCHED = f"""
import sys
from jobs.cli import main
try:
    main()
except SystemExit as end:
    sys.stderr.write("heavy: " + " ".join(name for name in {HEAVY} if name in sys.modules))
    raise
"""


def _genlip(folder: Path, *arguments: str, watched: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", WATCHED] if watched else ["-m", "jobs.cli"]), *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def recipe(tmp_path: Path, url_table: Callable[[str, Path], Path]) -> Path:
    """A recipe for a real URL table, whose server is not running."""
    url_table("http://127.0.0.1:1", tmp_path)
    content = {
        "name": "test",
        "store": "store",
        "ingest": {"source": {"urls": "urls.parquet"}, "unit_samples": 100, "fetch": {"timeout_s": 4, "in_flight": 20}},
        "train": {"length": "8k samples"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def _assert_is_refusal(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout


# ---------------------------------------------------------------- help


def test_the_verbs_and_their_options_are_these() -> None:
    group = typer.main.get_command(app)
    found = {}
    for verb, command in group.commands.items():  # type: ignore[attr-defined]
        names = [p.metavar if p.param_type_name == "argument" else p.opts[0] for p in command.params]
        found[verb] = [name for name in names if name != "--help"]
    assert found == OPTIONS_OF


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    done = _genlip(tmp_path, *arguments, watched=True)
    assert done.returncode == 0
    assert done.stderr == "heavy: "
    assert "Usage" in done.stdout


def test_help_names_every_verb(tmp_path: Path) -> None:
    done = _genlip(tmp_path, "--help")
    assert done.returncode == 0
    for verb in OPTIONS_OF:
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize("verb", OPTIONS_OF)
def test_the_help_of_each_verb_names_its_options(tmp_path: Path, verb: str) -> None:
    done = _genlip(tmp_path, verb, "--help")
    assert done.returncode == 0
    for name in OPTIONS_OF[verb]:
        assert name in done.stdout


@pytest.mark.parametrize("arguments", [["plann"], ["plan"], ["plan", "recipe.yaml", "--sett", "a=1"]], ids=" ".join)
def test_wrong_usage_exits_2_without_a_traceback(tmp_path: Path, arguments: list[str]) -> None:
    done = _genlip(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------- errors


def test_a_typo_in_the_recipe_is_a_message(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("timeout_s", "timeout"))
    done = _genlip(recipe.parent, "plan", "recipe.yaml")
    _assert_is_refusal(done)
    assert "did you mean ingest.fetch.timeout_s?" in done.stderr


def test_a_wrong_set_and_an_absent_recipe_are_messages(recipe: Path) -> None:
    done = _genlip(recipe.parent, "plan", "recipe.yaml", "--set", "seed")
    _assert_is_refusal(done)
    assert "--set section.key=value" in done.stderr
    done = _genlip(recipe.parent, "plan", "absent.yaml")
    _assert_is_refusal(done)
    assert "absent.yaml" in done.stderr


def test_eval_of_a_folder_that_is_no_run_is_a_message(tmp_path: Path) -> None:
    done = _genlip(tmp_path, "eval", str(tmp_path))
    _assert_is_refusal(done)
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- plan


def test_plan_prints_the_arithmetic_and_writes_nothing(recipe: Path) -> None:
    num_rows = pq.read_metadata(recipe.parent / "urls.parquet").num_rows
    before = _listing(recipe.parent)
    done = _genlip(recipe.parent, "plan", "recipe.yaml", "--set", "ingest.unit_samples=50", watched=True)
    assert done.returncode == 0
    num_units = -(-num_rows // 50)
    units = f"{num_units} units; 0 committed, {num_units} to do"
    assert f"{num_rows} rows in 1 files ÷ 50 rows a unit = {units}" in done.stdout
    assert "50 ÷ 20 × 4 s = 10 s" in done.stdout
    assert "genlip ingest RECIPE" in done.stdout
    assert {"torch", "ray"}.isdisjoint(done.stderr.split())
    assert _listing(recipe.parent) == before


def test_plan_of_an_absent_table_says_what_to_set(recipe: Path) -> None:
    done = _genlip(recipe.parent, "plan", "recipe.yaml", "--set", "ingest.source.urls=absent.parquet")
    _assert_is_refusal(done)
    assert "--set ingest.source.urls=PATH" in done.stderr
