"""A selection that is killed at any moment, and made again."""

import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

import pipeline.curate.rows
from pipeline.curate.rows import Rows
from pipeline.curate.select import is_current, select
from pipeline.curate.spec import DedupSpec, SelectSpec
from pipeline.each import in_turn
from tests.selections import annotate_by_hand
from tests.stores import Stored, make_store

_SPEC = SelectSpec(where={"some": "score in top 80%"}, dedup=DedupSpec(near_bits=1), max_samples=90)
_PROGRAM = """
import pickle, sys
from pathlib import Path
import pipeline.curate.rows
from pipeline.curate.select import select
from pipeline.each import in_turn
rows, spec = pickle.loads(Path(sys.argv[1]).read_bytes())
pipeline.curate.rows.UNITS_PER_PART = 4
print("begun", flush=True)
select(rows, spec, 0.1, "s", 7, in_turn)
"""


def _files(rows: Rows) -> dict[str, bytes]:
    names = [*rows.store.names("selection/s", ".parquet"), *rows.store.names("selection/s", ".json")]
    return {name: rows.store.read(f"selection/s/{name}") for name in names}


def test_killed_anywhere_then_run_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.curate.rows, "UNITS_PER_PART", 4)
    units = [[Stored(f"k{unit:02d}{i}", phash=f"{(unit * i) % 97:016x}") for i in range(20)] for unit in range(10)]
    rows = annotate_by_hand(
        make_store(units, str(tmp_path / "store")), {"score": pa.array([float(i % 31) for i in range(200)])}
    )
    started = time.monotonic()
    select(rows, _SPEC, 0.1, "s", 7, in_turn)
    lasted_s = time.monotonic() - started
    wanted = _files(rows)
    (tmp_path / "job").write_bytes(pickle.dumps((rows, _SPEC)))
    draw = random.Random(1)
    for _ in range(4):
        command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "job")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0, lasted_s))
            process.kill()
        if rows.store.exists("selection/s/selection.json"):
            assert _files(rows) == wanted
        select(rows, _SPEC, 0.1, "s", 7, in_turn)
        assert _files(rows) == wanted
        assert not rows.store.exists("selection/s/scratch")
        assert is_current(rows, _SPEC, 0.1, "s", 7)
