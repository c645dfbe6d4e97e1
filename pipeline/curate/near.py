"""Groups of near-duplicates among all stored samples, by their perceptual hashes; computed once for a store.

    near/ADDRESS/labels-000012.parquet  hash, label: of hashes in a group of at least two; label is its smallest hash
    near/ADDRESS/near.json              the commit record, with the numbers

ADDRESS is of the distance and the units' fingerprints. Four steps, each a job of independent parts: equal hashes
collapse; hashes go to the tables in which near ones stand together (`hamming`); the pairs found there are checked;
chains of pairs become groups (`components`). A killed run goes on at the part where it was.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.annotate.columns import read_stored
from pipeline.curate.components import components, labels_of, once, part_of, send_edges, stars, total
from pipeline.curate.hamming import Hashes, Tables, pairs_in, parse_hashes, plan_tables, table_keys
from pipeline.curate.rows import Part, Rows
from pipeline.each import Each
from pipeline.exchange import Exchange
from pipeline.ledger import read_commit
from pipeline.outcomes import SUCCESS
from pipeline.store import Store

__all__ = ["NearGroups", "group_near", "part_of"]

FOLDER = "near"
ROWS_PER_PART = 1_000_000
MAX_PARTS = 512
"""Each part reads a footer of every other part's files, so their number is bounded; beyond it they grow: to 16 M
hashes, about 1 GB while they are compared, at 8e9."""
_PARTS_PER_WRITER = 8
_EDGES_IN_MEMORY = 1 << 22
_VERSION = 1


@dataclass(frozen=True)
class NearGroups:
    """The groups, in parts by `part_of(hash, num_parts)`."""

    store: Store
    folder: str
    num_parts: int

    def labels(self, part: int) -> tuple[Hashes, Hashes]:
        """A part's hashes that have near-duplicates, sorted, and the label of each one's group: [V], [V]."""
        table = self.store.read_table(f"{self.folder}/{_labels_name(part)}")
        return table["hash"].to_numpy(), table["label"].to_numpy()

    def numbers(self) -> dict[str, Any]:
        """The commit record: counts, and the plan of the comparison as a line (`arithmetic`)."""
        record: dict[str, Any] = self.store.read_json(f"{self.folder}/near.json")
        return record


@dataclass(frozen=True)
class _Job:
    """What all parts know."""

    rows: Rows
    folder: str
    num_parts: int
    max_bits: int

    def exchange(self, name: str) -> Exchange:
        return Exchange(self.rows.store, f"{self.scratch}/{name}", self.num_parts)

    @property
    def scratch(self) -> str:
        return f"{self.folder}/scratch"

    def once(self, step: str, part: int, compute: Callable[[], dict[str, int]]) -> dict[str, int]:
        return once(self.rows.store, f"{self.scratch}/{step}/part-{part:06d}.json", compute)


def group_near(rows: Rows, max_bits: int, each: Each) -> NearGroups:
    """Groups of hashes connected by pairs within a distance; nothing is computed where this has been done before.

    Args:
        rows: the store's samples; those without a hash have no near-duplicates.
        max_bits: largest distance of a pair.
        each: runs the parts.
    """
    num_samples, fingerprint = _census(rows, each)
    decides = json.dumps([_VERSION, max_bits, fingerprint])
    folder = f"{FOLDER}/{hashlib.sha256(decides.encode()).hexdigest()[:16]}"
    job = _Job(rows, folder, min(MAX_PARTS, max(1, -(-num_samples // ROWS_PER_PART))), max_bits)
    if not rows.store.exists(f"{folder}/near.json"):
        record = {"samples": num_samples, "num_parts": job.num_parts, **_compute(job, each)}
        rows.store.write_json(f"{folder}/near.json", record)
    rows.store.remove(job.scratch)
    return NearGroups(rows.store, folder, job.num_parts)


def _census(rows: Rows, each: Each) -> tuple[int, str]:
    """Number of samples, and a fingerprint of all units that does not depend on the order of the results."""
    num_samples, summed = 0, 0
    for _, (samples, digest) in each(partial(_census_part, store=rows.store), rows.parts()):
        num_samples += samples
        summed = (summed + digest) % 2**256
    return num_samples, f"{summed:064x}"


def _census_part(part: Part, store: Store) -> tuple[int, int]:
    num_samples, digest = 0, hashlib.sha256()
    for unit in part.units:
        record = read_commit(store, unit)
        num_samples += record.reasons.get(SUCCESS, 0)
        digest.update(f"{unit} {record.sha256}\n".encode())
    return num_samples, int.from_bytes(digest.digest())


def _compute(job: _Job, each: Each) -> dict[str, Any]:
    """All steps. Returns the numbers of the commit record."""
    parts = range(job.num_parts)
    for _ in each(partial(_send_hashes, job=job), _writers(job.rows.parts())):
        pass
    num_hashes = sum(count for _, count in each(partial(_count_distinct, job=job), parts))
    tables = plan_tables(num_hashes, job.max_bits, job.num_parts)
    for _ in each(partial(_send_to_tables, job=job, tables=tables), parts):
        pass
    found = total([counts for _, counts in each(partial(_find_pairs, job=job, tables=tables), parts)])
    grouped = components(job.exchange("pairs"), f"{job.scratch}/components", each)
    labelled = total([counts for _, counts in each(partial(_write_labels, job=job, grouped=grouped), parts)])
    return {
        "max_bits": job.max_bits,
        "hashes": num_hashes,
        "tables": tables.num_tables,
        "arithmetic": tables.describe(),
        **found,
        **labelled,
    }


def _writers(parts: Iterator[Part]) -> Iterator[tuple[Part, ...]]:
    while some := tuple(itertools.islice(parts, _PARTS_PER_WRITER)):
        yield some


def _send_hashes(parts: Sequence[Part], job: _Job) -> None:
    """Send each hash of some units to its part, once."""
    exchange = job.exchange("hashes")
    if exchange.has(parts[0].name):
        return
    per_unit = [
        np.unique(parse_hashes(read_stored(job.rows.store, unit, ["phash"]).rows["phash"]))
        for part in parts
        for unit in part.units
    ]
    hash_N = np.unique(np.concatenate(per_unit))
    exchange.send(parts[0].name, pa.table({"hash": hash_N}), part_of(hash_N, job.num_parts))


def _distinct(part: int, job: _Job) -> Hashes:
    distinct: Hashes = np.unique(job.exchange("hashes").receive(part)["hash"].to_numpy())
    return distinct


def _count_distinct(part: int, job: _Job) -> int:
    return len(_distinct(part, job))


def _send_to_tables(part: int, job: _Job, tables: Tables) -> None:
    """Send the hashes of a part once for each group of tables, by the bits of the group's first blocks."""
    exchange = job.exchange("tables")
    hash_N: Hashes | None = None
    for number, group in enumerate(tables.groups):
        writer = _group_writer(number, part)
        if exchange.has(writer):
            continue
        if hash_N is None:
            hash_N = _distinct(part, job)
        exchange.send(writer, pa.table({"hash": hash_N}), part_of(table_keys(hash_N, group), job.num_parts))


