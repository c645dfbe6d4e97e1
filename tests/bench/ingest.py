"""Benchmark: from URLs to stored training images, ours against img2dataset, each in a process of its own.

Both run at two lengths of the list. The difference is the cost of the images; what is left is the start-up.
"""

import argparse
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.demo.server import start_server
from tests.bench.harness import BenchError, Metric, Result, find_peer, rounds
from tests.bench.photos import make_photos, write_urls

PHOTO_SIDE_PX = (600, 1200)
MIN_IMAGES = 40
METRICS = (
    Metric("cpu_ms_per_image", "ms", "lower"),
    Metric("images_per_s_wall", "images/s", "higher"),
    Metric("start_up_cpu_s", "s", "lower"),
)


@dataclass(frozen=True)
class Cost:
    """Of one run over one list."""

    cpu_s: float
    """User and system time of the process and its children."""
    wall_s: float


def run(arguments: Sequence[str]) -> list[Result]:
    """Makes the photos, serves them on loopback and lets both sides ingest them.

    Args:
        arguments: of the command line: `--images N`.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench ingest")
    parser.add_argument("--images", type=int, default=600, help="photos in the longer list; the shorter has a quarter")
    num_images: int = parser.parse_args(arguments).images
    if num_images < MIN_IMAGES:
        parser.error(f"--images {num_images}: the difference of the two lists needs {MIN_IMAGES} images or more")
    with tempfile.TemporaryDirectory(prefix="genlip-bench-") as work:
        folder = Path(work)
        captions = make_photos(folder / "corpus", num_images, PHOTO_SIDE_PX)
        with start_server(folder / "corpus") as base_url:
            lists = {
                length: write_urls(folder / f"urls-{length}.parquet", base_url, captions[:length])
                for length in (num_images // 4, num_images)
            }
            peer = find_peer("img2dataset", partial(_measure, "tests.bench.ingest_peer", lists, folder))
            return rounds("ingest", METRICS, partial(_measure, "tests.bench.ingest_ours", lists, folder), peer)


def _measure(module: str, lists: Mapping[int, Path], folder: Path) -> dict[str, float]:
    """The cost of an image, from the difference between the short and the long list."""
    short, long = sorted(lists)
    costs = {length: _ingest(module, urls, length, folder) for length, urls in lists.items()}
    cpu_s = (costs[long].cpu_s - costs[short].cpu_s) / (long - short)
    wall_s = (costs[long].wall_s - costs[short].wall_s) / (long - short)
    if cpu_s <= 0 or wall_s <= 0:
        raise BenchError(
            f"{module}: {long} images cost no more than {short} ({costs}), so the machine's noise is larger than their"
            " cost: raise --images, or wait until the machine is less busy"
        )
    return {
        "cpu_ms_per_image": 1000 * cpu_s,
        "images_per_s_wall": 1 / wall_s,
        "start_up_cpu_s": costs[short].cpu_s - short * cpu_s,
    }


def _ingest(module: str, urls: Path, num_images: int, folder: Path) -> Cost:
    """Runs one side over one list, and checks that it stored every image."""
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        out, log = Path(work) / "out", Path(work) / "log"
        before, began = _children_cpu_s(), time.perf_counter()
        with log.open("w") as stream:
            done = subprocess.run(
                [sys.executable, "-m", module, str(urls), str(out)], env=environment, stdout=stream, stderr=stream
            )
        cost = Cost(_children_cpu_s() - before, time.perf_counter() - began)
        num_stored, num_bytes = _stored_images(out)
        if done.returncode or num_stored != num_images:
            raise BenchError(
                f"{module} stored {num_stored} of {num_images} images and ended with code {done.returncode}, so its"
                f" cost compares with nothing; look for the reason at the end of its output: {log.read_text()[-2000:]}"
            )
    print(f"ingest {module}: stored all {num_stored} images, {num_bytes:,} bytes of JPEG", file=sys.stderr, flush=True)
    return cost


def _children_cpu_s() -> float:
    """CPU time of all processes started here that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _stored_images(out: Path) -> tuple[int, int]:
    """Number and bytes of the JPEG files in the tars that a side wrote."""
    sizes: list[int] = []
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as tar:
            sizes += [member.size for member in tar if member.name.endswith(".jpg")]
    return len(sizes), sum(sizes)
