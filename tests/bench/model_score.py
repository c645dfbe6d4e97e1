"""Scores 100 captions of one image: with the image computed once, against computing it again for each caption.

Shape legend: L labelled tokens.
"""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import EncodedSample, GenLIP, pack_rows, score_captions
from tests.bench.harness import BenchError, Metric, Peer, Result, rounds
from tests.bench.model_inputs import SEED, StepSetup, draw_lengths, make_sample

NUM_CANDIDATES = 100
SHORT_TOKENS = (8, 32)
"""Fewest and most tokens of a one-sentence caption."""
NUM_PROMPT_TOKENS = 6
ROW_TOKENS = 4_096
TOLERANCE = 1e-3
"""Of a score, in nats."""


def compare(setup: StepSetup) -> list[Result]:
    """Captions of one sentence, then captions as long as those of training."""
    rng = np.random.Generator(np.random.Philox(key=SEED))
    short = rng.integers(SHORT_TOKENS[0], SHORT_TOKENS[1] + 1, NUM_CANDIDATES).tolist()
    long = draw_lengths(rng, NUM_CANDIDATES)
    return _compare("score_candidates", setup, short, rng) + _compare("score_candidates_long", setup, long, rng)


def score_again(
    model: GenLIP, image: EncodedSample, prompt_ids: list[int], candidates: list[list[int]], row_tokens: int
) -> Tensor:
    """Scores from packed rows of whole samples, image and all."""
    samples = [EncodedSample(image.patches, image.grid, prompt_ids, ids) for ids in candidates]
    per_batch = row_tokens // max(sample.num_tokens for sample in samples)
    scores: list[Tensor] = []
    model.eval()
    with torch.no_grad():
        for begin in range(0, len(samples), per_batch):
            batch = samples[begin : begin + per_batch]
            rows = pack_rows([batch], sum(sample.num_tokens for sample in batch))
            hidden = model.hidden_BSD(rows).flatten(0, 1)[rows.label_index_L - 1]
            targets_L = rows.input_ids_BS.flatten()[rows.label_index_L]
            losses_L = F.cross_entropy(model.lm_head(model.proj(hidden)), targets_L, reduction="none")
            scores += [-part.sum() for part in torch.split(losses_L, [len(sample.caption_ids) for sample in batch])]
    return torch.stack(scores)


def _compare(name: str, setup: StepSetup, lengths: list[int], rng: np.random.Generator) -> list[Result]:
    model = GenLIP(setup.config)
    image = make_sample(setup.config, 0, rng)
    prompt_ids = rng.integers(1, setup.vocab_size, NUM_PROMPT_TOKENS).tolist()
    candidates = [rng.integers(1, setup.vocab_size, length).tolist() for length in lengths]
    ours = partial(score_captions, model, [(image.patches, image.grid)], prompt_ids, candidates)
    again = partial(score_again, model, image, prompt_ids, candidates, ROW_TOKENS)
    difference = (ours()[0] - again()).abs().max().item()
    if not difference <= TOLERANCE:
        raise BenchError(f"{name}: the two ways of scoring differ by {difference} nats; one of them is wrong")
    metric = Metric(name, "candidates/CPU s", "higher")
    return rounds("model", [metric], partial(_measure, name, ours), Peer("image again", partial(_measure, name, again)))


def _measure(name: str, score: Callable[[], Tensor]) -> dict[str, float]:
    began = time.process_time()
    score()
    return {name: NUM_CANDIDATES / (time.process_time() - began)}
