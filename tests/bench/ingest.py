"""Benchmark: from URLs to stored training images, ours against img2dataset and against the floor.

Every run is a process of its own. Costs are taken at two lengths of the list: the difference is the cost of the images,
what is left is the start-up.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.bench.harness import BenchError, Measure, Metric, Peer, Result, find_peer, rounds
from tests.bench.ingest_bad_server import start_bad_server
from tests.bench.ingest_corpus import Corpus, default_folder, get_corpus
from tests.bench.ingest_cost import Cost, measure_command
from tests.bench.ingest_fidelity import median_psnr_db, stored_images
from tests.bench.ingest_lists import HOSTS, good_urls, with_bad_urls, write_table
from tests.bench.ingest_plan import write_tables
from tests.bench.ingest_settings import PEER_THREADS
from tests.bench.web_server import WebServer, free_port, start_web_server

MIN_IMAGES = 200
LIMIT_S = 600.0
"""Of one run; a run of the peer over bad URLs that is not done by then is counted as one that long."""
BAD_LIST_FACTOR = 4
"""The list with bad URLs is so many times longer than the longer of the others, because a time-out is paid once."""
MAX_LOST_SHARE = 0.005
"""Of the good images among bad URLs; without bad ones, each must be stored."""
MIB = 1 << 20

METRIC_NAMES = (
    "images_per_cpu_s_https",
    "images_per_cpu_s_http",
    "floor_ratio",
    "start_up_cpu_s",
    "peak_memory_per_worker",
    "psnr_db",
    "bad_url_slowdown",
    "plan_rows_per_s",
    "plan_peak_memory",
)
PLAN_METRICS = (Metric("plan_rows_per_s", "rows/s", "higher"), Metric("plan_peak_memory", "MiB", "lower"))
BAD_METRIC = Metric("bad_url_slowdown", "x", "lower")


@dataclass(frozen=True)
class Engine:
    """One side: a module of this folder, and its arguments after URLS and OUT."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    corpus: Corpus
    server: WebServer
    num_images: int

    @property
    def ours(self) -> Engine:
        return Engine("genlip", "tests.bench.ingest_ours", (str(self.server.ca_file),))

    @property
    def peer(self) -> Engine:
        environment = {"SSL_CERT_FILE": str(self.server.bundle_file), "NO_ALBUMENTATIONS_UPDATE": "1"}
        return Engine("img2dataset", "tests.bench.ingest_peer", (str(PEER_THREADS),), environment)

    @property
    def floor(self) -> Engine:
        return Engine("floor", "tests.bench.ingest_floor", (str(self.server.bundle_file),))

    def urls(self, scheme: str, num_urls: int) -> list[str]:
        """Of good images."""
        return good_urls(self.corpus.files, num_urls, scheme, self.server.port(scheme))


def run(arguments: Sequence[str]) -> list[Result]:
    """Serves the corpus on loopback and lets all sides ingest it, then plans a large table.

    Args:
        arguments: of the command line, see the README.
    """
    options = _options(arguments)
    wanted = set(options.only)
    plan_metrics = [metric for metric in PLAN_METRICS if metric.name in wanted]
    results: list[Result] = []
    if wanted - {metric.name for metric in PLAN_METRICS}:
        with _bench(options.corpus, options.images) as bench:
            results += _costs(bench, "https", wanted)
            results += _costs(bench, "http", wanted)
            if BAD_METRIC.name in wanted:
                results.append(_bad_url_slowdown(bench))
    if plan_metrics:
        results += _plan(options.rows, plan_metrics)
    return results


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench ingest")
    parser.add_argument("--images", type=int, default=2_400, help="in the longer list; the shorter has a quarter")
    parser.add_argument("--rows", type=int, default=5_000_000, help="of the table to be planned")
    parser.add_argument("--corpus", type=Path, default=default_folder(), help="where the images are kept")
    parser.add_argument("--only", nargs="+", choices=METRIC_NAMES, default=METRIC_NAMES, help="the metrics wanted")
    options = parser.parse_args(arguments)
    if options.images < MIN_IMAGES:
        parser.error(f"--images {options.images}: the difference of two lists needs {MIN_IMAGES} images or more")
    return options


