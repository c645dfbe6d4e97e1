"""A store whose uploads fail half of the time: nothing is lost or half there."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UserError
from pipeline.inputs.plan import extend_plan
from pipeline.processes import forget
from pipeline.recipe import IngestSpec
from pipeline.store import Store
from pipeline.work import run_unit

MAX_TRIES = 400


class UnreliableFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """A remote store; a lost upload leaves what object stores leave: nothing."""

    protocol = "unreliable"
    store: ClassVar[dict[str, Any]] = {}
    rng: ClassVar[random.Random] = random.Random(7)
    num_errors: ClassVar[int] = 0

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        if self.rng.random() < 0.5:
            UnreliableFileSystem.num_errors += 1
            raise ConnectionResetError(104, "Connection reset by peer")
        self.makedirs(self._parent(rpath), exist_ok=True)
        super().put_file(lpath, rpath, **kwargs)


def files(store: Store) -> dict[str, bytes]:
    folders = ("plan", "raw", "ledger")
    return {
        f"{folder}/{name}": store.read(f"{folder}/{name}") for folder in folders for name in store.names(folder, "")
    }


def ingest(store: Store, spec: IngestSpec) -> bool:
    """One pass over what is missing, as in a new process; False where an upload failed."""
    forget()
    try:
        plan = extend_plan(store, spec.source, spec.unit_samples)
        done = set(store.names("ledger", ".parquet"))
        reports = [run_unit(unit, spec, store) for unit in plan.iter_units() if f"{unit.name}.parquet" not in done]
    except UserError as error:
        if "the store cannot be written" in error.message:
            return False
        raise
    return all(report.committed for report in reports)


def test_failed_uploads_lose_nothing(
    server_url: str, url_table: Callable[[str, Path], Path], ingest_spec: Callable[..., IngestSpec], tmp_path: Path
) -> None:
    fsspec.register_implementation("unreliable", UnreliableFileSystem, clobber=True)
    spec = ingest_spec(url_table(server_url, tmp_path), 40)
    reliable, unreliable = Store(str(tmp_path / "store")), Store("unreliable://store")
    assert ingest(reliable, spec)
    assert any(ingest(unreliable, spec) for _ in range(MAX_TRIES))
    assert UnreliableFileSystem.num_errors >= 3
    assert files(unreliable) == files(reliable)
