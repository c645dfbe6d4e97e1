"""Proof that a run saw what it should: the plan, computed anew, against what every rank wrote down.

The plan follows from the recipe and the datasets' indexes alone, so nothing that the run did can have changed it.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from train.checkpoints import committed_checkpoints, latest_checkpoint, read_state
from train.data.consumed import BadSample, Consumed, bad_samples, describe, lineage, own_rows, places_of
from train.data.stream import Position, Step
from train.setup import RunSetup, set_up

_MAX_PROBLEMS = 20


@dataclass
class Findings:
    """What was counted, and what is wrong, in words."""

    counts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Records:
    """What the ranks wrote down, in the run's final line of steps."""

    def __init__(self, run_dir: Path) -> None:
        """Raises:
        UserError: The run has none.
        """
        self._run_dir = run_dir
        self._by_rank = {0: lineage(run_dir, 0)}
        if not self._by_rank[0]:
            raise UserError("this run has read nothing", where=str(run_dir), next_step="run: genlip train RECIPE")

    @property
    def last_step(self) -> int:
        """The last one that all ranks have: a kill may leave one rank a step ahead of another."""
        last = max(self._by_rank[0])
        return last if None not in self.of_step(last) else last - 1

    def of_step(self, step: int) -> list[Consumed | None]:
        """Each rank's record; None where there is none of that number of processes."""
        first = self._by_rank[0].get(step)
        if first is None:
            return [None]
        found = [self._of_rank(rank).get(step) for rank in range(first.world_size)]
        return [one if one and one.world_size == first.world_size else None for one in found]

    def _of_rank(self, rank: int) -> dict[int, Consumed]:
        if rank not in self._by_rank:
            self._by_rank[rank] = lineage(self._run_dir, rank)
        return self._by_rank[rank]