def _group_writer(group: int, part: int) -> str:
    return f"group-{group:04d}-part-{part:06d}"


def _find_pairs(part: int, job: _Job, tables: Tables) -> dict[str, int]:
    """Compare what a part has of each group; send the pairs, as stars already, to the parts of their hashes."""

    def compute() -> dict[str, int]:
        num_pairs, num_waiting = 0, 0
        waiting = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
        for a_P, b_P in _pairs_of_part(part, job, tables):
            waiting.append((a_P, b_P))
            num_pairs += len(a_P)
            num_waiting += len(a_P)
            if num_waiting >= _EDGES_IN_MEMORY:
                # A thousand pictures of one kind are half a million pairs: stars keep the memory to the pictures.
                waiting, num_waiting = [_merged(waiting)], 0
        send_edges(job.exchange("pairs"), f"part-{part:06d}", *_merged(waiting))
        return {"pairs": num_pairs}

    return job.once("pairs", part, compute)


def _pairs_of_part(part: int, job: _Job, tables: Tables) -> Iterator[tuple[Hashes, Hashes]]:
    exchange = job.exchange("tables")
    for number, group in enumerate(tables.groups):
        writers = (_group_writer(number, other) for other in range(job.num_parts))
        hash_N: Hashes = exchange.receive(part, writers)["hash"].to_numpy()
        for table in group.tables:
            yield from pairs_in(hash_N, table, job.max_bits)


def _merged(edges: list[tuple[Hashes, Hashes]]) -> tuple[Hashes, Hashes]:
    return stars(np.concatenate([a for a, _ in edges]), np.concatenate([b for _, b in edges]))


def _write_labels(part: int, job: _Job, grouped: Exchange) -> dict[str, int]:
    """Write the labels of a part's hashes."""
    hash_V, label_V = labels_of(grouped, part)
    job.rows.store.write_table(f"{job.folder}/{_labels_name(part)}", pa.table({"hash": hash_V, "label": label_V}))
    return {"grouped_hashes": len(hash_V), "groups": int(np.count_nonzero(hash_V == label_V))}


def _labels_name(part: int) -> str:
    return f"labels-{part:06d}.parquet"
