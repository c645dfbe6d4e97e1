"""`genlip index`: make a dataset of files that others wrote, where they lie, on Ray. Again: what is new or changed."""

from functools import partial

from jobs.console import Progress, say
from jobs.fan_out import Done
from jobs.ray_pool import Pool
from pipeline.errors import EXIT_ENVIRONMENT, EXIT_FAILED_UNITS, UserError
from pipeline.foreign_dataset import (
    ForeignSummary,
    IndexJob,
    begin_index,
    finish_index,
    write_foreign_index,
)
from pipeline.foreign_files import list_row_groups, list_tars
from pipeline.row_groups import TableColumns
from pipeline.store import Store

MAX_SHOWN = 10


def index_files(source: str, store_url: str, name: str, caption: str, image: str, ray_address: str = "local") -> int:
    """Index the tars of a folder, a glob or a URL, or tables of images, as `shards/NAME` of a store.

    Args:
        source: where the tars or tables are; tables end in `.parquet`.
        store_url: the store, which need not exist.
        name: of the dataset.
        caption: where captions stand: `txt`, or `json:FIELD` for a field of each sample's JSON; of tables the column.
        image: of tables the column of images.
        ray_address: as in `run.ray_address`.

    Returns:
        The exit code.

    Raises:
        UserError: There are no files, or some cannot be read; the others are indexed all the same.
    """
    store, is_table = Store(store_url), source.rstrip("/").endswith(".parquet")
    shards = list_row_groups(source, store, TableColumns(image, caption)) if is_table else list_tars(source, store)
    kind = "row groups" if is_table else "tars"
    jobs = begin_index(store, name, source, caption, shards, image if is_table else "")
    say(f"{source}: {len(shards):,} {kind}, {len(jobs):,} still to index")
    with Pool(ray_address) as pool:
        _run(pool, jobs, store, kind)
    summary = finish_index(store, name)
    _say_summary(summary, store, name, kind)
    if summary.not_tars:
        raise UserError(
            f"{len(summary.not_tars):,} files are no tars; the others are indexed",
            where=", ".join(summary.not_tars[:MAX_SHOWN]),
            next_step="unpack compressed ones, repair the others, and run the same command again",
            exit_code=EXIT_FAILED_UNITS,
        )
    return 0


def _run(pool: Pool, jobs: list[IndexJob], store: Store, kind: str) -> None:
    progress = Progress()
    unreadable: list[Done[IndexJob, int]] = []
    num_samples = 0
    results = pool.fan_out(partial(write_foreign_index, store=store), jobs) if jobs else ()
    for num_done, done in enumerate(results, 1):
        if isinstance(done.error, UserError):
            raise done.error  # the store itself is in trouble
        if done.error:
            unreadable.append(done)
        num_samples += done.result or 0
        line = f"{num_done:,} of {len(jobs):,} {kind}, {num_samples:,} samples"
        progress.show(line, num_done / len(jobs), final=num_done == len(jobs))
    if unreadable:
        raise UserError(
            f"{len(unreadable):,} {kind} cannot be read; the others are indexed",
            where=", ".join(done.item.shard.path for done in unreadable[:MAX_SHOWN]),
            why=f"the first: {unreadable[0].error!r}",
            next_step="check the permissions or the connection, and run the same command again",
            exit_code=EXIT_ENVIRONMENT,
        )


def _say_summary(summary: ForeignSummary, store: Store, name: str, kind: str) -> None:
    made = f"shards/{name}: {summary.num_samples:,} samples in {summary.num_shards:,} {kind}"
    say(f"{made}, {summary.num_bytes / 1e9:,.2f} GB, where they lie")
    if summary.left_out:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.left_out.most_common())
        say(f"left out: {reasons}; listed in {store.path(f'shards/{name}/refused.parquet')}")
    if summary.cut_short:
        say(f"{len(summary.cut_short):,} tars end too early; their whole samples are indexed:")
        for path, num_bytes in list(summary.cut_short.items())[:MAX_SHOWN]:
            say(f"  {path} after byte {num_bytes:,}")
