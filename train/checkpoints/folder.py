"""Where a run's checkpoints are, which of them count, and which are pruned."""

import re
import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.store import Store
from train.checkpoints.record import COMMITTED, Damaged, Record, read_record
from train.checkpoints.state import TrainState
from train.recipe import RECIPE_FILE, CheckpointSpec, TrainJob

_FOLDER = "checkpoints"
_COPIES = "checkpoint-copies"


def open_checkpoints(run_dir: Path, spec: CheckpointSpec) -> Store:
    """The folder that holds a run's checkpoints, one folder each; it may not exist yet."""
    return Store(f"{spec.folder.rstrip('/')}/{run_dir.resolve().name}" if spec.folder else str(run_dir / _FOLDER))


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def all_names(store: Store) -> list[str]:
    """Folders of checkpoints, oldest first, whether they count or not."""
    return sorted((name for name in store.names("", "") if re.fullmatch(r"step-\d{8,}", name)), key=step_of)


def committed_names(store: Store) -> list[str]:
    """Folders of complete checkpoints, oldest first."""
    return [name for name in all_names(store) if store.exists(f"{name}/{COMMITTED}")]


def remove(store: Store, name: str) -> None:
    """Remove a checkpoint, or what a killed save left of it."""
    store.remove(f"{name}/{COMMITTED}")  # first, so that a half-removed checkpoint does not count
    store.remove(name)


def prune(store: Store, newest: str, keep_last: int) -> None:
    """After a commit: keep the last ones and those that are kept for good.

    What was never committed goes, and so does what is newer than the commit: it was passed over when the run resumed.
    """
    committed = [name for name in committed_names(store) if step_of(name) <= step_of(newest)]
    kept = {*committed[-keep_last:], *(name for name in committed[:-keep_last] if _is_kept_for_good(store, name))}
    for name in all_names(store):
        if name not in kept:
            remove(store, name)


def _is_kept_for_good(store: Store, name: str) -> bool:
    try:
        return read_record(store, name).keep
    except Damaged:
        return False


def committed_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first, as folders on this machine: of remote ones, copies without the weights."""
    store = _store_of(run_dir)
    names = committed_names(store)
    return [Path(store.path(name)) for name in names] if store.is_local else _copies(store, names, run_dir / _COPIES)


def latest_checkpoint(run_dir: Path) -> Path:
    """The newest complete checkpoint, as a folder on this machine with its `model/`.

    Raises:
        UserError: There is none.
    """
    found = committed_checkpoints(run_dir)
    if not found:
        raise UserError("this run has no checkpoint", where=str(run_dir), next_step="run: genlip train RECIPE")
    store = _store_of(run_dir)
    if not store.is_local:
        copies = Store(str(found[-1]))
        for file in read_checkpoint(found[-1]).files:
            if "/" in file and not copies.exists(file):  # of a model's folder
                copies.write(file, store.read(f"{found[-1].name}/{file}"))
    return found[-1]


def read_checkpoint(folder: Path) -> Record:
    """All about a complete checkpoint but the numbers.

    Raises:
        UserError: Its record is damaged.
    """
    try:
        return read_record(Store(str(folder.parent)), folder.name)
    except Damaged as error:
        next_step = "remove this folder, to use the checkpoint before it"
        raise UserError("a damaged checkpoint", where=str(folder), why=str(error), next_step=next_step) from error


def read_state(folder: Path) -> TrainState:
    """Where the run stood when it wrote a complete checkpoint. Raises as `read_checkpoint`."""
    return read_checkpoint(folder).state


def _store_of(run_dir: Path) -> Store:
    is_run = (run_dir / RECIPE_FILE).exists()
    return open_checkpoints(run_dir, TrainJob.read(run_dir).train.checkpoint if is_run else CheckpointSpec())


def _copies(store: Store, names: list[str], copies: Path) -> list[Path]:
    """Copies of the records of remote checkpoints; those of checkpoints that are gone are removed."""
    for old in copies.glob(f"step-*/{COMMITTED}"):
        if old.parent.name not in names:
            shutil.rmtree(old.parent, ignore_errors=True)  # another process may be at it, too
    for name in names:
        Store(str(copies)).write(f"{name}/{COMMITTED}", store.read(f"{name}/{COMMITTED}"))
    return [copies / name for name in names]
