"""Reading a checkpoint: verified on all ranks first, then put into the engine parameter by parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import StoreError
from pipeline.store import Store, refuse_changes
from train.checkpoints.engine_state import EngineState
from train.checkpoints.record import Damaged, Record, read_record
from train.checkpoints.staging import assign
from train.checkpoints.tensor_files import read_tensors, read_verified
from train.engine import Ranks

_PARAMETERS_SHOWN = 8


def read_record_together(store: Store, name: str, ranks: Ranks) -> Record:
    """The record as the first rank reads it, or the error that it met, on all ranks."""
    found: list[Any] = [None]
    if ranks.is_first:
        try:
            found = [read_record(store, name)]
        except (Damaged, StoreError) as error:
            found = [error]
    dist.broadcast_object_list(found, src=0, device=ranks.device)
    if isinstance(found[0], Exception):
        raise found[0]
    record: Record = found[0]
    return record


def refuse_others(
    record: Record, made_of: Mapping[str, Any], engine: EngineState, where: str, allowed: Sequence[str] = ()
) -> list[str]:
    """Refuse the checkpoint of another model, tokenizer or optimiser.

    Args:
        record: Of the checkpoint.
        made_of: What it must be of.
        engine: What it is to be put into.
        where: The checkpoint, for the message.
        allowed: Keys of `made_of` that may differ. Tensors must fit all the same.

    Returns:
        The differences that were allowed.

    Raises:
        UserError: It names the keys that differ.
    """
    known = {name: list(parameter.shape) for name, parameter in record.parameters.items()}
    wanted = {name: list(shape) for name, shape in engine.shapes.items()}
    differing = sorted(name for name in known.keys() | wanted.keys() if known.get(name) != wanted.get(name))
    shown = differing[:_PARAMETERS_SHOWN]
    # Checkpoints from before there were other objectives do not say theirs.
    before = {"objective": "genlip"}
    return refuse_changes(
        {**before, **record.made_of, "kinds": record.kinds, "parameters": {name: known.get(name) for name in shown}},
        {**before, **made_of, "kinds": engine.kinds, "parameters": {name: wanted.get(name) for name in shown}},
        where,
        "train under another name: --set name=NAME; --allow KEY lets a key differ, but never kinds and parameters,"
        " the tensors' names and shapes",
        [key for key in allowed if key.partition(".")[0] not in ("kinds", "parameters")],
    )


def read_share(store: Store, name: str, record: Record, ranks: Ranks) -> dict[str, Tensor]:
    """Verify every file of a checkpoint, each rank its share, and keep the numbers of the share in host memory.

    Raises:
        Damaged: On all ranks, if any of them found a damaged file.
        StoreError: On all ranks, if the store fails on any of them.
    """
    tensors: dict[str, Tensor] = {}
    problem: Exception | None = None
    problems: list[Any] = [None] * ranks.world_size
    holding = {parameter.file for parameter in record.parameters.values()}
    try:
        for file, reader in readers(record, ranks.world_size).items():
            if reader == ranks.rank and file in holding:
                tensors |= read_tensors(store, f"{name}/{file}", record.files[file])
            elif reader == ranks.rank:
                read_verified(store, f"{name}/{file}", record.files[file])
    except (Damaged, StoreError) as error:
        problem = error
    dist.all_gather_object(problems, problem)
    if found := [one for one in problems if one is not None]:
        raise next((one for one in found if isinstance(one, StoreError)), Damaged("; ".join(map(str, found))))
    return tensors


def readers(record: Record, num_ranks: int) -> dict[str, int]:
    """Which rank reads a file."""
    return assign({file: facts.size for file, facts in record.files.items()}, num_ranks)


def put_into(engine: EngineState, record: Record, share: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Hand each parameter from the rank that read it to all, which take their pieces."""
    reader = readers(record, ranks.world_size)
    for name, shape in engine.shapes.items():
        source = reader[record.parameters[name].file]
        values = {}
        for kind in engine.kinds:
            if source == ranks.rank:
                values[kind] = share[f"{kind}/{name}"].to(ranks.device)
            else:
                values[kind] = torch.empty(shape, device=ranks.device)
            dist.broadcast(values[kind], src=source)
        engine.write(name, values)
    engine.finish(record.optimizer_steps)
