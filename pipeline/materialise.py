"""From the raw store to training shards: select, split off a held-out part, shuffle globally, write.

The assignment is a pure function of the ledgers and the recipe, and each shard of it is written on its own, so that
shards can be made in any order, by any number of workers, and again after a kill.
"""

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from pipeline.ledger import committed_units, read_commit
from pipeline.outcomes import SUCCESS
from pipeline.raw import read_members
from pipeline.recipe import ShardSpec
from pipeline.shards import INDEX_SCHEMA, ShardWriter, index_table
from pipeline.store import Store, refuse_changes

HELDOUT_SUFFIX = "-heldout"
_COLUMNS = ["key", "status", "sha256", "width", "height", "offset", "size"]


@dataclass(frozen=True)
class Selection:
    """Which samples go where: one row per stored sample, with the `fate` of each."""

    table: pa.Table
    """The ledgers' columns, plus `raw` (the file) and `fate` (train, heldout, duplicate_key, duplicate_image)."""

    def counts(self) -> dict[str, int]:
        found = pc.value_counts(self.table["fate"]).to_pylist()
        return {entry["values"]: entry["counts"] for entry in sorted(found, key=lambda entry: -entry["counts"])}


@dataclass(frozen=True)
class ShardJob:
    """One training shard to write: which samples, in which order, from which raw files."""

    dataset: str
    number: int
    samples: pa.Table

    @property
    def stem(self) -> str:
        return f"shards/{self.dataset}/shard-{self.number:06d}"


def select(store: Store, spec: ShardSpec) -> Selection:
    """Decide the fate of each stored sample.

    Of samples with the same key, or the same original bytes, the first in plan order stays. What is held out is
    chosen by a hash of the image's bytes, so that no image is on both sides whatever else changes.
    """
    ledgers = []
    for name in committed_units(store):
        ledger = store.read_table(f"ledger/{name}.parquet", _COLUMNS)
        kept = ledger.filter(pc.equal(ledger["status"], SUCCESS)).drop_columns(["status"])
        raw = read_commit(store, name).raw
        ledgers.append(kept.append_column("raw", pa.array([raw] * kept.num_rows, pa.string())))
    if not ledgers:
        raise UserError("the store has no committed unit", where=store.root, next_step="run: genlip ingest RECIPE")
    samples = pa.concat_tables(ledgers)
    keys = _repeats(samples["key"])
    images = np.zeros(len(keys), dtype=bool)
    images[~keys] = _repeats(samples["sha256"].filter(pa.array(~keys)))  # a dropped sample is no reason to drop another
    held_out = np.array([_unit_hash(sha256) < spec.holdout for sha256 in samples["sha256"].to_pylist()], dtype=bool)
    fate = np.select([keys, images, held_out], ["duplicate_key", "duplicate_image", "heldout"], "train")
    return Selection(samples.append_column("fate", pa.array(fate.tolist(), pa.string())))


