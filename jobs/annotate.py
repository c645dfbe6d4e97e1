"""`genlip annotate`: the columns that the recipe names, for the units that lack them, on Ray."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import cv2

from jobs.console import Progress, duration, say, table
from jobs.ray_pool import Pool
from jobs.recipe import Recipe
from pipeline.annotate.annotator import Annotator
from pipeline.annotate.columns import address, annotated_units, describe
from pipeline.annotate.unit import MAX_EXAMPLES, AnnotatorReport, UnitAnnotated, annotate_unit
from pipeline.curate.spec import CurateSpec
from pipeline.errors import UserError
from pipeline.inputs.committed import NumberSet, committed
from pipeline.inputs.rows import name_of
from pipeline.store import Store


@dataclass
class _Total:
    """An annotator's work in this run."""

    num_samples: int = 0
    num_errors: int = 0
    cpu_s: float = 0.0
    examples: list[str] = field(default_factory=list)
    refused_units: list[str] = field(default_factory=list)

    def add(self, unit: str, report: AnnotatorReport) -> None:
        self.num_samples += report.num_samples
        self.num_errors += report.num_errors
        self.cpu_s += report.cpu_s
        self.examples += [f"{unit} {example}" for example in report.examples[: MAX_EXAMPLES - len(self.examples)]]
        if not report.committed:
            self.refused_units.append(unit)


def annotate_store(recipe: Recipe, pool: Pool) -> bool:
    """Compute what is missing. Returns whether every unit has every column now."""
    spec, store = recipe.curate, Store(recipe.store)
    annotators = spec.build_annotators()
    if not annotators:
        return True
    units = committed(store)
    if not units:
        raise UserError("the store has no committed unit", where=store.root, next_step="run: genlip ingest RECIPE")
    totals: dict[str, _Total] = {}
    failed: list[str] = []
    for needs, group in _by_needs(annotators):
        for one in group:
            describe(store, one)
        pending = _pending(store, units, group)
        if not pending:
            continue
        addresses = frozenset(address(one) for one in group)
        task = partial(_annotate_one, store=store, spec=spec, addresses=addresses)
        progress = Progress()
        for number, done in enumerate(pool.fan_out(task, map(name_of, pending), *needs), 1):
            if isinstance(done.error, UserError):
                raise done.error
            if done.result is None:
                failed.append(f"{done.item}: {done.error!r}")
                continue
            for name, report in done.result.by_address.items():
                totals.setdefault(name, _Total()).add(done.item, report)
            progress.show(
                f"annotate: {number:,} of {len(pending):,} units, {duration(progress.elapsed_s)}",
                number / len(pending),
                final=number == len(pending),
            )
    _say_end(totals, failed, len(annotators), len(units))
    return not failed and not any(total.refused_units for total in totals.values())


def _by_needs(annotators: Sequence[Annotator]) -> Iterator[tuple[tuple[float, float], list[Annotator]]]:
    """Annotators of equal needs run together, so that a unit's images are read and decoded once for all of them."""

    def needs(one: Annotator) -> tuple[float, float]:
        return one.num_cpus, one.num_gpus

    for key, group in groupby(sorted(annotators, key=needs), needs):
        yield key, list(group)


def _pending(store: Store, units: NumberSet, annotators: Sequence[Annotator]) -> NumberSet:
    """Units that lack a column of one of the annotators."""
    done = [annotated_units(store, address(one)) for one in annotators]
    return NumberSet(number for number in units if not all(number in one for one in done))


def _annotate_one(unit: str, store: Store, spec: CurateSpec, addresses: frozenset[str]) -> UnitAnnotated:
    """The task. It builds the annotators anew, for plug-ins are known by their module's name alone in this process."""
    cv2.setNumThreads(1)  # a task has the cores that its annotators declare
    annotators = [one for one in spec.build_annotators() if address(one) in addresses]
    return annotate_unit(unit, store, annotators, spec.max_errors)


def _say_end(totals: dict[str, _Total], failed: Sequence[str], num_annotators: int, num_units: int) -> None:
    if not totals and not failed:
        say(f"annotate: {num_annotators} annotators × {num_units:,} units, all there; nothing computed")
        return
    rows = [["annotator", "samples", "errors", "samples/s per core"]]
    for name, total in sorted(totals.items()):
        speed = total.num_samples / max(total.cpu_s, 1e-9)
        rows.append([name, f"{total.num_samples:,}", f"{total.num_errors:,}", f"{speed:,.0f}"])
    say(table(rows))
    for name, total in sorted(totals.items()):
        for example in total.examples:
            say(f"  {name}: {example}")
        if total.refused_units:
            say(
                f"{name}: more errors than curate.max_errors allows in {len(total.refused_units):,} units"
                f" ({', '.join(total.refused_units[:MAX_EXAMPLES])} …): they stay without its columns;"
                " correct the annotator, or raise curate.max_errors, and run the same command again"
            )
    for message in failed[:MAX_EXAMPLES]:
        say(f"not annotated: {message}")
