"""A planned row to encoded samples: read, decode, tokenise. A sample that cannot be read leaves its place empty."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model import EncodedSample, ModelError
from pipeline.errors import UserError
from pipeline.shards import Sample, ShardError
from train.data.consumed import BadSample, bad_samples_file
from train.data.encode import PlanMismatch, encode_caption, encode_image
from train.data.mixture import Place
from train.data.reading import ShardReader
from train.data.stream import Row
from train.jsonl import append_line
from train.setup import RunSetup

_T = TypeVar("_T")


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
        self._requests = self._new_requests()
        self._lock = threading.Lock()

    def bytes_read(self) -> dict[str, dict[str, int]]:
        """What was read of each source since the start; see `ShardReader.counters`."""
        return {source.name: reader.counters() for source, reader in zip(self._sources, self._readers, strict=True)}

    def close(self) -> None:
        """Close the files, and drop the requests that are waiting; reading may begin again afterwards."""
        self._requests.shutdown(cancel_futures=True)
        self._requests = self._new_requests()
        for reader in self._readers:
            reader.close()

    def _new_requests(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._spec.reading.parallel, thread_name_prefix="reader")

    def read(self, row: Row, step: int, patches_out: NDArray[np.uint8]) -> tuple[list[EncodedSample], list[int]]:
        """The samples of a row.

        Args:
            row: As planned.
            step: Of the run, for the record of bad samples.
            patches_out: [at least the row's patches, p, p, 3]; gets the patches of all samples, one after the other.

        Returns:
            Those that could be read, and the source of each.

        Raises:
            UserError: One is not as long as planned, or too many are bad.
        """
        places, costs, num_patches = list(row.places), row.costs, 0
        # Step by step over the row, for the code of a step to stay in the processor's caches: a tenth of the time.
        reads = [self._begin_read(place) for place in places]
        samples = [self._unless_bad(step, place, read) for place, read in zip(places, reads, strict=True)]
        caption_ids = [self._caption_ids(sample) if sample else [] for sample in samples]
        encoded: list[EncodedSample] = []
        sources: list[int] = []
        planned = zip(places, samples, caption_ids, costs.tokens_N.tolist(), costs.patches_N.tolist(), strict=True)
        for place, sample, ids, tokens, patches in planned:
            if sample is None:
                continue
            room = patches_out[num_patches : num_patches + patches]
            encode = partial(self._encode, place, sample, ids, tokens, room)
            if (one := self._unless_bad(step, place, encode)) is not None:
                encoded.append(one)
                sources.append(place.source)
                num_patches += patches
        return encoded, sources

    def _begin_read(self, place: Place) -> Callable[[], Sample]:
        """What gives a sample; it is on its way already where that takes long."""
        dataset = self._sources[place.source].dataset
        if dataset.store.locate(dataset.shard(place.shard).path)[0].is_local:
            return partial(self._read, place)
        return self._requests.submit(self._read, place).result

    def _read(self, place: Place) -> Sample:
        dataset, reader = self._sources[place.source].dataset, self._readers[place.source]
        sample = dataset.read_sample(reader, dataset.shard(place.shard), place.row)
        return self._setup.captions.apply(sample, place.number)

    def _caption_ids(self, sample: Sample) -> list[int]:
        return encode_caption(sample.caption, self._setup.tokenizer, self._spec.max_caption_tokens)

    def _encode(
        self, place: Place, sample: Sample, caption_ids: list[int], num_tokens: int, patches_out: NDArray[np.uint8]
    ) -> EncodedSample:
        try:
            grid = encode_image(sample.image, self._setup.processor, patches_out)
            patches = patches_out.transpose(0, 3, 1, 2)
            encoded = EncodedSample(patches, grid, self._setup.tokenizer.prompt_ids, caption_ids)
            if encoded.num_tokens != num_tokens:
                raise PlanMismatch(f"a sample has {encoded.num_tokens} tokens, {num_tokens} were planned")
        except PlanMismatch as error:
            raise UserError(
                str(error),
                where=self._sources[place.source].place(place.shard, place.row),
                why="the shards or the tokenizer have changed since the captions were counted",
                next_step="delete the dataset's lengths folders, then run: genlip tokenizer RECIPE",
            ) from error
        return encoded

    def _unless_bad(self, step: int, place: Place, make: Callable[[], _T]) -> _T | None:
        """What is made of a sample; None, and a record, where it is damaged or cannot be read."""
        try:
            return make()
        except (ShardError, ModelError, OSError) as error:
            source = self._sources[place.source]
            shard = source.dataset.shard(place.shard)
            key = shard.keys[place.row].as_py()
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
