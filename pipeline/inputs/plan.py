"""The plan of a store: made of the source's files on the first run, extended by new files later, never renumbered."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.each import ahead
from pipeline.errors import UserError
from pipeline.inputs.adopt import count_images
from pipeline.inputs.batches import (
    BatchInfo,
    Plan,
    new_files,
    plan_settings,
    read_plan,
    refuse_changed_inputs,
    staging_folder,
    units_table,
    write_batch,
)
from pipeline.inputs.files import READ_THREADS, InputFile, fingerprints, list_files
from pipeline.inputs.grouping import group_by_host
from pipeline.inputs.numbers import PlanNumbers, plan_numbers
from pipeline.inputs.retry import stage_retry
from pipeline.inputs.rows import Kind
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.staging import spooled, write_units
from pipeline.inputs.survey import GROUP_FROM_ROWS, Survey, read_all, survey
from pipeline.inputs.tables import rechunk
from pipeline.store import Store, refuse_changes

__all__ = ["Plan", "PlanNumbers", "extend_plan", "plan_numbers", "stage_retry"]

Report = Callable[[str], None]


def extend_plan(store: Store, spec: SourceSpec, unit_samples: int, report: Report = lambda _: None) -> Plan:
    """The store's plan, with a new batch of units where the source has files that no batch has. Same files, same plan.

    Args:
        store: where the plan is kept.
        spec: the source.
        unit_samples: rows in a unit at most.
        report: told in words how far a long copy of the rows has come.

    Raises:
        UserError: The source cannot be read, holds no rows, or an earlier file or a setting has changed. The plan is
            what it was then.
    """
    plan = read_plan(store)
    settings = plan_settings(spec, unit_samples)
    for batch in plan.batches:
        refuse_changes(batch.info.settings, settings, plan.root, "choose another store with --set store=PATH")
    files = list_files(spec, plan.root)
    found = dict(zip((file.url for file in files), fingerprints(files), strict=True))
    refuse_changed_inputs(plan, found, spec.urls)
    new = new_files(plan, files)
    if not new:
        return plan
    number = len(plan.batches)
    is_staged = is_grouped = False
    if spec.holds_images:
        units = _point_at(new, _count_images(new, spec), found, unit_samples)
    else:
        surveyed = survey(new, spec, unit_samples)
        is_staged, is_grouped = surveyed.is_staged, bool(surveyed.is_grouped)
        if is_staged:
            units, is_grouped = _copy(store, staging_folder(number), surveyed, spec, unit_samples, report)
        else:
            units = _point_at(new, surveyed.rows_by_file or (), found, unit_samples)
    if not len(units) and not plan.num_units:
        next_step = "point ingest.source.urls at a table with rows"
        raise UserError("the source has no rows", where=spec.urls, next_step=next_step)
    kind: Kind = "images" if spec.holds_images else "urls"
    inputs = {file.url: found[file.url] for file in new}
    write_batch(store, number, units, BatchInfo(kind, settings, inputs, is_staged, is_grouped))
    return read_plan(store)


def _point_at(
    files: Sequence[InputFile], rows_by_file: Sequence[int], found: dict[str, str], unit_samples: int
) -> pa.Table:
    """Units that are ranges of rows of the source's own files."""
    rows_F = np.array(rows_by_file, np.int64)
    units_F = -(-rows_F // unit_samples)
    file_U = np.repeat(np.arange(len(files), dtype=np.int32), units_F)
    first_U = (np.arange(len(file_U)) - np.repeat(np.cumsum(units_F) - units_F, units_F)) * unit_samples
    num_rows_U = np.minimum(unit_samples, rows_F[file_U] - first_U)
    urls = [file.url for file in files]
    return units_table(urls, [found[url] for url in urls], file_U, first_U, num_rows_U)


def _copy(
    store: Store, folder: str, surveyed: Survey, spec: SourceSpec, unit_samples: int, report: Report
) -> tuple[pa.Table, bool]:
    """Units of rows that are copied into the store, and whether they are grouped by host."""
    with ExitStack() as stack:
        blocks, is_grouped = read_all(surveyed, spec, report), surveyed.is_grouped
        if is_grouped is None:
            is_grouped, blocks = stack.enter_context(spooled(blocks, GROUP_FROM_ROWS))
        units = group_by_host(blocks, spec.columns.url, unit_samples) if is_grouped else rechunk(blocks, unit_samples)
        return write_units(store, folder, units), is_grouped


def _count_images(files: Sequence[InputFile], spec: SourceSpec) -> list[int]:
    return list(ahead(partial(count_images, spec=spec), files, READ_THREADS))
