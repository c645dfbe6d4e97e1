"""How fast one core of this machine annotates, selects and shards: the product's own functions on the workbench."""

import time
from collections.abc import Sequence

import cv2
import pyarrow as pa
import pyarrow.compute as pc

from jobs.capacity.measure_ingest import Workbench
from pipeline.annotate.annotator import Annotator
from pipeline.annotate.columns import FOLDER, address
from pipeline.annotate.unit import UnitAnnotated, annotate_unit
from pipeline.curate.rows import open_rows
from pipeline.curate.select import select
from pipeline.curate.spec import CurateSpec, DedupSpec, SelectSpec
from pipeline.each import in_turn
from pipeline.errors import UserError
from pipeline.inputs.rows import name_of
from pipeline.recipe import ShardSpec
from pipeline.sharding.dataset import materialise
from pipeline.store import Store

SELECTED_ROWS = 200_000
"""Rows that the selection is measured with: fewer show what a job costs, not what a row does."""
_UNIT_ROWS = 10_000
_SHARD_SAMPLES = 1_000


def for_cpu(spec: CurateSpec) -> list[Annotator]:
    """The annotators that need no GPU."""
    return [one for one in spec.build_annotators() if not one.num_gpus]


def annotate_corpus(spec: CurateSpec, bench: Workbench) -> tuple[dict[str, float], str]:
    """The recipe's annotators on the workbench's unit.

    Returns:
        Samples a second and core of all together, reading and decoding included, and of each alone; and in words what
        they were measured with.

    Raises:
        UserError: There is none, or one of them fails.
    """
    annotators = for_cpu(spec)
    left_out = [type(one).__name__ for one in spec.build_annotators() if one.num_gpus]
    if not annotators:
        needed = f"; {', '.join(left_out)} need GPUs" if left_out else ""
        raise UserError(f"curate.annotate names no annotator for a CPU{needed}")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as the tasks of `genlip annotate` do
    try:
        _annotate(spec, bench, annotators)  # loads models
        bench.store.remove(FOLDER)
        began = time.process_time()
        found = _annotate(spec, bench, annotators)
        cpu_s = time.process_time() - began
    finally:
        cv2.setNumThreads(threads)
    files = [f"{FOLDER}/{folder}/{bench.unit}.parquet" for folder in found.by_address]
    numbers = {
        "samples_per_s_core": bench.num_stored / max(cpu_s, 1e-9),
        "bytes_per_sample": sum(len(bench.store.read(file)) for file in files if bench.store.exists(file))
        / bench.num_stored,
    }
    for folder, report in found.by_address.items():
        if not report.committed:
            raise UserError(f"{folder} fails on the corpus", why="; ".join(report.examples))
        numbers[folder.rpartition("-")[0]] = bench.num_stored / max(report.cpu_s, 1e-9)
    without = f"; without {', '.join(left_out)}, which need GPUs" if left_out else ""
    return numbers, f"{bench.num_stored:,} samples{without}"


def select_corpus(
    spec: CurateSpec, seed: int, bench: Workbench, scratch: str, num_rows: int
) -> tuple[dict[str, float], str]:
    """The recipe's rules on many copies of the workbench's rows.

    Without near-duplicates, whose work does not grow with the rows alone: `pipeline.curate.hamming` has its formula.
    """
    annotators = for_cpu(spec)
    store = Store(scratch)
    num_copied = _copy_rows(bench, store, [address(one) for one in annotators], num_rows)
    rows = open_rows(store, annotators)
    dedup = spec.select.dedup.model_copy(update={"near_bits": None})
    began = time.process_time()
    select(rows, spec.select.model_copy(update={"dedup": dedup}), 0.0, "bench", seed, in_turn)
    cpu_s = max(time.process_time() - began, 1e-9)
    return {"samples_per_s_core": num_copied / cpu_s}, f"{num_copied:,} rows"


def shard_corpus(spec: ShardSpec, seed: int, bench: Workbench) -> tuple[dict[str, float], str]:
    """All of the workbench's samples into shards, checked as the recipe says."""
    rows = open_rows(bench.store, [])
    select(rows, SelectSpec(dedup=DedupSpec(exact=())), 0.0, "bench", seed, in_turn)
    chosen = ShardSpec(shard_samples=_SHARD_SAMPLES, check=spec.check)
    began = time.process_time()
    made = materialise(rows, "bench", chosen, seed, in_turn)
    cpu_s = max(time.process_time() - began, 1e-9)
    numbers = {"samples_per_s_core": made.num_samples / cpu_s, "mb_per_s_core": made.num_bytes / 1e6 / cpu_s}
    return numbers, f"{made.num_samples:,} samples, {made.num_bytes / 1e6:.1f} MB"


def _annotate(spec: CurateSpec, bench: Workbench, annotators: Sequence[Annotator]) -> UnitAnnotated:
    return annotate_unit(bench.unit, bench.store, annotators, spec.max_errors)


def _copy_rows(bench: Workbench, store: Store, folders: Sequence[str], num_rows: int) -> int:
    """Units of about so many rows in all, each row with a key, a URL and a hash of its own. Returns their number."""
    ledger = bench.store.read_table(f"ledger/{bench.unit}.parquet")
    stored = ledger.filter(pc.equal(ledger["status"], "success"))
    num_stored: int = stored.num_rows
    columns = {folder: bench.store.read_table(f"{FOLDER}/{folder}/{bench.unit}.parquet") for folder in folders}
    copies = max(1, round(_UNIT_ROWS / num_stored))
    num_units = max(1, round(num_rows / (copies * num_stored)))
    for number in range(num_units):
        table = pa.concat_tables([stored] * copies)
        names = [f"{number:08x}{row:08x}" for row in range(table.num_rows)]
        for column, values in {
            "key": names,
            "url": [f"http://{name}.example.org/" for name in names],
            "sha256": [name * 4 for name in names],
        }.items():
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
        store.write_table(f"ledger/{name_of(number)}.parquet", table)
        for folder, found in columns.items():
            store.write_table(f"{FOLDER}/{folder}/{name_of(number)}.parquet", pa.concat_tables([found] * copies))
    return num_units * copies * num_stored
