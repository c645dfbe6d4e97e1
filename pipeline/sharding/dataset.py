"""From a selection to datasets that `train` reads: `shards/NAME`, and `shards/NAME-heldout` for what is held out.

The shards are a pure function of the store, the selection and the recipe. Each is written on its own, in any order,
by any number of workers, and again after a kill; from the index alone a dataset exists.
"""

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.curate.rows import Rows
from pipeline.curate.select import units_fingerprint
from pipeline.curate.spec import HELDOUT, TRAIN
from pipeline.each import Each
from pipeline.errors import UserError
from pipeline.recipe import ShardSpec
from pipeline.sharding.order import Order, cut, make_order, send_part, sort_part, stale_selection
from pipeline.sharding.write import REFUSED_SCHEMA, ShardJob, read_commit, shard_stem, write_shard
from pipeline.shards import INDEX_SCHEMA
from pipeline.store import Store, refuse_changes

HELDOUT_SUFFIX = "-heldout"
_SUFFIXES = {HELDOUT: HELDOUT_SUFFIX, TRAIN: ""}
"""By fate, the training shards last: their index says that all is there."""
_INDEX_GROUP_SHARDS = 64
"""Shards in a row group of the index: what its writer holds in memory."""


@dataclass(frozen=True)
class DatasetSummary:
    """What was made."""

    name: str
    num_samples: int
    num_shards: int
    num_bytes: int
    num_heldout: int
    num_refused: int
    """Selected samples, held-out ones included, that turned out to be damaged."""

    def lines(self) -> list[str]:
        """For the terminal."""
        made = f"shards/{self.name}: {self.num_samples:,} samples in {self.num_shards:,} shards"
        lines = [f"{made}, {self.num_bytes / 1e9:,.2f} GB; {self.num_heldout:,} held out"]
        if self.num_refused:
            where = f"shards/{self.name}*/refused.parquet"
            lines.append(f"{self.num_refused:,} damaged samples were left out; they are listed in {where}")
        return lines


@dataclass(frozen=True)
class Dataset:
    """What is made of the samples of one fate."""

    name: str
    fate: str
    num_samples: int
    num_shards: int


