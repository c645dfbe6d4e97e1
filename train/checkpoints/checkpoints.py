"""A run's checkpoints, as the training loop sees them."""

import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.errors import EXIT_ENVIRONMENT, UserError
from train.allowed import record_allowed
from train.checkpoints.engine_state import EngineState
from train.checkpoints.folder import all_names, committed_names, folder_name, open_checkpoints, remove
from train.checkpoints.record import Damaged, Record
from train.checkpoints.restoring import put_into, read_record_together, read_share, refuse_others
from train.checkpoints.staging import stage
from train.checkpoints.state import TrainState
from train.checkpoints.writing import ModelExport, Save
from train.engine import Ranks
from train.recipe import RECIPE_FILE, CheckpointSpec

MAX_FAILED_IN_A_ROW = 3
_VERSIONS_OF = ("torch", "deepspeed", "numpy")

_log = logging.getLogger(__name__)


class Checkpoints:
    """Saves and restores a run at any number of processes and any ZeRO stage. All ranks call the methods together.

    Args:
        run_dir: Of the run.
        spec: Where, and what to keep.
        ranks: This process's place.
        export: Writes the model alone, beside the numbers; none where there is none.
        made_of: What must be the same in a run that resumes: model, tokenizer, optimiser.
        allowed: Keys of it that may differ.
    """

    def __init__(
        self,
        run_dir: Path,
        spec: CheckpointSpec,
        ranks: Ranks,
        export: ModelExport | None = None,
        made_of: Mapping[str, Any] | None = None,
        allowed: Sequence[str] = (),
    ) -> None:
        self._run_dir = run_dir
        self._spec = spec
        self._ranks = ranks
        self._export = export
        self._made_of = json.loads(json.dumps(dict(made_of or {})))  # as it will be read back
        self._allowed = allowed
        self._store = open_checkpoints(run_dir, spec)
        self._save: Save | None = None
        self._num_failed = 0
        self._failure = ("", "")
        """The last failed save, and why."""
        self._newest = ""
        """The checkpoint that this process saved or restored last."""

    def save(self, engine: Any, state: TrainState) -> float:
        """Copy everything to host memory, and begin to write it; nothing if this step is saved already.

        Returns:
            Seconds that training stood still, waiting for the save before this one included.

        Raises:
            UserError: As `wait`, about the save before this one.
        """
        began = time.perf_counter()
        self.wait()
        name = folder_name(state.step)
        if name != self._newest:
            self._begin(engine, state, name)
        return time.perf_counter() - began

    def wait(self, is_last: bool = False) -> None:
        """Wait until the last save is committed. A save that failed is a warning, and all before it are still there.

        Args:
            is_last: No other save follows.

        Raises:
            UserError: It failed and is the last, or the third in a row, or `on_failed_save` is `stop`.
        """
        if self._save is not None:
            save, self._save = self._save, None
            problem = save.settle()
            if problem:
                self._clear(save.name)  # again, now that no rank writes any more
                self._count_failure(save.name, problem)
            else:
                self._newest, self._num_failed = save.name, 0
        if is_last and self._num_failed:
            raise self._error()

    def restore(self, engine: Any) -> TrainState:
        """Restore the newest checkpoint that is not damaged; a fresh state where none was ever committed.

        The stream's part of the state is for the caller to load.

        Raises:
            UserError: It is of another model, tokenizer or optimiser; or all that were committed are damaged.
        """
        names = self._committed_names()
        engine_state = EngineState(engine)
        for name in reversed(names):
            where = self._store.path(name)
            try:
                record = read_record_together(self._store, name, self._ranks)
                waived = refuse_others(record, self._made_of, engine_state, where, self._allowed)
                share = read_share(self._store, name, record, self._ranks)
            except Damaged as error:
                if self._ranks.is_first:
                    _log.warning("%s is damaged and passed over: %s", where, error)
                continue
            put_into(engine_state, record, share, self._ranks)
            if self._ranks.is_first:
                record_allowed(self._run_dir, where, waived)
            self._newest = name
            return record.state
        if names:
            raise UserError(
                f"all {len(names)} checkpoints of the run are damaged",
                where=self._store.path(""),
                next_step="restore one from a copy, or remove them to begin anew",
            )
        return TrainState()

    def _begin(self, engine: Any, state: TrainState, name: str) -> None:
        problem = self._clear(name)  # what a killed save left, before any rank writes
        if problem:
            self._count_failure(name, problem)
            return
        engine_state = EngineState(engine)
        staged = stage(engine_state, self._ranks, with_models=self._export is not None)
        record = Record(
            state=state,
            optimizer_steps=engine_state.num_steps,
            kinds=engine_state.kinds,
            made_of=self._made_of,
            written_by=self._written_by(engine),
        )
        self._save = Save(self._store, name, self._ranks, self._spec, self._export, record, shapes=engine_state.shapes)
        self._save.start(staged)

    def _clear(self, name: str) -> str:
        """Remove a checkpoint. Returns on all ranks why that could not be done; empty if it could."""
        problem = [""]
        if self._ranks.is_first:
            try:
                remove(self._store, name)
            except Exception as error:  # noqa: BLE001 each file system has its own errors, and none may end the run
                problem = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(problem, src=0, device=self._ranks.device)
        return problem[0]

    def _count_failure(self, name: str, problem: str) -> None:
        """Warn, or raise if that is what the recipe says or if it goes on for long."""
        self._num_failed += 1
        self._failure = name, problem
        if self._spec.on_failed_save == "stop" or self._num_failed >= MAX_FAILED_IN_A_ROW:
            raise self._error()
        if self._ranks.is_first:
            _log.warning("%s could not be saved, training goes on: %s", self._store.path(name), problem)

    def _error(self) -> UserError:
        name, problem = self._failure
        return UserError(
            f"the last {self._num_failed} checkpoints could not be saved; those before are still there",
            where=self._store.path(name),
            why=problem,
            next_step="make room or choose another place with train.checkpoint.folder, and run the same command",
            exit_code=EXIT_ENVIRONMENT,
        )

    def _committed_names(self) -> list[str]:
        """As the first rank finds them, oldest first; a warning about those that a killed save left half-written."""
        found: list[Any] = [None]
        if self._ranks.is_first:
            found = [committed_names(self._store)]
            for name in sorted(set(all_names(self._store)) - set(found[0])):
                _log.warning("%s is half-written and passed over", self._store.path(name))
        dist.broadcast_object_list(found, src=0, device=self._ranks.device)
        names: list[str] = found[0]
        return names

    def _written_by(self, engine: Any) -> dict[str, Any]:
        recipe = self._run_dir / RECIPE_FILE
        return {
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in _VERSIONS_OF},
            "world_size": self._ranks.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "recipe_sha256": hashlib.sha256(recipe.read_bytes()).hexdigest() if recipe.exists() else None,
        }
