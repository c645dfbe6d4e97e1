"""Threads that turn planned rows into tensors ahead of the trainer. Prefetched work is never state."""

import threading
import time
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from model import EncodedSample, ModelError, PackedRows, pack_rows
from pipeline.errors import UserError
from pipeline.shards import ShardError
from train.consumed import BadSample, bad_samples_file, describe, own_rows, places_of, record
from train.encode import encode_sample
from train.jsonl import append_line
from train.mixture import Place
from train.reading import ShardReader
from train.setup import RunSetup
from train.stream import Position, Row, Step

STATE_VERSION = 1
_STEPS_AHEAD = 2


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch."""

    step: int
    """Of the run, from 1."""
    at: Position
    num_samples: int
    num_tokens: int
    flops: int
    """These three are of the whole global batch, as planned."""
    first_lane: int
    """Of this rank."""
    micro_batches: list[PackedRows]
    keys: list[str]
    """Of this rank's samples."""
    num_labels: int
    """Of the whole global batch, as planned."""
    num_micro_batches: int
    sources: list[list[int]]
    """Shim: this loader's old StepBatch with the fields of the new one; the lead deletes it with this loader."""


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
        self.num_bad_samples = 0
        self._setup, self._spec, self._stream, self._sources = setup, setup.job.train, setup.stream, setup.sources
        self._run_dir, self._rank, self._world_size = run_dir, rank, world_size
        self._readers = [ShardReader(self._spec.reading) for _ in setup.sources]  # one each, to count for each
        self._position, self._num_steps = Position(), 0
        self._is_iterating = False
        self._bad_samples_lock = threading.Lock()

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

    def passes(self) -> dict[str, float]:
        """How often each source has been read so far."""
        passes = self._stream.passes(self._position)
        return {source.name: number for source, number in zip(self._sources, passes, strict=True)}

    def bytes_read(self) -> dict[str, dict[str, int]]:
        """What was read of each source since the start; see `ShardReader.counters`."""
        return {source.name: reader.counters() for source, reader in zip(self._sources, self._readers, strict=True)}

    def __iter__(self) -> Generator[StepBatch, None, None]:
        """The batches from the state on, without end, with two steps prepared ahead."""
        if self._is_iterating:
            raise RuntimeError("another iteration over this loader has begun; close it first")
        self._is_iterating = True
        began = time.perf_counter()
        ahead: deque[tuple[Step, list[Future[tuple[PackedRows, list[int]]]]]] = deque()
        with (
            ThreadPoolExecutor(self._spec.threads, thread_name_prefix="loader") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="planner") as planner,
        ):
            try:
                at, planned = self._position, -1
                while True:
                    while len(ahead) <= _STEPS_AHEAD:
                        step, number = self._stream.step(at), self._num_steps + len(ahead) + 1
                        ahead.append((step, [pool.submit(self._load, rows, number) for rows in self._micro_rows(step)]))
                        if step.after.segment != planned:  # a step shall not wait for the plan of the next segment
                            planned = step.after.segment
                            planner.submit(self._stream.segment, planned + 1)
                        at = step.after
                    step, futures = ahead.popleft()
                    batch = self._step_batch(step, [future.result() for future in futures])
                    self.wait_s += time.perf_counter() - began
                    yield batch
                    began = time.perf_counter()
            finally:
                for _, futures in ahead:
                    for future in futures:
                        future.cancel()
                for reader in self._readers:
                    reader.close()
                self._is_iterating = False

    def _micro_rows(self, step: Step) -> list[list[Row]]:
        rows = own_rows(step, self._rank, self._world_size)
        size = self._spec.micro_rows
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _step_batch(self, step: Step, batches: list[tuple[PackedRows, list[int]]]) -> StepBatch:
        """Hand a step over: from here on it is part of the state."""
        self._position, self._num_steps = step.after, self._num_steps + 1
        places = list(places_of(self._sources, own_rows(step, self._rank, self._world_size)))
        record(self._run_dir, self._rank, describe(step.at, self._num_steps, self._world_size, places))
        return StepBatch(
            step=self._num_steps,
            at=step.at,
            num_samples=step.num_samples,
            num_tokens=sum(int(row.costs.tokens_N.sum()) for row in step.rows),
            flops=sum(int(row.costs.flops_N.sum()) for row in step.rows),
            first_lane=self._rank * (self._stream.lanes // self._world_size),
            micro_batches=[rows for rows, _ in batches],
            keys=[key for _, _, key in places],
            num_labels=sum(
                int((row.costs.tokens_N - row.costs.patches_N - len(self._setup.tokenizer.prompt_ids)).sum())
                for row in step.rows
            ),
            num_micro_batches=len(batches),
            sources=[sources for _, sources in batches],
        )

    def _load(self, rows: list[Row], step: int) -> tuple[PackedRows, list[int]]:
        encoded, sources = [], []
        for row in rows:
            planned = zip(row.places, row.costs.tokens_N.tolist(), strict=True)
            found = [(self._encode(place, num_tokens, step), place.source) for place, num_tokens in planned]
            encoded.append([one for one, _ in found if one is not None])
            sources += [int(source) for one, source in found if one is not None]
        return pack_rows(encoded, self._stream.row_tokens), sources

    def _encode(self, place: Place, num_tokens: int, step: int) -> EncodedSample | None:
        """A sample's tokens; None for one that cannot be read, which leaves its place in the plan empty."""
        setup, dataset = self._setup, self._sources[place.source].dataset
        shard = dataset.shard(place.shard)
        key = shard.keys[place.row].as_py()
        try:
            offset, size = int(shard.offset_n[place.row]), int(shard.size_n[place.row])
            store, name = dataset.store.locate(shard.path)
            stored = dataset.parse(self._readers[place.source].read(store, name, offset, size, shard.sha256))
            if stored.key != key:
                raise ShardError(f"the tar has key {stored.key} here")
            stored = setup.captions.apply(stored, place.number)
            encoded = encode_sample(stored, setup.processor, setup.tokenizer, self._spec.max_caption_tokens)
        except (ShardError, ModelError, OSError) as error:
            source = self._sources[place.source].name
            self._record_bad(BadSample(step, source, dataset.store.root, shard.path, key, str(error)))
            return None
        if encoded.num_tokens != num_tokens:
            raise UserError(
                f"a sample has {encoded.num_tokens} tokens, {num_tokens} were planned",
                where=self._sources[place.source].place(place.shard, place.row),
                why="the shards or the tokenizer have changed since the captions were counted",
                next_step="delete the dataset's lengths folders, then run: genlip tokenizer RECIPE",
            )
        return encoded

    def _record_bad(self, bad: BadSample) -> None:
        with self._bad_samples_lock:
            self.num_bad_samples = number = self.num_bad_samples + 1
            append_line(bad_samples_file(self._run_dir, self._rank), asdict(bad))
        if number > self._spec.max_bad_samples:
            raise UserError(
                f"{number} samples could not be read",
                where=str(bad_samples_file(self._run_dir, self._rank)),
                why=f"the last: {bad.shard} key {bad.key}: {bad.reason}",
                next_step="make the shards again under another name: genlip curate RECIPE; or raise"
                " train.max_bad_samples",
            )
