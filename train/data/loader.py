"""Threads that turn planned rows into tensors ahead of the trainer. Prefetched work is never state."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model import EncodedSample, PackedRows, pack_rows
from pipeline.errors import UserError
from train.data.buffers import PatchBuffers
from train.data.consumed import describe, own_rows, places_of, record
from train.data.rows import RowReader
from train.data.stream import Position, Row, Step
from train.setup import RunSetup

STATE_VERSION = 1

EncodedRow = tuple[list[EncodedSample], list[int]]
"""Samples, and the source of each."""
MicroBatch = tuple[PackedRows, list[int]]
"""Rows, and the source of each sample."""


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch."""

    step: int
    """Of the run, from 1."""
    at: Position
    num_samples: int
    num_tokens: int
    num_labels: int
    flops: int
    """These four are of the whole global batch, as planned, and so the same on every rank."""
    first_lane: int
    """Of this rank."""
    keys: list[str]
    """Of this rank's samples."""
    num_micro_batches: int
    micro_batches: Iterable[PackedRows]
    """To be taken once. Each is made while those before it are used; its memory is used again when nothing refers to it
    any more."""
    sources: list[list[int]]
    """The source of each sample, for each micro-batch that was taken."""


def stream_state(setup: RunSetup, step: int, position: Position) -> dict[str, int | str]:
    """All that a stream needs to go on, on any number of processes: plain numbers, ready for JSON."""
    return {
        "version": STATE_VERSION,
        "fingerprint": setup.fingerprint,
        "seed": setup.job.seed,
        "lanes": setup.stream.lanes,
        "step": step,
        "segment": position.segment,
        "row": position.row,
    }


