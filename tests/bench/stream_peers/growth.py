"""What a peer spends to plan a pass of N samples, without data: `... growth mds|litdata|litdata-elastic N`.

The steps are those of the peer's own dataset at the start of a pass, in its words; on one node of 8 ranks with 8
workers each, and shards of 10,000 samples.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHARD_SAMPLES = 10_000
NUM_RANKS, NUM_WORKERS, BATCH_SAMPLES = 8, 8, 64
BLOCK_SAMPLES = 4_000_000
"""The default of py1e on one node."""


def plan_mds(num_samples: int) -> None:
    """As `StreamingDataset.__init__` and `generate_work_random_batching`, with the default py1e shuffle."""
    from tests.bench.stream_peers.mds_import import streaming

    shards = np.full(num_samples // SHARD_SAMPLES, SHARD_SAMPLES)
    clock.start()
    spanner = streaming.base.spanner.Spanner(shards)
    ids = streaming.base.partition.get_partitions(
        "relaxed", num_samples, 1, 1, NUM_RANKS, NUM_WORKERS, BATCH_SAMPLES, 0, 1
    )
    shuffle = streaming.base.shuffle.get_shuffle("py1e", shards, 1, 0, 0, BLOCK_SAMPLES)
    np.where(ids != -1, shuffle[ids], -1)
    spanner[num_samples - 1]


def plan_litdata(num_samples: int) -> None:
    """As every worker does at the start, on an unchanged number of ranks and workers."""
    from litdata.streaming.shuffle import FullShuffle
    from litdata.utilities.env import _DistributedEnv

    class Cache:
        _reader = None

        def get_chunk_intervals(self) -> list[tuple[int, int, int, int]]:
            return [(0, 0, SHARD_SAMPLES, SHARD_SAMPLES)] * (num_samples // SHARD_SAMPLES)

    clock.start()
    shuffle = FullShuffle(Cache(), seed=0, drop_last=True)
    environment = _DistributedEnv(world_size=NUM_RANKS, global_rank=0, num_nodes=1)
    shuffle.get_chunks_and_intervals_per_workers(environment, NUM_WORKERS, BATCH_SAMPLES, 0)


def plan_litdata_elastic(num_samples: int) -> None:
    """As every worker does on a resume after the number of ranks or workers has changed."""
    from litdata.streaming.elastic import canonical_item_stream, restripe_items

    intervals = [(0, 0, SHARD_SAMPLES, SHARD_SAMPLES)] * (num_samples // SHARD_SAMPLES)
    clock.start()
    stream = canonical_item_stream(intervals, seed=0, epoch=0, shuffle=True)
    restripe_items(stream, world_size=NUM_RANKS, num_workers=NUM_WORKERS, batch_size=BATCH_SAMPLES)


PLANS: dict[str, tuple[str, Callable[[int], None]]] = {
    "mds": ("mosaicml-streaming", plan_mds),
    "litdata": ("litdata", plan_litdata),
    "litdata-elastic": ("litdata", plan_litdata_elastic),
}


def _peak_kib() -> int:
    """Highest resident size of this program; `getrusage` would know of the one that started it, too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0])


class Clock:
    """CPU time and memory since `start`, which a plan calls behind its imports."""

    def start(self) -> None:
        self._began, self._kib = time.process_time(), _peak_kib()

    def read(self) -> dict[str, float]:
        return {"plan_s": time.process_time() - self._began, "memory_mb": (_peak_kib() - self._kib) / 1024}


clock = Clock()


def main(name: str, num_samples: str) -> None:
    """Prints CPU time and peak memory."""
    distribution, plan = PLANS[name]
    plan(int(num_samples))
    print(json.dumps({"version": importlib.metadata.version(distribution), **clock.read()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