def plan_shards(selection: Selection, spec: ShardSpec, seed: int) -> list[ShardJob]:
    """Shuffle the selected samples globally and cut them into shards of nearly equal size."""
    jobs: list[ShardJob] = []
    if not pc.any(pc.equal(selection.table["fate"], "train")).as_py():
        raise UserError(
            "no sample is left to train on",
            why=f"of {selection.table.num_rows} stored samples: {selection.counts()}",
            next_step="see the funnel: retry what failed, loosen the filters, or lower shards.holdout",
        )
    for fate, dataset in (("train", spec.name), ("heldout", spec.name + HELDOUT_SUFFIX)):
        chosen = selection.table.filter(pc.equal(selection.table["fate"], fate))
        if not chosen.num_rows:
            continue
        order = np.argsort(np.array([_keyed_hash(seed, key) for key in chosen["key"].to_pylist()], dtype=np.uint64))
        shuffled = chosen.take(pa.array(order))
        num_shards = -(-chosen.num_rows // spec.shard_samples)
        bounds = [chosen.num_rows * i // num_shards for i in range(num_shards + 1)]
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            jobs.append(ShardJob(dataset, number, shuffled.slice(start, end - start)))
    return jobs


def begin_dataset(store: Store, jobs: list[ShardJob], spec: ShardSpec, seed: int) -> list[ShardJob]:
    """Check that shards already there belong to this assignment. Returns the jobs still to do.

    Raises:
        UserError: The shards of that name were made with other values or from other samples.
    """
    content = spec.model_dump(mode="json") | {"seed": seed, "samples": _fingerprint(jobs)}
    name = f"shards/{spec.name}/dataset.json"
    if store.exists(name):
        other_name = "give the new shards another name with --set shards.name=NAME"
        refuse_changes(store.read_json(name), content, store.path(name), other_name)
    else:
        store.write_json(name, content)
    return [job for job in jobs if not store.exists(f"{job.stem}.parquet")]


def write_shard(job: ShardJob, store: Store) -> int:
    """Copy the job's samples from the raw files into one shard, and commit it. Returns its number of bytes."""
    rows = job.samples.to_pylist()
    parts = _read_parts(store, job.samples)
    with store.writing(f"{job.stem}.tar") as stream:
        writer = ShardWriter(stream)
        places = [writer.add_raw(part) for part in parts]
        num_bytes, sha256 = writer.close()
    entry: dict[str, Any] = {
        "path": f"{job.stem}.tar",
        "num_samples": len(rows),
        "num_bytes": num_bytes,
        "sha256": sha256,
        "keys": [row["key"] for row in rows],
        "offsets": [offset for offset, _ in places],
        "sizes": [size for _, size in places],
        "widths": [row["width"] for row in rows],
        "heights": [row["height"] for row in rows],
    }
    store.write_table(f"{job.stem}.parquet", index_table([entry]))
    return num_bytes


def _read_parts(store: Store, samples: pa.Table) -> list[bytes]:
    """The samples' tar members in the table's order, opening each raw file once."""
    parts = [b""] * samples.num_rows
    raws, offsets, sizes = (samples[name].to_pylist() for name in ("raw", "offset", "size"))
    by_place = sorted(range(samples.num_rows), key=lambda i: (raws[i], offsets[i]))
    for raw, group in itertools.groupby(by_place, key=lambda i: raws[i]):
        places = list(group)
        bodies = read_members(store, raw, [(offsets[i], sizes[i]) for i in places])
        for i, body in zip(places, bodies, strict=True):
            if raw.endswith(".tar") and len(body) != sizes[i]:
                raise UserError(
                    "a raw tar is shorter than its ledger says",
                    where=store.path(raw),
                    next_step="delete its unit's file in ledger/ and ingest it again: genlip ingest RECIPE",
                    exit_code=EXIT_ENVIRONMENT,
                )
            parts[i] = body
    return parts


def finish_dataset(store: Store, jobs: list[ShardJob], selection: Selection) -> None:
    """Write the indexes, from which alone a dataset exists for readers, and the record of each sample's fate."""
    fates = selection.table.select(["key", "fate", "raw"])
    dataset = jobs[0].dataset.removesuffix(HELDOUT_SUFFIX)
    store.write_table(f"selection/{dataset}.parquet", fates)
    for name in sorted({job.dataset for job in jobs}, reverse=True):  # the training index last
        parts = [store.read_table(f"{job.stem}.parquet") for job in jobs if job.dataset == name]
        store.write_table(f"shards/{name}/index.parquet", pa.concat_tables(parts).cast(INDEX_SCHEMA))


def _repeats(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True for each value that stood before in the column."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    repeated = np.ones(len(codes), dtype=bool)
    repeated[np.unique(codes, return_index=True)[1]] = False
    return repeated


def _unit_hash(sha256: str) -> float:
    """A number in [0, 1) from the image's own hash, hashed again to be independent of it."""
    return int.from_bytes(hashlib.sha256(f"holdout {sha256}".encode()).digest()[:8], "big") / 2**64


def _keyed_hash(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big")


def _fingerprint(jobs: list[ShardJob]) -> str:
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(job.dataset.encode())
        digest.update("".join(job.samples["key"].to_pylist()).encode())
    return digest.hexdigest()[:16]
