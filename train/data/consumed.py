"""What each rank was given, step by step: RUN/consumed-RANK.jsonl, and the samples that were bad beside it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from train.data.sources import Source
from train.data.stream import Position, Row, Step
from train.jsonl import append_line, read_lines


@dataclass(frozen=True)
class Consumed:
    """One rank's part of a step."""

    step: int
    """Of the run, from 1."""
    segment: int
    row: int
    """With `segment` where the step begins."""
    world_size: int
    num_samples: int
    """On this rank, bad ones included."""
    digest: str
    """Of the samples in their order."""

    @property
    def position(self) -> Position:
        return Position(self.segment, self.row)


@dataclass(frozen=True)
class BadSample:
    """A sample whose place in its row stayed empty."""

    step: int
    source: str
    store: str
    shard: str
    key: str
    reason: str


def consumed_file(run_dir: Path, rank: int) -> Path:
    return run_dir / f"consumed-{rank}.jsonl"


def bad_samples_file(run_dir: Path, rank: int) -> Path:
    return run_dir / f"bad-samples-{rank}.jsonl"


def own_rows(step: Step, rank: int, world_size: int) -> list[Row]:
    """The rows of a rank's lanes."""
    per_rank = len(step.rows) // world_size
    return step.rows[rank * per_rank : (rank + 1) * per_rank]


def places_of(sources: Sequence[Source], rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
    """Source, shard and key of each sample, in order."""
    for row in rows:
        for place in row.places:
            source = sources[place.source]
            shard = source.dataset.shard(place.shard)
            yield source.name, shard.path, shard.keys[place.row].as_py()


def describe(at: Position, step: int, world_size: int, places: Sequence[tuple[str, str, str]]) -> Consumed:
    """The record of a rank's part of a step, by the places of its samples."""
    digest = hashlib.sha256("".join("/".join(place) + "\n" for place in places).encode())
    return Consumed(step, at.segment, at.row, world_size, len(places), digest.hexdigest()[:32])


def record(run_dir: Path, rank: int, entry: Consumed) -> None:
    append_line(consumed_file(run_dir, rank), asdict(entry))


def lineage(run_dir: Path, rank: int) -> dict[int, Consumed]:
    """By step what a rank was given in the run's final line: what a resumed run took again counts once, as it was last.

    The file has the steps of each start one after the other; going back from the end, a step that is not before the
    one already found belongs to a life that was given up.
    """
    found: dict[int, Consumed] = {}
    earliest = None
    for line in reversed(read_lines(consumed_file(run_dir, rank))):
        entry = Consumed(**line)
        if earliest is None or entry.step < earliest:
            found[entry.step] = entry
            earliest = entry.step
    return found


def bad_samples(run_dir: Path) -> list[BadSample]:
    """All ranks' bad samples; one that was met twice, as after a resume, stands there twice."""
    files = sorted(run_dir.glob("bad-samples-*.jsonl"))
    return [BadSample(**line) for file in files for line in read_lines(file)]
