"""Tables written in every format, and the rows that a source gives, for the tests of inputs."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.plan import extend_plan
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.units import Row, Unit, read_rows
from pipeline.store import Store

Pair = dict[str, str]

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


def write_parquet(path: Path, columns: dict[str, object], row_group_size: int | None = None) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def write_pairs(path: Path, pairs: Sequence[Pair]) -> str:
    """The same pairs in the format and the compression that the name ends in."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    kind = path.name.removesuffix(compression).rsplit(".", 1)[-1]
    if kind == "parquet":
        return write_parquet(path, {column: [pair[column] for pair in pairs] for column in pairs[0]})
    if kind == "json":
        content = json.dumps(list(pairs))
    elif kind == "jsonl":
        content = "\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs)
    else:
        lines = io.StringIO()
        writer = csv.DictWriter(lines, list(pairs[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(pairs)
        content = lines.getvalue()
    path.write_bytes(COMPRESSIONS[compression](content.encode()))
    return str(path)


def units_of(store: Store, spec: SourceSpec, unit_samples: int = 1000) -> list[Unit]:
    return list(extend_plan(store, spec, unit_samples).iter_units())


def rows_of(store: Store, spec: SourceSpec, unit_samples: int = 1000) -> list[Row]:
    """All rows of the source in the order of the plan."""
    return [row for unit in units_of(store, spec, unit_samples) for row in read_rows(unit, spec)]