class Loader:
    """Reads, decodes and packs the rows of one rank's lanes; goes on where its state says."""

    def __init__(self, setup: RunSetup, run_dir: Path, rank: int = 0, world_size: int = 1) -> None:
        """Args:
        setup: What is read.
        run_dir: Where it is written down what was delivered, and what was bad.
        rank: Of this process, which owns every `world_size`-th part of the lanes.
        world_size: Divides the lanes.
        """
        self.wait_s = 0.0
        """Time the trainer has waited for data so far."""
        self.source_names = [source.name for source in setup.sources]
        self._setup, self._stream = setup, setup.stream
        self._run_dir, self._rank, self._world_size = run_dir, rank, world_size
        self._rows = RowReader(setup, run_dir, rank)
        self._position, self._num_steps = Position(), 0
        self._is_iterating = False

    def state_dict(self) -> dict[str, int | str]:
        """Where the stream stands after the batch that was handed out last."""
        return stream_state(self._setup, self._num_steps, self._position)

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on from a state, taken on whatever number of processes. Before the iteration begins.

        Raises:
            UserError: It is of another version, stream, seed or number of lanes (the key is named).
            RuntimeError: Batches are being taken already.
        """
        if self._is_iterating:
            raise RuntimeError("the stream's state must be loaded before the first batch is taken")
        for key, value in self.state_dict().items():
            if key not in ("step", "segment", "row") and state.get(key) != value:
                raise UserError(
                    f"the state belongs to another stream: its {key} is {state.get(key)}, this one's {value}",
                    why="datasets, weights, tokenizer, image size, row_tokens, lanes and seed must be as they were",
                    next_step="restore them, or train under another name with --set name=NAME",
                )
        self._position = Position(int(state["segment"]), int(state["row"]))
        self._num_steps = int(state["step"])

    @property
    def num_bad_samples(self) -> int:
        """Samples of this rank that could not be read, since the start."""
        return self._rows.num_bad_samples

    def passes(self) -> dict[str, float]:
        """How often each source has been read so far."""
        return dict(zip(self.source_names, self._stream.passes(self._position), strict=True))

    def bytes_read(self) -> dict[str, dict[str, int]]:
        """What was read of each source since the start; see `ShardReader.counters`."""
        return self._rows.bytes_read()

    def __iter__(self) -> Generator[StepBatch, None, None]:
        """The batches from the state on, without end."""
        if self._is_iterating:
            raise RuntimeError("another iteration over this loader has begun; close it first")
        self._is_iterating = True
        ahead = _Ahead(self._setup, self._rows, self._rank, self._world_size, self._position, self._num_steps + 1)
        try:
            while True:
                began = time.perf_counter()
                batch = self._hand_over(ahead)
                self.wait_s += time.perf_counter() - began
                yield batch
                for _ in batch.micro_batches:  # those that were not taken
                    pass
        finally:
            ahead.close()
            self._rows.close()
            self._is_iterating = False

    def _hand_over(self, ahead: "_Ahead") -> StepBatch:
        """A step, which from here on is part of the state."""
        step = ahead.next_step()
        self._position, self._num_steps = step.after, self._num_steps + 1
        places = list(places_of(self._setup.sources, own_rows(step, self._rank, self._world_size)))
        record(self._run_dir, self._rank, describe(step.at, self._num_steps, self._world_size, places))
        lanes_per_rank = self._stream.lanes // self._world_size
        num_micro_batches = lanes_per_rank // self._setup.job.train.micro_rows
        sources: list[list[int]] = []
        return StepBatch(
            step=self._num_steps,
            at=step.at,
            **step.totals._asdict(),
            first_lane=self._rank * lanes_per_rank,
            keys=[key for _, _, key in places],
            num_micro_batches=num_micro_batches,
            micro_batches=self._take(ahead, num_micro_batches, sources),
            sources=sources,
        )

    def _take(self, ahead: "_Ahead", num_micro_batches: int, sources: list[list[int]]) -> Iterator[PackedRows]:
        for _ in range(num_micro_batches):
            began = time.perf_counter()
            rows, sources_of_rows = ahead.next_micro_batch()
            sources.append(sources_of_rows)
            self.wait_s += time.perf_counter() - began
            yield rows


class _Ahead:
    """Steps that are planned and micro-batches that are made, each in order, before they are asked for.

    As many rows are under way as keep the threads busy and the next micro-batch ready, whatever the step's size.
    """

    def __init__(
        self, setup: RunSetup, reader: RowReader, rank: int, world_size: int, at: Position, first_step: int
    ) -> None:
        self._stream, self._spec = setup.stream, setup.job.train
        self._reader, self._rank, self._world_size = reader, rank, world_size
        self._at, self._number = at, first_step
        self._unmade: deque[tuple[int, list[Row]]] = deque()  # rows of micro-batches, with the number of their step
        self._steps: deque[Step] = deque()
        self._made: deque[Future[MicroBatch]] = deque()
        self._num_made = -(-max(2 * self._spec.threads, 2 * self._spec.micro_rows) // self._spec.micro_rows)
        self._buffers = PatchBuffers(self._spec.micro_rows * self._spec.row_tokens, setup.processor.patch_size)
        self._pool = ThreadPoolExecutor(self._spec.threads, thread_name_prefix="loader")
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._planned = -1

    def next_step(self) -> Step:
        """The step whose micro-batches come next."""
        if not self._steps:
            self._plan()
        return self._steps.popleft()

    def next_micro_batch(self) -> MicroBatch:
        """The next one, with others begun behind it."""
        while len(self._made) < self._num_made:
            if not self._unmade:
                self._plan()
            self._begin(*self._unmade.popleft())
        return self._made.popleft().result()

    def close(self) -> None:
        """End what is under way."""
        self._pool.shutdown(cancel_futures=True)
        self._planner.shutdown(cancel_futures=True)

    def _plan(self) -> None:
        step = self._stream.step(self._at)
        rows, size = own_rows(step, self._rank, self._world_size), self._spec.micro_rows
        self._unmade += [(self._number, rows[i : i + size]) for i in range(0, len(rows), size)]
        self._steps.append(step)
        if step.after.segment != self._planned:  # a step shall not wait for the plan of the next segment
            self._planned = step.after.segment
            self._planner.submit(self._stream.segment, self._planned + 1)
        self._at, self._number = step.after, self._number + 1

    def _begin(self, step: int, rows: list[Row]) -> None:
        """Have threads make a micro-batch: its rows in parallel, in the order of the queue, and then the whole."""
        patches = self._buffers.take()
        starts, encoded = [0], []
        for row in rows:
            room = patches.numpy()[starts[-1] :]
            encoded.append(self._pool.submit(self._reader.read, row, step, room))
            starts.append(starts[-1] + int(row.costs.patches_N.sum()))
        self._made.append(self._pool.submit(self._pack, patches, starts, encoded))

    def _pack(self, patches: Tensor, starts: list[int], encoded: list[Future[EncodedRow]]) -> MicroBatch:
        rows = [future.result() for future in encoded]
        end = 0
        for start, (samples, _) in zip(starts, rows, strict=False):
            num_patches = sum(len(sample.patches) for sample in samples)
            if start != end:  # a row before it has bad samples
                patches.numpy()[end : end + num_patches] = patches.numpy()[start : start + num_patches]
            end += num_patches
        packed = pack_rows([samples for samples, _ in rows], self._spec.row_tokens, patches[:end].permute(0, 3, 1, 2))
        return packed, [source for _, sources in rows for source in sources]
