"""The report of a run, from logs that a test writes: short, long, running, resumed, of one source and of many."""

import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation import EVAL_FILE
from jobs.recipe import load_recipe
from jobs.reporting.charts import Line, Marks, line_chart, log_ticks, stacked_chart, ticks_in
from jobs.reporting.history import MAX_POINTS, read_history, reduce
from jobs.reporting.page import REPORT_FILE, write_report
from jobs.runs import open_run
from tests.stores import Stored, make_store, noise
from train.metrics import METRICS, Evaluation, StepMetrics, log_evaluation

SAMPLES_PER_LINE = 32_000
CHARTS = (
    "training loss, nats per token",
    "learning rate",
    "gradient norm before clipping, logarithmic",
    "samples per second",
    "model TFLOP/s, all processes",
    "share of time waiting for data",
    "where the time of the first process goes",
    "largest memory so far, GiB",
)


class Figures(HTMLParser):
    """The captions of the charts, and what is in the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.captions: list[str] = []
        self.loads: list[str] = []
        self.classes: list[str] = []
        self.tags: list[str] = []
        self._is_caption = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._is_caption = tag == "figcaption"
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.classes += [value or "" for name, value in attrs if name == "class"]

    def handle_data(self, data: str) -> None:
        if self._is_caption:
            self.captions.append(data)
            self._is_caption = False


def line(number: int, **changes: Any) -> str:
    """The `number`-th logged step."""
    shares = {"data": 0.01, "forward": 0.3, "backward": 0.5, "optimiser": 0.1, "checkpoint": 0.0, "rest": 0.09}
    metrics = StepMetrics(
        step=10 * number,
        samples=SAMPLES_PER_LINE * number,
        passes={"web": 0.1 * number},
        loss=2 + 5 / number,
        source_losses={},
        grad_norm=math.exp(random.Random(number).gauss(0, 1)),
        lr=1e-3,
        samples_per_s=34_000.0,
        tokens_per_s=9e6,
        flops_per_s=2e15,
        mfu=None,
        time_shares=shares,
        checkpoint_stall_s=0.0,
        num_bad_samples=0,
        read={"web": {"bytes_asked": 1}},
        memory_gib=61.0,
        uptime_s=8.0 * number,
        unix_s=1.7e9 + 8.0 * number,
        eta_s=100.0,
    )
    return json.dumps(asdict(metrics) | changes) + "\n"


@pytest.fixture
def begin(tmp_path: Path) -> Callable[[str], Path]:
    """Begins a run folder with a log."""

    def begin(log: str) -> Path:
        make_store([[Stored(f"k{number}", "a caption", noise(number)) for number in range(5)]], str(tmp_path / "store"))
        recipe = {"name": "small", "store": str(tmp_path / "store"), "runs": str(tmp_path / "runs")}
        recipe |= {"ingest": {"source": {"urls": "urls.parquet"}}, "train": {"length": 100 * SAMPLES_PER_LINE}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run_dir = open_run(load_recipe(tmp_path / "recipe.yaml"))
        (run_dir / METRICS).write_text(log)
        return run_dir

    return begin


def report(run_dir: Path) -> str:
    assert write_report(run_dir) == 0
    return (run_dir / REPORT_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("num_lines", [1, 2, 50])
def test_the_report_has_all_charts_however_short_the_run(begin: Callable[[str], Path], num_lines: int) -> None:
    page = report(begin("".join(line(number) for number in range(1, num_lines + 1))))
    figures = Figures(page)
    assert figures.captions == list(CHARTS)
    assert all(load.startswith("data:") for load in figures.loads)
    assert "script" not in figures.tags
    assert "nan" not in page.lower().split("how to repeat it")[0]
    assert f"{SAMPLES_PER_LINE * num_lines:,}" in page


def test_a_run_that_was_not_trained_has_a_report(begin: Callable[[str], Path]) -> None:
    assert "not trained yet" in report(begin(""))


def test_a_running_run_has_a_report_of_its_whole_lines(begin: Callable[[str], Path]) -> None:
    page = report(begin(line(1) + line(2) + line(3)[:-50]))
    assert "lines of the log: 2, to step 20" in page


def test_resumes_and_checkpoints_are_marked(begin: Callable[[str], Path]) -> None:
    """The second life goes on after a checkpoint and has run longer than the first when it logs again."""
    first = [line(number, checkpoint_stall_s=2.5 if number == 3 else 0.0) for number in range(1, 5)]
    second = [line(number, uptime_s=50.0 + number, unix_s=1.71e9 + number) for number in range(5, 9)]
    page = report(begin("".join(first + second)))
    figures = Figures(page)
    assert figures.classes.count("resumed") == figures.classes.count("saved") == len(CHARTS)
    assert "resumed 1 times; checkpoints: 1, standing still for 2.5 s" in page


def test_sources_utilisation_and_held_out_loss_are_drawn_where_they_are_known(begin: Callable[[str], Path]) -> None:
    known = {"source_losses": {"web": 2.0, "books": 1.5}, "passes": {"web": 0.5, "books": 0.1}, "mfu": 0.5}
    run_dir = begin("".join(line(number, **known) for number in range(1, 9)))
    loss = {"value": 2.2, "chance": 9.0, "low": 2.0, "high": 2.4, "better": "lower", "unit": "nats"}
    recall = {"value": 0.1, "chance": 0.05, "low": None, "high": None, "better": "higher", "unit": "share"}
    metrics = {"language/nats_per_token": loss, "retrieval/image_to_text_r5": recall}
    result = {"metrics": metrics, "notes": ["3 images were left out"], "num_images": 9, "checkpoint": "c"}
    result |= {"samples_seen": 64_000}
    (run_dir / EVAL_FILE).write_text(json.dumps(result))
    page = report(run_dir)
    captions = Figures(page).captions
    assert "training loss by source, nats per token" in captions
    assert "passes over each source" in captions
    assert "model FLOP utilisation" in captions
    assert "model TFLOP/s, all processes" not in captions
    assert "held-out" in page
    assert page.count('class="area c1 dot"') == 1


def test_what_was_measured_during_training_is_a_curve(begin: Callable[[str], Path]) -> None:
    run_dir = begin("".join(line(number) for number in range(1, 9)))
    for step in (20, 40, 60):
        metrics = {"language/loss": 100 / step, "knn/top1": step / 100}
        log_evaluation(run_dir, Evaluation(step, SAMPLES_PER_LINE * step // 10, 1.7e9, 10**20 * step, metrics))
    page = report(run_dir)
    figures = Figures(page)
    assert "held-out images of the class that their nearest training images have" in figures.captions
    assert 'class="area c1 dot"' not in page
    assert "held-out" in page


def test_names_of_sources_cannot_break_the_page(begin: Callable[[str], Path]) -> None:
    names = {"<script>alert(1)</script>": 1.0, "b&w": 2.0}
    page = report(begin("".join(line(number, source_losses=names) for number in range(1, 4))))
    assert "<script" not in page
    assert "b&amp;w" in page


def test_numbers_that_are_not_finite_leave_gaps(begin: Callable[[str], Path]) -> None:
    bad = [line(number, grad_norm=value) for number, value in ((2, math.nan), (3, math.inf), (4, 0.0))]
    figures = Figures(report(begin(line(1) + "".join(bad) + line(5))))
    assert figures.captions == list(CHARTS)


def test_a_long_log_is_small_in_the_report_and_keeps_its_extremes(begin: Callable[[str], Path]) -> None:
    num_lines, spike = 5_000, 3_456
    lines = (line(number, loss=99.0 if number == spike else 2.0) for number in range(1, num_lines + 1))
    run_dir = begin("".join(lines))
    assert len(report(run_dir)) < 500_000
    history = read_history(run_dir)
    curve = reduce(history["samples"], history["loss"])
    assert len(history) == num_lines
    assert len(curve.x) <= MAX_POINTS
    assert curve.high.max() == 99.0
    assert abs(curve.x[curve.high.argmax()] / SAMPLES_PER_LINE - spike) < num_lines / MAX_POINTS


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_finds_nothing_wrong(begin: Callable[[str], Path]) -> None:
    run_dir = begin("".join(line(number) for number in range(1, 9)))
    report(run_dir)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={run_dir / 'browser'}", "--dump-dom", (run_dir / REPORT_FILE).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert len(re.findall("<svg", done.stdout)) == len(CHARTS)
    assert "CONSOLE" not in done.stderr


finite = st.floats(-1e12, 1e12)


@given(st.lists(st.tuples(st.integers(0, 10**10), finite), min_size=1, max_size=30, unique_by=lambda pair: pair[0]))
def test_charts_stay_inside_their_frame(pairs: list[tuple[int, float]]) -> None:
    x, y = (np.array(values, float) for values in zip(*sorted(pairs), strict=True))
    for is_log in (False, True):
        values = np.abs(y) + 1e-9 if is_log else y
        drawn = line_chart("a", [Line("", x, values)], Marks(), is_log=is_log)
        drawn += stacked_chart("b", x, [("half", np.full(len(x), 0.5)), ("rest", np.full(len(x), 0.5))], Marks(x, x))
        points = re.findall(r'points="([^"]+)"', drawn)
        places = [tuple(map(float, place.split(","))) for line in points for place in line.split()]
        assert all(0 <= across <= 480 and 0 <= down <= 200 for across, down in places)


@given(finite, st.floats(1e-9, 1e12))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    high = low + span
    ticks = ticks_in(low, high)
    assert len(ticks) <= 12
    assert all(low - span * 1e-6 <= tick <= high + span * 1e-6 for tick in ticks)


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e9))
def test_logarithmic_ticks_are_few_and_inside(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 12
    assert all(low <= tick <= low * factor for tick in ticks)


@given(st.lists(st.one_of(finite, st.just(math.nan)), max_size=2_000))
def test_reducing_a_curve_keeps_its_range_and_mean(values: list[float]) -> None:
    y = np.array(values, float)
    curve = reduce(np.arange(len(y), dtype=float), y)
    known = y[np.isfinite(y)]
    assert len(curve.x) == min(len(known), len(curve.x)) <= MAX_POINTS
    if len(known):
        assert curve.low.min() == known.min()
        assert curve.high.max() == known.max()
        assert (curve.low <= curve.mean + 1e-3).all()
        assert (curve.mean <= curve.high + 1e-3).all()
        assert len(curve.smoothed()) == len(curve.x)