@contextmanager
def _bench(corpus_folder: Path, num_images: int) -> Iterator[Bench]:
    corpus = get_corpus(corpus_folder)
    for file in corpus.files:
        (corpus.folder / file).read_bytes()  # so that no run waits for the disk
    with (
        tempfile.TemporaryDirectory(prefix="genlip-bench-") as work,
        start_web_server(corpus.folder, HOSTS) as server,
    ):
        bench = Bench(Path(work), corpus, server, num_images)
        if _floor_is_installed():
            _show_server_speed(bench)
        yield bench


def _show_server_speed(bench: Bench) -> None:
    """Shows that the server is much faster than any side that is measured here."""
    from tests.bench.ingest_floor import fetch_all  # here, because it may not be installed

    for scheme in ("http", "https"):
        urls, began = bench.urls(scheme, bench.num_images), time.perf_counter()
        num_bytes = sum(len(body) for _, body in fetch_all(urls, str(bench.server.ca_file)))
        wall_s = time.perf_counter() - began
        print(
            f"ingest: the server gives one client {len(urls) / wall_s:,.0f} images/s, {num_bytes / wall_s / MIB:,.0f}"
            f" MiB/s over {scheme}",
            file=sys.stderr,
            flush=True,
        )


def _floor_is_installed() -> bool:
    return all(importlib.util.find_spec(module) for module in ("pycurl", "cykooz_resizer"))


