"""What every side of the trainer benchmark gets: one store, one tokenizer, one architecture, batches of one row."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import SentencePieceTokenizer
from tests.bench.model_inputs import LONGEST_CAPTION, StepSetup, draw_lengths
from tests.bench.stream_store import make_run
from train.recipe import RECIPE_FILE, TOKENIZER_FOLDER
from train.setup import set_up

NUM_IMAGES = 600
NUM_WORDS = 40_000
TOKENIZER_LINES = 20_000
TOKENS_PER_WORD = 1.4
"""That the tokenizer needs for these words."""
LR = 1e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01
CLIP = 1.0


@dataclass(frozen=True)
class TrainerSetup(StepSetup):
    """One measurement of one side, in a process of its own."""

    num_warmup: int = 1
    """Steps before those that are timed."""
    compile: bool = False
    """By `torch.compile`: our block, as `train.compile` does, or a peer's model."""
    run_dir: str = ""
    """Ours to train in; peers take tokenizer, processor and shards from it."""


def make_bench_run(folder: Path, preset: str, max_vocab_size: int, row_tokens: int) -> tuple[Path, int]:
    """A run folder for `train.main.run_training`: photos in shards, captions counted, a step of one row.

    Captions are of random words, for a vocabulary that lets the LM head weigh as in models of real captions, and of
    the lengths of the model benchmark.

    Returns:
        The folder, and the number of token ids.
    """
    rng = np.random.Generator(np.random.Philox(key=0))
    words = _random_words(rng)
    num_words = [round(length / TOKENS_PER_WORD) for length in draw_lengths(rng, NUM_IMAGES)]
    captions = [" ".join(rng.choice(words, num)) for num in num_words]
    run_dir = make_run(folder, NUM_IMAGES, captions)
    recipe = json.loads((run_dir / RECIPE_FILE).read_text(encoding="utf-8"))
    recipe["model"]["preset"] = preset
    optim = {"lr": LR, "warmup": 0, "betas": BETAS, "weight_decay": WEIGHT_DECAY, "clip": CLIP}
    recipe["train"] |= {"row_tokens": row_tokens, "max_caption_tokens": LONGEST_CAPTION, "precision": "fp32"}
    recipe["train"] |= {"threads": 1, "lanes": 1, "log_every": 1, "optim": optim}
    (run_dir / RECIPE_FILE).write_text(json.dumps(recipe), encoding="utf-8")
    lines = [" ".join(line) for line in rng.choice(words, (TOKENIZER_LINES, 8))]
    tokenizer = SentencePieceTokenizer.train([*captions, *lines], max_vocab_size)
    tokenizer.save(run_dir / TOKENIZER_FOLDER)
    set_up(run_dir)  # counts the captions
    return run_dir, tokenizer.vocab_size


def set_train(run_dir: Path, **values: Any) -> None:
    """Changes keys of the section `train`, such as the length of the run."""
    path = run_dir / RECIPE_FILE
    recipe = json.loads(path.read_text(encoding="utf-8"))
    recipe["train"] |= values
    path.write_text(json.dumps(recipe), encoding="utf-8")


def _random_words(rng: np.random.Generator) -> NDArray[np.str_]:
    """Words made of random syllables."""
    syllables = np.array([a + b for a in "bdfgklmnprstvwz" for b in ("a", "e", "i", "o", "u", "ar", "en", "ol")])
    return np.array(["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(NUM_WORDS)])
