"""`genlip submit` as a command: what it ships, what it refuses, and how the parts of a job array fit together."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cluster import kubernetes, slurm
from jobs.cluster.package import MAX_BYTES, RECIPE_FILE, pack
from jobs.cluster.work import Verb
from jobs.ingest import Part, parse_part
from jobs.recipe import load_recipe
from pipeline.errors import UserError
from pipeline.ledger import committed_units
from pipeline.store import Store
from tests.jobs.ingest_runs import ingest_in_a_loop, run_ingest, visible_files, write_recipe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "jobs" / "recipes" / "cluster_example.yaml"


def _submit(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    command = [sys.executable, "-m", "jobs.cli", "submit", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def _program(folder: Path, name: str, text: str) -> None:
    """Stands in for a cluster's own tool, which there is no cluster for."""
    (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


# ---------------------------------------------------------------- the package of a Ray job


def test_a_package_holds_what_is_not_ignored_and_genlip_and_the_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    for name in ("plugin.py", "big/data.bin", "sub/kept.txt", "sub/dropped.log", ".git/config", ".venv/x", "a/b.tmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / ".rayignore").write_text("/big/\n")
    (folder / ".gitignore").write_text("*.tmp\n")
    (folder / "sub" / ".rayignore").write_text("*.log\n")
    with zipfile.ZipFile(pack(folder, "name: x\n", tmp_path)) as archive:
        names = set(archive.namelist())
        assert archive.read(RECIPE_FILE) == b"name: x\n"
    code = {name for name in names if name.split("/")[0] in ("jobs", "pipeline", "model", "train")}
    assert names - code == {RECIPE_FILE, "plugin.py", "sub/kept.txt", ".rayignore", ".gitignore", "sub/.rayignore"}
    assert {"jobs/cli.py", "pipeline/work.py", "jobs/cluster/templates/pod.yaml"} <= code
    assert not [name for name in code if "__pycache__" in name]


def test_a_package_beyond_the_limit_is_refused_with_its_largest_entries(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    (folder / "store" / "raw").mkdir(parents=True)
    with (folder / "store" / "raw" / "u00000000.tar").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"10\d\.\d MiB(.|\n)*the largest: store/raw 100\.0 MiB(.|\n)*\.rayignore"):
        pack(folder, "", tmp_path)


def test_the_checkout_itself_fits(tmp_path: Path) -> None:
    package = pack(ROOT, "", tmp_path)
    assert package.stat().st_size < 20 << 20
    with zipfile.ZipFile(package) as archive:
        assert not [name for name in archive.namelist() if name.startswith((".git/", "tests/"))]


# ---------------------------------------------------------------- the command


def test_a_tool_that_is_missing_is_a_message_and_exit_code_3(tmp_path: Path) -> None:
    for to, tool in (("kubernetes", "kubectl"), ("slurm", "sbatch")):
        done = _submit(tmp_path, str(EXAMPLE), "train", "--to", to)
        assert done.returncode == 3
        assert f"{tool} is not installed here" in done.stderr
        assert "--render" in done.stderr


def test_no_ray_at_the_address_is_a_message_and_exit_code_3(tmp_path: Path) -> None:
    done = _submit(tmp_path, str(EXAMPLE), "ingest", "--to", "ray", "--address", "http://127.0.0.1:1")
    assert done.returncode == 3
    assert "no Ray cluster answers" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("verb", "to"), [("demo", "ray"), ("train", "cloud"), ("cluster", "slurm"), ("cluster", "ray")]
)
def test_what_cannot_be_submitted_is_a_message(tmp_path: Path, verb: str, to: str) -> None:
    done = _submit(tmp_path, str(EXAMPLE), verb, "--to", to, "--render")
    assert done.returncode == 2
    assert "next:" in done.stderr or "write one of" in done.stderr


def test_kubectl_creates_the_job_before_its_recipe_and_a_second_job_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _program(tmp_path, "kubectl", f"echo $1 >> {tmp_path}/calls; cat >> {tmp_path}/calls")
    kubernetes.submit(load_recipe(EXAMPLE), Verb.INGEST)
    calls = (tmp_path / "calls").read_text()
    assert calls.index("create\n") < calls.index("kind: RayJob") < calls.index("apply\n") < calls.index("ConfigMap")
    (tmp_path / "calls").unlink()
    _program(tmp_path, "kubectl", f"echo $1 >> {tmp_path}/calls; echo 'Error (AlreadyExists)' >&2; exit 1")
    with pytest.raises(UserError, match="there already"):
        kubernetes.submit(load_recipe(EXAMPLE), Verb.INGEST)
    assert (tmp_path / "calls").read_text() == "create\n"


def test_sbatch_gets_the_scripts_in_the_order_of_their_dependence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _program(tmp_path, "sbatch", f"echo $* >> {tmp_path}/calls; cat > /dev/null; wc -l < {tmp_path}/calls")
    recipe = load_recipe(EXAMPLE)
    assert slurm.submit(slurm.render(recipe, Verb.INGEST, EXAMPLE, [])) == ["1", "2", "3"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["--parsable", "--parsable --dependency=afterok:1", "--parsable --dependency=afterany:2"]


# ---------------------------------------------------------------- training under SLURM


@pytest.mark.parametrize(("restarts", "code", "requeued"), [("0", 75, True), ("10", 75, False), ("0", 1, False)])
def test_a_training_that_is_told_to_stop_is_requeued_within_bounds(
    tmp_path: Path, restarts: str, code: int, requeued: bool
) -> None:
    """The script in bash, with a `srun` that ends as the trainer does when it finds the stop file."""
    run_dir = tmp_path / "runs" / "stage1-l16"
    run_dir.mkdir(parents=True)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    _program(tmp_path, "scontrol", f"[ $1 = requeue ] && echo $2 >> {tmp_path}/requeued || echo node1")
    stop_or_fail = f"while [ ! -e {run_dir}/stop ]; do sleep 0.05; done"
    _program(tmp_path, "srun", f"kill -TERM $PPID; {stop_or_fail}; exit {code}")
    recipe = load_recipe(EXAMPLE, [f"runs={tmp_path}/runs", f"cluster.slurm.environment={tmp_path}/venv"])
    (script,) = slurm.render(recipe, Verb.TRAIN, EXAMPLE, [])
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_RESTART_COUNT": restarts}
    env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    done = subprocess.run(["bash", "-c", script.text], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "requeued").exists() == requeued


# ---------------------------------------------------------------- parts of an ingestion


def test_the_parts_of_a_plan_are_all_of_it_once() -> None:
    for num_units in (0, 1, 5, 16, 33):
        dealt = [number for index in range(4) for number in Part(index, 4).numbers(num_units)]
        assert sorted(dealt) == list(range(num_units))


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "a/b", "1/0", "/4"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write I/N"):
        parse_part(text)


@pytest.mark.ray
@pytest.mark.slow
def test_a_part_is_its_units_and_no_others_as_one_command_makes_them(
    tmp_path: Path, server_url: str, url_table: Callable[[str, Path], Path]
) -> None:
    urls = url_table(server_url, tmp_path)
    recipe, store = write_recipe(tmp_path, urls, "array", unit_samples=50), Store(str(tmp_path / "array"))
    code, output = run_ingest(recipe, "--part", "1/2")
    assert (code, "--part plan" in output) == (2, True)
    assert run_ingest(recipe, "--part", "plan")[0] == 0
    code, output = run_ingest(recipe, "--part", "1/2")
    assert (code, "part 1/2 has 3, 3 still to do" in output) == (0, True), output
    assert committed_units(store) == ["u00000001", "u00000003", "u00000005"]
    whole = visible_files(ingest_in_a_loop(write_recipe(tmp_path, urls, "loop", unit_samples=50)))
    assert visible_files(store).items() <= whole.items()
