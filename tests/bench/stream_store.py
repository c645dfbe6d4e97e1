"""Makes the datasets that the stream benchmark reads, without the commands: photos in shards, and long indexes."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from jobs.capacity.photos import make_photos
from jobs.recipe import check_recipe
from model import load_tokenizer
from pipeline.dataset_files import index_file, shard_file, shard_tar
from pipeline.sharding.commits import write_commit, write_index
from pipeline.shards import INDEX_SCHEMA, Sample, ShardWriter
from pipeline.store import Store
from tests.train.train_runs import begin_run
from train.data.lengths import lengths_file, lengths_folder, write_lengths
from train.data.mixture import SEGMENT_SAMPLES, Mixture, Phase
from train.recipe import TOKENIZER_FOLDER, TrainJob

PHOTOS = "photos"
ORIGINAL_SIDE_PX = (456, 512)
"""Of the longer side: the shorter one is then at least the stored one."""
STORED_SIDE_PX = 256
JPEG_QUALITY = 80
SHARD_SAMPLES = 512
RANK_LANES = 64
"""Of one rank: the recipe's 512 lanes on eight GPUs."""
PLACE_BYTES = 2**14
CAPTION_TOKENS = (20, 130)
"""Of samples that are in an index only: what each takes in a tar, and the fewest and most tokens."""


@dataclass(frozen=True)
class LongIndex:
    """A dataset of which there is an index only, with the shards that some positions read."""

    num_shards: int
    shard_samples: int

    @property
    def num_samples(self) -> int:
        return self.num_shards * self.shard_samples


def make_run(folder: Path, num_images: int, captions: Sequence[str] = ()) -> Path:
    """Shards of square photos with captions, and a run folder that reads them.

    Args:
        folder: Of store and run.
        num_images: How many photos.
        captions: Of each; those that `make_photos` returns where there are none.

    Returns:
        The run folder, ready for `train.setup.set_up`.
    """
    store = Store(str(folder / "store"))
    shipped = make_photos(folder / "corpus", num_images, ORIGINAL_SIDE_PX)
    captions = captions or shipped
    starts = range(0, num_images, SHARD_SAMPLES)
    for number, start in enumerate(starts):
        samples = []
        for place in range(start, min(start + SHARD_SAMPLES, num_images)):
            file = folder / "corpus" / "images" / f"{place:06d}.jpg"
            samples.append(Sample(f"{place:020d}", _square(file), captions[place], {}))
        _write_shard(store, number, samples)
    write_index(store, PHOTOS, len(starts))
    content = {
        "name": "stream",
        "store": store.root,
        "runs": str(folder / "runs"),
        "ingest": {"source": {"urls": str(folder / "none.parquet")}},
        "shards": {"name": PHOTOS},
        "train": {"length": 1, "lanes": RANK_LANES},
    }
    return begin_run(check_recipe(content, "the stream benchmark's recipe"))


def _square(file: Path) -> bytes:
    stream = io.BytesIO()
    square = ImageOps.fit(Image.open(file), (STORED_SIDE_PX, STORED_SIDE_PX), Image.Resampling.BICUBIC)
    square.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _write_shard(store: Store, number: int, samples: list[Sample]) -> None:
    with store.writing(shard_tar(PHOTOS, number)) as stream:
        writer = ShardWriter(stream)
        places = [writer.add(sample) for sample in samples]
        num_bytes, sha256 = writer.close()
    columns = {
        "keys": [sample.key for sample in samples],
        "offsets": [offset for offset, _ in places],
        "sizes": [size for _, size in places],
        "widths": [STORED_SIDE_PX] * len(samples),
        "heights": [STORED_SIDE_PX] * len(samples),
    }
    totals = {"path": shard_tar(PHOTOS, number), "num_samples": len(samples), "num_bytes": num_bytes, "sha256": sha256}
    write_commit(store, PHOTOS, number, totals | columns, [])


