"""How a peer's training loop gets its batches and takes its steps: webdataset, AdamW, clipping.

Reading, decoding, cutting into patches and tokenising are those of the stream benchmark's peer: our processor and
tokenizer behind webdataset. The optimiser is PyTorch's fused one, as ours.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from model import EncodedSample, ImageProcessor, Tokenizer
from tests.bench.trainer_inputs import BETAS, CLIP, LR, WEIGHT_DECAY, TrainerSetup
from tests.bench.trainer_side import Mark
from train.setup import set_up

SHUFFLE_SAMPLES = 100

Loss = Callable[[list[EncodedSample]], Tensor]


def train(setup: TrainerSetup, model: nn.Module, loss: Loss) -> list[Mark]:
    """Steps of as many samples as fill a row.

    Args:
        setup: Whose `num_steps` are taken after those that warm up.
        model: The peer's.
        loss: Mean loss of a batch in the peer's layout.
    """
    optimizer = torch.optim.AdamW(model.parameters(), LR, BETAS, weight_decay=WEIGHT_DECAY, fused=True)
    marks: list[Mark] = []
    num_samples = 0
    for samples in _rows(setup):
        loss(samples).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        num_samples += len(samples)
        marks.append(Mark(num_samples, time.process_time(), time.perf_counter(), {}))
        if len(marks) == setup.num_warmup + setup.num_steps:
            return marks
    raise RuntimeError("the shards repeat without end")


def _rows(setup: TrainerSetup) -> Iterator[list[EncodedSample]]:
    """Samples in the shuffled order of the shards, as many as fill a row of tokens."""
    import webdataset as wds  # here, because its absence is reported and is no error

    run = set_up(Path(setup.run_dir))
    dataset = run.sources[0].dataset
    shards = [dataset.store.path(path) for path in dataset.paths.to_pylist()]
    encode = partial(_encode, run.processor, run.tokenizer, run.job.train.max_caption_tokens)
    stream = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).repeat().shuffle(SHUFFLE_SAMPLES).decode("pil")
    row: list[EncodedSample] = []
    for sample in stream.to_tuple("jpg", "txt").map(encode):
        if sum(one.num_tokens for one in row) + sample.num_tokens > setup.row_tokens:
            yield row
            row = []
        row.append(sample)


def _encode(
    processor: ImageProcessor, tokenizer: Tokenizer, max_caption_tokens: int, pair: tuple[Image.Image, str]
) -> EncodedSample:
    """Without the prompt, which open_clip does not know: one token less a sample than ours."""
    image, caption = pair
    patches, grid = processor.patches(image)
    caption_ids = tokenizer.encode(caption)[:max_caption_tokens]
    return EncodedSample(patches, grid, prompt_ids=(), caption_ids=[*caption_ids, *tokenizer.ending_ids])
