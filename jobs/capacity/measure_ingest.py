"""How fast one core of this machine ingests: `run_unit` with the recipe's settings, over loopback."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.demo.corpus import read_corpus
from jobs.demo.server import HOST, start_server
from pipeline.errors import UserError
from pipeline.inputs.rows import Unit
from pipeline.processes import forget
from pipeline.recipe import AcceptUnitSpec, IngestSpec, SourceSpec
from pipeline.store import Store
from pipeline.work import UnitReport, run_unit

_WARM_UP_ROWS = 200
_LEAST_ROWS, _MOST_ROWS = 500, 20_000


@dataclass(frozen=True)
class Workbench:
    """A scratch store with one committed unit of a corpus's images."""

    store: Store
    unit: str
    num_stored: int


@dataclass(frozen=True)
class _Run:
    report: UnitReport
    cpu_s: float
    wall_s: float


@contextmanager
def ingest_corpus(
    spec: IngestSpec, corpus: Path, scratch: Path, seconds: float
) -> Iterator[tuple[dict[str, float], str, Workbench]]:
    """Ingest a corpus, and keep the store for the stages behind it while the context lasts.

    What counts is CPU time, of this process and of its decoder but not of the server: the web is slower than loopback
    in a way that no benchmark knows. Each run starts a decoder, so the difference between a long and a short run has
    neither the decoder's start in it nor our own. There is no TLS on loopback.

    Args:
        spec: of the recipe; source and courtesy are replaced.
        corpus: folder with images/ and metadata.parquet.
        scratch: an empty folder.
        seconds: that the long run should take.

    Yields:
        The numbers, what they were measured with, the store.

    Raises:
        UserError: The recipe's filters leave nothing of the corpus.
    """
    store = Store(str(scratch / "store"))
    spec = _over_loopback(spec)
    with start_server(corpus) as base_url:

        def run(number: int, num_rows: int) -> _Run:
            table = scratch / f"rows-{number}.parquet"
            _write_rows(corpus, base_url, num_rows, number, table)
            forget()
            began, wall = _cpu_s(), time.monotonic()
            report = run_unit(Unit(number, str(table), "", 0, num_rows), spec, store)
            forget()  # the children's time has only those that have ended
            return _Run(report, _cpu_s() - began, time.monotonic() - wall)

        run(0, _WARM_UP_ROWS)
        short = run(1, _WARM_UP_ROWS)
        pace = _WARM_UP_ROWS / short.wall_s
        num_rows = _WARM_UP_ROWS + min(_MOST_ROWS, max(_LEAST_ROWS, round(seconds * pace)))
        long = run(2, num_rows)
    if not long.report.num_success:
        reasons = ", ".join(f"{name} {num}" for name, num in long.report.reasons.items())
        raise UserError("nothing of the corpus is kept", why=long.report.message or reasons)
    for number in (0, 1):
        store.remove(f"ledger/{Unit(number, '', '', 0, 0).name}.parquet")
    bench = Workbench(store, long.report.name, long.report.num_success)
    cpu_s = max(long.cpu_s - short.cpu_s, 1e-9) / (num_rows - _WARM_UP_ROWS)
    mean_bytes = _mean_bytes(corpus)
    numbers = {
        "rows_per_s_core": 1 / cpu_s,
        "cpu_ms_per_row": 1000 * cpu_s,
        "mb_per_s_core": mean_bytes / 1e6 / cpu_s,
        "sample_bytes": long.report.num_bytes / long.report.num_success,
        "ledger_bytes_per_row": len(store.read(f"ledger/{bench.unit}.parquet")) / num_rows,
        "kept_share": long.report.num_success / num_rows,
        "rows_per_s_wall": num_rows / long.wall_s,
    }
    yield numbers, f"{num_rows:,} rows; {_describe(bench, corpus, mean_bytes)}", bench


def _over_loopback(spec: IngestSpec) -> IngestSpec:
    """The recipe's settings, but for another source and for one host that is asked as all hosts together."""
    fetch = {"allow_addresses": (f"{HOST}/32",), "per_host": spec.fetch.in_flight, "per_host_rate": 0.0, "spill": 0.0}
    accept = AcceptUnitSpec(fetched_at_least=0.0)
    update = {"source": SourceSpec(urls=""), "fetch": spec.fetch.model_copy(update=fetch), "accept_unit_if": accept}
    return spec.model_copy(update=update)


def _write_rows(corpus: Path, base_url: str, num_rows: int, number: int, path: Path) -> None:
    """A URL table that asks for the corpus's images again and again, each time by another URL."""
    table = read_corpus(corpus)
    files, captions = (table[name].to_pylist() for name in ("file", "caption"))
    names = [quote(file.removeprefix("images/")) for file in files]
    urls = [f"{base_url}/img/{names[row % len(names)]}?row={number}-{row}" for row in range(num_rows)]
    pq.write_table(pa.table({"url": urls, "caption": [captions[row % len(names)] for row in range(num_rows)]}), path)


def _describe(bench: Workbench, corpus: Path, mean_bytes: float) -> str:
    ledger = bench.store.read_table(f"ledger/{bench.unit}.parquet", ["original_width", "original_height"])
    width, height = (pc.mean(ledger[f"original_{side}"]).as_py() for side in ("width", "height"))
    return f"{corpus.name}: images of {mean_bytes / 1000:.1f} kB and {width:.0f} × {height:.0f} pixels on average"


def _mean_bytes(corpus: Path) -> float:
    files = [file.removeprefix("images/") for file in read_corpus(corpus)["file"].to_pylist()]
    num_bytes: int = sum((corpus / "images" / file).stat().st_size for file in files)
    return num_bytes / len(files)


def _cpu_s() -> float:
    """Of this process, and of those children that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
