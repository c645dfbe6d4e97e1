"""One save, after its numbers are in host memory: a thread on each rank writes, and the first rank's commits.

The threads talk through files alone, because collectives belong to the training loop: each rank leaves a done-record
in the checkpoint's folder, and the first rank commits when all are there.
"""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pipeline.errors import UserError
from pipeline.store import Store
from train.checkpoints.folder import committed_names, prune, remove, step_of
from train.checkpoints.record import Damaged, FileFacts, Parameter, Record, read_record, write_record
from train.checkpoints.staging import Staged
from train.checkpoints.state import TrainState
from train.checkpoints.tensor_files import write_tensors
from train.engine import Ranks
from train.recipe import CheckpointSpec

ModelExport = Callable[[Path, Mapping[str, Tensor], TrainState], None]
"""Writes the model alone into a folder, from its weights in host memory."""

FILE_BYTES = 2**30
"""Files are begun anew at this size, so that ranks can share the reading."""
_MAX_WAIT_S = 3_600
_DONE_FOLDER = "done"

_log = logging.getLogger(__name__)


@dataclass
class Save:
    """A checkpoint that is being written."""

    store: Store
    name: str
    ranks: Ranks
    spec: CheckpointSpec
    export: ModelExport | None
    record: Record
    """As it will be committed, but for the files and where the parameters are."""
    shapes: Mapping[str, tuple[int, ...]]
    _abort: Event = field(default_factory=Event)
    _result: Future[None] = field(default_factory=Future)

    def start(self, staged: Staged) -> None:
        """Begin to write in a thread, which does not keep the process alive."""
        Thread(target=self._run, args=(staged,), name="checkpoint", daemon=True).start()

    def settle(self) -> str:
        """Wait until the checkpoint is committed, or has failed on some rank. Called by all ranks together.

        Returns:
            Why it failed, the same on all ranks; empty if it did not.
        """
        problems: list[str] = [""] * self.ranks.world_size
        # The first rank waits for the records of the others, so it has to hear first if one of them will not come.
        dist.all_gather_object(problems, "" if self.ranks.is_first else self._problem())
        if self.ranks.is_first:
            if any(problems):
                self._abort.set()
            problems = [*filter(None, problems), self._problem()]
        outcome = problems[:1]
        dist.broadcast_object_list(outcome, src=0, device=self.ranks.device)
        return outcome[0]

    def _problem(self) -> str:
        error = self._result.exception()
        if error is None:
            return ""
        lines = (line.strip() for line in str(error).splitlines())
        return f"rank {self.ranks.rank}: " + "; ".join(line for line in lines if not line.startswith("next:"))

    def _run(self, staged: Staged) -> None:
        try:
            self._write(staged)
            if self.ranks.is_first:
                self._prune()
            self._result.set_result(None)
        except BaseException as error:  # noqa: BLE001 `settle` tells the loop, whatever it was
            self._result.set_exception(error)

    def _prune(self) -> None:
        """Remove older checkpoints. That this fails must not cost the one that is committed."""
        try:
            prune(self.store, self.name, self.spec.keep_last)
        except Exception as error:  # noqa: BLE001 each file system has its own errors
            _log.warning("older checkpoints could not be removed, the next save tries again: %s", error)

    def _write(self, staged: Staged) -> None:
        try:
            self._write_part(staged)
            if self.ranks.is_first:
                self._commit(staged.models)
        except BaseException:
            if self.ranks.is_first:
                remove(self.store, self.name)
            raise

    def _write_part(self, staged: Staged) -> None:
        """This rank's files, then its done-record; the record says so if the files could not be written."""
        done: dict[str, Any] = {"files": {}, "parameters": {}}
        try:
            for number, names in enumerate(_file_contents(staged.tensors)):
                file = f"parameters-{self.ranks.rank:05d}-{number:05d}.safetensors"
                tensors = {f"{kind}/{name}": t for name in names for kind, t in staged.tensors[name].items()}
                done["parameters"] |= dict.fromkeys(names, file)
                done["files"][file] = write_tensors(self.store, f"{self.name}/{file}", tensors).model_dump()
        except Exception as error:
            for file in done["files"]:  # makes room for the record
                self.store.remove(f"{self.name}/{file}")
            self._write_done({"error": str(error)})
            raise
        self._write_done(done)

    def _write_done(self, content: dict[str, Any]) -> None:
        self.store.write_json(f"{self.name}/{_DONE_FOLDER}/{self.ranks.rank:05d}.json", content)

    def _commit(self, models: Mapping[str, Mapping[str, Tensor]]) -> None:
        parts = self._wait_for_all()
        files = {file: FileFacts(**facts) for part in parts for file, facts in part["files"].items()}
        for folder, weights in models.items():
            files |= self._export(folder, weights)
        parameters = {
            name: Parameter(shape=self.shapes[name], file=file)
            for part in parts
            for name, file in part["parameters"].items()
        }
        self.store.remove(f"{self.name}/{_DONE_FOLDER}")
        changes = {"files": files, "parameters": parameters, "keep": self._is_kept_for_good()}
        write_record(self.store, self.name, self.record.model_copy(update=changes))

    def _wait_for_all(self) -> list[dict[str, Any]]:
        """The done-records of all ranks, as soon as they are there."""
        give_up_at = time.monotonic() + _MAX_WAIT_S
        names = [f"{rank:05d}.json" for rank in range(self.ranks.world_size)]
        while missing := set(names) - set(self.store.names(f"{self.name}/{_DONE_FOLDER}", ".json")):
            if self._abort.wait(0.1) or time.monotonic() > give_up_at:
                raise UserError(
                    f"{len(missing)} of {len(names)} processes did not write their part",
                    where=self.store.path(self.name),
                    next_step="see to it that train.checkpoint.folder is a place that all nodes share, with free space",
                )
        parts: list[dict[str, Any]] = [self.store.read_json(f"{self.name}/{_DONE_FOLDER}/{name}") for name in names]
        if errors := [part["error"] for part in parts if "error" in part]:
            raise OSError(errors[0])
        return parts

    def _export(self, name: str, weights: Mapping[str, Tensor]) -> dict[str, FileFacts]:
        """Write a model's folder; at a remote store by way of one on this machine."""
        assert self.export
        files = {}
        with self._export_folder(name) as folder:
            self.export(folder, weights, self.record.state)
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                file = f"{name}/{path.relative_to(folder).as_posix()}"
                files[file] = _facts(path)
                if not self.store.is_local:
                    self.store.write(f"{self.name}/{file}", path.read_bytes())
        return files

    @contextmanager
    def _export_folder(self, name: str) -> Iterator[Path]:
        if self.store.is_local:
            yield Path(self.store.path(f"{self.name}/{name}"))
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / name

    def _is_kept_for_good(self) -> bool:
        """Whether a multiple of `keep_every` was passed since the checkpoint before this one."""
        if not self.spec.keep_every:
            return False
        before = [name for name in committed_names(self.store) if step_of(name) < step_of(self.name)]
        try:
            seen = read_record(self.store, before[-1]).state.samples_seen if before else 0
        except Damaged:
            return True
        return self.record.state.samples_seen // self.spec.keep_every > seen // self.spec.keep_every


def _file_contents(tensors: Mapping[str, Mapping[str, Tensor]]) -> Iterator[list[str]]:
    """The names of the parameters of each file."""
    names: list[str] = []
    size = 0
    for name, kinds in tensors.items():
        if size >= FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += sum(tensor.nbytes for tensor in kinds.values())
    if names:
        yield names


def _facts(path: Path) -> FileFacts:
    """Size and checksum of a file, which is on the disk afterwards."""
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
        return FileFacts(size=path.stat().st_size, sha256=digest)
