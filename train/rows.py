"""A planned row to encoded samples: read, decode, tokenise. A sample that cannot be read leaves its place empty."""

import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import EncodedSample, ModelError
from pipeline.errors import UserError
from pipeline.shards import ShardError
from train.consumed import BadSample, bad_samples_file
from train.encode import PlanMismatch, encode_sample
from train.jsonl import append_line
from train.mixture import Place
from train.reading import ShardReader
from train.setup import RunSetup
from train.stream import Row


class RowReader:
    """Reads the rows of one rank. `read` may be called by many threads at once."""

    def __init__(self, setup: RunSetup, run_dir: Path, rank: int) -> None:
        """Args:
        setup: What is read.
        run_dir: Where bad samples are written down.
        rank: Of this process.
        """
        self.num_bad_samples = 0
        self._setup, self._spec, self._sources = setup, setup.job.train, setup.sources
        self._bad_samples_file = bad_samples_file(run_dir, rank)
        self._readers = [ShardReader(self._spec.reading) for _ in setup.sources]  # one each, to count for each
        self._lock = threading.Lock()

    def bytes_read(self) -> dict[str, dict[str, int]]:
        """What was read of each source since the start; see `ShardReader.counters`."""
        return {source.name: reader.counters() for source, reader in zip(self._sources, self._readers, strict=True)}

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()

    def read(self, row: Row, step: int, patches_out: NDArray[np.uint8]) -> tuple[list[EncodedSample], list[int]]:
        """The samples of a row.

        Args:
            row: As planned.
            step: Of the run, for the record of bad samples.
            patches_out: [at least the row's patches, 3, p, p]; gets the patches of all samples, one after the other.

        Returns:
            Those that could be read, and the source of each.

        Raises:
            UserError: One is not as long as planned, or too many are bad.
        """
        encoded: list[EncodedSample] = []
        sources: list[int] = []
        at = 0
        costs = row.costs
        for place, tokens, patches in zip(row.places, costs.tokens_N.tolist(), costs.patches_N.tolist(), strict=True):
            sample = self._encode(place, step, tokens, patches_out[at : at + patches])
            if sample:
                encoded.append(sample)
                sources.append(place.source)
                at += patches
        return encoded, sources

    def _encode(self, place: Place, step: int, num_tokens: int, patches_out: NDArray[np.uint8]) -> EncodedSample | None:
        """A sample's tokens; None for one that cannot be read."""
        setup, source = self._setup, self._sources[place.source]
        shard = source.dataset.shard(place.shard)
        key = shard.keys[place.row].as_py()
        try:
            stored = source.dataset.read_sample(self._readers[place.source], shard, place.row)
            stored = setup.captions.apply(stored, place.number)
            return encode_sample(
                stored, setup.processor, setup.tokenizer, self._spec.max_caption_tokens, num_tokens, patches_out
            )
        except PlanMismatch as error:
            raise UserError(
                str(error),
                where=source.place(place.shard, place.row),
                why="the shards or the tokenizer have changed since the captions were counted",
                next_step="delete the dataset's lengths folders, then run: genlip tokenizer RECIPE",
            ) from error
        except (ShardError, ModelError, OSError) as error:
            self._record_bad(BadSample(step, source.name, source.dataset.store.root, shard.path, key, str(error)))
            return None

    def _record_bad(self, bad: BadSample) -> None:
        with self._lock:
            self.num_bad_samples = number = self.num_bad_samples + 1
            append_line(self._bad_samples_file, asdict(bad))
        if number > self._spec.max_bad_samples:
            raise UserError(
                f"{number} samples could not be read",
                where=str(self._bad_samples_file),
                why=f"the last: {bad.shard} key {bad.key}: {bad.reason}",
                next_step="make the shards again under another name: genlip curate RECIPE; or raise"
                " train.max_bad_samples",
            )
