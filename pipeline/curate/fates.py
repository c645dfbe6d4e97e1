"""A selection in the making: what each stored sample's fate is so far, part by part, one folder for each step.

    selection/NAME/scratch/fates-03/part-000012.parquet     fate, detail; null while undecided

A step reads what the step before it wrote, so that a part can be done again at any time.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.curate.balance import Entries
from pipeline.curate.draws import Words, hash_texts
from pipeline.curate.near import NearGroups
from pipeline.curate.rows import Part, Rows
from pipeline.curate.spec import SelectSpec
from pipeline.curate.sql import Expression
from pipeline.each import Each
from pipeline.store import Store

FOLDER = "selection"
FATE_SCHEMA = pa.schema([("fate", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class Job:
    """What all parts of a selection know."""

    rows: Rows
    spec: SelectSpec
    holdout: float
    name: str
    seed: int
    num_parts: int
    holdout_near_bits: int | None = None
    rules: tuple[Expression, ...] = ()
    """In the order of `spec.where`."""
    thresholds: tuple[tuple[float | None, ...], ...] = ()
    """Of each rule's quantiles."""
    keep: Expression | None = None
    by: Expression | None = None
    near: NearGroups | None = None
    entries: Entries | None = None
    num_unhashed: int = 0
    """Kept samples without a perceptual hash, which the guard of the held-out images cannot compare."""
    step: int = 0
    """How many steps have been written."""

    @property
    def store(self) -> Store:
        return self.rows.store

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.name}"

    @property
    def scratch(self) -> str:
        return f"{self.folder}/scratch"

    def read_fates(self, part: Part) -> pa.Table:
        """N rows: `fate` and `detail` so far."""
        return self.store.read_table(f"{self.scratch}/fates-{self.step:02d}/{part.name}.parquet")

    def draws(self, keys: pa.ChunkedArray) -> Words:
        """A number for each key, uniform in 64 bits: by these a share of samples is chosen."""
        return hash_texts(keys, self.seed)


Decided = tuple[NDArray[np.bool_], str | pa.Array, str | pa.Array | None]
"""Which of a part's samples are decided now, and fate and detail: for all of them, or one for each of the N samples."""


def advance(job: Job, decide: Callable[[Part, pa.Table, Job], Sequence[Decided]], each: Each) -> Job:
    """One step: let `decide` see each part's fates so far, and write down what it decides of those undecided.

    Returns the job after it.
    """
    for _ in each(partial(_advance_part, job=job, decide=decide), job.rows.parts()):
        pass
    return replace(job, step=job.step + 1)


def _advance_part(part: Part, job: Job, decide: Callable[[Part, pa.Table, Job], Sequence[Decided]]) -> None:
    fates = job.read_fates(part) if job.step else None
    if fates is None:
        num_rows = job.rows.read(part, []).num_rows
        fates = pa.table({name: pa.nulls(num_rows, pa.string()) for name in FATE_SCHEMA.names})
    for decided_N, fate, detail in decide(part, fates, job):
        chosen = pa.array(decided_N & undecided(fates))
        fates = pa.table(
            {
                "fate": pc.if_else(chosen, _text(fate), fates["fate"]),
                "detail": pc.if_else(chosen, _text(detail), fates["detail"]),
            }
        )
    after = replace(job, step=job.step + 1)
    job.store.write_table(f"{after.scratch}/fates-{after.step:02d}/{part.name}.parquet", fates)


def _text(value: str | pa.Array | None) -> Any:
    return value if isinstance(value, pa.Array) else pa.scalar(value, pa.string())


def undecided(fates: pa.Table) -> NDArray[np.bool_]:
    """Which of N samples have no fate yet."""
    open_N: NDArray[np.bool_] = fates["fate"].is_null().to_numpy()
    return open_N


def count_fates(job: Job, each: Each) -> Counter[str]:
    """Samples by fate; undecided ones are not counted."""
    counts: Counter[str] = Counter()
    for _, found in each(partial(_count_part, job=job), job.rows.parts()):
        counts.update(found)
    return counts


def _count_part(part: Part, job: Job) -> dict[str, int]:
    found = pc.value_counts(job.read_fates(part)["fate"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in found if entry["values"] is not None}
