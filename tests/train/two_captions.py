"""A dataset whose samples have a caption, and most of them a second one."""

from pipeline.dataset_files import shard_tar
from pipeline.sharding.commits import write_commit, write_index
from pipeline.shards import Sample, ShardWriter
from pipeline.store import Store
from tests.stores import noise

NUM_SHARDS, SHARD_SAMPLES = 2, 40


def stored(number: int) -> Sample:
    """Sample of a dataset in which every fifth one has no second caption."""
    meta = {} if number % 5 == 0 else {"captions": {"recaption": f"a long tale of marmalade, number {number}, " * 2}}
    return Sample(f"{number:020x}", noise(number), f"thing {number}", meta)


def write_dataset(store: Store, dataset: str, num_shards: int = NUM_SHARDS) -> None:
    for shard in range(num_shards):
        path = shard_tar(dataset, shard)
        samples = [stored(shard * SHARD_SAMPLES + number) for number in range(SHARD_SAMPLES)]
        with store.writing(path) as stream:
            writer = ShardWriter(stream)
            offsets, sizes = zip(*(writer.add(sample) for sample in samples), strict=True)
            num_bytes, sha256 = writer.close()
        entry = {
            "path": path,
            "num_samples": len(samples),
            "num_bytes": num_bytes,
            "sha256": sha256,
            "keys": [sample.key for sample in samples],
            "offsets": offsets,
            "sizes": sizes,
            "widths": [32] * len(samples),
            "heights": [24] * len(samples),
        }
        write_commit(store, dataset, shard, entry, refused=[])
    write_index(store, dataset, num_shards)
