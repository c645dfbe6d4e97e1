"""Checkpoints in a store that fails at times: none is lost, and none is taken for damaged."""

import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny_engines import tiny_engine, train

from pipeline.errors import StoreError
from tests.s3_server import serve_s3
from train.checkpoints import Checkpoints, TrainState
from train.checkpoints.folder import committed_names, open_checkpoints
from train.checkpoints.record import read_record
from train.checkpoints.tensor_files import read_verified
from train.engine import Ranks
from train.recipe import CheckpointSpec


class KeepingFileSystem(MemoryFileSystem):
    """A remote place that does not let go of the first checkpoint."""

    protocol = "keeping"

    def rm(self, path: str, *arguments: Any, **kwargs: Any) -> None:
        if path.endswith("step-00000003/COMMITTED"):
            raise PermissionError(path)
        super().rm(path, *arguments, **kwargs)


def test_what_cannot_be_pruned_does_not_cost_the_new_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    fsspec.register_implementation("keeping", KeepingFileSystem, clobber=True)
    spec = CheckpointSpec(folder=f"keeping://{uuid.uuid4().hex}", keep_last=1, on_failed_save="stop")
    engine, _ = tiny_engine(1)
    checkpoints = Checkpoints(tmp_path, spec, ranks)
    for step in (3, 6):
        train(engine, ranks, step - 3, step)
        checkpoints.save(engine, TrainState(step=step))
        checkpoints.wait(is_last=True)
    assert "step-00000006" in committed_names(open_checkpoints(tmp_path, spec))
    resumed, _ = tiny_engine(1)
    assert Checkpoints(tmp_path, spec, ranks).restore(resumed).step == 6


def test_a_server_in_trouble_makes_no_checkpoint_damaged(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_s3() as (server, url):
        spec = CheckpointSpec(folder=url)
        engine, _ = tiny_engine(1)
        train(engine, ranks, 0, 3)
        checkpoints = Checkpoints(tmp_path, spec, ranks)
        monkeypatch.setenv("GENLIP_STORE_RETRY_S", "0.5")
        checkpoints.save(engine, TrainState(step=3))
        checkpoints.wait(is_last=True)
        store, name = open_checkpoints(tmp_path, spec), "step-00000003"
        file, facts = next(iter(read_record(store, name).files.items()))

        server.plan_others.extend(["busy"] * 1000)
        with pytest.raises(StoreError):
            read_record(store, name)
        with pytest.raises(StoreError):
            read_verified(store, f"{name}/{file}", facts)
        resumed, _ = tiny_engine(1)
        with pytest.raises(StoreError):
            Checkpoints(tmp_path, spec, ranks).restore(resumed)
        server.plan_others.clear()
        assert Checkpoints(tmp_path, spec, ranks).restore(resumed).step == 3
