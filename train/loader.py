"""Threads that turn planned rows into tensors ahead of the trainer. Prefetched work is never state."""

import json
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from model import EncodedSample, ModelError, PackedRows, pack_rows
from pipeline.errors import UserError
from pipeline.shards import ShardError, parse_sample
from train.encode import encode_sample
from train.setup import RunSetup
from train.stream import Position


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch."""

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


@dataclass
class Loader:
    """Reads, decodes and packs the rows of one rank's lanes."""

    setup: RunSetup
    bad_samples_file: Path
    rank: int = 0
    world_size: int = 1
    wait_s: float = 0.0
    """Time the trainer has waited for data so far."""
    num_bad_samples: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.spec, self.stream, self.samples = self.setup.job.train, self.setup.stream, self.setup.samples

    def steps(self, start: Position) -> Generator[StepBatch, None, None]:
        """The batches from a position on, without end, with two steps prepared ahead."""
        with ThreadPoolExecutor(self.spec.threads, thread_name_prefix="loader") as pool:
            ahead: deque[tuple[Position, list[Future[PackedRows]]]] = deque()
            at = start
            try:
                while True:
                    while len(ahead) < 3:
                        ahead.append((at, [pool.submit(self._load, rows, at.epoch) for rows in self._micro_rows(at)]))
                        at = self.stream.after(at)
                    position, futures = ahead.popleft()
                    began = time.perf_counter()
                    batches = [future.result() for future in futures]
                    self.wait_s += time.perf_counter() - began
                    yield self._step_batch(position, batches)
            finally:
                for _, futures in ahead:
                    for future in futures:
                        future.cancel()

    def _own_rows(self, at: Position) -> list[list[int]]:
        per_rank = self.stream.lanes // self.world_size
        return self.stream.step_rows(at)[self.rank * per_rank : (self.rank + 1) * per_rank]

    def _micro_rows(self, at: Position) -> list[list[list[int]]]:
        rows = self._own_rows(at)
        size = self.spec.micro_rows
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _step_batch(self, at: Position, batches: list[PackedRows]) -> StepBatch:
        batch = [sample for row in self.stream.step_rows(at) for sample in row]
        num_tokens = int(self.stream.tokens_at(at.epoch)[batch].sum())
        flops = int(self.setup.costs_at(at.epoch).flops_N[batch].sum())
        keys = [self.samples.keys[sample] for row in self._own_rows(at) for sample in row]
        first_lane = self.rank * (self.stream.lanes // self.world_size)
        return StepBatch(at, len(batch), num_tokens, flops, first_lane, batches, keys)

    def _load(self, rows: list[list[int]], epoch: int) -> PackedRows:
        encoded = [[one for sample in row if (one := self._encode(sample, epoch)) is not None] for row in rows]
        return pack_rows(encoded, self.stream.row_tokens)

    def _encode(self, sample: int, epoch: int) -> EncodedSample | None:
        """A sample's tokens; None for one that cannot be read, which leaves its place in the plan empty."""
        try:
            stored = parse_sample(self.samples.read(sample))
            if stored.key != self.samples.keys[sample]:
                raise ShardError(f"the tar has key {stored.key} here")
            stored = self.setup.captions.apply(stored, sample, epoch)
            encoded = encode_sample(stored, self.setup.processor, self.setup.tokenizer, self.spec.max_caption_tokens)
        except (ShardError, ModelError, OSError) as error:
            self._record_bad(sample, error)
            return None
        planned = self.stream.tokens_at(epoch)[sample]
        if encoded.num_tokens != planned:
            raise UserError(
                f"a sample has {encoded.num_tokens} tokens, {planned} were planned",
                where=self.samples.place(sample),
                why="the shards or the tokenizer have changed since the captions were counted",
                next_step="run: genlip tokenizer RECIPE",
            )
        return encoded

    def _record_bad(self, sample: int, error: Exception) -> None:
        self.num_bad_samples += 1
        entry = {"place": self.samples.place(sample), "error": str(error)}
        with self.bad_samples_file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        if self.num_bad_samples > self.spec.max_bad_samples:
            raise UserError(
                f"{self.num_bad_samples} samples could not be read",
                where=str(self.bad_samples_file),
                why=f"the last: {entry['place']}: {error}",
                next_step="run: genlip ingest RECIPE for a new store, or raise train.max_bad_samples",
            )
