"""What processes of their own do in the tests: `python scenarios.py SCENARIO RUN_DIR`."""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiny_engines import CASES, tiny_engine, train
from torch import Tensor

from pipeline.errors import UserError
from train.checkpoints import Checkpoints, TrainState, committed_checkpoints
from train.recipe import CheckpointSpec

WIDTH = 20_000
"""Some 1.2 MB a checkpoint."""


def write_result(run_dir: Path, result: Any) -> None:
    (run_dir / f"result-{os.environ['RANK']}.json").write_text(json.dumps(result))


def names(run_dir: Path) -> list[str]:
    return [path.name for path in committed_checkpoints(run_dir)]


def two_processes(run_dir: Path) -> None:
    """All that two processes are to show, as one group: its start takes longer than the rest."""
    write_result(run_dir, {"resumed": resume_at_each_stage(run_dir), "failed": second_rank_cannot_write(run_dir)})


def resume_at_each_stage(run_dir: Path) -> dict[str, Any]:
    """By stage and precision: the losses of three steps after a save, and of the same after a restoration."""
    result = {}
    for stage, precision in CASES:
        name = f"{precision}-{stage}"
        engine, ranks = tiny_engine(stage, precision)
        checkpoints = Checkpoints(run_dir / name, CheckpointSpec(), ranks)
        train(engine, ranks, 0, 3)
        checkpoints.save(engine, TrainState(step=3))
        straight = train(engine, ranks, 3, 6)
        checkpoints.wait()
        engine, _ = tiny_engine(stage, precision)
        state = Checkpoints(run_dir / name, CheckpointSpec(), ranks).restore(engine)
        result[name] = [straight, train(engine, ranks, state.step, 6)]
    return result


def go_on(run_dir: Path) -> None:
    """Three more steps at ZeRO 2."""
    engine, ranks = tiny_engine(2)
    state = Checkpoints(run_dir, CheckpointSpec(), ranks).restore(engine)
    write_result(run_dir, train(engine, ranks, state.step, state.step + 3))


def second_rank_cannot_write(run_dir: Path) -> list[list[str]]:
    """What is there after each of four saves. The second process can write no large file in the second one, and
    not even its done-record in the third."""
    engine, ranks = tiny_engine(1, width=WIDTH)
    checkpoints = Checkpoints(run_dir, CheckpointSpec(), ranks)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    result = []
    for step, limit in enumerate([resource.RLIM_INFINITY, 10_000, 0, resource.RLIM_INFINITY], start=1):
        if ranks.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        checkpoints.save(engine, TrainState(step=step))
        checkpoints.wait()
        result.append(sorted(path.name for path in (run_dir / "checkpoints").iterdir()))
    return result


def killed_while_writing(run_dir: Path) -> None:
    """A checkpoint, then one whose export does not end."""
    hold = False

    def export(folder: Path, weights: Mapping[str, Tensor], state: TrainState) -> None:
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"half")
        while hold:
            time.sleep(0.1)

    engine, ranks = tiny_engine(1)
    checkpoints = Checkpoints(run_dir, CheckpointSpec(), ranks, export)
    for step in (2, 4):
        train(engine, ranks, step - 2, step)
        checkpoints.save(engine, TrainState(step=step))
        if step == 2:
            checkpoints.wait()
            hold = True
    time.sleep(600)


def disk_is_full(run_dir: Path) -> None:
    """Saves with and without room: what is committed after each, and the error that ends it."""
    engine, ranks = tiny_engine(1, width=WIDTH)
    checkpoints = Checkpoints(run_dir, CheckpointSpec(), ranks)
    result: list[Any] = []

    def save(step: int) -> None:
        checkpoints.save(engine, TrainState(step=step))
        checkpoints.wait()
        folders = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
        result.append([names(run_dir), folders])

    save(1)
    filler = run_dir / "filler"
    room = os.statvfs(run_dir)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - 300_000))
    save(2)
    filler.unlink()
    save(3)
    filler.write_bytes(bytes(max(0, os.statvfs(run_dir).f_bavail * room.f_bsize - 300_000)))
    try:
        for step in (4, 5, 6):
            save(step)
    except UserError as error:
        result.append([error.message, error.exit_code])
    result.append(names(run_dir))
    write_result(Path(os.environ["RESULTS"]), result)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
