"""What the sides of the peers share; none of genlip's packages, because these run in an environment of their own.

Each side is a module beside this one: `PYTHON -m tests.bench.stream_peers.SIDE convert TARS OUT` writes the samples of
the tars in the peer's format, `... read OUT` prints what reading them costs as JSON, `... resume OUT` how long a fresh
process takes to the first batch.

Shape legend: B samples of a batch, C channels, H and W pixels, S text tokens.
"""

import argparse
import importlib.metadata
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import sentencepiece
import simplejpeg
import tokenizers
import torch
from PIL import Image

BATCH_SAMPLES = 64
NUM_WARM_UP_BATCHES = 4
NUM_BATCHES = 32
"""The clock runs for these in the middle of a pass, so that every side works ahead at its start and at its end."""
SIDE_PX = 224
SHUFFLE_SAMPLES = 1_000
SEED = 0
CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
MIB = 2**20

Item = tuple[Any, Any]
Batch = tuple[torch.Tensor, torch.Tensor]
"""Images, [B, C, H, W] or [B, H, W, C], and ids padded to the longest text, [B, S]."""


@dataclass(frozen=True)
class Mode:
    """How a stored pair becomes part of a batch."""

    encode: Callable[[bytes, str], Item]
    collate: Callable[[Sequence[Item]], Batch]


@dataclass(frozen=True)
class Side:
    """A peer."""

    distribution: str
    convert: Callable[[list[Path], Path], None]
    """From tars of `KEY.jpg`, `KEY.txt` and `KEY.json` to a folder in its own format."""
    batches: Callable[[Path, Mode, int, int], Iterable[Batch]]
    """(folder, mode, workers, samples of the pass to go on behind) -> the batches of one shuffled pass."""


def usual_mode(tokenizer_dir: Path) -> Mode:
    """PIL, bicubic, normalised float32 and a Hugging Face tokenizer, which gets the texts of a batch at once."""
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.enable_padding()
    mean_C11, std_C11 = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))

    def encode(jpeg: bytes, caption: str) -> Item:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        pixels_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels_CHW.sub_(mean_C11).div_(std_C11), caption

    def collate(items: Sequence[Item]) -> Batch:
        texts = tokenizer.encode_batch([caption for _, caption in items])
        return torch.stack([pixels for pixels, _ in items]), torch.tensor([text.ids for text in texts])

    return Mode(encode, collate)


def fast_mode(tokenizer_dir: Path) -> Mode:
    """The decoder, the resize and the tokenizer of the floor: uint8 pixels, stacked."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))

    def encode(jpeg: bytes, caption: str) -> Item:
        pixels_HWC = simplejpeg.decode_jpeg(jpeg)
        pixels_HWC = cv2.resize(pixels_HWC, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR)
        return pixels_HWC, processor.encode(caption)

    def collate(items: Sequence[Item]) -> Batch:
        ids_BS = np.zeros((len(items), max(len(ids) for _, ids in items)), np.int64)
        for row, (_, ids) in enumerate(items):
            ids_BS[row, : len(ids)] = ids
        return torch.from_numpy(np.stack([pixels for pixels, _ in items])), torch.from_numpy(ids_BS)

    return Mode(encode, collate)


MODES = {"usual": usual_mode, "fast": fast_mode}


def tar_samples(tars: Iterable[Path]) -> Iterator[tuple[bytes, str]]:
    """Images and captions, in order."""
    for path in tars:
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member) for member in tar}
            for name, member in members.items():
                if name.endswith(".jpg"):
                    caption = members[name.removesuffix("jpg") + "txt"]
                    assert member is not None
                    assert caption is not None
                    yield member.read(), caption.read().decode()


def main(side: Side) -> None:
    """The command line of a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["convert", "read", "resume"])
    parser.add_argument("folders", type=Path, nargs="+", help="TARS OUT to convert, OUT to read")
    parser.add_argument("--mode", choices=MODES, default="fast")
    parser.add_argument("--tokenizer", type=Path, help="folder of tokenizer.json and tokenizer.model")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--after", type=int, default=0, help="samples of the pass that were read before")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    result: dict[str, float | str] = {"version": importlib.metadata.version(side.distribution)}
    if options.action == "convert":
        tars, out = options.folders
        side.convert(sorted(tars.glob("*.tar")), out)
    else:
        mode = MODES[options.mode](options.tokenizer)
        began = time.perf_counter()
        memory_mb = _tree_memory_mb()
        batches = iter(side.batches(options.folders[0], mode, options.workers, options.after))
        if options.action == "read":
            result |= _measure(batches)
            result["memory_mb"] = _tree_memory_mb() - memory_mb
        else:
            next(batches)
            result["first_s"] = time.perf_counter() - began
    print(json.dumps(result), flush=True)


def _measure(batches: Iterator[Batch]) -> dict[str, float]:
    """CPU time of the whole process tree, in microseconds per sample."""
    for _ in range(NUM_WARM_UP_BATCHES):
        next(batches)
    began = _tree_cpu_s()
    num_samples = sum(len(next(batches)[0]) for _ in range(NUM_BATCHES))
    return {"cpu_us": (_tree_cpu_s() - began) / num_samples * 1e6, "num_samples": num_samples}


def _tree() -> list[psutil.Process]:
    root = psutil.Process()
    return [root, *root.children(recursive=True)]


def _tree_cpu_s() -> float:
    return sum(sum(process.cpu_times()[:4]) for process in _tree())


def _tree_memory_mb() -> float:
    """Sum of the proportional set sizes (PSS)."""
    return float(sum(process.memory_full_info().pss for process in _tree()) / MIB)
