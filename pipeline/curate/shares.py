"""The steps of a selection that keep a number of samples: caps on words, a mix of sources, a total."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.curate.balance import keep_balanced, read_entries
from pipeline.curate.draws import Words
from pipeline.curate.fates import Decided, Job, advance, undecided
from pipeline.curate.quantiles import kth_smallest
from pipeline.curate.rows import Part
from pipeline.curate.spec import OVER_CAP, OVER_LIMIT, OVER_SHARE
from pipeline.curate.sql import evaluate
from pipeline.each import Each
from pipeline.errors import UserError


def balance(job: Job, each: Each) -> Job:
    """Cap the entries of `spec.balance` among the undecided."""
    spec = job.spec.balance
    assert spec is not None
    job = replace(job, entries=read_entries(spec.entries))
    assert job.entries is not None
    count_E = np.zeros(len(job.entries), np.int64)
    for _, found_E in each(partial(_count_entries, job=job), job.rows.parts()):
        count_E += found_E
    return replace(advance(job, partial(_balance_part, count_E=count_E, cap=spec.max_per_entry), each), entries=None)


def mix(job: Job, each: Each) -> Job:
    """Keep the largest number of undecided samples that has the shares of `spec.mix`.

    Raises:
        UserError: A source has no samples.
    """
    assert job.spec.mix is not None
    shares = job.spec.mix.shares
    found: Counter[str] = Counter()
    for _, some in each(partial(_count_sources, job=job), job.rows.parts()):
        found.update(some)
    absent = [source for source in shares if not found[source]]
    if absent:
        raise UserError(
            f"no sample that is left is of source {absent[0]!r}",
            where="curate.select.mix.shares",
            why=f"of the sources named there, {dict(found)} are left by {job.spec.mix.by}",
            next_step="correct the source's name, or take it out of the shares",
        )
    weights = {source: Fraction(str(share)) for source, share in shares.items()}
    unit = min(found[source] / weight for source, weight in weights.items())
    wanted = [int(unit * weight) for weight in weights.values()]
    last = kth_smallest(partial(_draws_by_source, job=job), lambda totals: wanted, job.rows.parts, each)
    return advance(job, partial(_mix_part, last=last), each)


def limit(job: Job, each: Each) -> Job:
    """Keep `spec.max_samples` of the undecided samples."""
    wanted = job.spec.max_samples
    assert wanted is not None
    last = kth_smallest(partial(_draws, job=job), lambda totals: [wanted], job.rows.parts, each)
    return job if not last or last[0] is None else advance(job, partial(_limit_part, last=last[0]), each)


def _open_rows(part: Part, job: Job, columns: Sequence[str]) -> pa.Table:
    return job.rows.read(part, columns).filter(pa.array(undecided(job.read_fates(part))))


def _count_entries(part: Part, job: Job) -> NDArray[np.int64]:
    assert job.entries is not None
    _, entry_M = job.entries.match(_open_rows(part, job, ["caption"])["caption"].to_pylist())
    return np.bincount(entry_M, minlength=len(job.entries))


def _balance_part(part: Part, fates: pa.Table, job: Job, count_E: NDArray[np.int64], cap: int) -> list[Decided]:
    assert job.entries is not None
    table = job.rows.read(part, ["key", "caption"])
    matches = job.entries.match(table["caption"].to_pylist())
    kept_N = keep_balanced(matches, job.draws(table["key"]), count_E, job.entries, cap)
    no_entry_N = np.bincount(matches[0], minlength=table.num_rows) == 0
    return [(no_entry_N, OVER_CAP, "no entry"), (~kept_N, OVER_CAP, None)]


def _sources(table: pa.Table, job: Job) -> pa.ChunkedArray:
    assert job.by is not None
    return evaluate(table, [job.by])[0]


def _count_sources(part: Part, job: Job) -> dict[str, int]:
    assert job.by is not None
    assert job.spec.mix is not None
    found = pc.value_counts(_sources(_open_rows(part, job, job.by.columns), job)).to_pylist()
    return {entry["values"]: entry["counts"] for entry in found if entry["values"] in job.spec.mix.shares}


def _draws_by_source(part: Part, job: Job) -> list[Words]:
    assert job.by is not None
    assert job.spec.mix is not None
    table = _open_rows(part, job, sorted({"key", *job.by.columns}))
    sources, draw_N = _sources(table, job), job.draws(table["key"])
    return [draw_N[_is(sources, source)] for source in job.spec.mix.shares]


def _mix_part(part: Part, fates: pa.Table, job: Job, last: Sequence[int | None]) -> list[Decided]:
    assert job.by is not None
    assert job.spec.mix is not None
    table = job.rows.read(part, sorted({"key", *job.by.columns}))
    sources, draw_N = _sources(table, job), job.draws(table["key"])
    kept_N = np.zeros(table.num_rows, np.bool_)
    for source, bound in zip(job.spec.mix.shares, last, strict=True):
        if bound is not None:
            kept_N |= _is(sources, source) & (draw_N <= np.uint64(bound))
    return [(~kept_N, OVER_SHARE, sources.combine_chunks().cast(pa.string()))]


def _is(sources: pa.ChunkedArray, source: str) -> NDArray[np.bool_]:
    equal_N: NDArray[np.bool_] = pc.fill_null(pc.equal(sources, source), False).to_numpy()
    return equal_N


def _draws(part: Part, job: Job) -> list[Words]:
    return [job.draws(_open_rows(part, job, ["key"])["key"])]


def _limit_part(part: Part, fates: pa.Table, job: Job, last: int) -> list[Decided]:
    draw_N = job.draws(job.rows.read(part, ["key"])["key"])
    return [(draw_N > np.uint64(last), OVER_LIMIT, None)]
