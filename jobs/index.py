"""`genlip index`: make a dataset of tars that others wrote, where they lie, on Ray. Again: what is new or changed."""

from functools import partial

from jobs.console import Progress, say
from jobs.ray_pool import Done, fan_out, ray_session
from pipeline.errors import EXIT_ENVIRONMENT, EXIT_FAILED_UNITS, UserError
from pipeline.foreign_dataset import (
    ForeignSummary,
    IndexJob,
    begin_index,
    finish_index,
    list_tars,
    write_tar_index,
)
from pipeline.store import Store

MAX_SHOWN = 10


def index_tars(source: str, store_url: str, name: str, caption: str = "txt", ray_address: str = "local") -> int:
    """Index the tars of a folder, a glob or a URL as `shards/NAME` of a store.

    Args:
        source: where the tars are.
        store_url: the store, which need not exist.
        name: of the dataset.
        caption: where captions stand: `txt`, or `json:FIELD` for a field of each sample's JSON.
        ray_address: as in `run.ray_address`.

    Returns:
        The exit code.

    Raises:
        UserError: There are no tars, or some cannot be read; the others are indexed all the same.
    """
    store = Store(store_url)
    tars = list_tars(source, store)
    jobs = begin_index(store, name, source, caption, tars)
    say(f"{source}: {len(tars):,} tars, {len(jobs):,} still to index")
    if jobs:
        with ray_session(ray_address):
            _run(jobs, store)
    summary = finish_index(store, name)
    _say_summary(summary, store, name)
    if summary.not_tars:
        raise UserError(
            f"{len(summary.not_tars):,} files are no tars; the others are indexed",
            where=", ".join(summary.not_tars[:MAX_SHOWN]),
            next_step="unpack compressed ones, repair the others, and run the same command again",
            exit_code=EXIT_FAILED_UNITS,
        )
    return 0


def _run(jobs: list[IndexJob], store: Store) -> None:
    progress = Progress()
    unreadable: list[Done[IndexJob, int]] = []
    num_samples = 0
    for num_done, done in enumerate(fan_out(partial(write_tar_index, store=store), jobs), 1):
        if isinstance(done.error, UserError):
            raise done.error  # the store itself is in trouble
        if done.error:
            unreadable.append(done)
        num_samples += done.result or 0
        line = f"{num_done:,} of {len(jobs):,} tars, {num_samples:,} samples"
        progress.show(line, num_done / len(jobs), final=num_done == len(jobs))
    if unreadable:
        raise UserError(
            f"{len(unreadable):,} tars cannot be read; the others are indexed",
            where=", ".join(done.item.tar.path for done in unreadable[:MAX_SHOWN]),
            why=f"the first: {unreadable[0].error!r}",
            next_step="check the permissions or the connection, and run the same command again",
            exit_code=EXIT_ENVIRONMENT,
        )


def _say_summary(summary: ForeignSummary, store: Store, name: str) -> None:
    made = f"shards/{name}: {summary.num_samples:,} samples in {summary.num_shards:,} tars"
    say(f"{made}, {summary.num_bytes / 1e9:,.2f} GB, where they lie")
    if summary.left_out:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in summary.left_out.most_common())
        say(f"left out: {reasons}; listed in {store.path(f'shards/{name}/refused.parquet')}")
    if summary.cut_short:
        say(f"{len(summary.cut_short):,} tars end too early; their whole samples are indexed:")
        for path, num_bytes in list(summary.cut_short.items())[:MAX_SHOWN]:
            say(f"  {path} after byte {num_bytes:,}")
