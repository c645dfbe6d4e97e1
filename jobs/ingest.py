"""`genlip ingest`: every pending unit as a Ray task, then the training shards. Again: what is missing."""

from collections import Counter
from functools import partial

from jobs.console import Progress, duration, say, table
from jobs.ray_pool import fan_out, ray_session
from jobs.recipe import Recipe
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from pipeline.funnel import Funnel, read_funnel
from pipeline.materialise import begin_dataset, finish_dataset, plan_shards, select, write_shard
from pipeline.sources import Unit, plan_units, record_plan
from pipeline.store import Store, open_store
from pipeline.work import SUCCESS, UnitReport, run_unit

MAX_FAILED_SHOWN = 20


def ingest(recipe: Recipe) -> int:
    """Bring the store up to date with the recipe. Returns the exit code."""
    units = plan_units(recipe.ingest.source, recipe.ingest.unit_samples)
    store = open_store(recipe.store, recipe.ingest.content())
    record_plan(store, units)
    committed = set(store.names("ledger", ".parquet"))
    pending = [unit for unit in units if f"{unit.name}.parquet" not in committed]
    num_rows = sum(unit.num_rows for unit in units)
    say(f"store {store.root}: {num_rows:,} rows in {len(units):,} units, {len(pending):,} still to do")
    failed = _run_units(recipe, store, pending, len(units)) if pending else []
    say(render_funnel(read_funnel(store)))
    if failed:
        _report_failed(failed)
        return EXIT_FAILED_UNITS
    _make_shards(recipe, store)
    return 0


def _run_units(recipe: Recipe, store: Store, pending: list[Unit], num_units: int) -> list[UnitReport]:
    """Run the pending units; returns those that were not committed."""
    progress, totals, failed = Progress(), Counter[str](), list[UnitReport]()
    num_done, num_bytes = num_units - len(pending), 0
    with ray_session(recipe.run.ray_address):
        for done in fan_out(partial(run_unit, spec=recipe.ingest, store=store), pending):
            if isinstance(done.error, UserError):
                raise done.error  # The store itself is in trouble: further units would meet the same.
            report = done.result or UnitReport(done.item.name, False, {}, message=repr(done.error))
            if report.committed:
                num_done += 1
                num_bytes += report.num_bytes
                totals.update(report.reasons)
            else:
                failed.append(report)
            progress.show(_progress_line(progress, totals, num_done, num_units, num_bytes, len(failed)))
        progress.show(_progress_line(progress, totals, num_done, num_units, num_bytes, len(failed)), final=True)
    return failed


def _progress_line(
    progress: Progress, totals: Counter[str], num_done: int, num_units: int, num_bytes: int, num_failed: int
) -> str:
    seen, kept = sum(totals.values()), totals[SUCCESS]
    rate = seen / max(progress.elapsed_s, 1e-9)
    rows_left = (num_units - num_done) * seen / max(num_done, 1)
    return (
        f"units {num_done:,}/{num_units:,} · in {seen:,} · kept {kept:,} ({kept / max(seen, 1):.1%})"
        f" · {rate:,.0f} rows/s · {num_bytes / max(progress.elapsed_s, 1e-9) / 1e6:.1f} MB/s"
        f" · failed units {num_failed} · eta {duration(rows_left / rate) if rate else '?'}"
    )


def render_funnel(funnel: Funnel) -> str:
    """The funnel as a text table; its parts add up to what was seen."""

    def share(count: int) -> str:
        return f"{count / max(funnel.seen, 1):.1%}"

    rows = [["seen", f"{funnel.seen:,}", ""], ["  success", f"{funnel.success:,}", share(funnel.success)]]
    for name, total, reasons in (
        ("rejected", funnel.num_rejected, funnel.rejected),
        ("failed", funnel.num_failed, funnel.failed),
    ):
        rows.append([f"  {name}", f"{total:,}", share(total)])
        rows += [[f"    {reason}", f"{count:,}", share(count)] for reason, count in reasons.items()]
    total = funnel.success + funnel.num_rejected + funnel.num_failed
    sums = f"{funnel.seen:,} seen = {funnel.success:,} success + {funnel.num_rejected:,} rejected"
    return f"{table(rows)}\n{sums} + {funnel.num_failed:,} failed{'' if total == funnel.seen else ' (DOES NOT ADD UP)'}"


def _report_failed(failed: list[UnitReport]) -> None:
    say(f"{len(failed)} units were not committed and stay pending:")
    for report in failed[:MAX_FAILED_SHOWN]:
        say(f"  {report.name}: {report.message}")
    say("next: run the same command again; it retries these units only")


def _make_shards(recipe: Recipe, store: Store) -> None:
    selection = select(store, recipe.shards)
    jobs = plan_shards(selection, recipe.shards, recipe.seed)
    pending = begin_dataset(store, jobs, recipe.shards, recipe.seed)
    fates = " · ".join(f"{fate} {count:,}" for fate, count in selection.counts().items())
    say(f"selection: {selection.table.num_rows:,} stored = {fates}")
    if pending:
        with ray_session(recipe.run.ray_address):
            for done in fan_out(partial(write_shard, store=store), pending):
                if done.error:
                    raise done.error
    if pending or not store.exists(f"shards/{recipe.shards.name}/index.parquet"):
        finish_dataset(store, jobs, selection)
    state = f"{len(pending)} shards written" if pending else "nothing to do"
    say(f"shards/{recipe.shards.name}: {len(jobs)} shards, {state}")
