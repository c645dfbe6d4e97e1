"""`genlip ingest`: every pending unit as a Ray task, then curation. Again: what is missing or new."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from jobs.console import say
from jobs.curate import curate_store
from jobs.fan_out import Done, Policy, Stragglers
from jobs.ingest_report import REPORT, render_funnel, write_report
from jobs.live import Live
from jobs.ray_pool import Pool
from jobs.recipe import Recipe
from jobs.stop_requests import stop_requests
from pipeline.errors import EXIT_FAILED_UNITS, EXIT_PREEMPTED, UserError
from pipeline.funnel import read_funnel
from pipeline.inputs.batches import read_plan
from pipeline.inputs.committed import NumberSet, committed
from pipeline.inputs.plan import Plan, extend_plan, stage_retry
from pipeline.inputs.units import Unit
from pipeline.store import Store, begin_store, check_store
from pipeline.web.fetcher import check_identity
from pipeline.work import UnitReport, run_unit

MAX_FAILED_SHOWN = 20
PLAN_ONLY = "plan"


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a plan; the units are dealt like cards."""

    index: int = 0
    count: int = 1

    def numbers(self, num_units: int) -> range:
        """The units of this part, of so many in all."""
        return range(self.index, num_units, self.count)


def parse_part(text: str) -> Part:
    """`3/16` is the fourth of sixteen.

    Raises:
        UserError: It says no part.
    """
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return Part(int(index), int(count))
    raise UserError(f"--part {text}: write I/N with I from 0 to N - 1, or {PLAN_ONLY}")


@dataclass
class Ran:
    """What a run of pending units came to."""

    num_failed: int = 0
    first_failed: list[UnitReport] = field(default_factory=list)
    is_stopped: bool = False
    """Whether it ended early, on request."""

    def failed(self, report: UnitReport) -> None:
        """Count a unit that stays pending; some are kept, to be shown."""
        self.num_failed += 1
        if len(self.first_failed) < MAX_FAILED_SHOWN:
            self.first_failed.append(report)


def ingest(recipe: Recipe, retry: Sequence[str] = (), part: str = "") -> int:
    """Bring the store up to date with the recipe and its input files.

    Args:
        recipe: what to ingest.
        retry: classes of failures to ask for again, e.g. `timeout`, `http_5xx`, `transient`, `all`.
        part: for job arrays: `plan` writes the plan alone, `I/N` runs a part of the units of a plan that is written.

    Returns:
        The exit code.
    """
    if part == PLAN_ONLY:
        _, plan = _extend_plan(recipe, retry)
        say(f"store {recipe.store}: {plan.num_rows:,} rows in {plan.num_units:,} units are planned")
        return 0
    with Pool(recipe.run.ray_address) as pool:
        ran = _ingest_part(recipe, parse_part(part), pool) if part else _ingest_units(recipe, retry, pool)
        if ran.num_failed:
            _say_failed(ran)
        if ran.is_stopped:
            say("stopped on request; what is committed stays, and the same command goes on from there")
            return EXIT_PREEMPTED
        if ran.num_failed:
            return EXIT_FAILED_UNITS
        return 0 if part else curate_store(recipe, pool)


def _ingest_part(recipe: Recipe, part: Part, pool: Pool) -> Ran:
    """Run what is pending of a part. Others run the other parts meanwhile: nothing is written for the whole store."""
    check_identity(recipe.ingest.fetch)
    store = check_store(recipe.store, recipe.ingest.content())
    plan = read_plan(store)
    if not plan.num_units:
        next_step = f"run: genlip ingest RECIPE --part {PLAN_ONLY}"
        raise UserError("there is no plan to take a part of", where=store.root, next_step=next_step)
    return _run_pending(recipe, store, plan, pool, part)


def _extend_plan(recipe: Recipe, retry: Sequence[str]) -> tuple[Store, Plan]:
    """The store and its plan, with units for new files and for rows to ask for again."""
    spec = recipe.ingest
    check_identity(spec.fetch)
    store = check_store(recipe.store, spec.content())
    plan = extend_plan(store, spec.source, spec.unit_samples)
    begin_store(store, spec.content())
    return store, (_stage_retry(recipe, store, retry) if retry else None) or plan


def _ingest_units(recipe: Recipe, retry: Sequence[str], pool: Pool) -> Ran:
    """Run what is pending and write the funnel."""
    store, plan = _extend_plan(recipe, retry)
    ran = _run_pending(recipe, store, plan, pool)
    if ran.is_stopped:
        return ran
    funnel = read_funnel(store, pool.each, keep=True)
    if not ran.num_failed and funnel.failed.get("spilled") and (again := _stage_retry(recipe, store, ("spilled",))):
        ran = _run_pending(recipe, store, again, pool)
        if ran.is_stopped:
            return ran
        funnel = read_funnel(store, pool.each, keep=True)
    say(render_funnel(funnel))
    write_report(store, funnel)
    say(f"also as JSON: {store.path(REPORT)}")
    return ran


def _stage_retry(recipe: Recipe, store: Store, classes: Sequence[str]) -> Plan | None:
    """The plan with new units for the rows that failed in these ways; None where there are none."""
    spec = recipe.ingest
    num_rows = stage_retry(store, spec.source, spec.unit_samples, classes)
    say(f"retry {', '.join(classes)}: {num_rows:,} rows")
    return extend_plan(store, spec.source, spec.unit_samples) if num_rows else None


def _run_pending(recipe: Recipe, store: Store, plan: Plan, pool: Pool, part: Part = Part()) -> Ran:
    """Run the units of a part that are not committed."""
    numbers = part.numbers(plan.num_units)
    ended = committed(store)
    num_done = sum(number in ended for number in numbers)
    num_pending = len(numbers) - num_done
    of_part = f", of which part {part.index}/{part.count} has {len(numbers):,}" if part.count > 1 else ""
    say(f"store {store.root}: {plan.num_rows:,} rows in {plan.num_units:,} units{of_part}, {num_pending:,} still to do")
    ran = Ran()
    if not num_pending:
        return ran
    live = Live(recipe.name, len(numbers), num_done, recipe.ingest.healthy_success)
    run = partial(run_unit, spec=recipe.ingest, store=store)
    pool.start()
    with stop_requests() as should_stop:
        # A unit may run twice at the same time: of its commits one wins.
        policy = Policy(Stragglers(), should_stop, live.note)
        for done in pool.fan_out(run, _pending(plan, ended, numbers), policy=policy):
            if isinstance(done.error, UserError):
                raise done.error  # The store itself is in trouble: further units would meet the same.
            report = done.result or UnitReport(done.item.name, False, {}, message=_why(done))
            if not report.committed:
                ran.failed(report)
            live.add(report)
        ran.is_stopped = should_stop()
    live.end()
    return ran


def _why(done: Done[Unit, UnitReport]) -> str:
    """What a unit's task ended with, in a line."""
    return f"{type(done.error).__name__}: {str(done.error).strip().partition(chr(10))[0]} (on {done.node})"


def _pending(plan: Plan, ended: NumberSet, numbers: range) -> Iterator[Unit]:
    return (unit for unit in plan.iter_units() if unit.number in numbers and unit.number not in ended)


def _say_failed(ran: Ran) -> None:
    say(f"{ran.num_failed:,} units were not committed and stay pending:")
    for report in ran.first_failed:
        say(f"  {report.name}: {report.message}")
    say("next: run the same command again; it retries these units only")
