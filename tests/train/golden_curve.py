"""The loss curve of a small run on made-up data, through the trainer's own step, schedule and engine.

PYTHONPATH=. python tests/train/golden_curve.py     # writes tests/golden/train/curve.json anew
"""

import json
import logging
from pathlib import Path

import numpy as np

from model import EncodedSample, GenLIP, GenLIPConfig, pack_rows
from train.data.loader import StepBatch
from train.data.stream import Position
from train.engine import build_engine, join_group
from train.loop import train_step
from train.recipe import TrainSpec
from train.schedule import learning_rate

FILE = Path(__file__).parents[1] / "golden" / "train" / "curve.json"
NUM_STEPS, SAMPLES_PER_ROW, LANES, ROW_TOKENS = 50, 3, 2, 96
SPEC = {
    "length": NUM_STEPS * SAMPLES_PER_ROW * LANES,
    "lanes": LANES,
    "row_tokens": ROW_TOKENS,
    "precision": "fp32",
    "optim": {"lr": 3.0e-3, "min_lr": 1.0e-5, "warmup": 5 * SAMPLES_PER_ROW * LANES},
}
_NUM_WORDS = 12


def loss_curve() -> dict[str, list[float]]:
    """Losses and gradient norms of the demo's model, with DropPath."""
    ranks = join_group()
    spec = TrainSpec.model_validate(SPEC)
    model = GenLIP(GenLIPConfig.preset("nano8", vocab_size=64))
    model.init_weights(seed=42)
    engine = build_engine(model, spec, ranks.world_size)
    curve: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    for step in range(NUM_STEPS):
        batch = _batch(step)
        lr = learning_rate(step * batch.num_samples, spec.length, spec.optim)
        result = train_step(engine, batch, lr, ranks, seed=step)
        curve["loss"].append(result.loss)
        curve["grad_norm"].append(result.grad_norm)
    return curve


def _batch(step: int) -> StepBatch:
    numbers = np.random.default_rng(step)
    rows = [[_sample(numbers) for _ in range(SAMPLES_PER_ROW)] for _ in range(LANES)]
    samples = [sample for row in rows for sample in row]
    return StepBatch(
        step=step + 1,
        at=Position(),
        num_samples=len(samples),
        num_tokens=sum(sample.num_tokens for sample in samples),
        flops=1,
        num_labels=sum(len(sample.caption_ids) for sample in samples),
        first_lane=0,
        keys=[],
        num_micro_batches=LANES,
        micro_batches=iter([pack_rows([row], ROW_TOKENS) for row in rows]),  # type: ignore[arg-type]  # taken once
        sources=[[0] * SAMPLES_PER_ROW] * LANES,
    )


def _sample(numbers: np.random.Generator) -> EncodedSample:
    """A flat image whose brightness is a word, and the caption that says which; both end with the same two ids."""
    word = int(numbers.integers(_NUM_WORDS))
    patches = np.full((16, 3, 8, 8), 20 * word, np.uint8)
    return EncodedSample(patches, (4, 4), [1], [10, 10 + word, 30 + word, 2, 3])


if __name__ == "__main__":
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(loss_curve(), indent=1) + "\n", encoding="utf-8")
