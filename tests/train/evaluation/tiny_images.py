"""An untrained model of 16 patches an image, and drawn images for it."""

import functools
import io
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import GenLIPConfig, ImageProcessor, LoadedModel, SentencePieceTokenizer
from model.baselines import build_model
from train.evaluation.samples import EvalData, Labelled
from train.evaluation.spec import EvalSpec

SIDE_PX = 32
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
SPEC = EvalSpec(batch_images=4)
BROKEN = b"no image"


def tiny_model(objective: str = "genlip", processor: ImageProcessor | None = None, **changes: object) -> LoadedModel:
    """A fresh model with its tokenizer; `changes` are those to the configuration."""
    tokenizer = tiny_tokenizer()
    dimensions = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "text_embed_dim": 32,
        "patch_size": 8,
        "vocab_size": tokenizer.vocab_size,
        "initializer_range": 0.1,
    }
    config = GenLIPConfig(**(dimensions | changes))
    processor = processor or ImageProcessor(image_px=SIDE_PX, patch_size=8)
    return LoadedModel(build_model(config, objective).eval(), tokenizer, processor)


@functools.cache
def tiny_tokenizer() -> SentencePieceTokenizer:
    """Colours are tokens; `reddish` is `red` and further pieces."""
    words = itertools.product(("A", "The", "One"), (*COLOURS, "reddish"), ("square", "house"), ("here", "on a table"))
    return SentencePieceTokenizer.train([" ".join(four) + "." for four in words], vocab_size=400)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels [height, width] or [height, width, 3] as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def square(colour: str, seed: int = 0, size_px: tuple[int, int] = (SIDE_PX, SIDE_PX)) -> bytes:
    """A colour with noise; the size is (height, width)."""
    noise = np.random.default_rng(seed).integers(-30, 31, (*size_px, 3))
    return png((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def squares(count: int, seed: int, colours: Sequence[str] = tuple(COLOURS)) -> list[Labelled]:
    """Squares of each colour in turn, their colour being class and caption."""
    names = [colours[number % len(colours)] for number in range(count)]
    return [
        Labelled(f"{seed}-{number}", square(name, seed + number), (f"A {name} square.",), name)
        for number, name in enumerate(names)
    ]


def broken(class_name: str) -> Labelled:
    """Bytes that no decoder knows."""
    return Labelled("broken", BROKEN, ("A broken one.",), class_name)


def coloured_data(heldout: int = 9, training: int = 18) -> EvalData:
    """Squares on both sides, none on both."""
    return EvalData(squares(heldout, seed=1000), squares(training, seed=0))
