"""What an evaluation reads, from whatever holds it: a store, folders of classes, COCO or Karpathy JSON."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from model import ModelError, load_rgb
from model.processing_genlip import MAX_ASPECT_RATIO
from pipeline.dataset_files import HELDOUT_SUFFIX
from pipeline.errors import UserError
from pipeline.store import Store
from train.evaluation.adapters.caption_files import caption_file_source, find_caption_file
from train.evaluation.adapters.class_folders import class_folders_source
from train.evaluation.adapters.source import MAX_SCANNED, Left, Source
from train.evaluation.adapters.stores import has_dataset, store_source, the_dataset
from train.evaluation.near_duplicates import ENOUGH_PX, Known
from train.evaluation.samples import EvalData, Labelled

NEAR_DUPLICATE = "near-duplicate of a training image"
NOT_DECODED = "cannot be decoded"
TOO_LONG = f"one side is more than {MAX_ASPECT_RATIO} times the other"
SHARD_SUFFIXES = (".tar", ".parquet")


def read_run_data(store: Store, dataset: str, limit: int, max_training: int = MAX_SCANNED) -> EvalData:
    """Held-out and training samples of the dataset that a run was trained on.

    Raises:
        UserError: Nothing was held out of it.
    """
    if not has_dataset(store, dataset + HELDOUT_SUFFIX):
        raise UserError(
            "there are no held-out samples",
            where=store.path(f"shards/{dataset}{HELDOUT_SUFFIX}"),
            next_step="ingest with --set shards.holdout=0.1 --set shards.name=NAME",
        )
    return _read(store_source(store, dataset), limit, max_training, f"{store.root}#{dataset}")


def read_eval_data(where: str, limit: int, max_training: int = MAX_SCANNED) -> EvalData:
    """Samples of any data that there is an adapter for; what they expect is in this folder's README.md.

    Held-out images that are, or nearly are, one of the training images are left out, as are those that the model could
    not take. The same data gives the same samples each time.

    Args:
        where: STORE, STORE#DATASET, a folder of class folders, a COCO or Karpathy JSON file, or a folder with one.
        limit: Held-out images at most.
        max_training: Training images at most.

    Raises:
        UserError: There is nothing of these, or nothing to measure in it.
    """
    return _read(_open_source(where), limit, max_training, where)


def _open_source(where: str) -> Source:
    path = Path(where)
    if "://" in where or ("#" in where and not path.exists()):
        root, _, name = where.partition("#")
        store = Store(root)
        return store_source(store, name or the_dataset(store))
    if not path.exists():
        raise UserError("there is no such file or folder", where=where, next_step="check eval.data")
    if path.suffix in SHARD_SUFFIXES or (path.is_dir() and any(next(path.glob(f"*{s}"), None) for s in SHARD_SUFFIXES)):
        raise UserError(
            "tars and tables are read through an index",
            where=where,
            next_step=f"run: genlip index '{where}' --store STORE --name NAME, and set eval.data to STORE#NAME",
        )
    if path.suffix == ".json":
        return caption_file_source(path)
    if path.is_file():
        raise UserError(
            "this kind of file cannot be measured on",
            where=where,
            next_step="name a COCO or Karpathy JSON file, a folder or a store; tables of URLs: genlip ingest",
        )
    if (path / "shards").is_dir():
        store = Store(where)
        return store_source(store, the_dataset(store))
    if file := find_caption_file(path):
        return caption_file_source(file)
    return class_folders_source(path)


def _read(source: Source, limit: int, max_training: int, where: str) -> EvalData:
    skipped: Counter[str] = Counter()
    known = Known()
    training: list[Labelled] = []
    for one, picture in islice(_decoded(source.training, skipped, " (training)"), max_training):
        known.add(one.image, picture)
        training.append(one)
    heldout: list[Labelled] = []
    for one, picture in _decoded(source.heldout, skipped):
        if known.has(one.image, picture):
            skipped[NEAR_DUPLICATE] += 1
            continue
        heldout.append(one)
        if len(heldout) == limit:
            break
    if not heldout:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        raise UserError("there is no held-out image to measure", where=where, why=f"left out: {reasons or 'none'}")
    return EvalData(heldout, training, source.class_names, dict(skipped))


def _decoded(
    samples: Iterable[Labelled | Left], skipped: Counter[str], suffix: str = ""
) -> Iterator[tuple[Labelled, Image.Image]]:
    """The samples whose images a model can take, each with its picture at some size; the others are counted."""
    for one in samples:
        if isinstance(one, Left):
            skipped[one.reason + suffix] += 1
            continue
        try:
            picture = load_rgb(one.image, (ENOUGH_PX, ENOUGH_PX))
        except ModelError:
            skipped[NOT_DECODED + suffix] += 1
            continue
        if max(picture.size) > MAX_ASPECT_RATIO * min(picture.size):
            skipped[TOO_LONG + suffix] += 1
            continue
        yield one, picture
