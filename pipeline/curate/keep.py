"""Of samples that are the same, one stays: groups meet in an exchange, and the others hear of it in a second one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.curate.draws import Words, hash_texts
from pipeline.curate.fates import Decided, Job, advance, undecided
from pipeline.curate.hamming import parse_hashes
from pipeline.curate.near import part_of
from pipeline.curate.rows import Part
from pipeline.curate.sql import evaluate
from pipeline.each import Each
from pipeline.exchange import Exchange
from pipeline.web.failures import Failed
from pipeline.web.urls import parse_url

Identity = Callable[[pa.Table, Job], tuple[NDArray[np.bool_], Words, Words]]
"""From a part's samples to which of them have a group at all, and the 128 bits that name it, for those that do."""
_SEEDS = (1, 2)


def keep_one(job: Job, fate: str, columns: list[str], identity: Identity, ranked: bool, each: Each) -> Job:
    """Leave one undecided sample of each group; the others get `fate`, with its key as the detail.

    Args:
        job: so far.
        fate: of those that do not stay.
        columns: which `identity` needs.
        identity: names a sample's group.
        ranked: the largest of `dedup.keep` stays, and of equal ones the first of the plan; else always the first.
        each: runs the parts.
    """
    send = partial(_send, job=job, fate=fate, columns=columns, identity=identity, ranked=ranked)
    for _ in each(send, job.rows.parts()):
        pass
    for _ in each(partial(_find_losers, job=job, fate=fate), range(job.num_parts)):
        pass
    job = advance(job, partial(_apply, fate=fate), each)
    for exchange in (_members(job, fate), _losers(job, fate)):
        exchange.remove()
    return job


def by_text(column: str) -> Identity:
    """Equal texts are the same."""
    return partial(_by_text, column=column)


def by_url(table: pa.Table, job: Job) -> tuple[NDArray[np.bool_], Words, Words]:
    """URLs that ask the same of the same server are the same; one that cannot be asked is itself."""
    spelled = [None if url is None else _canonical(url) for url in table["url"].to_pylist()]
    return _by_text(pa.table({"url": pa.array(spelled, pa.string())}), job, "url")


def by_near_label(table: pa.Table, job: Job) -> tuple[NDArray[np.bool_], Words, Words]:
    """Perceptual hashes of one group (`near`) are the same, and so are equal ones."""
    assert job.near is not None
    valid_N = table["phash"].is_valid().to_numpy()
    hash_V = parse_hashes(table["phash"])
    label_V = hash_V.copy()
    part_V = part_of(hash_V, job.near.num_parts)
    for part in np.unique(part_V).tolist():
        known_H, label_H = job.near.labels(part)
        inside = np.flatnonzero(part_V == part)
        place = np.minimum(np.searchsorted(known_H, hash_V[inside]), max(len(known_H) - 1, 0))
        if len(known_H):
            hit = known_H[place] == hash_V[inside]
            label_V[inside[hit]] = label_H[place[hit]]
    return valid_N, label_V, np.zeros_like(label_V)


def _by_text(table: pa.Table, job: Job, column: str) -> tuple[NDArray[np.bool_], Words, Words]:
    valid_N = table[column].is_valid().to_numpy()
    texts = pc.drop_null(table[column])
    return valid_N, hash_texts(texts, _SEEDS[0]), hash_texts(texts, _SEEDS[1])


def _canonical(url: str) -> str:
    try:
        return str(parse_url(url))
    except Failed:
        return url


def _send(part: Part, job: Job, fate: str, columns: list[str], identity: Identity, ranked: bool) -> None:
    """Send a part's undecided samples to the parts of their groups."""
    wanted = {"key", *columns} | set(job.keep.columns if job.keep and ranked else ())
    table = job.rows.read(part, sorted(wanted))
    place = np.arange(table.num_rows, dtype=np.int32)
    if job.step:
        open_N = undecided(job.read_fates(part))
        table, place = table.filter(pa.array(open_N)), place[open_N]
    valid_N, first_G, second_G = identity(table, job)
    table, place = table.filter(pa.array(valid_N)), place[valid_N]
    rank = np.zeros(len(place))
    if ranked and job.keep:
        values = evaluate(table, [job.keep])[0].cast(pa.float64())
        rank = np.nan_to_num(pc.fill_null(values, -np.inf).to_numpy(), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    rows = pa.table(
        {
            "first": first_G,
            "second": second_G,
            "rank": rank,
            "part": np.full(len(place), part.number, np.int32),
            "place": place,
            "key": table["key"].cast(pa.string()),
        }
    )
    _members(job, fate).send(part.name, rows, part_of(first_G, job.num_parts))


def _find_losers(number: int, job: Job, fate: str) -> None:
    """Tell the parts of those that do not stay."""
    members = _members(job, fate).receive(number)
    names = ("place", "part", "rank", "second", "first")
    columns: dict[str, NDArray[Any]] = {name: members[name].to_numpy() for name in names}
    columns["rank"] = -columns["rank"]
    order = np.lexsort([columns[name] for name in names])
    first, second = columns["first"][order], columns["second"][order]
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    winner = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    loser, winner = order[~starts], winner[~starts]
    rows = pa.table({"place": columns["place"][loser], "detail": members["key"].take(pa.array(winner))})
    _losers(job, fate).send(f"group-{number:06d}", rows, columns["part"][loser])


def _apply(part: Part, fates: pa.Table, job: Job, fate: str) -> list[Decided]:
    lost = _losers(job, fate).receive(part.number)
    place = lost["place"].to_numpy()
    decided_N = np.zeros(fates.num_rows, np.bool_)
    decided_N[place] = True
    at_N = np.full(fates.num_rows, -1)
    at_N[place] = np.arange(len(place))
    detail = lost["detail"].combine_chunks().take(pa.array(at_N, mask=at_N < 0))
    return [(decided_N, fate, detail)]


def _members(job: Job, fate: str) -> Exchange:
    return Exchange(job.store, f"{job.scratch}/{fate}-members", job.num_parts)


def _losers(job: Job, fate: str) -> Exchange:
    return Exchange(job.store, f"{job.scratch}/{fate}-losers", job.num_parts)
