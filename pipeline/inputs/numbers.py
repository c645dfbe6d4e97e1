"""What a plan comes to, without making it: for `genlip plan`."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.inputs.adopt import count_images
from pipeline.inputs.batches import Plan, new_files, read_plan, refuse_changed_inputs
from pipeline.inputs.files import InputFile, fingerprints, list_files
from pipeline.inputs.hosts import authorities, host_of
from pipeline.inputs.spec import SourceSpec
from pipeline.inputs.survey import GROUP_FROM_ROWS, Survey, survey
from pipeline.inputs.tables import read_head
from pipeline.store import Store

BYTES_PER_URL = 96_000
"""Traffic per URL tried, as img2dataset reported it for 18 million URLs (130 MB/s at 1,350 URLs/s)."""

_SAMPLE_ROWS = 1_000_000
_SAMPLE_FILES = 64


@dataclass(frozen=True)
class PlanNumbers:
    """Of the source as it is now: planned units and new files."""

    num_files: int
    num_new_files: int
    """Files that are not in the store's plan yet."""
    num_rows: int
    num_units: int
    distinct_hosts: int
    """Hosts among the URLs; 0 where nothing is downloaded."""
    expected_bytes: int
    """To be downloaded, at `BYTES_PER_URL`; for a dataset with images, the size of its files."""
    is_staged: bool
    """Whether the rows of the new files will be copied into the store."""
    is_grouped: bool
    """Whether their units will hold the rows of few hosts."""
    estimates: tuple[str, ...]
    """Names of the numbers here that are estimated from a part of the rows."""


def plan_numbers(store: Store | None, spec: SourceSpec, unit_samples: int) -> PlanNumbers:
    """Count what there is to do, in seconds and without writing anything.

    Args:
        store: the store, if it has been begun.
        spec: the source.
        unit_samples: rows in a unit at most.

    Raises:
        UserError: The source cannot be read, or a file of the plan has changed.
    """
    plan = read_plan(store) if store else Plan("")
    files = list_files(spec, plan.root)
    if plan.batches:
        found = dict(zip((file.url for file in files), fingerprints(files), strict=True))
        refuse_changed_inputs(plan, found, spec.urls)
    new = new_files(plan, files)
    if spec.holds_images:
        return _numbers_of_images(plan, files, new, spec, unit_samples)
    sample = _sample(files, spec)
    surveyed = survey(new, spec, unit_samples) if new else None
    estimates = set() if sample.is_whole else {"distinct_hosts"}
    new_rows, new_units, is_grouped = 0, 0, False
    if surveyed:
        if surveyed.num_rows is None:
            new_rows = round(sum(file.num_bytes for file in new) * sample.rows_per_byte)
            estimates |= set() if sample.is_whole else {"num_rows", "num_units", "expected_bytes"}
        else:
            new_rows = surveyed.num_rows
        is_grouped = new_rows >= GROUP_FROM_ROWS if surveyed.is_grouped is None else surveyed.is_grouped
        estimates |= {"num_units"} if is_grouped else set()
        new_units = _num_units(surveyed, new_rows, unit_samples)
    num_rows = plan.num_rows + new_rows
    return PlanNumbers(
        num_files=len(files),
        num_new_files=len(new),
        num_rows=num_rows,
        num_units=plan.num_units + new_units,
        distinct_hosts=_distinct(sample.hosts, num_rows),
        expected_bytes=num_rows * BYTES_PER_URL,
        is_staged=surveyed is not None and surveyed.is_staged,
        is_grouped=is_grouped,
        estimates=tuple(sorted(estimates)),
    )


@dataclass(frozen=True)
class _Sample:
    hosts: Counter[str]
    rows_per_byte: float
    is_whole: bool


def _numbers_of_images(
    plan: Plan, files: Sequence[InputFile], new: Sequence[InputFile], spec: SourceSpec, unit_samples: int
) -> PlanNumbers:
    counts = [count_images(file, spec) for file in new]
    return PlanNumbers(
        num_files=len(files),
        num_new_files=len(new),
        num_rows=plan.num_rows + sum(counts),
        num_units=plan.num_units + sum(math.ceil(count / unit_samples) for count in counts),
        distinct_hosts=0,
        expected_bytes=sum(file.num_bytes for file in files),
        is_staged=False,
        is_grouped=False,
        estimates=(),
    )


def _sample(files: Sequence[InputFile], spec: SourceSpec) -> _Sample:
    """The first rows of files evenly spread over the source; all rows of all files where that is not too many."""
    step = math.ceil(len(files) / _SAMPLE_FILES)
    hosts: Counter[str] = Counter()
    num_rows, num_bytes, is_whole, rest = 0, 0.0, step == 1, _SAMPLE_ROWS
    chosen = files[::step]
    for index, file in enumerate(chosen):
        head, share = read_head(file, spec.columns, rest // (len(chosen) - index))
        for chunk in head.chunks:
            encoded = authorities(chunk)
            counts = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary))
            for authority, count in zip(encoded.dictionary.to_pylist(), counts, strict=True):
                hosts[host_of(authority)] += int(count)
        rest -= len(head)
        num_rows += len(head)
        num_bytes += share * file.num_bytes
        is_whole = is_whole and share == 1
    del hosts[""]
    return _Sample(hosts, num_rows / num_bytes if num_bytes else 0.0, is_whole)


def _num_units(surveyed: Survey, num_rows: int, unit_samples: int) -> int:
    """At least so many: units that are grouped by host are not quite full."""
    if surveyed.is_staged or surveyed.rows_by_file is None:
        return math.ceil(num_rows / unit_samples)
    return sum(math.ceil(rows / unit_samples) for rows in surveyed.rows_by_file)


def _distinct(sample: Counter[str], num_rows: int) -> int:
    """Distinct values among `num_rows` rows, by Charikar's guaranteed-error estimator from those of a sample.

    Every value that the sample has once stands for √(rows ÷ sampled rows) of them. No estimate from a sample can
    have a better bound for its error, which is the same root.
    """
    sampled_rows = max(1, sample.total())
    seen_once = sum(count == 1 for count in sample.values())
    scale = math.sqrt(max(1.0, num_rows / sampled_rows))
    return round(scale * seen_once + len(sample) - seen_once)
