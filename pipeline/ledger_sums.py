"""What the ledgers add up to, kept for each run of 1,024 units, so that only runs with new ledgers are read again.

    reports/ledger-sums.parquet     block, state, labels, digest

The ledgers are the truth: a block counts as it was kept only while its files have the states they had then. The file
may be deleted; it is made again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.each import Each, ahead, in_turn
from pipeline.inputs.committed import NumberSet
from pipeline.inputs.rows import name_of, number_of
from pipeline.store import Store

SUMS_FILE = "reports/ledger-sums.parquet"
BLOCK_UNITS = 1024
_SCHEMA = pa.schema([("block", pa.int32()), ("state", pa.string()), ("labels", pa.string()), ("digest", pa.string())])
_THREADS = 16
"""A reader of ledgers waits for the store most of the time."""
_KEEP_EVERY = 64
"""Blocks, so that a kill loses the reading of some 60,000 ledgers at most."""


@dataclass(frozen=True)
class BlockSum:
    """The committed units of a block."""

    state: str
    """Of their ledgers' files, as the store lists them."""
    labels: Mapping[str, int]
    """Rows by `Outcome.label`, less those that were asked for again; such a difference may be negative."""
    digest: str
    """Of the commit records."""


def read_sums(store: Store, each: Each = in_turn, keep: bool = False) -> list[BlockSum]:
    """The sums of all blocks that have committed units, in order.

    Args:
        store: with the ledgers.
        each: reads the blocks that are not kept as they are now.
        keep: whether to write down what was read.
    """
    units, states = _list_ledgers(store)
    known = {block: one for block, one in _read_kept(store).items() if states.get(block) == one.state}
    stale = [block for block in sorted(states) if block not in known]
    numbers = (tuple(number for number in _block(block) if number in units) for block in stale)
    for count, (read, (labels, digest)) in enumerate(each(partial(_read_block, store=store), numbers), 1):
        block = read[0] // BLOCK_UNITS
        known[block] = BlockSum(states[block], labels, digest)
        if keep and (count % _KEEP_EVERY == 0 or count == len(stale)):
            _keep(store, known)
    return [known[block] for block in sorted(known)]


def _block(number: int) -> range:
    return range(number * BLOCK_UNITS, (number + 1) * BLOCK_UNITS)


def _list_ledgers(store: Store) -> tuple[NumberSet, dict[int, str]]:
    """The committed units, and by block the state of its files, which does not depend on the order of the listing."""
    units, sums = NumberSet(), Counter[int]()
    for name, state in store.iter_states("ledger", ".parquet"):
        number = number_of(name.removesuffix(".parquet"))
        units.add(number)
        sums[number // BLOCK_UNITS] += int.from_bytes(hashlib.sha256(f"{number} {state}".encode()).digest()[:16])
    return units, {block: f"{summed % 2**128:032x}" for block, summed in sums.items()}


def _read_block(numbers: tuple[int, ...], store: Store) -> tuple[dict[str, int], str]:
    labels, digest = Counter[str](), hashlib.sha256()
    names = [name_of(number) for number in numbers]
    for name, record in zip(names, ahead(partial(_read_record, store), names, _THREADS), strict=True):
        digest.update(name.encode() + b" " + record + b"\n")
        content: dict[str, Any] = json.loads(record)
        labels.update(content["reasons"])
        labels.subtract(content["replaces"])
    return dict(labels), digest.hexdigest()


def _read_record(store: Store, unit: str) -> bytes:
    with store.reading(f"ledger/{unit}.parquet") as stream:
        return bytes(pq.read_schema(stream).metadata[b"genlip"])


def _read_kept(store: Store) -> dict[int, BlockSum]:
    if not store.exists(SUMS_FILE):
        return {}
    return dict(_from_row(row) for row in store.read_table(SUMS_FILE).to_pylist())


def _from_row(row: dict[str, Any]) -> tuple[int, BlockSum]:
    return row["block"], BlockSum(row["state"], json.loads(row["labels"]), row["digest"])


def _keep(store: Store, sums: Mapping[int, BlockSum]) -> None:
    store.write_table(SUMS_FILE, pa.Table.from_pylist(list(_rows(sums)), schema=_SCHEMA))


def _rows(sums: Mapping[int, BlockSum]) -> Iterator[dict[str, Any]]:
    for block, one in sorted(sums.items()):
        yield {"block": block, "state": one.state, "labels": json.dumps(one.labels), "digest": one.digest}
