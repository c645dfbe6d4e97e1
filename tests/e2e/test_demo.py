"""The demo as a newcomer runs it, on a machine that reaches no registry, with a training cut short."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.corpus import FIXTURES
from tests.environment import without_group
from train.metrics import read_metrics

MAX_WAIT_S = 900
SMALL = ["train.length=1600", "train.optim.warmup=100", "model.image_px=32", "train.lanes=4", "train.row_tokens=256"]
SMALL += ["train.log_every=5", "train.checkpoint.every=800", "eval.class_captions=2", "train.optim.lr=2.0e-3"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> str:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, env=environment, cwd=folder, text=True, timeout=MAX_WAIT_S, check=False, **pipes)
    assert done.returncode == 0, done.stdout
    return done.stdout


def demo_command(out: Path, *overrides: str) -> list[str]:
    options = [part for override in overrides for part in ("--set", override)]
    return [sys.executable, "-m", "jobs.cli", "demo", "--out", str(out), *options]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose npm registry is a closed port, and whose cache of packages is empty."""
    return without_group() | {
        "npm_config_registry": "http://127.0.0.1:1/",
        "npm_config_fetch_retries": "0",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, offline: dict[str, str]) -> tuple[Path, str]:
    """The folder that the demo filled, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    # A relative path, as in the README.
    return folder / "out", run(demo_command(Path("out"), *SMALL), offline, folder)


def test_says_that_it_goes_on_with_the_fixtures(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert "going on with the fixtures that ship with genlip" in printed
    assert len(list((out / "corpus-fixtures" / "images").iterdir())) == len(list((FIXTURES / "images").iterdir()))


def test_the_funnel_adds_up_and_names_every_kind_of_trouble(demo: tuple[Path, str]) -> None:
    _, printed = demo
    found = re.search(r"([\d,]+) seen = ([\d,]+) success \+ ([\d,]+) rejected \+ ([\d,]+) failed\n", printed)
    assert found
    seen, success, rejected, failed = (int(number.replace(",", "")) for number in found.groups())
    assert seen == success + rejected + failed
    for reason in ("opt_out_noai", "caption_empty", "http_404", "http_503", "truncated", "not_image"):
        assert reason in printed
    assert "  connect " in printed
    assert "duplicate_image" in printed


def test_the_loss_falls_and_the_checkpoint_is_evaluated(demo: tuple[Path, str]) -> None:
    out, _ = demo
    losses = [entry["loss"] for entry in read_metrics(out / "runs" / "demo")]
    assert losses[-1] < 0.7 * losses[0]
    result = json.loads((out / "runs" / "demo" / "eval.json").read_text())
    assert result["samples_seen"] >= 1600
    loss = result["metrics"]["language/nats_per_token"]
    assert 0 < loss["low"] <= loss["value"] <= loss["high"] < loss["chance"]
    assert result["details"]["zero_shot/num_classes"] == 10
    shares = [metric["value"] for metric in result["metrics"].values() if metric["unit"] == "share"]
    assert all(0 <= share <= 1 and math.isfinite(share) for share in shares)
    per_image = pq.read_table(out / "runs" / "demo" / "eval_images.parquet").to_pydict()
    assert len(set(per_image.pop("key"))) == result["num_images"]
    assert set(per_image) <= set(result["metrics"])


def test_captions_are_drawn_on_a_sheet(demo: tuple[Path, str]) -> None:
    run_dir = demo[0] / "runs" / "demo"
    record = json.loads((run_dir / "captions.json").read_text())
    evaluated = json.loads((run_dir / "eval.json").read_text())["num_images"]
    assert len(record["captions"]) == min(24, evaluated) > 10
    with Image.open(run_dir / record["sheet"]) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 1000
        assert len(sheet.convert("RGB").getcolors(1 << 24) or []) > 1000  # pictures, not an empty page


class References(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_file_with_all_its_parts(demo: tuple[Path, str]) -> None:
    page = (demo[0] / "runs" / "demo" / "report.html").read_text()
    references = References()
    references.feed(page)
    assert references.found
    assert all(reference.startswith("data:") for reference in references.found)
    assert "script" not in references.tags
    assert {"svg", "img", "table"} <= references.tags
    for part in ("What came in", "Training", "What it learned", "What it says", "How to repeat it"):
        assert part in page


def test_running_it_again_does_nothing_new(demo: tuple[Path, str], offline: dict[str, str]) -> None:
    out, _ = demo
    before = {path: path.stat().st_mtime_ns for path in (out / "store").rglob("*") if path.is_file()}
    checkpoints = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("COMMITTED")}
    printed = run(demo_command(Path("out")), offline, out.parent)
    assert "0 still to do" in printed
    assert {path: path.stat().st_mtime_ns for path in (out / "store").rglob("*") if path.is_file()} == before
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("COMMITTED")} == checkpoints


def test_torchrun_trains_the_same_as_ray_train(demo: tuple[Path, str], offline: dict[str, str]) -> None:
    out, _ = demo
    recipe, name = "out/recipe.yaml", ["--set", "name=torchrun", "--set", "train.length=400"]
    run([sys.executable, "-m", "jobs.cli", "tokenizer", recipe, *name], offline, out.parent)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run([*torchrun, "-m", "jobs.cli", "train", recipe, *name], offline | {"OMP_NUM_THREADS": "1"}, out.parent)
    # The first steps: the shorter length bends the learning rate later on.
    ray, other = (read_metrics(out / "runs" / run_name)[0] for run_name in ("demo", "torchrun"))
    assert (ray["step"], ray["samples"]) == (other["step"], other["samples"])
    assert other["loss"] == pytest.approx(ray["loss"], rel=1e-3)


def test_one_image_can_be_captioned(demo: tuple[Path, str], offline: dict[str, str], tmp_path: Path) -> None:
    image = sorted((FIXTURES / "images").iterdir())[0]
    sheet = tmp_path / "one.png"
    command = [sys.executable, "-m", "jobs.cli", "caption", "out/runs/demo", str(image), "--sheet", str(sheet)]
    printed = run(command, offline, demo[0].parent)
    assert f"{image}: " in printed
    assert sheet.exists()
