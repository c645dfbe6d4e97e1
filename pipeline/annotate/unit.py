"""The innermost job of annotating: one unit, several annotators, one pass over its samples."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.annotate.annotator import Annotator, Batch, Column, name_of
from pipeline.annotate.columns import FOLDER, Annotations, StoredUnit, address, read_stored, write_annotations
from pipeline.errors import UserError
from pipeline.raw import read_members
from pipeline.shards import parse_sample
from pipeline.store import Store

MAX_EXAMPLES = 3
_MESSAGE_CHARS = 200


@dataclass(frozen=True)
class AnnotatorReport:
    """What one annotator came to on one unit."""

    num_samples: int
    cpu_s: float
    num_errors: int = 0
    examples: tuple[str, ...] = ()
    """Some of the errors, as `key: message`."""
    committed: bool = True
    """False where more samples failed than the budget allows: the unit stays without the columns."""


@dataclass(frozen=True)
class UnitAnnotated:
    """What a unit's annotation came to, by the annotators' addresses; those that were there already are left out."""

    unit: str
    by_address: dict[str, AnnotatorReport]


@dataclass
class _Asked:
    """An annotator at work on a unit: what it has said so far."""

    annotator: Annotator
    address: str
    chunks: dict[str, list[pa.Array]]
    errors: dict[int, str] = field(default_factory=dict)
    cpu_s: float = 0.0


def annotate_unit(unit_name: str, store: Store, annotators: Sequence[Annotator], max_errors: float) -> UnitAnnotated:
    """Compute and commit the columns that a unit lacks. Images are read and decoded once for all annotators.

    Args:
        unit_name: a committed unit.
        store: the store.
        annotators: those whose columns the unit shall have.
        max_errors: share of the samples on which each may raise.

    Raises:
        UserError: An annotator returned other columns, types or lengths than it declares.
    """
    missing = [one for one in annotators if not store.exists(f"{FOLDER}/{address(one)}/{unit_name}.parquet")]
    if not missing:
        return UnitAnnotated(unit_name, {})
    unit = read_stored(store, unit_name)
    asked = [_Asked(one, address(one), {name: [] for name in one.columns()}) for one in missing]
    for one in asked:
        if not one.annotator.needs_sample:
            _run([one], _ledger_batches(unit, one.annotator.batch_samples))
    if with_samples := [one for one in asked if one.annotator.needs_sample]:
        size = min(one.annotator.batch_samples for one in with_samples)
        _run(with_samples, _sample_batches(store, unit, size))
    return UnitAnnotated(unit_name, {one.address: _finish(store, unit, one, max_errors) for one in asked})


def _run(asked: Sequence[_Asked], batches: Iterator[Batch]) -> None:
    first_row = 0
    for batch in batches:
        for one in asked:
            began = time.process_time()
            _ask(one, batch, first_row)
            one.cpu_s += time.process_time() - began
        first_row += len(batch)


def _ledger_batches(unit: StoredUnit, size: int) -> Iterator[Batch]:
    for start in range(0, unit.num_rows, size):
        yield Batch(unit.rows.slice(start, size))


def _sample_batches(store: Store, unit: StoredUnit, size: int) -> Iterator[Batch]:
    """Batches with the samples themselves: as large as the least of the annotators wants, for images need memory."""
    for start in range(0, unit.num_rows, size):
        rows = unit.rows.slice(start, size)
        places = list(zip(rows["offset"].to_pylist(), rows["size"].to_pylist(), strict=True))
        samples = [parse_sample(members) for members in read_members(store, unit.raw, places)]
        yield Batch(rows, [sample.image for sample in samples], [sample.meta for sample in samples])


def _ask(asked: _Asked, batch: Batch, first_row: int) -> None:
    """Ask for a batch; where that raises, for each sample alone, so that only the bad ones are lost."""
    try:
        values = asked.annotator.annotate(batch)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 an annotator is a plug-in: its bug costs samples, not the run
        if len(batch) > 1:
            for index in range(len(batch)):
                _ask(asked, batch.sample(index), first_row + index)
            return
        asked.errors[first_row] = f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS]
        values = {name: [None] for name in asked.chunks}
    for name, chunk in _checked(asked.annotator, values, len(batch)).items():
        asked.chunks[name].append(chunk)


def _checked(annotator: Annotator, values: Mapping[str, Column], num_samples: int) -> dict[str, pa.Array]:
    """The values as arrays of the declared types."""
    declared = annotator.columns()
    if values.keys() != declared.keys():
        raise _broken(annotator, f"it returned {sorted(values)}, declared {sorted(declared)}")
    arrays = {}
    for name, kind in declared.items():
        if len(values[name]) != num_samples:
            raise _broken(annotator, f"{name} has {len(values[name])} values for {num_samples} samples")
        try:
            arrays[name] = pa.array(values[name], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise _broken(annotator, f"{name} is declared {kind}: {error}") from error
    return arrays


def _broken(annotator: Annotator, why: str) -> UserError:
    return UserError(
        f"the annotator {name_of(annotator)!r} does not keep to what it declares",
        why=why,
        where=f"{type(annotator).__module__}.{type(annotator).__qualname__}",
        next_step="correct its columns() or annotate(), and run the same command again",
    )


def _finish(store: Store, unit: StoredUnit, asked: _Asked, max_errors: float) -> AnnotatorReport:
    num_samples = unit.num_rows
    keys = unit.rows["key"]
    examples = tuple(f"{keys[row]}: {text}" for row, text in list(asked.errors.items())[:MAX_EXAMPLES])
    committed = len(asked.errors) <= max_errors * num_samples
    if committed:
        kinds = asked.annotator.columns()
        columns = {name: pa.chunked_array(chunks, kinds[name]) for name, chunks in asked.chunks.items()}
        write_annotations(store, asked.address, unit, Annotations(pa.table(columns), asked.errors))
    return AnnotatorReport(num_samples, asked.cpu_s, len(asked.errors), examples, committed)
