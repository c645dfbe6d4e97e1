"""`genlip ingest`: every pending unit as a Ray task, then curation. Again: what is missing or new."""

from collections.abc import Iterator, Sequence
from functools import partial

from jobs.console import say
from jobs.curate import curate_store
from jobs.ingest_report import REPORT, render_funnel, write_report
from jobs.live import Live
from jobs.ray_pool import Pool
from jobs.recipe import Recipe
from pipeline.errors import EXIT_FAILED_UNITS, UserError
from pipeline.funnel import read_funnel
from pipeline.inputs.plan import Plan, extend_plan, stage_retry
from pipeline.inputs.units import Unit
from pipeline.ledger import committed_units
from pipeline.store import Store, begin_store, check_store
from pipeline.web.fetcher import check_identity
from pipeline.work import UnitReport, run_unit

MAX_FAILED_SHOWN = 20


def ingest(recipe: Recipe, retry: Sequence[str] = ()) -> int:
    """Bring the store up to date with the recipe and its input files.

    Args:
        recipe: what to ingest.
        retry: classes of failures to ask for again, e.g. `timeout`, `http_5xx`, `transient`, `all`.

    Returns:
        The exit code.
    """
    with Pool(recipe.run.ray_address) as pool:
        failed = _ingest_units(recipe, retry, pool)
        if failed:
            _say_failed(failed)
            return EXIT_FAILED_UNITS
        return curate_store(recipe, pool)


def _ingest_units(recipe: Recipe, retry: Sequence[str], pool: Pool) -> list[UnitReport]:
    """Run what is pending and write the funnel. Returns the units that are pending still."""
    spec = recipe.ingest
    check_identity(spec.fetch)
    store = check_store(recipe.store, spec.content())
    plan = extend_plan(store, spec.source, spec.unit_samples)
    begin_store(store, spec.content())
    if retry:
        plan = _stage_retry(recipe, store, retry) or plan
    failed = _run_pending(recipe, store, plan, pool)
    funnel = read_funnel(store)
    if not failed and funnel.failed.get("spilled") and (again := _stage_retry(recipe, store, ("spilled",))):
        failed = _run_pending(recipe, store, again, pool)
        funnel = read_funnel(store)
    say(render_funnel(funnel))
    write_report(store, funnel)
    say(f"also as JSON: {store.path(REPORT)}")
    return failed


def _stage_retry(recipe: Recipe, store: Store, classes: Sequence[str]) -> Plan | None:
    """The plan with new units for the rows that failed in these ways; None where there are none."""
    spec = recipe.ingest
    num_rows = stage_retry(store, spec.source, spec.unit_samples, classes)
    say(f"retry {', '.join(classes)}: {num_rows:,} rows")
    return extend_plan(store, spec.source, spec.unit_samples) if num_rows else None


def _run_pending(recipe: Recipe, store: Store, plan: Plan, pool: Pool) -> list[UnitReport]:
    """Run the units that are not committed; returns those that still are not."""
    committed = set(committed_units(store))
    num_pending = plan.num_units - len(committed)
    say(f"store {store.root}: {plan.num_rows:,} rows in {plan.num_units:,} units, {num_pending:,} still to do")
    if not num_pending:
        return []
    live = Live(plan.num_units, len(committed), recipe.ingest.healthy_success)
    failed: list[UnitReport] = []
    for done in pool.fan_out(partial(run_unit, spec=recipe.ingest, store=store), _pending(plan, committed)):
        if isinstance(done.error, UserError):
            raise done.error  # The store itself is in trouble: further units would meet the same.
        report = done.result or UnitReport(done.item.name, False, {}, message=repr(done.error))
        if not report.committed:
            failed.append(report)
        live.add(report)
    live.end()
    return failed


def _pending(plan: Plan, committed: set[str]) -> Iterator[Unit]:
    return (unit for unit in plan.iter_units() if unit.name not in committed)


def _say_failed(failed: list[UnitReport]) -> None:
    say(f"{len(failed)} units were not committed and stay pending:")
    for report in failed[:MAX_FAILED_SHOWN]:
        say(f"  {report.name}: {report.message}")
    say("next: run the same command again; it retries these units only")
