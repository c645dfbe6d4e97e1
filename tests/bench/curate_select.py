"""Selection over annotation rows: rules, a quantile and exact duplicates, beside plain DuckDB over the same files."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotate.columns import Annotations, StoredUnit, write_annotations
from pipeline.curate.rows import LEDGER_COLUMNS, Rows
from pipeline.curate.select import select
from pipeline.curate.spec import DedupSpec, SelectSpec
from pipeline.each import in_turn
from pipeline.ledger import LEDGER_SCHEMA, CommitRecord
from pipeline.outcomes import SUCCESS
from pipeline.store import Store
from tests.bench.harness import BenchError, Metric, Result, find_peer, rounds

UNIT_ROWS = 10_000
"""A usual unit."""
MEMORY_LIMIT = "2GB"
_FOLDER = "made-0123456789"
_TYPES = {"lang": "string", "words": "int32", "clip_score": "double"}
_METRICS = (Metric("select_rows_per_s", "rows/s", "higher"), Metric("select_peak_mb", "MB", "lower"))
_SPEC = SelectSpec(
    where={"english": "lang = 'en'", "long": "words >= 3", "good": "clip_score in top 30%"},
    dedup=DedupSpec(exact=("sha256",)),
)
_PEER_SQL = """
copy (
    with bound as (select quantile_disc(clip_score, 0.7) as t from '{annotations}'),
    keyed as (
        select l.key, l.sha256, l.original_width * l.original_height as px, lang, words, clip_score,
            row_number() over (partition by l.key) as same_key
        from '{ledgers}' l positional join '{annotations}' a),
    ruled as (
        select key, sha256, px, case when same_key > 1 then 'duplicate_key' when lang <> 'en' then 'english'
            when words < 3 then 'long' when clip_score < t then 'good' end as fate
        from keyed, bound),
    best as (select sha256, arg_max(key, px) as winner from ruled where fate is null group by sha256)
    select key, coalesce(fate, case when winner = key then 'train' else 'duplicate_image' end) as fate,
        case when fate is null and winner <> key then winner end as detail
    from ruled left join best using (sha256)
) to '{fates}'
"""
"""The same decisions, and the same record of each sample's fate, as one statement."""


def run(arguments: list[str]) -> list[Result]:
    """The benchmark's results."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench curate_select")
    parser.add_argument("--rows", type=int, default=10_000_000)
    num_rows = parser.parse_args(arguments).rows
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-(-num_rows // UNIT_ROWS)):
            _write_unit(Store(folder), number, min(UNIT_ROWS, num_rows - number * UNIT_ROWS))
        ours = partial(_measure, "ours", folder, num_rows)
        peer = find_peer("duckdb", partial(_measure, "duckdb", folder, num_rows))
        return rounds("curate", _METRICS, ours, peer, num_rounds=1)


def _write_unit(store: Store, number: int, num_rows: int) -> None:
    rng = np.random.default_rng(number)
    digests = rng.bytes(32 * num_rows).hex()
    shared = [f"{image:064x}" for image in rng.integers(0, 1_000_000, num_rows).tolist()]
    repeated = rng.random(num_rows) < 0.1
    columns: dict[str, Any] = {
        "key": [f"{number:08d}{row:012d}" for row in range(num_rows)],
        "url": [f"http://example.org/{number}/{row}.jpg" for row in range(num_rows)],
        "caption": ["a picture of something"] * num_rows,
        "status": [SUCCESS] * num_rows,
        "original_width": rng.integers(200, 4000, num_rows, np.int32),
        "original_height": rng.integers(200, 4000, num_rows, np.int32),
        "sha256": [shared[i] if repeated[i] else digests[64 * i : 64 * i + 64] for i in range(num_rows)],
        "phash": [digests[64 * i : 64 * i + 16] for i in range(num_rows)],
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(num_rows, field.type)
        for field in LEDGER_SCHEMA
    ]
    ledger = pa.table(arrays, schema=LEDGER_SCHEMA)
    record = CommitRecord(f"raw/u{number:08d}.tar", f"{number:064x}", 0, {SUCCESS: num_rows}, {})
    name = f"u{number:08d}"
    store.write_table(f"ledger/{name}.parquet", ledger.replace_schema_metadata({"genlip": json.dumps(asdict(record))}))
    found = {
        "lang": pa.array(rng.choice(["en", "de", "fr"], num_rows, p=[0.6, 0.2, 0.2]).tolist()),
        "words": pa.array(rng.integers(1, 30, num_rows, np.int32)),
        "clip_score": pa.array(rng.normal(0.25, 0.05, num_rows)),
    }
    unit = StoredUnit(name, record.raw, record.sha256[:16], num_rows, ledger)
    write_annotations(store, _FOLDER, unit, Annotations(pa.table(found), {}))


def _measure(side: str, folder: str, num_rows: int) -> Mapping[str, float]:
    """One run in a process of its own, for its peak memory; no rows at all where it fails, as DuckDB may for memory."""
    done = subprocess.run([sys.executable, "-m", __name__, side, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{side} fails: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        if side == "ours":
            raise BenchError("the selection failed; see above")
        return {"select_rows_per_s": 0.0, "select_peak_mb": 0.0}
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{side} keeps {found['kept']:,}", file=sys.stderr)
    return {"select_rows_per_s": num_rows / found["seconds"], "select_peak_mb": found["peak_mb"]}


def _ours(folder: str) -> int:
    types = {name: str(LEDGER_SCHEMA.field(name).type) for name in LEDGER_COLUMNS} | _TYPES
    rows = Rows(Store(folder), dict.fromkeys(_TYPES, _FOLDER), types)
    counts = select(rows, _SPEC, 0.0, "bench", 1, in_turn).counts
    return counts["train"]


def _duckdb(folder: str) -> int:
    import duckdb

    settings: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "threads": 1, "temp_directory": f"{folder}/spill"}
    paths = {"annotations": f"{folder}/annotations/{_FOLDER}/*.parquet", "ledgers": f"{folder}/ledger/*.parquet"}
    database = duckdb.connect(config=settings)
    database.execute(_PEER_SQL.format(**paths, fates=f"{folder}/fates.parquet"))
    found = database.execute(f"select count(*) from '{folder}/fates.parquet' where fate = 'train'").fetchone()
    return int(found[0]) if found else 0


if __name__ == "__main__":
    import resource

    started = time.perf_counter()
    kept = {"ours": _ours, "duckdb": _duckdb}[sys.argv[1]](sys.argv[2])
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb, "kept": kept}))
