"""From a selection to datasets that `train` reads: `shards/NAME`, and `shards/NAME-heldout` for what is held out.

The shards are a pure function of the store, the selection and the recipe. Each is written on its own, in any order,
by any number of workers, and again after a kill; from the index alone a dataset exists.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from pipeline.curate.rows import Rows
from pipeline.curate.select import units_fingerprint
from pipeline.curate.spec import HELDOUT, TRAIN
from pipeline.dataset_files import HELDOUT_SUFFIX, dataset_file, index_file, refused_file
from pipeline.each import Each
from pipeline.errors import UserError
from pipeline.inputs.committed import NumberSet
from pipeline.recipe import ShardSpec
from pipeline.sharding.commits import committed_shards, write_index
from pipeline.sharding.order import Order, cut, make_order, send_part, sort_part, stale_selection
from pipeline.sharding.write import ShardJob, write_shard
from pipeline.store import Store, refuse_changes

_SUFFIXES = {HELDOUT: HELDOUT_SUFFIX, TRAIN: ""}
"""By fate, the training shards last: their index says that all is there."""


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
                rows.store.remove(index_file(dataset.name))  # of a dataset of which shards were deleted
                _write_shards(dataset, order, missing[dataset.name], spec, each, report)
    for dataset in datasets:
        if not rows.store.exists(index_file(dataset.name)):
            write_index(rows.store, dataset.name, dataset.num_shards)
    rows.store.remove(_plan(name))
    return read_summary(rows.store, name)


def read_summary(store: Store, name: str) -> DatasetSummary:
    """Of a finished dataset."""
    (train, train_refused), (heldout, heldout_refused) = (_totals(store, name + s) for s in ("", HELDOUT_SUFFIX))
    return DatasetSummary(name, *train, heldout[0], train_refused + heldout_refused)


def _plan(name: str) -> str:
    return f"shards/{name}/.plan"


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
    both = " and ".join(store.path(f"shards/{name}{suffix}") for suffix in _SUFFIXES.values())
    for file in (dataset_file(name + suffix) for suffix in _SUFFIXES.values()):
        if store.exists(file):
            alternative = f"give the new shards another name with --set shards.name=NAME, or delete {both}"
            refuse_changes(store.read_json(file), content, store.path(file), alternative)
    for file in (dataset_file(dataset.name) for dataset in datasets):
        if not store.exists(file):
            store.write_json(file, content)


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


def _missing_shards(store: Store, dataset: Dataset) -> NumberSet:
    committed = committed_shards(store, dataset.name)
    return NumberSet(number for number in range(dataset.num_shards) if number not in committed)


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
    dataset: Dataset, order: Order, missing: NumberSet, spec: ShardSpec, each: Each, report: Callable[[str], None]
) -> None:
    """Sort the order, cut it into shards, and write those that are missing."""
    num_rows = dict(each(partial(sort_part, order), range(order.num_parts)))
    slices = cut([num_rows[part] for part in range(order.num_parts)], dataset.num_shards)
    report(f"writing {len(missing):,} of {dataset.num_shards:,} shards to shards/{dataset.name}")
    jobs = (ShardJob(dataset.name, number, one) for number, one in enumerate(slices) if number in missing)
    _run(each(partial(write_shard, order, spec.check), jobs))


def _run(results: Iterator[Any]) -> None:
    for _ in results:
        pass


def _totals(store: Store, dataset: str) -> tuple[tuple[int, int, int], int]:
    """Samples, shards and bytes of a finished dataset, and samples that were left out; an absent one has none."""
    if not store.exists(index_file(dataset)):
        return (0, 0, 0), 0
    with store.reading(index_file(dataset)) as stream:
        index = pq.read_table(stream, columns=["num_samples", "num_bytes"])
    with store.reading(refused_file(dataset)) as stream:
        num_refused = pq.read_metadata(stream).num_rows
    num_samples, num_bytes = (int(index[name].to_numpy().sum()) for name in ("num_samples", "num_bytes"))
    return (num_samples, index.num_rows, num_bytes), num_refused
