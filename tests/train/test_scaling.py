"""Eight processes train as one does, and send what the plan says; and the arithmetic of efficiency."""

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from groups import forks
from tiny_steps import CONFIG, batch, one_row
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import GenLIP, count_parameters
from train.engine import Ranks, build_engine, join_group
from train.loop import train_step
from train.recipe import TrainSpec
from train.scaling import Traffic, efficiency, link_bytes_per_s, step_traffic

NUM_LANES, NUM_PROCESSES, NUM_STEPS = 16, 8, 3
STAGES = (0, 1, 2, 3)
# Stage 3 keeps weights that are small or soon needed again, which is all of a tiny model, unless told otherwise.
GATHER_ALWAYS = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}


@dataclass(frozen=True)
class Trained:
    """What one process saw in a few steps."""

    losses: list[float]
    sent_bytes: float
    """In the last step, as a ring sends it."""


class Collectives(TorchDispatchMode):
    """Adds up what the collectives inside it send."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self._ring = (world_size - 1) / world_size
        self.sent_bytes = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            # Of a reduce-scatter and of an all-gather the larger tensor is the whole.
            whole = max(one.nbytes for one in tree_leaves(args) if isinstance(one, torch.Tensor))
            self.sent_bytes += self._ring * whole * (2 if "allreduce" in func.name() else 1)
        return func(*args, **(kwargs or {}))


def spec(stage: int) -> TrainSpec:
    raw = {"zero_optimization": {"reduce_bucket_size": 1_000_000} | (GATHER_ALWAYS if stage == 3 else {})}
    content = {"length": 1000, "lanes": NUM_LANES, "precision": "fp32", "zero": {"stage": stage}, "deepspeed": raw}
    return TrainSpec.model_validate(content)


def train(stage: int, ranks: Ranks) -> Trained:
    """This process's part of a few steps on the same lanes."""
    model = GenLIP(CONFIG)
    engine = build_engine(model, spec(stage), ranks.world_size)
    lanes = NUM_LANES // ranks.world_size
    rows = [one_row(lane) for lane in range(NUM_LANES)]
    own = slice(ranks.rank * lanes, (ranks.rank + 1) * lanes)
    part = replace(
        batch(step=1),
        num_labels=sum(row.num_labels for row in rows),
        first_lane=own.start,
        num_micro_batches=lanes,
        micro_batches=rows[own],
        sources=[[0, 0]] * lanes,
    )
    losses = []
    for number in range(NUM_STEPS):
        with Collectives(ranks.world_size) as collectives:
            losses.append(train_step(engine, part, lr=1e-3, ranks=ranks, seed=number).loss)
    return Trained(losses, collectives.sent_bytes)


def serve(rank: int, world_size: int, port: int, stages: tuple[int, ...], end: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    ranks = join_group()
    end.send([train(stage, ranks) for stage in stages])


def run_group(world_size: int, stages: tuple[int, ...]) -> list[Trained]:
    """What the first process of a group saw, for each stage."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours, theirs = forks.Pipe()
    unread = [forks.Pipe() for _ in range(world_size - 1)]
    ends = [theirs, *(end for _, end in unread)]
    processes = [
        forks.Process(target=serve, args=(rank, world_size, port, stages, end)) for rank, end in enumerate(ends)
    ]
    for process in processes:
        process.start()
    theirs.close()  # so that a process that dies is the end of the wait
    trained: list[Trained] = ours.recv()
    for process in processes:
        process.join()
    return trained


@pytest.mark.slow
def test_eight_processes_train_as_one_and_send_what_the_plan_says() -> None:
    (alone,) = run_group(1, (0,))
    for stage, trained in zip(STAGES, run_group(NUM_PROCESSES, STAGES), strict=True):
        assert trained.losses == pytest.approx(alone.losses, rel=1e-5), stage
        predicted = step_traffic(count_parameters(CONFIG), spec(stage), NUM_PROCESSES)
        # Partitions are padded, and the loss, the norm and the flags are sent, too.
        assert trained.sent_bytes == pytest.approx(predicted.total, rel=0.01), stage


PARAMETERS = 1_000_000


def recipe(stage: int, precision: str = "bf16") -> TrainSpec:
    return TrainSpec.model_validate({"length": 1, "lanes": 64, "zero": {"stage": stage}, "precision": precision})


def test_one_process_sends_nothing() -> None:
    for stage in (1, 2, 3):
        assert step_traffic(PARAMETERS, recipe(stage), 1).total == 0


def test_traffic_grows_with_the_micro_batches_only_in_stages_that_divide_gradients() -> None:
    def volume(stage: int, world_size: int) -> float:
        return step_traffic(PARAMETERS, recipe(stage), world_size).total / (PARAMETERS * (1 - 1 / world_size))

    assert [volume(1, size) for size in (2, 64)] == pytest.approx([10, 10])
    assert [volume(2, size) for size in (2, 64)] == pytest.approx([32 * 8 + 2, 10])
    assert [volume(3, size) for size in (2, 64)] == pytest.approx([32 * 8, 8])


@pytest.mark.parametrize(
    ("traffic", "expected"),
    [
        (Traffic(hidden=0, exposed=0, window=0), 1),
        (Traffic(hidden=0, exposed=3e9, window=0), 1 / 4),
        (Traffic(hidden=0.5e9, exposed=0, window=0.5), 1),  # hidden as a whole
        (Traffic(hidden=1.5e9, exposed=0, window=0.5), 1 / 2),
    ],
)
def test_a_device_waits_for_what_it_cannot_hide(traffic: Traffic, expected: float) -> None:
    assert efficiency(traffic, compute_s=1, bytes_per_s=1e9) == pytest.approx(expected)


@pytest.mark.parametrize("change", [lambda size: (size, 100.0), lambda size: (64, 8000 / size)])
def test_more_devices_or_a_slower_network_never_help(change: Callable[[int], tuple[int, float]]) -> None:
    shares = []
    for size in (1, 2, 8, 16, 64):
        world_size, network = change(size)
        traffic = step_traffic(PARAMETERS, recipe(1), world_size)
        shares.append(efficiency(traffic, 1 / world_size, link_bytes_per_s(world_size, network)))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[0] <= 1
