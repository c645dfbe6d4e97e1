"""The least that a pair costs: decode, resize and tokenise in a loop, with nothing around it.

`PYTHON -m tests.bench.stream_peers.floor TARS --tokenizer FOLDER`; with simplejpeg where it is installed and faster.
"""

import argparse
import ctypes
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import sentencepiece

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SIDE_PX = 224
NUM_SAMPLES, NUM_TRIED = 2_048, 256
M_TRIM_THRESHOLD = -1
KEPT_BYTES = 2**26

Decode = Callable[[bytes], Any]


def by_opencv(jpeg: bytes) -> Any:
    """RGB pixels, uint8 [H, W, 3]."""
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


def decoders() -> dict[str, Decode]:
    """The fastest ones known, where they are installed."""
    found: dict[str, Decode] = {"cv2": by_opencv}
    if simplejpeg is not None:
        found["simplejpeg"] = simplejpeg.decode_jpeg
    return found


def tar_samples(tars: list[Path]) -> Iterator[tuple[bytes, str]]:
    """Images and captions, in order."""
    for path in tars:
        with tarfile.open(path) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, content in contents.items():
            if name.endswith(".jpg"):
                yield content, contents[name.removesuffix("jpg") + "txt"].decode()


def cost_us(samples: list[tuple[bytes, str]], decode: Decode, tokenise: Callable[[str], list[int]]) -> float:
    """CPU time of a sample in microseconds."""
    pixels_HWC = np.empty((SIDE_PX, SIDE_PX, 3), np.uint8)
    began = time.process_time()
    for jpeg, caption in samples:
        cv2.resize(decode(jpeg), (SIDE_PX, SIDE_PX), dst=pixels_HWC, interpolation=cv2.INTER_LINEAR)
        tokenise(caption)
    return (time.process_time() - began) / len(samples) * 1e6


def main() -> None:
    """Prints the cost with the fastest decoder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tars", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    # Else the memory of an image may go back to the system after each one, and cost 64 page faults.
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(options.tokenizer / "tokenizer.model"))
    samples = list(tar_samples(sorted(options.tars.glob("*.tar"))))
    tried = {name: cost_us(samples[:NUM_TRIED], one, tokenizer.encode) for name, one in decoders().items()}
    fastest = min(tried, key=tried.__getitem__)
    cpu_us = cost_us(samples[-NUM_SAMPLES:], decoders()[fastest], tokenizer.encode)
    print(json.dumps({"version": fastest, "cpu_us": cpu_us, "num_samples": NUM_SAMPLES}))


if __name__ == "__main__":
    main()
