"""The whole pipeline on a real S3 server, behind a network that fails all the time, loses nothing."""

import hashlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.demo.corpus import FIXTURES, read_corpus
from jobs.recipe import Recipe, load_recipe
from pipeline.inputs.plan import extend_plan
from pipeline.processes import forget
from pipeline.store import Store, open_store
from pipeline.work import run_unit
from tests.environment import without_group
from tests.faulty_proxy import FAULTS, FaultyProxy, faulty_proxy
from tests.moto_server import moto_server, new_bucket, s3_at
from tests.stores import curate_in_turn
from tests.train.groups import Group, is_past, is_saved
from tests.train.train_runs import SMALL, begin_run
from train.audit import audit_run
from train.checkpoints import committed_checkpoints, read_checkpoint
from train.metrics import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MAX_WAIT_S = 400
STAGES = ("ingest", "curate", "tokenizer", "train", "eval")
FOLDERS = ("ledger", "raw", "shards/run", "shards/run-heldout", "selection/run")


class Web(ThreadingHTTPServer):
    """Serves the fixtures, and counts what it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Images, directory=str(FIXTURES)))
        self.requests: Counter[str] = Counter()


class _Images(SimpleHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        if self.path.startswith("/images/"):
            self.server.requests[self.path] += 1
        super().do_GET()

    def log_message(self, *args: object) -> None:
        """Quiet."""


@dataclass(frozen=True)
class Reference:
    """The same work, undisturbed, in a local folder."""

    urls: Path
    web: Web
    files: dict[str, bytes]
    losses: list[tuple[int, int, float]]


@contextmanager
def serving() -> Iterator[Web]:
    with Web() as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield web
        web.shutdown()
        thread.join()


def write_recipe(folder: Path, urls: Path, store: str, checkpoints: str = "", **fetch: object) -> Path:
    content: dict[str, Any] = SMALL | {
        "name": "run",
        "store": store,
        "runs": str(folder / "runs"),
        "ingest": {
            "source": {"urls": str(urls)},
            "unit_samples": 20,
            "fetch": {"allow_addresses": ["127.0.0.0/8"], "per_host": 8, "in_flight": 8, "spill": 0, **fetch},
        },
        "curate": {
            "annotate": [{"caption_stats": {}}, {"image_hashes": {}}],
            "select": {"dedup": {"near_bits": 2}},
        },
        "shards": {"name": "run", "shard_samples": 250, "holdout": 0.1},
        "eval": {"tasks": ["language"], "max_images": 8},
    }
    content["train"] |= {"length": 96, "checkpoint": {"every": 48, "folder": checkpoints}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def ingest_in_a_loop(recipe: Recipe) -> Store:
    forget()  # what earlier tests of this process met on the network
    store = open_store(recipe.store, recipe.ingest.content())
    for unit in extend_plan(store, recipe.ingest.source, recipe.ingest.unit_samples).iter_units():
        assert run_unit(unit, recipe.ingest, store).committed
    curate_in_turn(store, recipe.curate, recipe.shards, recipe.seed)
    return store


def visible_files(store: Store) -> dict[str, bytes]:
    return {
        f"{folder}/{name}": store.read(f"{folder}/{name}")
        for folder in FOLDERS
        for name in store.names(folder, "")
        if name != "README.md" and not name.startswith("lengths-")  # of other commands
    }


def losses(run_dir: Path) -> list[tuple[int, int, float]]:
    return [(entry["step"], entry["samples"], entry["loss"]) for entry in read_metrics(run_dir)]


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.Popen(command, env=without_group(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def genlip(*arguments: str) -> None:
    """A command that must succeed."""
    process = start(*arguments)
    output, _ = process.communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("local")
    corpus = read_corpus(FIXTURES)
    with serving() as web:
        urls = [f"http://127.0.0.1:{web.server_port}/{file}" for file in corpus["file"].to_pylist()]
        pq.write_table(pa.table({"url": urls, "caption": corpus["caption"]}), folder / "urls.parquet")
        path = write_recipe(folder, folder / "urls.parquet", str(folder / "store"))
        recipe = load_recipe(path)
        store = ingest_in_a_loop(recipe)
        files = visible_files(store)
        run_dir = begin_run(recipe)
        Group(path).finish()
        yield Reference(folder / "urls.parquet", web, files, losses(run_dir))


def test_the_whole_pipeline_loses_nothing(tmp_path: Path, moto: int, reference: Reference) -> None:
    bucket = new_bucket(moto)
    recipe = write_recipe(tmp_path, reference.urls, f"{bucket}/store", f"{bucket}/checkpoints")
    run_dir = load_recipe(recipe).run_dir
    reference.web.requests.clear()
    with faulty_proxy(moto, seed=3) as proxy, s3_at(proxy.server_port):
        proxy.num_good = 2
        proxy.stage = "ingest"
        genlip("ingest", str(recipe), "--part", "plan")
        genlip("ingest", str(recipe), "--part", "0/1")
        proxy.stage = "curate"
        genlip("curate", str(recipe))
        proxy.stage = "tokenizer"
        genlip("tokenizer", str(recipe))
        proxy.stage = "train"
        killed = Group(recipe)
        killed.wait_until(is_past(run_dir, 7))
        killed.wait_until(is_saved(run_dir, 1, 0))
        killed.kill()
        Group(recipe).finish()
        proxy.stage = "eval"
        genlip("eval", str(run_dir))

        proxy.faults = ()
        newest = committed_checkpoints(run_dir)[-1]
        checkpoints = Store(f"{bucket}/checkpoints/{run_dir.name}")
        for file, facts in read_checkpoint(newest).files.items():
            assert hashlib.sha256(checkpoints.read(f"{newest.name}/{file}")).hexdigest() == facts.sha256
        assert audit_run(run_dir).problems == []
        assert visible_files(Store(f"{bucket}/store")) == reference.files

    assert losses(run_dir) == reference.losses
    assert read_metrics(run_dir)[-1]["num_bad_samples"] == 0
    # Each image was asked for once: what was repeated were uploads, not units.
    assert Counter(reference.web.requests.values()) == {1: len(read_corpus(FIXTURES))}
    check_faults(proxy)


def check_faults(proxy: FaultyProxy) -> None:
    """Each fault was met in each stage, and by each kind of request."""
    by_fault: Counter[str] = Counter()
    by_stage: Counter[tuple[str, str]] = Counter()
    kinds: dict[str, set[str]] = {}
    for (stage, kind, fault), number in proxy.met.items():
        by_fault[fault] += number
        by_stage[stage, fault] += number
        kinds.setdefault(kind, set()).add(fault)
    assert all(by_fault[fault] >= 10 for fault in FAULTS), by_fault
    assert all(by_stage[stage, fault] for stage in STAGES for fault in FAULTS), by_stage
    assert all(kinds[kind] >= set(FAULTS) for kind in ("put", "get", "head", "list", "part")), kinds


def test_a_store_that_goes_away_ends_the_command_and_costs_nothing(
    tmp_path: Path, moto: int, reference: Reference
) -> None:
    bucket = new_bucket(moto)
    recipe = write_recipe(tmp_path, reference.urls, f"{bucket}/store", per_host_rate=30)
    store = Store(f"{bucket}/store")
    reference.web.requests.clear()
    with faulty_proxy(moto, seed=3) as proxy:
        proxy.faults = ()
        port = proxy.server_port
        with s3_at(port, GENLIP_STORE_RETRY_S="2"):
            process = start("ingest", str(recipe))
            give_up_at = time.monotonic() + MAX_WAIT_S
            while len(before := store.names("ledger", ".parquet")) < 3:
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < give_up_at
                time.sleep(0.1)
    output, _ = process.communicate(timeout=MAX_WAIT_S)  # the server is down
    assert process.returncode == 3, output
    for said in (f"where: {bucket}/store/", "why:   ", "next:  check the address", "run the same command again"):
        assert said in output

    with faulty_proxy(moto, seed=3, port=port) as proxy, s3_at(port):
        proxy.faults = ()
        genlip("ingest", str(recipe))
        assert visible_files(store) == reference.files
        kept = [urlsplit(url).path for name in before for url in store.read_table(f"ledger/{name}")["url"].to_pylist()]
    assert {reference.web.requests[path] for path in kept} == {1}
