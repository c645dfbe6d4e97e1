"""Megatron Energon: indexed tars, a task encoder, its savable loader."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron.energon import (
    CaptioningSample,
    DefaultTaskEncoder,
    WorkerConfig,
    get_savable_loader,
    get_train_dataset,
    stateless,
)

from tests.bench.stream_peers.common import BATCH_SAMPLES, SHUFFLE_SAMPLES, Batch, Mode, Side, main

SLICE_SAMPLES = 100
"""Its documentation's value for `max_samples_per_sequence`."""


def convert(tars: list[Path], out: Path) -> None:
    """Takes the tars as they are, and indexes them."""
    out.mkdir(parents=True)
    for tar in tars:
        shutil.copy(tar, out)
    fields = json.dumps({"image": "jpg", "caption": "txt"})
    command = [Path(sys.executable).with_name("energon"), "prepare", out, "--non-interactive", "--no-progress"]
    command += ["--split-ratio", "1,0,0", "--sample-type", "CaptioningSample", "--field-map", fields]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@dataclass
class EncodedSample:
    """What becomes part of a batch."""

    item: Any


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Encodes bytes itself, instead of Energon's decoder."""

    decoder = None

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode = mode

    @stateless  # type: ignore[untyped-decorator]
    def encode_sample(self, sample: CaptioningSample) -> EncodedSample:
        caption = sample.caption
        return EncodedSample(
            self.mode.encode(sample.image, caption.decode() if isinstance(caption, bytes) else caption)
        )

    def batch(self, samples: list[EncodedSample]) -> Batch:
        return self.mode.collate([sample.item for sample in samples])

    def encode_batch(self, batch: Batch) -> Batch:
        return batch


def batches(folder: Path, mode: Mode, num_workers: int, after: int) -> Iterable[Batch]:
    """Endless; its state needs the objects of a run that went on, so none is made up here."""
    if after:
        raise NotImplementedError("Energon's state cannot be written down by hand")
    dataset = get_train_dataset(
        folder,
        batch_size=BATCH_SAMPLES,
        shuffle_buffer_size=SHUFFLE_SAMPLES,
        max_samples_per_sequence=SLICE_SAMPLES,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=num_workers),
        task_encoder=Encoder(mode),
    )
    return get_savable_loader(dataset)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(Side("megatron-energon", convert, batches))
