"""webdataset: tars in the order of a shuffled list, through a shuffle buffer."""

import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import webdataset as wds

from tests.bench.stream_peers.common import BATCH_SAMPLES, SEED, SHUFFLE_SAMPLES, Batch, Item, Mode, Side, main


def convert(tars: list[Path], out: Path) -> None:
    """Takes the tars as they are."""
    out.mkdir(parents=True)
    for tar in tars:
        shutil.copy(tar, out)


def batches(folder: Path, mode: Mode, num_workers: int, after: int) -> Iterable[Batch]:
    """It has no state: a resumed run reads again what came before, as its users do it."""

    def encode(pair: tuple[bytes, bytes]) -> Item:
        return mode.encode(pair[0], pair[1].decode())

    shards = sorted(map(str, folder.glob("*.tar")))
    samples = wds.WebDataset(shards, shardshuffle=len(shards), seed=SEED, detshuffle=True).shuffle(SHUFFLE_SAMPLES)
    dataset = samples.to_tuple("jpg", "txt").map(encode).batched(BATCH_SAMPLES, mode.collate)
    return islice(wds.WebLoader(dataset, batch_size=None, num_workers=num_workers), after // BATCH_SAMPLES, None)


if __name__ == "__main__":
    main(Side("webdataset", convert, batches))
