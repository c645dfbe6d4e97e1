"""One process is a process group, too; and a group of two, started once."""

import json
from collections.abc import Iterator

import pytest
from tiny_engines import TwoProcesses, finish, launch

from train.engine import Ranks, join_group


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """The group of this process alone; the variables that describe it are gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"):
            patch.setenv(name, "")
            patch.delenv(name)
        yield join_group()


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """What came of `scenarios.two_processes`."""
    run_dir = tmp_path_factory.mktemp("two")
    finish(launch("two_processes", run_dir, world_size=2))
    results = [json.loads((run_dir / f"result-{rank}.json").read_text()) for rank in range(2)]
    return TwoProcesses(run_dir, results)