def _costs(bench: Bench, scheme: str, wanted: set[str]) -> list[Result]:
    """CPU time per image over one scheme, and over http what else such a run shows."""
    speed = Metric(f"images_per_cpu_s_{scheme}", "images/CPU-s", "higher")
    metrics = [speed]
    if scheme == "http":
        metrics.append(Metric("start_up_cpu_s", "s", "lower"))
        metrics.append(Metric("peak_memory_per_worker", "MiB", "lower"))
        metrics.append(Metric("psnr_db", "dB", "higher"))
    metrics = [metric for metric in metrics if metric.name in wanted]
    tables = {
        length: write_table(bench.folder / f"{scheme}-{length}.parquet", bench.urls(scheme, length))
        for length in (bench.num_images // 4, bench.num_images)
    }
    measure = partial(_marginal_costs, bench, speed, tables)
    ours = partial(measure, bench.ours)
    results: list[Result] = []
    if metrics:
        results += rounds("ingest", metrics, ours, find_peer("img2dataset", partial(measure, bench.peer)))
    if speed in metrics and scheme == "https" and sys.version_info < (3, 12):
        one_context = replace(bench.peer, arguments=(*bench.peer.arguments, "one-context"))
        peer = find_peer("img2dataset", partial(measure, one_context))
        peer = replace(peer, name=f"{peer.name} with one TLS context, as on Python 3.12")
        results += rounds("ingest", [speed], ours, peer)
    if "floor_ratio" in wanted:
        results.append(_floor_ratio(scheme, speed, ours, partial(measure, bench.floor)))
    return results


def _floor_ratio(scheme: str, speed: Metric, ours: Measure, floor: Measure) -> Result:
    """How many times more CPU time an image costs than in the fastest loop known."""
    if not _floor_is_installed():
        raise BenchError("the floor is made of packages that are not installed: pip install pycurl cykooz.resizer")
    (result,) = rounds("ingest", [speed], ours, Peer("floor of curl, OpenCV, fast_image_resize", floor))
    assert result.ratio is not None
    return replace(result, metric=f"floor_ratio_{scheme}", value=1 / result.ratio, unit="x", peer_value=1.0)


def _marginal_costs(bench: Bench, speed: Metric, tables: Mapping[int, Path], engine: Engine) -> dict[str, float]:
    """The cost of an image, from the difference between the short and the long list."""
    short, long = sorted(tables)
    with tempfile.TemporaryDirectory(dir=bench.folder) as work:
        outs = {length: Path(work) / f"out-{length}" for length in (short, long)}
        costs = {length: _ingest(engine, tables[length], out, length, length) for length, out in outs.items()}
        psnr_db = median_psnr_db(outs[short], bench.corpus.folder)
    cpu_s = (costs[long].cpu_s - costs[short].cpu_s) / (long - short)
    if cpu_s <= 0:
        raise BenchError(
            f"{engine.name}: {long} images cost no more than {short} ({costs}), so the machine's noise is larger than"
            " their cost: raise --images, or wait until the machine is less busy"
        )
    return {
        speed.name: 1 / cpu_s,
        "start_up_cpu_s": costs[short].cpu_s - short * cpu_s,
        "peak_memory_per_worker": costs[long].peak_bytes / MIB,
        "psnr_db": psnr_db,
    }


def _bad_url_slowdown(bench: Bench) -> Result:
    """Wall time over a list of which a tenth is bad, divided by that over its good part alone; one round."""
    good = bench.urls("http", BAD_LIST_FACTOR * bench.num_images)
    good_table = write_table(bench.folder / "good.parquet", good)
    jpeg = next(name for name in bench.corpus.files if name.endswith(".jpg"))
    cut_short: set[str] = set()
    with start_bad_server(bench.corpus.folder / jpeg) as bad:
        mixed_table = write_table(bench.folder / "mixed.parquet", with_bad_urls(good, bad.port, free_port()))

        def measure(engine: Engine) -> dict[str, float]:
            with tempfile.TemporaryDirectory(dir=bench.folder) as work:
                without = _ingest(engine, good_table, Path(work) / "good", len(good), len(good))
                fewest = len(good) - round(MAX_LOST_SHARE * len(good))
                mixed = _ingest(engine, mixed_table, Path(work) / "mixed", fewest, len(good), may_not_end=True)
            if mixed.exit_code is None:
                cut_short.add(engine.name)
            return {BAD_METRIC.name: mixed.wall_s / without.wall_s}

        ours = replace(bench.ours, arguments=(*bench.ours.arguments, f"127.0.0.1:{bad.name_server_port}"))
        peer = find_peer("img2dataset", partial(measure, bench.peer))
        (result,) = rounds("ingest", [BAD_METRIC], partial(measure, ours), peer, 1)
    if bench.ours.name in cut_short:
        raise BenchError(f"ours did not end within {LIMIT_S:.0f} s over a list with bad URLs")
    if bench.peer.name in cut_short:
        return replace(result, peer=f"{result.peer}, which did not end within {LIMIT_S:.0f} s")
    return result


def _ingest(engine: Engine, urls: Path, out: Path, fewest: int, most: int, may_not_end: bool = False) -> Cost:
    """Runs one side over one list, and checks how many images it stored."""
    log = out.with_suffix(".log")
    command = [sys.executable, "-m", engine.module, str(urls), str(out), *engine.arguments]
    cost = measure_command(command, engine.environment, log, LIMIT_S)
    if may_not_end and cost.exit_code is None:
        return cost
    images = stored_images(out) if cost.exit_code == 0 else []
    if not fewest <= len(images) <= most or not images:
        raise BenchError(
            f"{engine.name} stored {len(images)} of {most} images and ended with code {cost.exit_code}, so its cost"
            f" compares with nothing; look for the reason at the end of its output: {log.read_text()[-2000:]}"
        )
    num_bytes = sum(len(body) for _, body in images)
    print(
        f"ingest {engine.name}, {urls.stem}: {len(images)} images, {num_bytes:,} bytes of JPEG,"
        f" {cost.cpu_s:.1f} s of CPU, {cost.wall_s:.1f} s, {cost.peak_bytes / MIB:.0f} MiB",
        file=sys.stderr,
        flush=True,
    )
    return cost


def _plan(num_rows: int, metrics: Sequence[Metric]) -> list[Result]:
    """From a table to units; one round, because the work is long and the same every time."""
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        folder = Path(work)
        tables = write_tables(folder / "tables", num_rows)

        def measure(side: str) -> dict[str, float]:
            with tempfile.TemporaryDirectory(dir=folder) as out:
                command = [sys.executable, "-m", "tests.bench.ingest_plan", side, str(tables), out]
                cost = measure_command(command, {}, folder / "log", 10 * LIMIT_S)
            said = (folder / "log").read_text()
            if cost.exit_code or said.splitlines()[-1:] != [str(num_rows)]:
                raise BenchError(f"{side} did not plan {num_rows} rows; its output ends with: {said[-2000:]}")
            return {"plan_rows_per_s": num_rows / cost.wall_s, "plan_peak_memory": cost.peak_bytes / MIB}

        peer = find_peer("img2dataset", partial(measure, "img2dataset"))
        peer = replace(peer, name=f"{peer.name}'s reader, which does not group by host")
        return rounds("ingest", metrics, partial(measure, "ours"), peer, 1)
