"""LitData: its own chunks, dataset and loader."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset, optimize

from tests.bench.stream_peers.common import BATCH_SAMPLES, SEED, Batch, Item, Mode, Side, main, tar_samples

CHUNK_BYTES = "4MB"


def read_tar(tar: str) -> Iterator[dict[str, Any]]:
    """The samples of a tar, for `optimize`."""
    for image, caption in tar_samples([Path(tar)]):
        yield {"jpg": image, "txt": caption}


def convert(tars: list[Path], out: Path) -> None:
    """Writes chunks of about as many samples as the tars have."""
    optimize(read_tar, inputs=list(map(str, tars)), output_dir=str(out), chunk_bytes=CHUNK_BYTES, num_workers=1)


class Encoded(StreamingDataset):  # type: ignore[misc]
    """Encodes what it reads, in its worker."""

    def __init__(self, mode: Mode, **options: Any) -> None:
        super().__init__(**options)
        self.mode = mode

    def __getitem__(self, index: Any) -> Item:
        sample = super().__getitem__(index)
        return self.mode.encode(sample["jpg"], sample["txt"])


def batches(folder: Path, mode: Mode, num_workers: int, after: int) -> Iterable[Batch]:
    """Its default shuffle."""
    dataset = Encoded(mode, input_dir=str(folder), shuffle=True, seed=SEED)
    loader = StreamingDataLoader(dataset, batch_size=BATCH_SAMPLES, num_workers=num_workers, collate_fn=mode.collate)
    if after:
        state = dataset.state_dict(after, num_workers, BATCH_SAMPLES)
        last_worker = after // BATCH_SAMPLES % num_workers - 1
        loader.load_state_dict(
            {"dataset": state, "current_epoch": 1, "num_samples_yielded": after, "latest_worker_idx": last_worker}
        )
    return loader  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(Side("litdata", convert, batches))
