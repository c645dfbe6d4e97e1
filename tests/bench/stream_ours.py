"""Our side of the stream benchmark, a fresh process for each number, as JSON on stdout.

`python -m tests.bench.stream_ours read|memory RUN_DIR --threads N`, `... first RUN_DIR --share S`, `... seek RUN_DIR
--job FILE`: what reading costs, what it holds, the time to the first row, and the time to plan a very large pass.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cv2
import psutil
import pyarrow.dataset  # noqa: F401 - an import that pyarrow puts off: it brings pandas, where that is installed
import torch

from jobs.leaving import leave
from tests.bench.stream_store import segment_at
from train.data.loader import Loader
from train.data.stream import Position
from train.recipe import TrainJob
from train.setup import set_up

NUM_WARM_UP_SAMPLES, NUM_SAMPLES = 256, 2_048
"""As many as the peers read."""
NUM_MEMORY_ROWS = 192
SHARES = (0.0, 0.5, 0.99)
MIB = 2**20


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["read", "memory", "first", "seek"])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.0, help="of the pass that was read before")
    parser.add_argument("--job", type=Path, help="the job to read instead of the run folder's")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    job = TrainJob.read(options.run_dir)
    if options.job:
        job = TrainJob.model_validate_json(options.job.read_text())
    train = job.train.model_copy(update={"threads": options.threads, "max_bad_samples": 0})
    job = job.model_copy(update={"train": train})
    if options.action == "seek":
        print(json.dumps(seek(options.run_dir, job)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.action == "read":
            result = read(options.run_dir, job, Path(folder))
        elif options.action == "memory":
            result = memory(options.run_dir, job, Path(folder))
        else:
            result = first(options.run_dir, job, Path(folder), options.share)
    print(json.dumps(result))


def read(run_dir: Path, job: TrainJob, folder: Path) -> dict[str, float]:
    """CPU time of all threads, in microseconds per sample, in the middle of a pass."""
    with closing(_samples_of_rows(Loader(set_up(run_dir, job), folder))) as rows:
        _take(rows, NUM_WARM_UP_SAMPLES)
        began = time.process_time()
        num_samples = _take(rows, NUM_SAMPLES)
        cpu_s = time.process_time() - began
    return {"cpu_us": cpu_s / num_samples * 1e6, "num_samples": num_samples}


def memory(run_dir: Path, job: TrainJob, folder: Path) -> dict[str, float]:
    """Memory above that of the imports, at its highest, and of the whole process."""
    before = _memory_mb()
    highest = before
    with closing(_samples_of_rows(Loader(set_up(run_dir, job), folder))) as rows:
        for _ in range(NUM_MEMORY_ROWS):
            next(rows)
            highest = max(highest, _memory_mb())
    return {"memory_mb": highest - before, "total_mb": highest}


def first(run_dir: Path, job: TrainJob, folder: Path, share: float) -> dict[str, float]:
    """Time from the run folder to the first row, when a share of the pass has been read."""
    began = time.perf_counter()
    setup = set_up(run_dir, job)
    loader = Loader(setup, folder)
    if share:
        at = segment_at(share, setup.sources[0].dataset.num_samples, setup.stream.mixture.segment_samples)
        loader.load_state_dict(loader.state_dict() | {"segment": at, "step": 1})
    with closing(_samples_of_rows(loader)) as rows:
        next(rows)
        return {"first_s": time.perf_counter() - began}


def seek(run_dir: Path, job: TrainJob) -> dict[str, float]:
    """Time to open a dataset and plan the steps at some places of its pass."""
    before = _memory_mb()
    began = time.perf_counter()
    setup = set_up(run_dir, job)
    opened_s = time.perf_counter() - began
    num_samples, segment_samples = setup.sources[0].dataset.num_samples, setup.stream.mixture.segment_samples
    for share in SHARES:
        setup.stream.step(Position(segment_at(share, num_samples, segment_samples), 0))
    return {
        "plan_s": time.perf_counter() - began,
        "opened_s": opened_s,
        "memory_mb": _peak_mb() - before,
        "state_bytes": len(json.dumps(Loader(setup, run_dir).state_dict())),
    }


def _samples_of_rows(loader: Loader) -> Iterator[int]:
    """The number of samples of each micro-batch, as a trainer takes them."""
    with closing(iter(loader)) as steps:
        for step in steps:
            for rows in step.micro_batches:
                yield rows.num_samples


def _take(rows: Iterator[int], at_least: int) -> int:
    """Read that many samples, to the end of a row."""
    taken = 0
    while taken < at_least:
        taken += next(rows)
    return taken


def _peak_mb() -> float:
    """Highest resident size of this program; `getrusage` would know of the one that started it, too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def _memory_mb() -> float:
    return float(psutil.Process().memory_info().rss / MIB)


if __name__ == "__main__":
    main()
    leave(0)
