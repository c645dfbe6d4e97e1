"""The curation commands on a small store: columns once, selections in no time, kills that change no byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.store import Store
from tests.stores import Stored, jpeg, make_store, noise

MAX_WAIT_S = 240
NUM_UNITS, UNIT_SAMPLES = 10, 12

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _units() -> list[list[Stored]]:
    """Samples with captions of many lengths, some exact duplicates and some of one perceptual hash."""
    units = []
    for unit in range(NUM_UNITS):
        samples = []
        for row in range(UNIT_SAMPLES):
            number = unit * UNIT_SAMPLES + row
            caption = "a picture " + "of words " * (number % 5)
            image = noise(number % 100, width=40 + number % 7)
            samples.append(Stored(f"k{number:04d}", caption, image, phash=f"{number // 3:016x}"))
        units.append(samples)
    return units


def _recipe(folder: Path, **curate: object) -> Path:
    content = {
        "name": "run",
        "store": str(folder / "store"),
        "runs": str(folder / "runs"),
        "ingest": {"source": {"urls": str(folder / "none.parquet")}},
        "curate": {
            "annotate": [{"caption_stats": {}}, {"image_stats": {}}],
            "select": {"where": {"long_enough": "words >= 4"}, "dedup": {"near_bits": 1}},
        }
        | curate,
        "shards": {"name": "demo", "shard_samples": 20, "holdout": 0.1},
        "train": {"length": 1000},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def _run(*arguments: str) -> tuple[int, str]:
    process = _start(*arguments)
    output, _ = process.communicate(timeout=MAX_WAIT_S)
    return process.returncode, output


def _files(folder: Path) -> dict[str, bytes]:
    """Everything that curation wrote, by name."""
    store = folder / "store"
    return {
        str(path.relative_to(store)): path.read_bytes()
        for part in ("annotations", "near", "selection", "shards")
        for path in sorted((store / part).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of an undisturbed run, and what it printed."""
    folder = tmp_path_factory.mktemp("curated")
    make_store(_units(), str(folder / "store"))
    code, output = _run("curate", str(_recipe(folder)))
    assert code == 0, output
    return folder, output


def test_killed_again_and_again_it_ends_with_the_same_bytes(curated: tuple[Path, str], tmp_path: Path) -> None:
    make_store(_units(), str(tmp_path / "store"))
    recipe = str(_recipe(tmp_path))
    rng = random.Random(11)
    for _ in range(6):
        process = _start("curate", recipe)
        time.sleep(rng.uniform(1.0, 9.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, output = _run("curate", recipe)
    assert code == 0, output
    assert _files(tmp_path) == _files(curated[0])


def test_another_threshold_computes_no_column(curated: tuple[Path, str]) -> None:
    folder, _ = curated
    before = {path: path.stat().st_mtime_ns for path in (folder / "store" / "annotations").rglob("*.parquet")}
    assert len(before) == 2 * NUM_UNITS
    rule = "curate.select.where.long_enough='words >= 6'"
    code, output = _run("select", str(folder / "recipe.yaml"), "--set", "shards.name=longer", "--set", rule)
    assert code == 0, output
    after = {path: path.stat().st_mtime_ns for path in (folder / "store" / "annotations").rglob("*.parquet")}
    assert after == before
    code, output = _run("annotate", str(folder / "recipe.yaml"))
    assert (code, "nothing computed" in output) == (0, True)
    counts = json.loads((folder / "store/selection/longer/selection.json").read_text())["counts"]
    assert counts["long_enough"] > 0
    code, output = _run(
        "select", str(folder / "recipe.yaml"), "--set", "shards.name=longer", "--set", rule, "--compare", "demo"
    )
    assert (code, "long_enough" in output) == (0, True)


def test_explain_says_which_rule(curated: tuple[Path, str]) -> None:
    folder, _ = curated
    code, output = _run("select", str(folder / "recipe.yaml"), "--explain", "k0000")
    assert code == 0, output
    assert "long_enough" in output
    assert "words" in output
    code, output = _run("select", str(folder / "recipe.yaml"), "--explain", "nosuchkey")
    assert code == 2, output


def test_a_selection_that_shards_are_made_of_is_not_replaced(curated: tuple[Path, str]) -> None:
    folder, _ = curated
    before = _files(folder)
    code, output = _run("select", str(folder / "recipe.yaml"), "--set", "curate.select.where.long_enough='words >= 8'")
    assert code == 2, output
    assert "shards.name" in output
    assert _files(folder) == before


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("curate.select.where={a: 'wrods > 3'}", "words"),
        ("curate.select.where={a: 'words > > 3'}", "a"),
        ("curate.select.where={a: 'words > 3', b: 'words < 3'}", "no sample"),
        ("curate.annotate=[{caption_stat: {}}]", "caption_stats"),
        ("curate.annotate=[{caption_stats: {}}, {language: {}}]", "genlip annotate"),
    ],
)
def test_bad_input_is_refused_with_a_way_out(curated: tuple[Path, str], setting: str, said: str) -> None:
    folder, _ = curated
    code, output = _run("select", str(folder / "recipe.yaml"), "--set", "shards.name=bad", "--set", setting)
    assert code == 2, output
    assert said in output
    assert not (folder / "store/selection/bad/selection.json").exists()


def test_an_image_that_went_bad_is_left_out_and_written_down(tmp_path: Path) -> None:
    units = _units()
    units[0][4] = Stored("k0004", "a picture of words of words of words of words", jpeg_cut(), phash="f" * 16)
    store = make_store(units, str(tmp_path / "store"))
    recipe = _recipe(tmp_path, annotate=[{"caption_stats": {}}])
    code, output = _run("curate", str(recipe))
    assert code == 0, output
    assert "k0004" in str(Store(store.root).read_table("shards/demo/refused.parquet").to_pylist())


def jpeg_cut() -> bytes:
    """Half of a JPEG."""
    whole = jpeg(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    return whole[: len(whole) // 2]
