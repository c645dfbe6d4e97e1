"""What the driver of an ingestion holds and takes at 8 billion rows: measured at three sizes, and the law between them.

A unit has 10,000 rows. The source's tables are real parquet files with so many rows, all alike, which makes them small;
the ledgers are real files with the commit record of such a unit and one row. No row is read or downloaded.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.rows import name_of
from pipeline.ledger import CommitRecord, Outcome, commit
from pipeline.store import Store
from tests.bench.harness import BenchError, Result

SIZES = (8_000, 80_000, 800_000)
RAY_UNITS = 20_000
UNIT_ROWS = 10_000
LIMIT_MB = 500
NEEDED_UNITS_PER_S = 1.0
"""800,000 units in ten days."""
MADE = "made-0123456789"
"""An annotator's folder."""
STEPS = ("plan", "read", "pending", "loop", "sums", "sums_again", "together", "annotate", "parts", "index")
_FILE_ROWS, _GROUP_ROWS = 1_000_000, 100_000
REASONS = {
    "success": 6_000,
    "failed:http_404": 1_500,
    "failed:timeout": 900,
    "failed:dns_no_name": 700,
    "rejected:too_small": 500,
    "failed:http_403": 200,
    "failed:not_an_image": 200,
}


@dataclass(frozen=True)
class Side:
    """A size that is measured, and its files."""

    folder: Path
    num_units: int

    @property
    def tables(self) -> Path:
        return self.folder / "tables"

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "store"))


def run(arguments: Sequence[str]) -> list[Result]:
    """Each step at each size in a process of its own, then tasks through Ray.

    Args:
        arguments: of the command line, see the README.

    Raises:
        BenchError: The driver holds more than it may.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.bench driver_scale")
    parser.add_argument("--units", type=int, nargs="+", default=SIZES, help="sizes, the smallest first")
    parser.add_argument("--ray-units", type=int, default=RAY_UNITS, help="tasks through a Ray of this machine; 0: none")
    parser.add_argument("--folder", help="where 8 kB of disk are free for each unit; by default the temporary one")
    options = parser.parse_args(arguments)
    found = {num_units: _measure_size(num_units, options.folder) for num_units in options.units}
    imported_mb = max(one["imported_mb"] for steps in found.values() for one in steps.values())
    results = [_result("imported_mb", imported_mb, "MB")]
    results += [result for step in STEPS for result in _results(step, found)]
    if options.ray_units:
        results += _ray_results(options.ray_units)
    return results


def _measure_size(num_units: int, parent: str | None) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="genlip-scale-", dir=parent) as folder:
        side = Side(Path(folder), num_units)
        write_tables(side)
        found = {}
        for step in STEPS:
            if step == "pending":
                write_ledgers(side, range(0, num_units, 2))
            if step == "sums":
                write_ledgers(side, range(1, num_units, 2))
                write_annotations(side, range(0, num_units, 2))
                write_index(side)
            found[step] = _measure(step, str(side.folder), str(num_units))
        return found


def _measure(*arguments: str) -> dict[str, float]:
    """A step in a fresh process: what it saw, seconds, and megabytes behind the imports and at the peak."""
    command = [sys.executable, "-m", "tests.bench.driver_scale_side", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"driver_scale {' '.join(arguments[::2])}: {found}", file=sys.stderr, flush=True)
    return found


def growth(sizes: Sequence[int], values: Sequence[float]) -> float:
    """What a unit adds: the slope of the line with the least squares."""
    return float(np.polyfit(np.array(sizes, float), np.array(values), 1)[0])


def _results(step: str, found: Mapping[int, Mapping[str, Mapping[str, float]]]) -> list[Result]:
    """A step's numbers at each size, and what a unit adds to them."""
    results = []
    for size, steps in found.items():
        one = steps[step]
        if one["seen"] != one["wanted"]:
            raise BenchError(f"{step} of {size:,} units saw {one['seen']:,.0f}, not {one['wanted']:,.0f}")
        results += [
            _result(f"{step}_s_{size}", one["seconds"], "s"),
            _result(f"{step}_cpu_s_{size}", one["cpu_s"], "s"),
            _held(f"{step}_peak_mb_{size}", one["peak_mb"]),
        ]
    if len(found) > 1:
        cpu_s = [steps[step]["cpu_s"] for steps in found.values()]
        grown_mb = [steps[step]["peak_mb"] - steps[step]["imported_mb"] for steps in found.values()]
        results += [
            _result(f"{step}_cpu_us_per_unit", 1e6 * growth(list(found), cpu_s), "µs"),
            _result(f"{step}_bytes_per_unit", 1e6 * growth(list(found), grown_mb), "B"),
        ]
    return results


