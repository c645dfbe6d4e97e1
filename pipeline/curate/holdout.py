"""Which images of a selection are held out, and the guard that keeps their near-duplicates out of training.

Images are held out by a hash of their file, so equal files fall on one side; the same picture in another size or
quality is another file. The guard leaves out training samples whose perceptual hash is near that of a held-out image.
The held-out hashes are cut into sets, each of which every part looks up: the memory is that of one set, and the work
grows with samples × sets.

    selection/NAME/scratch/heldout/part-000012.rows     hash and key of a part's held-out images, by set
"""

import hashlib
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.curate.components import part_of
from pipeline.curate.fates import Decided, Job, advance, count_fates, undecided
from pipeline.curate.hamming import NUM_BITS, Hashes, HashIndex, parse_hashes
from pipeline.curate.rows import Part
from pipeline.curate.spec import HELDOUT, NEAR_HELDOUT, TRAIN
from pipeline.each import Each
from pipeline.exchange import Exchange

HASHES_PER_SET = 1 << 20
"""About 100 MB while they are looked up, at 4 bits."""


def hold_out(job: Job, each: Each) -> Job:
    """The last step: `heldout` for the share `holdout` of the distinct images, `near_heldout` for what is within
    `holdout_near_bits` of one of these, with its key as the detail, `train` for the rest."""
    if job.holdout:
        job = advance(job, _choose, each)
    if job.holdout_near_bits is not None:
        job = _guard(job, job.holdout_near_bits, each)
    return advance(job, _take_rest, each)


def _choose(part: Part, fates: pa.Table, job: Job) -> list[Decided]:
    open_N = undecided(fates)
    hashes = job.rows.read(part, ["sha256"])["sha256"].filter(pa.array(open_N)).to_pylist()
    held_N = np.zeros(fates.num_rows, np.bool_)
    held_N[open_N] = [_unit_hash(sha256) < job.holdout for sha256 in hashes]
    return [(held_N, HELDOUT, None)]


def _take_rest(part: Part, fates: pa.Table, job: Job) -> list[Decided]:
    return [(np.ones(fates.num_rows, np.bool_), TRAIN, None)]


def _unit_hash(sha256: str) -> float:
    """A number in [0, 1) from the image's own hash, hashed again to be independent of it."""
    return int.from_bytes(hashlib.sha256(f"holdout {sha256}".encode()).digest()[:8], "big") / 2**64


def _guard(job: Job, max_bits: int, each: Each) -> Job:
    num_heldout = count_fates(job, each)[HELDOUT]
    heldout = Exchange(job.store, f"{job.scratch}/heldout", max(1, -(-num_heldout // HASHES_PER_SET)))
    send = partial(_send_heldout, job=job, heldout=heldout)
    num_unhashed = sum(count for _, count in each(send, job.rows.parts()))
    job = advance(job, partial(_leave_out_near, heldout=heldout, max_bits=max_bits), each)
    heldout.remove()
    return replace(job, num_unhashed=num_unhashed)


def _send_heldout(part: Part, job: Job, heldout: Exchange) -> int:
    """Send a part's held-out hashes to their sets. Returns how many of the kept samples have no hash."""
    fates = job.read_fates(part)
    kept = pc.or_kleene(fates["fate"].is_null(), pc.equal(fates["fate"], HELDOUT))
    table = job.rows.read(part, ["key", "phash"]).append_column("fate", fates["fate"]).filter(kept)
    hashed = table.filter(table["phash"].is_valid())
    rows = hashed.filter(hashed["fate"].is_valid())
    hash_H = parse_hashes(rows["phash"])
    keys = rows["key"].cast(pa.string())
    heldout.send(part.name, pa.table({"hash": hash_H, "key": keys}), part_of(hash_H, heldout.num_parts))
    return int(table.num_rows - hashed.num_rows)


def _leave_out_near(part: Part, fates: pa.Table, job: Job, heldout: Exchange, max_bits: int) -> list[Decided]:
    phash = job.rows.read(part, ["phash"])["phash"]
    place = np.flatnonzero(undecided(fates) & phash.is_valid().to_numpy())
    keys = np.full(fates.num_rows, None, object)
    keys[place] = _nearest_keys(parse_hashes(phash.take(pa.array(place))), heldout, max_bits)
    detail = pa.array(keys, pa.string())
    return [(detail.is_valid().to_numpy(zero_copy_only=False), NEAR_HELDOUT, detail)]


def _nearest_keys(hash_N: Hashes, heldout: Exchange, max_bits: int) -> list[str | None]:
    """The key of the held-out image nearest to each hash, None where none is within the distance: [N].

    Of equally near ones that of the smallest hash, and of equal hashes the first of the plan: whatever the sets are.
    """
    keys: list[str | None] = [None] * len(hash_N)
    bits_N = np.full(len(hash_N), NUM_BITS + 1)
    near_N = np.zeros(len(hash_N), np.uint64)
    for number in range(heldout.num_parts):
        rows = heldout.receive(number)
        known_M, first_M = np.unique(rows["hash"].to_numpy(), return_index=True)
        index_N, found_N = HashIndex(known_M, max_bits).nearest(hash_N)
        for place in np.flatnonzero((index_N >= 0) & (found_N <= bits_N)).tolist():
            known = known_M[index_N[place]]
            if (found_N[place], known) < (bits_N[place], near_N[place]):
                bits_N[place], near_N[place] = found_N[place], known
                keys[place] = rows["key"][int(first_M[index_N[place]])].as_py()
    return keys