class Passes:
    """Which samples of each pass the steps had so far; of complete passes only that they are."""

    def __init__(self, setup: RunSetup) -> None:
        self._datasets = [source.dataset for source in setup.sources]
        self._names = [source.name for source in setup.sources]
        self._mixture = setup.stream.mixture
        sizes = [dataset.num_samples_S for dataset in self._datasets]
        self._begins = [np.cumsum(num_samples_S) - num_samples_S for num_samples_S in sizes]
        self._seen: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._num_left: dict[tuple[int, int], int] = {}

    def add(self, step: Step) -> list[str]:
        """Count a step's samples. Returns what is wrong: passes that have one twice."""
        problems = []
        positions: dict[tuple[int, int], list[int]] = defaultdict(list)
        for place in (place for row in step.rows for place in row.places):
            begin = int(self._begins[place.source][place.shard])
            positions[place.source, place.number].append(begin + place.row)
        for key, position_n in positions.items():
            if not self._mark(key, position_n):
                problems.append(f"pass {key[1]} of {self._names[key[0]]} has a sample twice")
        return problems

    def _mark(self, key: tuple[int, int], positions: list[int]) -> bool:
        """Whether the positions were free."""
        num_samples = self._datasets[key[0]].num_samples
        left = self._num_left.setdefault(key, num_samples) - len(positions)
        if left < 0:
            return False
        seen = self._seen.setdefault(key, np.zeros(num_samples, bool))
        is_free = not seen[positions].any() and len(set(positions)) == len(positions)
        seen[positions] = True
        self._num_left[key] = left
        if not left:
            del self._seen[key]
        return is_free

    def check(self, at: Position) -> tuple[list[str], list[str]]:
        """The passes that ended before a position's segment: a count for each source, and those that lack samples."""
        counts, problems = [], []
        taken = self._mixture.taken(at.segment * self._mixture.segment_samples)
        for number, (name, dataset, given) in enumerate(zip(self._names, self._datasets, taken, strict=True)):
            ended = range(given // dataset.num_samples)
            for one in ended:
                if left := self._num_left.get((number, one), dataset.num_samples):
                    problems.append(f"pass {one} of {name} lacks {left:,} samples")
            counts.append(f"{name}: {len(ended):,} whole passes of {dataset.num_samples:,} samples, each sample once")
        return counts, problems


def audit_run(run_dir: Path) -> Findings:
    """Compute a run's plan from its beginning, and compare what every rank was given with it.

    Raises:
        UserError: The run has read nothing, or its datasets are not there.
    """
    setup, records, found = set_up(run_dir), Records(run_dir), Findings()
    passes = Passes(setup)
    bad_by_step: dict[int, list[BadSample]] = defaultdict(list)
    for bad in bad_samples(run_dir):
        bad_by_step[bad.step].append(bad)
    at, last, num_samples = Position(), records.last_step, 0
    positions = {}
    for number in range(1, last + 1):
        step = setup.stream.step(at)
        found.problems += _compare(setup, step, number, records)
        found.problems += passes.add(step)
        found.problems += _check_bad(setup, step, number, bad_by_step[number])
        at, num_samples = step.after, num_samples + step.totals.num_samples
        positions[number] = (at, num_samples)
        if len(found.problems) >= _MAX_PROBLEMS:
            found.problems.append(f"… the audit ends here, at step {number:,} of {last:,}")
            return found
    counts, problems = passes.check(at)
    num_bad = len({(bad.source, bad.shard, bad.key, bad.step) for step in range(last + 1) for bad in bad_by_step[step]})
    found.counts += [f"{last:,} steps, {num_samples:,} samples, of which {num_bad:,} could not be read", *counts]
    found.problems += problems + _check_checkpoints(run_dir, positions)
    return found


def _compare(setup: RunSetup, step: Step, number: int, records: Records) -> list[str]:
    """What is wrong with the ranks' records of a step."""
    problems = []
    written = records.of_step(number)
    for rank, entry in enumerate(written):
        who = f"step {number:,}, rank {rank}"
        if entry is None:
            problems.append(f"{who}: no record")
            continue
        planned = plan_record(setup, step, number, rank, len(written))
        if entry.position != planned.position:
            problems.append(f"{who}: began at {_words(entry.position)}, the step before ended at {_words(step.at)}")
        elif entry != planned:
            problems.append(
                f"{who}: was given {entry.num_samples} samples that are not the {planned.num_samples} of the plan"
            )
    return problems


def plan_record(setup: RunSetup, step: Step, number: int, rank: int, world_size: int) -> Consumed:
    """What a rank has to write down of a step."""
    places = list(places_of(setup.sources, own_rows(step, rank, world_size)))
    return describe(step.at, number, world_size, places)


def _check_bad(setup: RunSetup, step: Step, number: int, bad: list[BadSample]) -> list[str]:
    planned = set(places_of(setup.sources, step.rows)) if bad else set()
    return [
        f"step {number:,}: {one.shard} key {one.key} is listed as bad and was not planned"
        for one in bad
        if (one.source, one.shard, one.key) not in planned
    ]


def _check_checkpoints(run_dir: Path, positions: dict[int, tuple[Position, int]]) -> list[str]:
    """Checkpoints that do not stand where the plan is after their step."""
    problems = []
    for checkpoint in committed_checkpoints(run_dir):
        state = read_state(checkpoint)
        stands = (Position(int(state.stream["segment"]), int(state.stream["row"])), state.samples_seen)
        if positions.get(state.step) != stands:
            problems.append(f"{checkpoint.name}: {_words(stands[0])} after {stands[1]:,} samples is not in the plan")
    return problems


def verify_resume(run_dir: Path, num_steps: int) -> Findings:
    """Compute the steps before and after the newest checkpoint from fresh streams, and compare with what was read.

    Args:
        run_dir: Of the run.
        num_steps: To look at on each side.

    Raises:
        UserError: There is no checkpoint.
    """
    state = read_state(latest_checkpoint(run_dir))
    records, found = Records(run_dir), Findings()
    middle = Position(int(state.stream["segment"]), int(state.stream["row"]))
    first, last = max(1, state.step - num_steps + 1), min(records.last_step, state.step + num_steps)
    entry = records.of_step(first)[0]
    if entry is None:
        found.problems.append(f"step {first:,}: no record")
        return found
    before, end = _walk(run_dir, entry.position, range(first, state.step + 1), records)
    after, _ = _walk(run_dir, middle, range(state.step + 1, last + 1), records)
    found.problems += before + after
    if end != middle:
        found.problems.append(f"step {state.step:,} ends at {_words(end)}, the checkpoint stands at {_words(middle)}")
    found.counts.append(
        f"{state.step - first + 1:,} steps before and {last - state.step:,} after the checkpoint of step {state.step:,}"
    )
    return found


def _walk(run_dir: Path, at: Position, numbers: range, records: Records) -> tuple[list[str], Position]:
    """Compare steps as a process sees them that begins at a position and knows nothing of what was before."""
    setup, problems = set_up(run_dir), []
    for number in numbers:
        step = setup.stream.step(at)
        problems += _compare(setup, step, number, records)
        at = step.after
    return problems, at


def _words(at: Position) -> str:
    return f"row {at.row:,} of segment {at.segment:,}"