def _ray_results(num_units: int) -> list[Result]:
    """Tasks that do nothing, through the scheduler of `genlip ingest`: what one driver can start and hear of."""
    one = _measure("ray", "-", str(num_units))
    rate = num_units / one["seconds"]
    ratio = rate / NEEDED_UNITS_PER_S
    return [
        Result("driver_scale", "ray_units_per_s", rate, "units/s", "needed", NEEDED_UNITS_PER_S, ratio),
        _result("ray_cpu_us_per_unit", 1e6 * one["cpu_s"] / num_units, "µs"),
        _result("ray_bytes_per_unit", 1e6 * (one["end_mb"] - one["begun_mb"]) / num_units, "B"),
        _held("ray_peak_mb", one["peak_mb"]),
    ]


def _result(metric: str, value: float, unit: str) -> Result:
    return Result("driver_scale", metric, value, unit, "none", None, None)


def _held(metric: str, megabytes: float) -> Result:
    """Memory beside the limit.

    Raises:
        BenchError: It is more than that.
    """
    if megabytes >= LIMIT_MB:
        raise BenchError(f"{metric}: the driver holds {megabytes:,.0f} MB, more than {LIMIT_MB}")
    return Result("driver_scale", metric, megabytes, "MB", "limit", LIMIT_MB, LIMIT_MB / megabytes)


def write_tables(side: Side) -> None:
    """Tables of a million rows, a hundred units each; the last may be shorter."""
    side.tables.mkdir()
    num_rows = side.num_units * UNIT_ROWS
    for number in range(-(-num_rows // _FILE_ROWS)):
        path = side.tables / f"part-{number:05d}.parquet"
        rows = min(_FILE_ROWS, num_rows - number * _FILE_ROWS)
        if number and rows == _FILE_ROWS:
            shutil.copyfile(side.tables / "part-00000.parquet", path)
        else:
            text = pa.array(["http://host.example.org/images/0123456789.jpg"]).take(pa.array(np.zeros(rows, np.int32)))
            pq.write_table(pa.table({"url": text, "caption": text}), path, row_group_size=_GROUP_ROWS)


def write_ledgers(side: Side, numbers: range) -> None:
    """Commit units whose rows had the usual fates."""
    record = CommitRecord(f"raw/{name_of(0)}-1a2b3c4d.tar", "0" * 64, 120_000_000, REASONS, {})
    outcome = Outcome("k", "http://host.example.org/1.jpg", "caption", "success", sha256="0" * 64, phash="0" * 16)
    commit(side.store, name_of(numbers[0]), [outcome], record)
    folder = Path(side.store.path("ledger"))
    body = (folder / f"{name_of(numbers[0])}.parquet").read_bytes()
    for number in numbers:
        (folder / f"{name_of(number)}.parquet").write_bytes(body)


def write_annotations(side: Side, numbers: range) -> None:
    """Files by the names that say that units have a column; nobody reads them here."""
    folder = Path(side.store.path(f"annotations/{MADE}"))
    folder.mkdir(parents=True)
    for number in numbers:
        (folder / f"{name_of(number)}.parquet").touch()


def write_index(side: Side) -> None:
    """The index of a dataset with as many shards of 10,000 samples."""
    from pipeline.dataset_files import index_file
    from pipeline.shards import INDEX_SCHEMA

    numbers = range(side.num_units)
    values: dict[str, Any] = {
        "path": [f"shards/main/shard-{number:06d}.tar" for number in numbers],
        "sha256": [f"{number:064x}" for number in numbers],
    }
    columns = [
        pa.array(values.get(field.name, np.full(side.num_units, UNIT_ROWS)), field.type) for field in INDEX_SCHEMA
    ]
    side.store.write_table(index_file("main"), pa.table(columns, schema=INDEX_SCHEMA))