def repeated(run_dir: Path, num_shards: int, times: int) -> TrainJob:
    """The job over as many shards as one likes: each names the samples of one of the photos' tars so many times."""
    job = TrainJob.read(run_dir)
    store, name = Store(job.store), f"{PHOTOS}-again"
    fingerprint = load_tokenizer(run_dir / TOKENIZER_FOLDER).fingerprint
    lengths_from, lengths_to = (lengths_folder(dataset, fingerprint) for dataset in (PHOTOS, name))
    num_tars = len(store.names(f"shards/{PHOTOS}", ".tar"))
    for number in range(num_shards):
        record = store.read_table(shard_file(PHOTOS, number % num_tars)).to_pylist()[0]
        record |= {column: times * record[column] for column in ("keys", "offsets", "sizes", "widths", "heights")}
        write_commit(store, name, number, record | {"num_samples": times * record["num_samples"]}, [])
        lengths = store.read_table(lengths_file(lengths_from, number % num_tars))["num_tokens"].combine_chunks()
        again = pa.concat_arrays([lengths] * times)
        write_lengths(store, lengths_file(lengths_to, number), again, record["sha256"])
    write_index(store, name, num_shards)
    return _reading(job, name)


def make_long_index(run_dir: Path, folder: Path, size: LongIndex, shares: Iterable[float]) -> TrainJob:
    """The job over a dataset that has no images: its index, and the shards' records that the stream will read.

    Args:
        run_dir: Whose tokenizer it is read with.
        folder: Of the new store.
        size: Of the index.
        shares: Of the pass: where the stream will be asked for a step.
    """
    store, name = Store(str(folder)), "long"
    num_samples_S = np.full(size.num_shards, size.shard_samples)
    paths = pa.array([shard_tar(name, number) for number in range(size.num_shards)])
    sha256 = pa.array([_sha256(number) for number in range(size.num_shards)])
    columns = [paths, pa.array(num_samples_S), pa.array(num_samples_S * PLACE_BYTES), sha256]
    store.write_table(index_file(name), pa.table(columns, schema=INDEX_SCHEMA))
    job = _reading(TrainJob.read(run_dir), name).model_copy(update={"store": store.root})
    lengths = lengths_folder(name, load_tokenizer(run_dir / TOKENIZER_FOLDER).fingerprint)
    segment_samples = min(SEGMENT_SAMPLES, size.num_samples)
    mixture = Mixture([num_samples_S], [Phase(0, (1.0,))], job.seed, job.train.block_shards, segment_samples)
    for segment in {segment_at(share, size.num_samples, segment_samples) for share in shares}:
        for number in np.unique(mixture.places(segment).shard_N).tolist():
            _write_record(store, name, number, size.shard_samples)
            tokens = np.random.default_rng(number).integers(*CAPTION_TOKENS, size.shard_samples)
            write_lengths(store, lengths_file(lengths, number), pa.array(tokens, pa.int32()), _sha256(number))
    return job


def segment_at(share: float, num_samples: int, segment_samples: int) -> int:
    """The segment in which the stream is when it has read that share of a pass."""
    return int(share * num_samples) // segment_samples


def _write_record(store: Store, name: str, number: int, num_samples: int) -> None:
    columns = {
        "keys": [f"{number * num_samples + row:020d}" for row in range(num_samples)],
        "offsets": list(range(0, num_samples * PLACE_BYTES, PLACE_BYTES)),
        "sizes": [PLACE_BYTES] * num_samples,
        "widths": [STORED_SIDE_PX] * num_samples,
        "heights": [STORED_SIDE_PX] * num_samples,
    }
    num_bytes = num_samples * PLACE_BYTES
    totals = {"path": shard_tar(name, number), "num_samples": num_samples, "num_bytes": num_bytes}
    write_commit(store, name, number, totals | {"sha256": _sha256(number)} | columns, [])


def _sha256(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _reading(job: TrainJob, dataset: str) -> TrainJob:
    return job.model_copy(update={"shards": job.shards.model_copy(update={"name": dataset})})