def materialise(
    rows: Rows,
    name: str,
    spec: ShardSpec,
    seed: int,
    each: Each,
    report: Callable[[str], None] = lambda line: None,
) -> DatasetSummary:
    """Write the shards of a selection, as far as they are not there yet, and their indexes.

    Args:
        rows: the store's samples, with the columns that `spec.captions` names.
        name: of the selection, and of the shards.
        spec: how to shard.
        seed: of the global order.
        each: how the parts are run.
        report: is told what is being done.

    Raises:
        UserError: There is no selection, or the store has changed since; the shards of that name were made with other
            values; nothing is selected; a raw file is missing or short.
    """
    selection = _read_selection(rows, name)
    captions = _captions(rows, spec)
    counts = {fate: int(selection["counts"].get(fate, 0)) for fate in _SUFFIXES}
    datasets = [
        Dataset(name + suffix, fate, counts[fate], -(-counts[fate] // spec.shard_samples))
        for fate, suffix in _SUFFIXES.items()
        if counts[fate]
    ]
    _begin(rows.store, name, spec, seed, selection, datasets)
    missing = {dataset.name: _missing_shards(rows.store, dataset) for dataset in datasets}
    if any(missing.values()):
        orders = _send(rows, name, captions, seed, datasets, each, report)
        for dataset, order in zip(datasets, orders, strict=True):
            if missing[dataset.name]:
                rows.store.remove(_index(dataset.name))  # of a dataset of which shards were deleted
                _write_shards(dataset, order, missing[dataset.name], spec, each, report)
    for dataset in datasets:
        if not rows.store.exists(_index(dataset.name)):
            _write_index(rows.store, dataset)
    rows.store.remove(_plan(name))
    return read_summary(rows.store, name)


def read_summary(store: Store, name: str) -> DatasetSummary:
    """Of a finished dataset."""
    (train, train_refused), (heldout, heldout_refused) = (_totals(store, name + s) for s in ("", HELDOUT_SUFFIX))
    return DatasetSummary(name, *train, heldout[0], train_refused + heldout_refused)


def _plan(name: str) -> str:
    return f"shards/{name}/.plan"


def _index(dataset: str) -> str:
    return f"shards/{dataset}/index.parquet"


def _refused(dataset: str) -> str:
    return f"shards/{dataset}/refused.parquet"


def _read_selection(rows: Rows, name: str) -> dict[str, Any]:
    """The selection's commit record.

    Raises:
        UserError: It does not exist, is of other units, or keeps nothing.
    """
    store, file = rows.store, f"selection/{name}/selection.json"
    if not store.exists(file):
        next_step = "run: genlip select RECIPE"
        raise UserError("the samples are not selected yet", where=store.path(file), next_step=next_step)
    selection: dict[str, Any] = store.read_json(file)
    if selection["units_fingerprint"] != units_fingerprint(store):
        raise stale_selection(store, f"selection/{name}")
    if not selection["counts"].get(TRAIN, 0):
        raise UserError(
            "no sample is left to train on",
            where=store.path(file),
            why=f"of {selection['num_samples']:,} stored samples: {selection['counts']}",
            next_step="see the funnel: retry what failed, loosen curate.select, or lower shards.holdout",
        )
    return selection


def _begin(
    store: Store, name: str, spec: ShardSpec, seed: int, selection: dict[str, Any], datasets: list[Dataset]
) -> None:
    """Check that shards already there belong to these values and this selection, or write the values down."""
    fingerprint = hashlib.sha256(json.dumps(selection, sort_keys=True).encode()).hexdigest()[:16]
    content = spec.model_dump(mode="json") | {"seed": seed, "selection": fingerprint}
    folders = [f"shards/{name}{suffix}" for suffix in _SUFFIXES.values()]
    both = " and ".join(store.path(folder) for folder in folders)
    for folder in folders:
        if store.exists(f"{folder}/dataset.json"):
            alternative = f"give the new shards another name with --set shards.name=NAME, or delete {both}"
            known = store.read_json(f"{folder}/dataset.json")
            refuse_changes(known, content, store.path(f"{folder}/dataset.json"), alternative)
    for dataset in datasets:
        if not store.exists(f"shards/{dataset.name}/dataset.json"):
            store.write_json(f"shards/{dataset.name}/dataset.json", content)


def _captions(rows: Rows, spec: ShardSpec) -> tuple[str, ...]:
    """The columns with further captions.

    Raises:
        UserError: One does not exist, or is no text.
    """
    for column in spec.captions:
        if rows.types.get(column) != "string":
            texts = sorted(name for name, kind in rows.types.items() if kind == "string")
            raise UserError(
                f"no column with text is called {column!r}",
                where="shards.captions",
                why=f"those with text are {', '.join(texts)}",
                next_step="correct the name, or add its annotator to curate.annotate and run: genlip annotate RECIPE",
            )
    return spec.captions


def _missing_shards(store: Store, dataset: Dataset) -> list[int]:
    committed = set(store.names(f"shards/{dataset.name}", ".parquet"))
    stems = (posixpath.basename(shard_stem(dataset.name, number)) for number in range(dataset.num_shards))
    return [number for number, stem in enumerate(stems) if f"{stem}.parquet" not in committed]


def _send(
    rows: Rows,
    name: str,
    captions: tuple[str, ...],
    seed: int,
    datasets: list[Dataset],
    each: Each,
    report: Callable[[str], None],
) -> list[Order]:
    """Send all selected samples to the parts of their dataset's order. Returns the orders, yet to be sorted."""
    orders = {
        dataset.fate: make_order(rows.store, f"{_plan(name)}/{dataset.fate}", captions, dataset.num_samples)
        for dataset in datasets
    }
    report(f"shuffling {sum(dataset.num_samples for dataset in datasets):,} samples")
    _run(each(partial(send_part, rows, f"selection/{name}", orders, seed), rows.parts()))
    return list(orders.values())


def _write_shards(
    dataset: Dataset, order: Order, missing: list[int], spec: ShardSpec, each: Each, report: Callable[[str], None]
) -> None:
    """Sort the order, cut it into shards, and write those that are missing."""
    num_rows = dict(each(partial(sort_part, order), range(order.num_parts)))
    slices = cut([num_rows[part] for part in range(order.num_parts)], dataset.num_shards)
    report(f"writing {len(missing):,} of {dataset.num_shards:,} shards to shards/{dataset.name}")
    wanted = set(missing)
    jobs = (ShardJob(dataset.name, number, one) for number, one in enumerate(slices) if number in wanted)
    _run(each(partial(write_shard, order, spec.check), jobs))


def _run(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def _write_index(store: Store, dataset: Dataset) -> None:
    """Join the shards' rows; what was left out is written first."""
    with (
        store.writing(_index(dataset.name)) as index_stream,
        pq.ParquetWriter(index_stream, INDEX_SCHEMA) as index,
        store.writing(_refused(dataset.name)) as refused_stream,
        pq.ParquetWriter(refused_stream, REFUSED_SCHEMA) as refused,
    ):
        for start in range(0, dataset.num_shards, _INDEX_GROUP_SHARDS):
            numbers = range(start, min(start + _INDEX_GROUP_SHARDS, dataset.num_shards))
            commits = [read_commit(store, shard_stem(dataset.name, number)) for number in numbers]
            index.write_table(pa.concat_tables([row for row, _ in commits]).cast(INDEX_SCHEMA))
            refused.write_table(pa.concat_tables([left_out for _, left_out in commits]))


def _totals(store: Store, dataset: str) -> tuple[tuple[int, int, int], int]:
    """Samples, shards and bytes of a finished dataset, and samples that were left out; an absent one has none."""
    if not store.exists(_index(dataset)):
        return (0, 0, 0), 0
    with store.reading(_index(dataset)) as stream:
        index = pq.read_table(stream, columns=["num_samples", "num_bytes"])
    with store.reading(_refused(dataset)) as stream:
        num_refused = pq.read_metadata(stream).num_rows
    num_samples, num_bytes = (int(index[name].to_numpy().sum()) for name in ("num_samples", "num_bytes"))
    return (num_samples, index.num_rows, num_bytes), num_refused
