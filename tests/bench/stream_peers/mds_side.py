"""MosaicML streaming: MDS shards, its own dataset and loader."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.stream_peers.common import BATCH_SAMPLES, SEED, Batch, Item, Mode, Side, main, tar_samples
from tests.bench.stream_peers.mds_import import streaming

COLUMNS = {"jpg": "bytes", "txt": "str"}
SHARD_BYTES = 8 * 2**20


def convert(tars: list[Path], out: Path) -> None:
    """Writes MDS shards of about as many samples as the tars have."""
    with streaming.MDSWriter(out=str(out), columns=COLUMNS, size_limit=SHARD_BYTES) as writer:
        for image, caption in tar_samples(tars):
            writer.write({"jpg": image, "txt": caption})


class Encoded(streaming.StreamingDataset):  # type: ignore[misc]
    """Encodes what it reads, in its worker."""

    def __init__(self, mode: Mode, **options: Any) -> None:
        super().__init__(**options)
        self.mode = mode

    def __getitem__(self, index: int) -> Item:
        sample = super().__getitem__(index)
        return self.mode.encode(sample["jpg"], sample["txt"])


def batches(folder: Path, mode: Mode, num_workers: int, after: int) -> Iterable[Batch]:
    """Its default order, py1e."""
    streaming.base.util.clean_stale_shared_memory()
    dataset = Encoded(mode, local=str(folder), shuffle=True, shuffle_seed=SEED, batch_size=BATCH_SAMPLES)
    loader = streaming.StreamingDataLoader(
        dataset, batch_size=BATCH_SAMPLES, num_workers=num_workers, collate_fn=mode.collate
    )
    if after:
        loader.load_state_dict(dataset.state_dict(after, from_beginning=True))
    return loader  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(Side("mosaicml-streaming", convert, batches))
