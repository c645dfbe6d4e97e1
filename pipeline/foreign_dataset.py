"""A dataset of files that others wrote: the same index as of our own shards, with paths or URLs of others in it.

A shard is a tar, or a row group of a table. It keeps its number for good: new ones are numbered after those that are
known, changed ones are indexed again, and one that is gone is an error, since runs may have begun on it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipeline.dataset_files import dataset_file, foreign_file, index_file, refused_file, shard_file
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from pipeline.foreign import CUT_SHORT, NOT_A_TAR, index_row_group, index_tar
from pipeline.foreign_files import ForeignShard, absolute_path
from pipeline.row_groups import TableColumns
from pipeline.sharding.commits import committed_shards, write_commit, write_index
from pipeline.store import Store, open_fs, refuse_changes

_CAPTION = re.compile(r"txt|json:.+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SHARDS_SCHEMA = pa.schema([("path", pa.string()), ("num_bytes", pa.int64()), ("fingerprint", pa.string())])


@dataclass(frozen=True)
class IndexJob:
    """One shard to index."""

    dataset: str
    number: int
    shard: ForeignShard
    caption: str
    image: str


@dataclass(frozen=True)
class ForeignSummary:
    """What an index holds."""

    num_samples: int
    num_shards: int
    num_bytes: int
    left_out: Counter[str]
    """Samples by reason."""
    cut_short: dict[str, int]
    """Tars that end too early, with the byte up to which they were read."""
    not_tars: list[str]


def begin_index(
    store: Store, dataset: str, source: str, caption: str, shards: Sequence[ForeignShard], image: str = ""
) -> list[IndexJob]:
    """Write down what the dataset is made of. Returns the shards that are still to be indexed.

    Args:
        store: for the index.
        dataset: its name.
        source: where the shards were found.
        caption: where captions stand: `txt`, or `json:FIELD`; of tables the column.
        shards: of `list_tars` or `list_row_groups`.
        image: of tables the column of images.

    Raises:
        UserError: The name or `caption` is none, the dataset was made of something else, or one of its shards is gone.
    """
    if not _NAME.fullmatch(dataset):
        raise UserError(f"not a name for a folder: {dataset!r}", where="--name", next_step="use letters, digits and -")
    if not image and not _CAPTION.fullmatch(caption):
        raise UserError(f"not a place of captions: {caption!r}", where="--caption", next_step="use txt or json:FIELD")
    place = absolute_path(*open_fs(source))
    content = {"tables": place, "image": image, "caption": caption} if image else {"tars": place, "caption": caption}
    file = dataset_file(dataset)
    if store.exists(file):
        alternative = f"choose another --name, or delete {store.path(f'shards/{dataset}')}"
        refuse_changes(store.read_json(file), content, store.path(file), alternative)
    elif store.exists(index_file(dataset)):
        refuse_changes({}, content, store.path(index_file(dataset)), "choose another --name")
    else:
        store.write_json(file, content)
    numbered = _number(store, dataset, shards)
    jobs = [IndexJob(dataset, number, shard, caption, image) for number, shard in enumerate(numbered)]
    committed = committed_shards(store, dataset)
    missing = [job for job in jobs if job.number not in committed]
    if missing:
        store.remove(index_file(dataset))
    return missing


def _number(store: Store, dataset: str, shards: Sequence[ForeignShard]) -> list[ForeignShard]:
    """The shards in the order of their numbers. What is known of changed ones is forgotten."""
    file = foreign_file(dataset)
    known = [ForeignShard(**row) for row in store.read_table(file).to_pylist()] if store.exists(file) else []
    by_path = {shard.path: shard for shard in shards}
    gone = [shard.path for shard in known if shard.path not in by_path]
    if gone:
        raise UserError(
            f"{len(gone):,} shards of the dataset are gone",
            where=", ".join(gone[:3]),
            next_step=f"restore them, choose another --name, or delete {store.path(f'shards/{dataset}')}",
        )
    known_paths = {shard.path for shard in known}
    numbered = [by_path[shard.path] for shard in known] + [one for one in shards if one.path not in known_paths]
    if numbered != known:
        store.remove(index_file(dataset))
        for number, (before, now) in enumerate(zip(known, numbered, strict=False)):
            if before != now:
                store.remove(shard_file(dataset, number))
        store.write_table(file, pa.Table.from_pylist([asdict(shard) for shard in numbered], _SHARDS_SCHEMA))
    return numbered


def write_foreign_index(job: IndexJob, store: Store) -> int:
    """Index a shard and commit it. Returns its samples.

    Raises:
        OSError: It cannot be read.
        ShardError: The row group is not there any more.
    """
    shard = job.shard
    if job.image:
        index = index_row_group(shard.path, TableColumns(job.image, job.caption))
    else:
        index = index_tar(shard.path, shard.num_bytes, job.caption)
    num_samples = len(index.keys)
    entry = {"path": shard.path, "num_samples": num_samples, "num_bytes": shard.num_bytes, "sha256": shard.fingerprint}
    refused = [asdict(one) | {"shard": shard.path, "raw": shard.path} for one in index.left_out]
    write_commit(store, job.dataset, job.number, entry | index.columns(), refused)
    return num_samples


def finish_index(store: Store, dataset: str) -> ForeignSummary:
    """Join the rows of all shards, unless that is done, and count what there is.

    Raises:
        UserError: No sample can be trained on.
    """
    num_shards = store.read_table(foreign_file(dataset), ["path"]).num_rows
    if not store.exists(index_file(dataset)):
        write_index(store, dataset, num_shards)
    index = store.read_table(index_file(dataset), ["num_samples", "num_bytes"])
    refused = store.read_table(refused_file(dataset), ["shard", "offset", "reason"]).to_pylist()
    summary = ForeignSummary(
        num_samples=sum(index["num_samples"].to_pylist()),
        num_shards=num_shards,
        num_bytes=sum(index["num_bytes"].to_pylist()),
        left_out=Counter(row["reason"] for row in refused if row["reason"] not in (CUT_SHORT, NOT_A_TAR)),
        cut_short={row["shard"]: row["offset"] for row in refused if row["reason"] == CUT_SHORT},
        not_tars=[row["shard"] for row in refused if row["reason"] == NOT_A_TAR],
    )
    if not summary.num_samples:
        store.remove(index_file(dataset))
        raise _no_samples(store.path(f"shards/{dataset}"), Counter(row["reason"] for row in refused))
    return summary


def _no_samples(folder: str, reasons: Counter[str]) -> UserError:
    return UserError(
        "no sample can be trained on",
        where=folder,
        why=", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()),
        next_step=f"name where the captions stand with --caption; delete {folder} before",
        exit_code=EXIT_FAILED_UNITS,
    )
