"""Datasets of a store, made by `genlip curate` or by `genlip index` from tars and tables of others."""

from collections.abc import Iterator
from itertools import islice

from pipeline.dataset_files import HELDOUT_SUFFIX, index_file
from pipeline.errors import UserError
from pipeline.shards import Sample
from pipeline.store import Store
from train.data.dataset import Dataset, open_dataset, read_samples
from train.evaluation.adapters.source import MAX_SCANNED, Left, Source, split_by_content
from train.evaluation.samples import Labelled


def has_dataset(store: Store, name: str) -> bool:
    """Whether it is committed."""
    return store.exists(index_file(name))


def list_datasets(store: Store) -> list[str]:
    """Names of the datasets, without the held-out parts of others."""
    names = [name for name in store.names("shards", "") if has_dataset(store, name)]
    return [name for name in names if name.removesuffix(HELDOUT_SUFFIX) not in names or not _is_heldout(name)]


def the_dataset(store: Store) -> str:
    """The name of the only dataset.

    Raises:
        UserError: There is none, or more than one.
    """
    names = list_datasets(store)
    if len(names) != 1:
        raise UserError(
            f"the store has {len(names)} datasets" if names else "the store has no dataset",
            where=store.root,
            why=f"it has {', '.join(names)}" if names else "",
            next_step=f"name one: {store.root}#{names[0]}" if names else "run: genlip curate, or genlip index",
        )
    return names[0]


def store_source(store: Store, name: str) -> Source:
    """Held-out and training samples of a dataset; class names stand in the samples' JSON (`class_name`).

    The shards NAME-heldout are measured where there are some, in their own order, which curating has mixed. All of a
    dataset whose name ends in -heldout is measured. Else the first samples are split by the content of the images.

    Raises:
        UserError: The store has no such dataset, or a shard cannot be read.
    """
    base = name.removesuffix(HELDOUT_SUFFIX)
    if not has_dataset(store, base + HELDOUT_SUFFIX):
        return split_by_content(islice(_read(open_dataset(store, name)), MAX_SCANNED))
    heldout = _read(open_dataset(store, base + HELDOUT_SUFFIX))
    return Source(heldout, _read(open_dataset(store, base)) if has_dataset(store, base) else ())


def _read(dataset: Dataset) -> Iterator[Labelled | Left]:
    for number in range(dataset.num_shards):
        for sample in read_samples(dataset, number):
            yield _labelled(sample) if sample else Left("damaged in the shard")


def _labelled(sample: Sample) -> Labelled:
    class_name = sample.meta.get("class_name")
    named = class_name.strip() or None if isinstance(class_name, str) else None
    return Labelled(sample.key, sample.image, (sample.caption,) if sample.caption.strip() else (), named)


def _is_heldout(name: str) -> bool:
    return name.endswith(HELDOUT_SUFFIX)
