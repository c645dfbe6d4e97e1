"""One training shard: its samples copied from the raw files in the global order, checked on the way, and committed."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import pyarrow as pa

from pipeline.dataset_files import shard_tar
from pipeline.sharding.check import Refused, check_image, read_sample
from pipeline.sharding.commits import write_commit
from pipeline.sharding.order import Order, Slice
from pipeline.sharding.read import read_window, windows
from pipeline.shards import ShardWriter, sample_members
from pipeline.store import Store

Check = Literal["decode", "none"]


@dataclass(frozen=True)
class ShardJob:
    """One training shard to write."""

    dataset: str
    number: int
    slices: tuple[Slice, ...]
    """Of the dataset's order."""

    @property
    def tar(self) -> str:
        return shard_tar(self.dataset, self.number)


@dataclass(frozen=True)
class Kept:
    """A sample in its shard."""

    key: str
    offset: int
    size: int
    width: int
    height: int


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
    with order.store.writing(job.tar) as stream:
        writer = ShardWriter(stream)
        for row, members in _read(order.store, samples):
            try:
                offset, size = writer.add_raw(_prepare(row, members, order.captions, check))
            except Refused as error:
                entry = {"shard": job.tar, "reason": str(error)}
                refused.append({name: row[name] for name in ("key", "raw", "offset")} | entry)
            else:
                kept.append(Kept(row["key"], offset, size, row["width"], row["height"]))
        num_bytes, sha256 = writer.close()
    columns = {f"{one.name}s": [getattr(sample, one.name) for sample in kept] for one in fields(Kept)}
    shard = {"path": job.tar, "num_samples": len(kept), "num_bytes": num_bytes, "sha256": sha256}
    write_commit(order.store, job.dataset, job.number, shard | columns, refused)
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
