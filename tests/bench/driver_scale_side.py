"""A step of the driver in a fresh process: `python -m tests.bench.driver_scale_side STEP FOLDER NUM_UNITS`."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset  # noqa: F401 - an import that pyarrow puts off: it brings pandas, where that is installed

from jobs.ingest import ingest  # noqa: F401 - what the driver of `genlip ingest` imports is part of what it holds
from jobs.leaving import leave
from jobs.live import Live
from jobs.ray_pool import Pool
from pipeline.annotate.columns import annotated_units
from pipeline.curate.rows import Rows
from pipeline.funnel import read_funnel
from pipeline.inputs.batches import read_plan
from pipeline.inputs.committed import committed
from pipeline.inputs.plan import extend_plan
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import Unit
from pipeline.work import UnitReport
from tests.bench.driver_scale import MADE, REASONS, UNIT_ROWS, Side
from train.data.dataset import open_dataset

Counts = tuple[int, int]
"""What a step saw, and what it should have."""


def plan(side: Side) -> Counts:
    """From the files' footers to the plan on disk."""
    source = SourceSpec(urls=str(side.tables), group_by_host=False)
    return extend_plan(side.store, source, UNIT_ROWS).num_rows, side.num_units * UNIT_ROWS


def read(side: Side) -> Counts:
    """The plan again, and each of its units."""
    return sum(unit.num_rows for unit in read_plan(side.store).iter_units()), side.num_units * UNIT_ROWS


def pending(side: Side) -> Counts:
    """Half of the units are committed, the other half is found."""
    return sum(1 for _ in _pending(side)), side.num_units // 2


def loop(side: Side) -> Counts:
    """All units run by a worker that does nothing, and are counted and shown as they end."""
    live = Live("bench", side.num_units, 0, (0.0, 1.0))
    for unit in read_plan(side.store).iter_units():
        live.add(_do_nothing(unit))
    live.end()
    return live.num_done, side.num_units


def sums(side: Side) -> Counts:
    """The funnel of ledgers of which none has been read."""
    return read_funnel(side.store, keep=True).seen, side.num_units * UNIT_ROWS


def sums_again(side: Side) -> Counts:
    """The funnel when all ledgers are as they were."""
    return read_funnel(side.store, keep=True).seen, side.num_units * UNIT_ROWS


def together(side: Side) -> Counts:
    """All that `genlip ingest` does in its driver, but for Ray and the first reading of the ledgers."""
    side.store.remove("plan")
    counts = [step(side) for step in (plan, read, pending, loop, sums_again)]
    return sum(seen for seen, _ in counts), sum(wanted for _, wanted in counts) - side.num_units // 2


def annotate(side: Side) -> Counts:
    """Units that lack a column which half of them have."""
    done = annotated_units(side.store, MADE)
    return sum(number not in done for number in committed(side.store)), side.num_units // 2


def parts(side: Side) -> Counts:
    """The parts of a selection, as each of its steps deals them out."""
    return sum(len(part.units) for part in Rows(side.store, {}, {}).parts()), side.num_units


def index(side: Side) -> Counts:
    """The dataset that a training opens, with a shard for each unit."""
    return open_dataset(side.store, "main").num_samples, side.num_units * UNIT_ROWS


def _pending(side: Side) -> Iterator[Unit]:
    done = committed(side.store)
    return (unit for unit in read_plan(side.store).iter_units() if unit.number not in done)


def _do_nothing(unit: Unit) -> UnitReport:
    return UnitReport(unit.name, True, REASONS, 120_000_000)


def _through_ray(num_units: int) -> dict[str, float]:
    """The same worker as a Ray task; what is measured begins when Ray and its workers have."""
    num_warm = num_units // 10
    live = Live("bench", num_warm + num_units, 0, (0.0, 1.0))
    units = (Unit(number, "file.parquet", "", 0, UNIT_ROWS) for number in range(num_warm + num_units))
    with Pool("local") as pool:
        for count, done in enumerate(pool.fan_out(_do_nothing, units)):
            if count == num_warm:
                began_s, began_cpu_s, begun_mb = time.perf_counter(), time.process_time(), _megabytes("VmRSS")
            assert done.result is not None
            live.add(done.result)
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        end_mb = _megabytes("VmRSS")
    return {"seconds": seconds, "cpu_s": cpu_s, "begun_mb": begun_mb, "end_mb": end_mb, "peak_mb": _megabytes("VmHWM")}


def _in_process(step: Callable[[Side], Counts], side: Side) -> dict[str, float]:
    imported_mb, began_s, began_cpu_s = _megabytes("VmHWM"), time.perf_counter(), time.process_time()
    seen, wanted = step(side)
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return {
        "seen": seen,
        "wanted": wanted,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "imported_mb": imported_mb,
        "peak_mb": _megabytes("VmHWM"),
    }


def _megabytes(field: str) -> float:
    """Resident memory of this process: `VmRSS` now, `VmHWM` at its peak."""
    match = re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def main(step: str, folder: str, num_units: str) -> None:
    """Prints the numbers as JSON, last."""
    if step == "ray":
        found = _through_ray(int(num_units))
    else:
        found = _in_process(globals()[step], Side(Path(folder), int(num_units)))
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave(0)
