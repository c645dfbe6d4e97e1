"""One training shard: its samples copied from the raw files in the global order, checked on the way, and committed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sharding.check import Refused, check_image, read_sample
from pipeline.sharding.order import Order, Slice
from pipeline.sharding.read import read_window, windows
from pipeline.shards import ShardWriter, index_table, sample_members
from pipeline.store import Store

Check = Literal["decode", "none"]

REFUSED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("raw", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
    ]
)
"""One row per selected sample that is in no shard."""
_METADATA = b"genlip"


@dataclass(frozen=True)
class ShardJob:
    """One training shard to write."""

    dataset: str
    number: int
    slices: tuple[Slice, ...]
    """Of the dataset's order."""

    @property
    def stem(self) -> str:
        return shard_stem(self.dataset, self.number)


@dataclass(frozen=True)
class Kept:
    """A sample in its shard."""

    key: str
    offset: int
    size: int
    width: int
    height: int


def shard_stem(dataset: str, number: int) -> str:
    """A shard's file, without its ending."""
    return f"shards/{dataset}/shard-{number:06d}"


def write_shard(order: Order, check: Check, job: ShardJob) -> int:
    """Write a shard and commit it.

    Args:
        order: of the dataset's samples.
        check: `decode` to leave out samples that are damaged; `none` to copy bytes as they are.
        job: which shard.

    Returns:
        Its size in bytes.

    Raises:
        UserError: A raw file is missing or shorter than its ledger says.
    """
    samples = order.read(job.slices)
    kept: list[Kept] = []
    refused: list[dict[str, Any]] = []
    with order.store.writing(f"{job.stem}.tar") as stream:
        writer = ShardWriter(stream)
        for row, members in _read(order.store, samples):
            try:
                offset, size = writer.add_raw(_prepare(row, members, order.captions, check))
            except Refused as error:
                entry = {"shard": f"{job.stem}.tar", "reason": str(error)}
                refused.append({name: row[name] for name in ("key", "raw", "offset")} | entry)
            else:
                kept.append(Kept(row["key"], offset, size, row["width"], row["height"]))
        num_bytes, sha256 = writer.close()
    _commit(order.store, job.stem, kept, refused, num_bytes, sha256)
    return num_bytes


def _read(store: Store, samples: pa.Table) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The samples with their tar members, in order; a window of them is in memory."""
    for start, stop in windows(samples["size"].to_pylist()):
        window = samples.slice(start, stop - start)
        yield from zip(window.to_pylist(), read_window(store, window), strict=True)


def _prepare(row: dict[str, Any], members: bytes, captions: tuple[str, ...], check: Check) -> bytes:
    """The tar members as the shard will have them.

    Raises:
        Refused: The sample is damaged.
    """
    further = {column: row[column] for column in captions if row[column] is not None}
    if check == "none" and not further:
        return members
    sample = read_sample(members, row["key"])
    if check == "decode":
        check_image(sample.image, row["width"], row["height"])
    texts = {sample.caption}
    distinct: dict[str, str] = {}
    for column, text in further.items():
        if text not in texts:
            texts.add(text)
            distinct[column] = text
    return sample_members(replace(sample, meta=sample.meta | {"captions": distinct})) if distinct else members


def _commit(
    store: Store, stem: str, kept: list[Kept], refused: list[dict[str, Any]], num_bytes: int, sha256: str
) -> None:
    columns = {f"{one.name}s": [getattr(sample, one.name) for sample in kept] for one in fields(Kept)}
    entry = {"path": f"{stem}.tar", "num_samples": len(kept), "num_bytes": num_bytes, "sha256": sha256} | columns
    write_commit(store, stem, entry, refused)


def write_commit(store: Store, stem: str, entry: dict[str, Any], refused: list[dict[str, Any]]) -> None:
    """Commit a shard: its row of the index, and rows of what was left out, as `read_commit` gives them back."""
    table = index_table([entry]).replace_schema_metadata({_METADATA: json.dumps({"refused": refused})})
    store.write_table(f"{stem}.parquet", table)


def read_commit(store: Store, stem: str) -> tuple[pa.Table, pa.Table]:
    """A committed shard's row of the index, and its rows of what was left out."""
    with store.reading(f"{stem}.parquet") as stream:
        table = pq.read_table(stream)
    refused = json.loads(table.schema.metadata[_METADATA])["refused"]
    return table.replace_schema_metadata(None), pa.Table.from_pylist(refused, schema=REFUSED_SCHEMA)
