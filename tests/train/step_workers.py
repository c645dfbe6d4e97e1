"""Processes that take training steps on the batches they are sent, forked from one that has imported everything."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from groups import forks
from torch import Tensor

from model import EncodedSample, GenLIP, GenLIPConfig, PackedRows, pack_rows
from model.baselines import Baseline
from train.checkpoints.engine_state import EngineState
from train.data.loader import StepBatch
from train.data.stream import Position
from train.engine import Ranks, build_engine, join_group
from train.loop import train_step
from train.network import Network
from train.recipe import Objective, ObjectiveSpec, TrainSpec

LANES, ROW_TOKENS = 4, 64
CONFIG = GenLIPConfig.preset("nano8", num_hidden_layers=2, vocab_size=64, drop_path_rate=0.5)

Captions = list[list[int]]
"""By lane, the number of caption tokens of each of its samples."""


@dataclass(frozen=True)
class Setting:
    """One way to divide the same global batch."""

    stage: int
    micro_rows: int
    drops: bool = False
    """Whether DropPath is on."""
    objective: Objective = "genlip"


@dataclass(frozen=True)
class Measured:
    """What a step came to."""

    loss: float
    grad_norm: float
    gradients: dict[str, Tensor]


def make_rows(captions: Captions) -> list[list[EncodedSample]]:
    """The samples of each lane: 2 × 3 patches and 2 prompt tokens each, drawn from the place in the batch."""
    return [
        [_sample(lane * 100 + number, length) for number, length in enumerate(lengths)]
        for lane, lengths in enumerate(captions)
    ]


def _sample(seed: int, num_caption_tokens: int) -> EncodedSample:
    numbers = np.random.default_rng(seed)
    patches = numbers.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    return EncodedSample(patches, (2, 3), [1, 2], numbers.integers(3, 64, num_caption_tokens).tolist())


def make_model(drops: bool, objective: Objective = "genlip") -> GenLIP | Baseline:
    model = Network(CONFIG, ObjectiveSpec(kind=objective)).build()
    model.init_weights(seed=7)
    for block in model.visual.layers:
        block.drop_path.rate = CONFIG.drop_path_rate if drops else 0.0
    return model


class Workers:
    """A group of processes with one engine for each setting."""

    def __init__(self, world_size: int, settings: list[Setting]) -> None:
        self.settings = settings
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._processes, self._ends = [], []
        for rank in range(world_size):
            ours, theirs = forks.Pipe()
            process = forks.Process(target=_serve, args=(rank, world_size, port, settings, theirs))
            process.start()
            theirs.close()
            self._processes.append(process)
            self._ends.append(ours)

    def step(self, captions: Captions) -> list[Measured]:
        """The same batch in every setting, as the first process has it; all processes must have the same."""
        for end in self._ends:
            end.send(captions)
        answers = [end.recv() for end in self._ends]
        for others in answers[1:]:
            assert [one.loss for one in others] == [one.loss for one in answers[0]]
        return answers[0]

    def close(self) -> None:
        for end in self._ends:
            end.send(None)
        for process in self._processes:
            process.join(60)
        assert [process.exitcode for process in self._processes] == [0] * len(self._processes)


@contextmanager
def workers(world_size: int, settings: list[Setting]) -> Iterator[Workers]:
    group = Workers(world_size, settings)
    yield group
    group.close()


def _serve(rank: int, world_size: int, port: int, settings: list[Setting], end: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    ranks = join_group()
    engines = {setting: _engine(setting, world_size) for setting in settings}
    while (captions := end.recv()) is not None:
        rows = make_rows(captions)
        end.send([_measure(engines[setting], setting, rows, ranks) for setting in settings])


def _engine(setting: Setting, world_size: int) -> Any:
    # Without momentum the first moment is the gradient; nothing is clipped.
    content = {
        "length": 1000,
        "lanes": LANES,
        "row_tokens": ROW_TOKENS,
        "micro_rows": setting.micro_rows,
        "precision": "fp32",
        "zero": {"stage": setting.stage},
        "optim": {"betas": [0.0, 0.95], "clip": 1e9},
    }
    return build_engine(make_model(setting.drops, setting.objective), TrainSpec.model_validate(content), world_size)


def _measure(engine: Any, setting: Setting, rows: list[list[EncodedSample]], ranks: Ranks) -> Measured:
    result = train_step(engine, _part(rows, setting.micro_rows, ranks), lr=0.0, ranks=ranks, seed=5)  # weights stay
    state = EngineState(engine)
    gradients = {name: state.read(name)["exp_avg"].clone() for name in state.shapes}
    return Measured(result.loss, result.grad_norm, gradients if ranks.is_first else {})


def _part(rows: list[list[EncodedSample]], micro_rows: int, ranks: Ranks) -> StepBatch:
    """A rank's part of the global batch, in micro-batches."""
    own = len(rows) // ranks.world_size
    first = ranks.rank * own
    micro_batches = [micro_batch(rows[at : at + micro_rows]) for at in range(first, first + own, micro_rows)]
    return StepBatch(
        step=1,
        at=Position(),
        num_samples=sum(len(row) for row in rows),
        num_tokens=sum(sample.num_tokens for row in rows for sample in row),
        flops=1,
        num_labels=sum(len(sample.caption_ids) for row in rows for sample in row),
        first_lane=first,
        keys=[],
        num_micro_batches=len(micro_batches),
        micro_batches=iter(micro_batches),  # type: ignore[arg-type]  # taken once
        sources=[[0] * len(one.segments_M4) for one in micro_batches],
    )


def micro_batch(rows: list[list[EncodedSample]]) -> PackedRows:
    return pack_rows(rows, ROW_TOKENS)
